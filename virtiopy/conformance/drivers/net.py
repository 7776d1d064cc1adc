"""The driver of the network device (5.1)."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.conformance.clauses import features as named
from virtiopy.conformance.clauses.definitions import WRITTEN
from virtiopy.conformance.drivers.base import DeviceDriver, Request
from virtiopy.conformance.problems import (
    BlockedError,
    BrokenError,
    NoAnswerError,
    NotApplicableError,
    StepError,
)
from virtiopy.conformance.report.difference import difference
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.targets.hosts import Link, NetHost
from virtiopy.spec import DeviceId, feature_mask, has_feature

#: Bytes of struct virtio_net_hdr with VERSION_1 (5.1.9).
HEADER_SIZE = ffi.sizeof("struct virtio_net_hdr_v1")

#: What a frame that is sent comes to, and one that is received.
SENT, RECEIVED = "5.1.9.2:1", "5.1.9.4:1"

#: What needs the control queue, which a vhost-user frontend has, and its backend has not.
CONTROLLED = (
    "VIRTIO_NET_F_CTRL_VQ",
    "VIRTIO_NET_F_CTRL_RX",
    "VIRTIO_NET_F_CTRL_VLAN",
    "VIRTIO_NET_F_CTRL_RX_EXTRA",
    "VIRTIO_NET_F_CTRL_MAC_ADDR",
    "VIRTIO_NET_F_CTRL_GUEST_OFFLOADS",
    "VIRTIO_NET_F_GUEST_ANNOUNCE",
    "VIRTIO_NET_F_MQ",
    "VIRTIO_NET_F_RSS",
    "VIRTIO_NET_F_HASH_REPORT",
    "VIRTIO_NET_F_NOTF_COAL",
    "VIRTIO_NET_F_VQ_NOTF_COAL",
)

#: How many pairs of virtqueues there may be, and the statement that says so.
PAIRS_MAX, PAIRS = 0x8000, "5.1.4.1:1"

#: The first pair of virtqueues (5.1.2).
RECEIVEQ, TRANSMITQ = 0, 1

#: What a receive buffer holds that any frame fits into (5.1.9.3.1): 65550 bytes and the header.
RECEIVE_SIZE = 65550 + HEADER_SIZE

BROADCAST = b"\xff" * 6

#: An address that is no device's here, and the EtherType of local experiments.
OTHER_MAC = bytes.fromhex("020000000099")
ETHERTYPE = b"\x88\xb5"


class Ack(enum.IntEnum):
    """VIRTIO_NET_OK and VIRTIO_NET_ERR (5.1.9.5)."""

    OK = 0
    ERR = 1


class Command(enum.Enum):
    """Commands of the control virtqueue, as class and command (5.1.9.5)."""

    PROMISC = 0, 0
    ALLMULTI = 0, 1
    ALLUNI = 0, 2
    NOMULTI = 0, 3
    NOUNI = 0, 4
    NOBCAST = 0, 5
    MAC_TABLE_SET = 1, 0
    MAC_ADDR_SET = 1, 1
    VLAN_ADD = 2, 0
    VLAN_DEL = 2, 1
    ANNOUNCE_ACK = 3, 0
    MQ_VQ_PAIRS_SET = 4, 0
    MQ_RSS_CONFIG = 4, 1
    NOTF_COAL_TX_SET = 6, 0
    NOTF_COAL_RX_SET = 6, 1
    NOTF_COAL_VQ_SET = 6, 2
    NOTF_COAL_VQ_GET = 6, 3


class HeaderFlag(enum.IntFlag):
    """VIRTIO_NET_HDR_F_* (5.1.9)."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4
    UDP_TUNNEL_CSUM = 8
    SECURITY = 16
    SECURITY_ERR = 32
    SECURITY_SA_SOFT_EXPIRY_WARN = 64


class Gso(enum.IntFlag):
    """VIRTIO_NET_HDR_GSO_* (5.1.9); the last three are bits beside the others."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5
    UDP_TUNNEL_IPV4 = 0x20
    UDP_TUNNEL_IPV6 = 0x40
    ECN = 0x80


#: A gso_type that has no meaning.
UNKNOWN_GSO = 2


@dataclass(slots=True, frozen=True)
class Header:
    """struct virtio_net_hdr (5.1.9)."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def encode(self) -> bytes:
        """Return its bytes."""
        fields = [
            self.flags,
            self.gso_type,
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        ]
        return bytes(ffi.buffer(ffi.new("struct virtio_net_hdr_v1 *", fields)))

    @classmethod
    def decode(cls, data: bytes) -> "Header":
        """Take the first bytes of a buffer apart."""
        it = ffi.from_buffer("struct virtio_net_hdr_v1 *", data[:HEADER_SIZE])
        return cls(
            it.flags,
            it.gso_type,
            it.hdr_len,
            it.gso_size,
            it.csum_start,
            it.csum_offset,
            it.num_buffers,
        )


