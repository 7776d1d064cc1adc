"""Packets of a socket device's driver, held against 5.10."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from virtiopy.check.fields import FIELDS
from virtiopy.check.judge import DeviceJudge
from virtiopy.check.requests import JudgedDevice, RequestJudge, head_of
from virtiopy.devices.vsock.features import Operation, SocketType, VsockFeature
from virtiopy.devices.vsock.packet import COUNTER, HEADER_SIZE, Header, parse_header
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.buffers import gather, split_at
from virtiopy.virtqueue.queue import Chain, Completion, Virtqueue

_RX, _TX = 0, 1

#: After so many packets of the driver's an answer of its is taken for missing.
_ANSWERS_WITHIN = 16

_CID_SIZE = FIELDS[DeviceId.SOCKET][0].length

#: A connection, as both sides call it: the guest's port, the peer's address and port, the type.
_Name = tuple[int, int, int, int]


@dataclass(slots=True)
class _Connection:
    """What either side has told in a connection: counters run freely (5.10.6.3)."""

    peer_room: int = 0  # buf_alloc
    peer_consumed: int = 0  # fwd_cnt
    sent: int = 0
    received: int = 0


class VsockJudge(RequestJudge):
    """Judges packets of a socket device's driver."""

    device_id: ClassVar[DeviceId] = DeviceId.SOCKET

    def __init__(self, judge: DeviceJudge, device: JudgedDevice) -> None:
        super().__init__(judge, device)
        self._forget()

    def _forget(self) -> None:
        self._connections: dict[_Name, _Connection] = {}
        #: Packets of unknown types that have no answer yet, and how many packets came since.
        self._unanswered: dict[_Name, int] = {}
        #: What guest_cid was before: packets on their way may have it.
        self._cids: set[int] = set()

    # Packets of the driver's

    def request(self, queue: Virtqueue, chain: Chain) -> None:
        """Judge one packet."""
        raw = head_of(chain, HEADER_SIZE)
        if queue.index != _TX or len(raw) < HEADER_SIZE:
            return
        packet = parse_header(raw)
        self._source(packet)
        name = (packet.src_port, packet.dst_cid, packet.dst_port, packet.type)
        if packet.op == Operation.RST:
            self._answered(name)
            self._connections.pop(name, None)
            return
        self._answers_missing()
        if packet.op == Operation.REQUEST:
            self._connections[name] = _Connection()
            self._type(packet)
        connection = self._connections.get(name)
        if connection is not None:
            self._flow(packet, connection)

    def _source(self, packet: Header) -> None:
        cid = self.config(0, _CID_SIZE)
        if cid is None:
            return
        self._cids.add(cid)
        self._judge.check(
            "5.10.6.4.1:1",
            packet.src_cid in self._cids,
            f"a packet from context ID {packet.src_cid}; guest_cid is {cid}",
        )

    def _type(self, packet: Header) -> None:
        if not any(self.accepted(feature) for feature in VsockFeature):
            self._judge.check(
                "5.10.3.1:2",
                packet.type == SocketType.STREAM,
                f"the driver connects a socket of type {packet.type}, and has accepted no feature",
            )

    def _flow(self, packet: Header, connection: _Connection) -> None:
        if packet.op == Operation.RW:
            room = connection.peer_room - (connection.sent - connection.peer_consumed) % COUNTER
            self._judge.check(
                "5.10.6.3.1:1",
                packet.length <= room,
                f"a packet of {packet.length} bytes from port {packet.src_port} to a peer with "
                f"room for {max(0, room)}",
            )
            connection.sent = (connection.sent + packet.length) % COUNTER
        if packet.type == SocketType.STREAM:
            ahead = (packet.fwd_cnt - connection.received) % COUNTER
            self._judge.check(
                "5.10.6.3.1:2",
                ahead == 0 or ahead >= COUNTER // 2,
                f"fwd_cnt {packet.fwd_cnt} from port {packet.src_port}, which was sent "
                f"{connection.received} bytes",
            )

    # Packets of the device's

    def using(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """Follow what the device sends, before the driver has the buffers back."""
        if queue.index != _RX:
            return
        for chain, written in completions:
            if written >= HEADER_SIZE:
                self._came(parse_header(gather(split_at(chain.writable, HEADER_SIZE)[0])))

    def _came(self, packet: Header) -> None:
        name = (packet.dst_port, packet.src_cid, packet.src_port, packet.type)
        if packet.op == Operation.RST:
            # No packet answers one, whatever its type.
            self._connections.pop(name, None)
            return
        if packet.type not in set(SocketType):
            self._unanswered[name] = 0
            return
        if packet.op == Operation.REQUEST:
            self._connections[name] = _Connection()
        connection = self._connections.get(name)
        if connection is None:
            return
        connection.peer_room, connection.peer_consumed = packet.buf_alloc, packet.fwd_cnt
        if packet.op == Operation.RW:
            connection.received = (connection.received + packet.length) % COUNTER

    # Packets of unknown types

    def _answered(self, name: _Name) -> None:
        # The type of the answer is not asked for.
        for one in [one for one in self._unanswered if one[:3] == name[:3]]:
            del self._unanswered[one]
            self._judge.kept("5.10.6.4.1:2")

    def _answers_missing(self) -> None:
        for name in list(self._unanswered):
            self._unanswered[name] += 1
            if self._unanswered[name] > _ANSWERS_WITHIN:
                self._missing(name)

    def _missing(self, name: _Name) -> None:
        del self._unanswered[name]
        self._judge.broke(
            "5.10.6.4.1:2", f"the driver sends no RST for a packet of the unknown type {name[3]}"
        )

    def finish(self, *, by_driver: bool) -> None:
        """Judge what the driver has not answered."""
        for name in list(self._unanswered) if by_driver else ():
            self._missing(name)
        self._forget()
