"""The driver of the socket device (5.10)."""

import enum
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.conformance.checks import same
from virtiopy.conformance.clauses.definitions import WRITTEN
from virtiopy.conformance.drivers.base import DeviceDriver, Request
from virtiopy.conformance.problems import BrokenError, NotApplicableError
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.targets.vsock import PORTS, VsockHost
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.driver import Piece

#: The queues (5.10.2).
RX, TX, EVENT = 0, 1, 2

HEADER_SIZE = ffi.sizeof("struct virtio_vsock_hdr")
EVENT_SIZE = ffi.sizeof("struct virtio_vsock_event")
CID_SIZE = ffi.sizeof("struct virtio_vsock_config")

#: The host's context ID, and those that no guest has (5.10.4).
HOST_CID = 2
RESERVED = (0, 1, 2, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)

#: What the driver says that it has room for, bytes, and the payload of its buffers.
ROOM = 1 << 16
BUFFER = 1 << 12


#: A port of the host's at which a program of the suite's listens, and one without.
PORT, NO_PORT = PORTS[0], 0xFFFF_FFF0


class Op(enum.IntEnum):
    """VIRTIO_VSOCK_OP_* (5.10.6)."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Type(enum.IntEnum):
    """VIRTIO_VSOCK_TYPE_* (5.10.6.2)."""

    STREAM = 1
    SEQPACKET = 2


@dataclass(slots=True, frozen=True)
class Packet:
    """struct virtio_vsock_packet (5.10.6.4)."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int
    data: bytes


def packet(
    op: int,
    data: bytes = b"",
    *,
    src_cid: int,
    dst_cid: int = HOST_CID,
    src_port: int = 1000,
    dst_port: int = PORT,
    kind: int = Type.STREAM,
    length: int | None = None,
    flags: int = 0,
    buf_alloc: int = ROOM,
    fwd_cnt: int = 0,
) -> bytes:
    """Return a packet; `length` stands for the payload's own."""
    fields = ffi.new("struct virtio_vsock_hdr *")
    fields.src_cid, fields.dst_cid = src_cid, dst_cid
    fields.src_port, fields.dst_port = src_port, dst_port
    fields.len = len(data) if length is None else length
    fields.type, fields.op, fields.flags = kind, op, flags
    fields.buf_alloc, fields.fwd_cnt = buf_alloc, fwd_cnt
    return bytes(ffi.buffer(fields)) + data


def parse_packet(content: bytes) -> Packet:
    """Take a packet apart, whose payload has to be what is behind the header."""
    it = ffi.from_buffer("struct virtio_vsock_hdr *", content[:HEADER_SIZE])
    data = content[HEADER_SIZE:]
    assert it.len == len(data), f"len is {it.len}, of {len(data)} bytes that were written (5.10.6)"
    return Packet(
        it.src_cid,
        it.dst_cid,
        it.src_port,
        it.dst_port,
        it.type,
        it.op,
        it.flags,
        it.buf_alloc,
        it.fwd_cnt,
        data,
    )


class VsockDriver(DeviceDriver):
    """A driver that talks to programs of the host's."""

    device_id: ClassVar[DeviceId] = DeviceId.SOCKET
    name: ClassVar[str] = "vsock"
    understood = (
        "VIRTIO_VSOCK_F_STREAM",
        "VIRTIO_VSOCK_F_SEQPACKET",
        "VIRTIO_VSOCK_F_NO_IMPLIED_STREAM",
    )
    main_queue = TX
    config_size = CID_SIZE
    # Over vhost-user the VMM has the event queue.
    queues = 2

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._ports = count(20_000)
        self._supplied: dict[int, tuple[Piece, Piece]] = {}
        self._came: list[Packet] = []

    @property
    def vsock_host(self) -> VsockHost:
        """The host's side; not applicable where the suite has no hand in it."""
        host = self.session.host
        if not isinstance(host, VsockHost):
            raise NotApplicableError("the suite has no hand in the host's side of this device")
        return host

    @property
    def guest_cid(self) -> int:
        """The guest's context ID, as the device says now."""
        return self.session.config(0, CID_SIZE)

    # Packets to the device

    def transmission(self, data: bytes) -> Request:
        """Return the request to send a packet as it stands: it is used, with nothing written."""

        def check(content: bytes, length: int) -> None:
            if length:
                raise BrokenError(f"{length} bytes written to a buffer of the tx queue", WRITTEN)

        parts = ([HEADER_SIZE], ())
        return Request(TX, data, 0, check, parts=parts)

    def good_request(self) -> Request:
        """Return a RST for a connection that there is not: it has no answer."""
        data = packet(Op.RST, src_cid=self.guest_cid, src_port=next(self._ports))
        return self.transmission(data)

    def send_packet(self, op: int, data: bytes = b"", **fields: int) -> None:
        """Send a packet, and wait until the device has taken it."""
        fields.setdefault("src_cid", self.guest_cid)
        length = fields.pop("length", len(data))
        self.do(self.transmission(packet(op, data, length=length, **fields)))

    # Packets from the device

    def supply(self, number: int = 1, room: int = BUFFER) -> None:
        """Give the device buffers for packets."""
        session, queue = self.session, self.session.queues[RX]
        for _ in range(number):
            pieces = session.room(HEADER_SIZE), session.room(room)
            head = queue.place(list(pieces))
            self._supplied[head] = pieces
            queue.make_available(head)
        session.kick(RX)

    def take_packets(self) -> list[Packet]:
        """Return the packets that have come since the last call."""
        packets = []
        for used in self.session.queues[RX].take_all_used():
            content = self.session.content(*self._supplied.pop(used.head))
            assert used.length >= HEADER_SIZE, f"a packet of {used.length} bytes (5.10.6)"
            packets.append(parse_packet(content[: used.length]))
        return packets

    def wait_packet(self) -> Packet:
        """Wait for the next packet, and return it."""

        def look() -> bool:
            self._came += self.take_packets()
            return bool(self._came)

        self.session.wait("a packet", look)
        return self._came.pop(0)

    def connect(self, kind: int = Type.STREAM, *, port: int = PORT, room: int = ROOM) -> int:
        """Connect to a program of the suite's, which has to accept; returns the guest's port."""
        guest_port = next(self._ports)
        self.send_packet(Op.REQUEST, kind=kind, src_port=guest_port, dst_port=port, buf_alloc=room)
        answer = self.wait_packet()
        same(answer.op, Op.RESPONSE, "the operation that answers a REQUEST")
        same((answer.src_port, answer.dst_port), (port, guest_port), "its ports")
        return guest_port