NO_OFFLOADS = Header()


class NetDriver(DeviceDriver):
    """A driver that sends and receives frames by the first pair of virtqueues."""

    device_id: ClassVar[DeviceId] = DeviceId.NETWORK
    name: ClassVar[str] = "net"
    config_size = 8
    queues = 2  # 5.1.2

    @classmethod
    def count_queues(cls, said: int | None, features: int) -> int:
        """Return how many virtqueues there are: the backend counts pairs, and not controlq."""
        has_controls = features & feature_mask(named.bits(["VIRTIO_NET_F_CTRL_VQ"]))
        more_pairs = features & feature_mask(named.bits(["VIRTIO_NET_F_MQ", "VIRTIO_NET_F_RSS"]))
        return 2 * ((said or 1) if more_pairs else 1) + bool(has_controls)

    understood = (
        "VIRTIO_NET_F_CSUM",
        "VIRTIO_NET_F_GUEST_CSUM",
        "VIRTIO_NET_F_MTU",
        "VIRTIO_NET_F_MAC",
        "VIRTIO_NET_F_GUEST_TSO4",
        "VIRTIO_NET_F_GUEST_TSO6",
        "VIRTIO_NET_F_GUEST_ECN",
        "VIRTIO_NET_F_GUEST_UFO",
        "VIRTIO_NET_F_HOST_TSO4",
        "VIRTIO_NET_F_HOST_TSO6",
        "VIRTIO_NET_F_HOST_ECN",
        "VIRTIO_NET_F_HOST_UFO",
        "VIRTIO_NET_F_MRG_RXBUF",
        "VIRTIO_NET_F_STATUS",
        "VIRTIO_NET_F_CTRL_VQ",
        "VIRTIO_NET_F_CTRL_RX",
        "VIRTIO_NET_F_CTRL_VLAN",
        "VIRTIO_NET_F_CTRL_RX_EXTRA",
        "VIRTIO_NET_F_GUEST_ANNOUNCE",
        "VIRTIO_NET_F_MQ",
        "VIRTIO_NET_F_CTRL_MAC_ADDR",
    )

    main_queue: ClassVar[int] = TRANSMITQ

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._seeds = count(1)
        if session.transport == "vhost-user" and not self.has_link:
            # A backend in another process has the queues of frames alone.
            session.withheld |= feature_mask(named.bits(CONTROLLED))

    def with_features(self, *names: str) -> list[int]:
        """Return the feature bits that are negotiated by default, and these."""
        mask = self.session.wanted(None) | feature_mask(named.bits(names))
        return [bit for bit in range(mask.bit_length()) if has_feature(mask, bit)]

    # Frames

    @property
    def mac(self) -> bytes:
        """The device's MAC address, where it offers one; else one that any driver may choose."""
        if self.session.has("VIRTIO_NET_F_MAC"):
            return self.session.read_config(0, 6)
        return bytes.fromhex("020000000001")

    def frame(
        self, size: int = 60, *, destination: bytes = BROADCAST, source: bytes = OTHER_MAC
    ) -> bytes:
        """Return an Ethernet frame that is unlike those before it."""
        seed = next(self._seeds).to_bytes(4, "big")
        return (destination + source + ETHERTYPE + seed * (size // 4))[:size]

    @property
    def link(self) -> Link:
        """The host's end of the link; not applicable where the suite has no hand in it."""
        if not isinstance(self.session.host, NetHost):
            raise NotApplicableError("the suite does not have the other end of this backend's link")
        return self.session.host.link

    @property
    def has_link(self) -> bool:
        """Whether the suite sees frames, and can inject them."""
        return isinstance(self.session.host, NetHost)

    # Requests

    def transmission(
        self,
        frame: bytes,
        header: Header = NO_OFFLOADS,
        queue: int = TRANSMITQ,
        *,
        next_out: bool = True,
    ) -> Request:
        """Return a request to send a frame, which has to come out of the link.

        It has to be the next to come out, unless told otherwise.
        """

        def check(content: bytes, length: int) -> None:
            self.check_sent(content, length)
            if not self.has_link:
                return
            while (sent := self.link.sent(queue // 2, seconds=self.session.patience)) is not None:
                if sent[HEADER_SIZE:] == frame:
                    return
                if next_out:
                    raise StepError(f"another frame came out: {sent[:64].hex(' ', 4)}", SENT)
            raise NoAnswerError("the frame did not come out of the link", SENT)

        return Request(queue, header.encode() + frame, 0, check)

    def reception(
        self, frame: bytes, header: Header = NO_OFFLOADS, room: int = RECEIVE_SIZE
    ) -> Request:
        """Return a request to receive a frame that the link gets once the buffer is there."""

        def check(content: bytes, length: int) -> None:
            if length != HEADER_SIZE + len(frame):
                what = f"of a frame of {len(frame)} and its header"
                raise StepError(f"{length} bytes received, {what}", RECEIVED)
            if wrong := difference(content[HEADER_SIZE:length], frame):
                raise StepError(f"another frame was received: {wrong}", RECEIVED)
            assert Header.decode(content).num_buffers == 1, "num_buffers is not 1 (5.1.9.4.1)"

        return Request(
            RECEIVEQ, b"", room, check, lambda: self.link.inject(header.encode() + frame)
        )

    def good_request(self) -> Request:
        """Return a request to send a frame, whatever else is sent before it."""
        return self.transmission(self.frame(), next_out=False)

    def requests(self) -> list[Request]:
        """Return requests to send a frame, and to receive one where the suite has the link."""
        requests = [self.good_request()]
        if self.has_link:
            requests.append(self.reception(self.frame(destination=self.mac)))
        if self.control_queue is not None and self.session.has("VIRTIO_NET_F_CTRL_RX"):
            requests.append(self.command(0, 0, b"\0"))
        return requests

    # The control virtqueue (5.1.9.5)

    @property
    def control_queue(self) -> int | None:
        """The index of controlq (5.1.2); None where CTRL_VQ was not negotiated."""
        if not self.session.has("VIRTIO_NET_F_CTRL_VQ"):
            return None
        pairs = self.session.config(8, 2) if self.session.has("VIRTIO_NET_F_MQ") else 1
        if not 1 <= pairs <= PAIRS_MAX:
            raise BlockedError(PAIRS)
        return 2 * pairs

    def command(self, kind: int, command: int, data: bytes, *, ack: int | None = Ack.OK) -> Request:
        """Return a control command, which has to be answered with this `ack`; None takes any."""
        queue = self.control_queue
        assert queue is not None, "a control command without VIRTIO_NET_F_CTRL_VQ"

        def check(content: bytes, length: int) -> None:
            if ack is not None:
                assert content[0] == ack, f"ack {content[0]}, not {ack}"
            assert length == 1, f"{length} bytes written, of a byte of ack"

        return Request(queue, bytes([kind, command]) + data, 1, check)

    def control(self, command: Command, data: bytes = b"", *, ack: int = Ack.OK) -> None:
        """Send a control command, and wait until it was answered, with this `ack`."""
        self.do(self.command(*command.value, data, ack=ack))

    # What comes of a frame that is sent

    def outcome(self, frame: bytes, header: Header = NO_OFFLOADS) -> list[tuple[Header, bytes]]:
        """Send a frame and then another one; returns what comes out of the link before that."""
        self.do(Request(TRANSMITQ, header.encode() + frame, 0, self.check_sent))
        marker = self.frame()
        self.do(Request(TRANSMITQ, NO_OFFLOADS.encode() + marker, 0, self.check_sent))
        out: list[tuple[Header, bytes]] = []
        while (sent := self.link.sent(seconds=self.session.patience)) is not None:
            if sent[HEADER_SIZE:] == marker:
                return out
            out.append((Header.decode(sent), sent[HEADER_SIZE:]))
        raise NoAnswerError("a plain frame did not come out of the link", SENT)

    @staticmethod
    def check_sent(content: bytes, length: int) -> None:
        """Check the answer to a frame that was sent: there is none but that it was used."""
        if length:
            raise BrokenError(f"{length} bytes written to a transmit buffer", WRITTEN)


def mac_table(unicast: Sequence[bytes] = (), multicast: Sequence[bytes] = ()) -> bytes:
    """Return the two struct virtio_net_ctrl_mac of MAC_TABLE_SET (5.1.9.5.2)."""
    return b"".join(
        len(macs).to_bytes(4, "little") + b"".join(macs) for macs in (unicast, multicast)
    )
