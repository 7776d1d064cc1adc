"""The network device (5.1), driven over its registers, on a link that the tests hold."""

import errno
import itertools
import select
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtiopy._native import lib
from virtiopy.devices.net import Net, RecordedLink
from virtiopy.devices.net.control import (
    Ack,
    AnnounceCommand,
    ControlClass,
    MacCommand,
    MqCommand,
    RxCommand,
    VlanCommand,
)
from virtiopy.devices.net.device import Status
from virtiopy.devices.net.features import REQUIREMENTS, NetFeature
from virtiopy.devices.net.header import GsoType, HeaderFlag
from virtiopy.devices.net.path import BUDGET
from virtiopy.eventloop import READABLE, WRITABLE, EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature, has_feature
from virtiopy.transport.driver import MmioDriver, NegotiationError
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.buffers import Buffers, scatter, total
from virtiopy.virtqueue.driver import Allocator, Piece, Used

MAC = bytes.fromhex("020000000001")
OTHER_MAC = bytes.fromhex("020000000002")
GROUP = bytes.fromhex("01005e000001")
BROADCAST = b"\xff" * 6
MTU = 1500
HEADER = 12
LONGEST = MTU + 14
RX, TX, CTRL = 0, 1, 2

F = NetFeature
CSUM, MRG = F.VIRTIO_NET_F_CSUM, F.VIRTIO_NET_F_MRG_RXBUF
CTRL_RX = (F.VIRTIO_NET_F_CTRL_VQ, F.VIRTIO_NET_F_CTRL_RX, F.VIRTIO_NET_F_CTRL_RX_EXTRA)
CTRL_MAC = (F.VIRTIO_NET_F_CTRL_VQ, F.VIRTIO_NET_F_CTRL_RX, F.VIRTIO_NET_F_CTRL_MAC_ADDR)
CTRL_VLAN = (F.VIRTIO_NET_F_CTRL_VQ, F.VIRTIO_NET_F_CTRL_VLAN)
MQ = (F.VIRTIO_NET_F_CTRL_VQ, F.VIRTIO_NET_F_MQ)
ANNOUNCE = (F.VIRTIO_NET_F_CTRL_VQ, F.VIRTIO_NET_F_STATUS, F.VIRTIO_NET_F_GUEST_ANNOUNCE)
TSO = (CSUM, F.VIRTIO_NET_F_HOST_TSO4, F.VIRTIO_NET_F_HOST_TSO6)
GUEST_TSO = (F.VIRTIO_NET_F_GUEST_CSUM, F.VIRTIO_NET_F_GUEST_TSO4, F.VIRTIO_NET_F_GUEST_TSO6)

NEEDS_CSUM = HeaderFlag.NEEDS_CSUM

#: struct virtio_net_config (5.1.4): offset and size of each field
CONFIG_MAC, CONFIG_STATUS, CONFIG_PAIRS, CONFIG_MTU = (0, 6), (6, 2), (8, 2), (10, 2)


def header(  # noqa: PLR0917 - as in the struct
    flags: int = 0,
    gso_type: int = 0,
    hdr_len: int = 0,
    gso_size: int = 0,
    csum_start: int = 0,
    csum_offset: int = 0,
    num_buffers: int = 0,
) -> bytes:
    """struct virtio_net_hdr (5.1.9)."""
    return struct.pack(
        "<BBHHHHH", flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
    )


def frame(
    length: int = 60, destination: bytes = MAC, seed: int = 1, vlan: int | None = None
) -> bytes:
    """An Ethernet frame, every part of which is unlike the others'."""
    start = destination + OTHER_MAC
    if vlan is not None:
        start += b"\x81\x00" + vlan.to_bytes(2, "big")
    start += b"\x88\xb5"
    body = b"".join(struct.pack("<HH", seed & 0xFFFF, n) for n in range(length // 4 + 1))
    return (start + body)[:length]


class FakeLink:
    """A link whose frames come from and go to lists."""

    name = "fake"

    def __init__(self, mtu: int = MTU, pairs: int = 1) -> None:
        self.mtu = mtu
        self.pairs = pairs
        self.incoming: list[deque[bytes]] = [deque() for _ in range(pairs)]
        self.sent: list[list[bytes]] = [[] for _ in range(pairs)]
        self.room = 1 << 30
        self.write_error: OSError | None = None
        self.read_error: OSError | None = None
        self.up = True
        self.offloads: set[str] = set()
        self.enabled = 0
        self.closed = False
        self.meddle: Callable[[], None] = lambda: None

    def fileno(self, pair: int) -> int:
        return 100 + pair

    def state_fileno(self) -> int:
        return 99

    def read(self, pair: int, buffers: Buffers) -> int:
        if self.read_error is not None:
            raise self.read_error
        if not self.incoming[pair]:
            raise BlockingIOError
        return scatter(buffers, self.incoming[pair].popleft())

    def write(self, pair: int, buffers: Sequence[bytes | memoryview]) -> None:
        self.meddle()
        if self.write_error is not None:
            raise self.write_error
        if self.room == 0:
            raise BlockingIOError
        self.room -= 1
        self.sent[pair].append(b"".join(buffers))

    def set_offloads(self, **offloads: bool) -> None:
        self.offloads = {name for name, wanted in offloads.items() if wanted}

    def set_pairs(self, count: int) -> None:
        self.enabled = count

    def worker_file(self, pair: int, mtu: int) -> int:
        return self.fileno(pair)

    def is_up(self) -> bool:
        return self.up

    def dropped(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


class FakeWatch:
    def __init__(self, events: int, callback: Callable[[int], None]) -> None:
        self.events = events
        self.callback = callback
        self.fd = -1


class FakeBottomHalf:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.scheduled = False

    def schedule(self) -> None:
        self.scheduled = True

    def run(self) -> None:
        self.scheduled = False
        self.callback()


class FakeLoop:
    """An event loop whose events the tests make."""

    def __init__(self) -> None:
        self.watches: dict[int, FakeWatch] = {}
        self.bottom_halves: list[FakeBottomHalf] = []

    def watch(self, fd: int, events: int, callback: Callable[[int], None], name: str) -> FakeWatch:
        assert fd not in self.watches
        watch = FakeWatch(events, callback)
        watch.fd = fd
        self.watches[fd] = watch
        return watch

    def unwatch(self, watch: FakeWatch) -> None:
        self.watches.pop(watch.fd, None)

    def bottom_half(self, callback: Callable[[], None], name: str) -> FakeBottomHalf:
        self.bottom_halves.append(FakeBottomHalf(callback))
        return self.bottom_halves[-1]


#: Those of the test that runs.
RIGS: list["Rig"] = []


@pytest.fixture(autouse=True)
def _closed_rigs() -> Iterator[None]:
    yield
    while RIGS:
        RIGS.pop().memory.close()


class Rig:
    """A network device, its link, its loop and its driver."""

    def __init__(
        self,
        features: Iterable[int] | None = (),
        *,
        mtu: int = MTU,
        pairs: int = 1,
        queue_size: int = 64,
    ) -> None:
        self.link = FakeLink(mtu, pairs)
        self.loop = FakeLoop()
        self.device = Net(self.link, mac=MAC, queue_size=queue_size)
        self.memory = GuestMemory.allocate(16 << 20)
        RIGS.append(self)
        self.lines: list[bool] = []
        #: The pieces of each receive buffer, by its head.
        self.buffers: dict[int, list[Piece]] = {}
        self.transport = MmioTransport(self.device, self.memory, LevelInterrupt(self.lines.append))
        self.device.attach(self.transport.lifecycle, cast("EventLoop", self.loop), may_block=False)
        self.driver = MmioDriver(self.transport, self.memory, Allocator(0x10000, 16 << 20))
        if features is not None:
            self.driver.start(features)

    # Transmission

    def send(self, *pieces: bytes, queue: int = TX) -> list[Used]:
        """Make a chain of these pieces available to transmitq1 and kick it."""
        self.offer(*pieces, queue=queue)
        return self.driver.collect(queue)

    def offer(self, *pieces: bytes, queue: int = TX) -> int:
        chain = []
        for piece in pieces:
            address = self.driver.allocator.take(max(1, len(piece)))
            self.memory.write(address, piece)
            chain.append(Piece(address, len(piece)))
        return self.driver.queues[queue].add(chain)

    @property
    def sent(self) -> list[bytes]:
        return self.link.sent[0]

    # Reception

    def supply(self, *sizes: int, queue: int = RX) -> None:
        """Make a receive buffer of these pieces available, and do not kick."""
        pieces = [Piece(self.driver.allocator.take(size), size, writable=True) for size in sizes]
        for piece in pieces:
            self.memory.write(piece.address, b"\xee" * piece.length)
        self.buffers[self.driver.queues[queue].add(pieces)] = pieces

    def arrive(self, *frames: bytes, header_: bytes | None = None, pair: int = 0) -> None:
        """Let frames come, and the loop see them, if it looks."""
        self.link.incoming[pair] += [(header_ or header()) + content for content in frames]
        self.ready(READABLE, pair)

    def ready(self, events: int, pair: int = 0) -> None:
        """Tell the device of events that it waits for."""
        watch = self.loop.watches.get(100 + pair)
        if watch is not None and watch.events & events:
            watch.callback(watch.events & events)

    def watched(self, pair: int = 0) -> int:
        """What the device waits for."""
        watch = self.loop.watches.get(100 + pair)
        return watch.events if watch else 0

    def received(self, queue: int = RX) -> list[bytes]:
        """The contents of the used buffers, as far as they were written."""
        contents = []
        for used in self.driver.queues[queue].take_all_used():
            pieces = self.buffers[used.head]
            content = b"".join(self.memory.read(piece.address, piece.length) for piece in pieces)
            contents.append(content[: used.length])
        return contents

    # Control

    def command(self, class_: int, command: int, data: bytes = b"") -> int:
        """Send a control command; returns its ack."""
        address = self.driver.allocator.take(2 + len(data) + 1)
        self.memory.write(address, bytes([class_, command]) + data + b"\xee")
        queue = max(self.driver.queues) if MQ[1] in self.offered_and_taken() else CTRL
        self.driver.queues[queue].add(
            [Piece(address, 2 + len(data)), Piece(address + 2 + len(data), 1, writable=True)]
        )
        assert [used.length for used in self.driver.collect(queue)] == [1]
        return self.memory.read(address + 2 + len(data), 1)[0]

    def offered_and_taken(self) -> set[int]:
        return {bit for bit in NetFeature if has_feature(self.driver.features, bit)}

    def use_pairs(self, count: int) -> None:
        data = count.to_bytes(2, "little")
        assert self.command(ControlClass.MQ, MqCommand.VQ_PAIRS_SET, data) == Ack.OK

    def reset_queue(self, index: int) -> None:
        self.driver.write(Register.QueueSel, index)
        self.driver.write(Register.QueueReset, 1)

    def mode(self, mode: RxCommand, value: int = 1) -> None:
        assert self.command(ControlClass.RX, mode, bytes([value])) == Ack.OK

    def config(self, field: tuple[int, int]) -> int:
        offset, size = field
        return int.from_bytes(
            b"".join(self.transport.read(Register.Config + offset + n, 1) for n in range(size)),
            "little",
        )

    @property
    def dropped(self) -> dict[str, int]:
        """The counters that are not 0, but for those of what went well."""
        fine = {"rx_frames", "tx_frames", "ctrl_commands"}
        return {k: v for k, v in self.device.counters().items() if v and k not in fine}


def wanted(rig: Rig, content: bytes) -> bool:
    """Say whether a frame gets through to the driver."""
    rig.supply(2048)
    rig.driver.kick(RX)
    before = rig.device.counts.rx_frames
    rig.arrive(content)
    rig.received()
    return rig.device.counts.rx_frames > before


# Numbers


def test_the_feature_bits_are_the_kernels() -> None:
    assert {feature.name: int(feature) for feature in NetFeature} == {
        feature.name: getattr(lib, feature.name) for feature in NetFeature
    }


@pytest.mark.parametrize(
    ("prefix", "members"),
    [
        ("VIRTIO_NET_CTRL_", ControlClass),
        ("VIRTIO_NET_CTRL_RX_", RxCommand),
        ("VIRTIO_NET_CTRL_MAC_", MacCommand),
        ("VIRTIO_NET_CTRL_VLAN_", VlanCommand),
        ("VIRTIO_NET_CTRL_ANNOUNCE_", AnnounceCommand),
        ("VIRTIO_NET_CTRL_MQ_", MqCommand),
        ("VIRTIO_NET_", Ack),
        ("VIRTIO_NET_S_", Status),
        ("VIRTIO_NET_HDR_F_", HeaderFlag),
        ("VIRTIO_NET_HDR_GSO_", GsoType),
    ],
)
def test_every_other_number_is_the_kernels(prefix: str, members: Iterable[int]) -> None:
    for member in members:
        assert int(member) == getattr(lib, f"{prefix}{member.name}")  # type: ignore[attr-defined]


# Features and configuration space


def test_a_device_with_one_pair_offers_no_mq_and_has_three_queues() -> None:
    rig = Rig(None)
    assert not has_feature(rig.driver.offered_features(), F.VIRTIO_NET_F_MQ)
    assert [rig.driver.queue_size_max(n) for n in range(4)] == [64, 64, 64, 0]


def test_every_feature_can_be_taken_together() -> None:
    rig = Rig(None, pairs=2)
    rig.driver.negotiate()
    assert rig.offered_and_taken() == set(NetFeature)


@pytest.mark.parametrize("feature", REQUIREMENTS)
def test_a_feature_without_what_it_requires_is_refused(feature: NetFeature) -> None:
    rig = Rig(None, pairs=2)
    with pytest.raises(NegotiationError):
        rig.driver.negotiate([feature])


def test_the_configuration_space_has_mac_status_pairs_and_mtu() -> None:
    rig = Rig(mtu=9000, pairs=3)
    assert rig.config(CONFIG_MAC).to_bytes(6, "little") == MAC
    assert rig.config(CONFIG_STATUS) == Status.LINK_UP
    assert rig.config(CONFIG_PAIRS) == 3
    assert rig.config(CONFIG_MTU) == 9000


def test_the_driver_cannot_write_the_configuration_space() -> None:
    rig = Rig()
    for offset in range(12):
        rig.driver.write_config(offset, 1, 0x55)
    assert rig.config(CONFIG_MAC).to_bytes(6, "little") == MAC


@pytest.mark.parametrize(
    ("features", "offloads"),
    [
        ((), set()),
        ((F.VIRTIO_NET_F_GUEST_CSUM,), {"checksum"}),
        (GUEST_TSO, {"checksum", "tso4", "tso6"}),
        ((*GUEST_TSO, F.VIRTIO_NET_F_GUEST_ECN), {"checksum", "tso4", "tso6", "ecn"}),
    ],
)
def test_the_link_is_told_what_the_driver_takes(
    features: Iterable[int], offloads: set[str]
) -> None:
    assert Rig(features).link.offloads == offloads


def test_a_reset_takes_the_offloads_back() -> None:
    rig = Rig(GUEST_TSO)
    rig.driver.reset()
    assert rig.link.offloads == set()


# Transmission (5.1.9.2)


@pytest.mark.parametrize("length", [14, 60, LONGEST])
def test_a_frame_is_sent_with_its_header(length: int) -> None:
    rig = Rig()
    used = rig.send(header() + frame(length))
    assert [entry.length for entry in used] == [0]
    assert rig.sent == [header() + frame(length)]
    assert rig.device.counts.tx_frames == 1
    assert rig.dropped == {}


@given(cuts=st.lists(st.integers(0, HEADER + 60), max_size=8))
def test_a_frame_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    rig = Rig(TSO)
    content = header(NEEDS_CSUM, csum_start=34, csum_offset=6) + frame(60)
    edges = [0, *sorted(cuts), len(content)]
    rig.send(*(content[a:b] for a, b in itertools.pairwise(edges)))
    assert rig.sent == [content]


def test_a_frame_in_more_pieces_than_a_system_call_takes_is_sent() -> None:
    rig = Rig(queue_size=2048)
    content = header() + frame(LONGEST)
    rig.send(*(content[n : n + 1] for n in range(len(content))))
    assert rig.sent == [content]


def test_a_frame_with_a_vlan_tag_may_be_longer_by_the_tag() -> None:
    rig = Rig()
    rig.send(header() + frame(LONGEST + 4, vlan=5))
    assert len(rig.sent) == 1


#: Tags of IEEE 802.1Q and 802.1ad, as they follow the addresses; with their lengths.
TAGS = [b"", b"\x81\0\0\6", b"\x88\xa8\0\5\x81\0\0\6", b"\x88\xa8\0\5" * 3 + b"\x81\0\0\6"]


def tagged(tags: bytes, payload: int) -> bytes:
    """A frame with these tags and so many bytes of payload."""
    return MAC + bytes.fromhex("020000000002") + tags + b"\x88\xb5" + bytes(payload)


@pytest.mark.parametrize("tags", TAGS, ids=len)
@pytest.mark.parametrize("features", [(), (F.VIRTIO_NET_F_MTU,)], ids=["no mtu", "mtu"])
def test_mtu_counts_the_payload_whatever_the_header_is(
    tags: bytes, features: tuple[int, ...]
) -> None:
    rig = Rig(features)
    rig.send(header() + tagged(tags, MTU))
    assert [len(content) for content in rig.sent] == [len(header()) + 14 + len(tags) + MTU]
    assert wanted(rig, tagged(tags, MTU))


@pytest.mark.parametrize("tags", TAGS, ids=len)
def test_a_payload_longer_than_a_negotiated_mtu_is_dropped_under_any_tags(tags: bytes) -> None:
    rig = Rig([F.VIRTIO_NET_F_MTU])
    rig.send(header() + tagged(tags, MTU + 1))
    assert rig.dropped == {"tx_dropped_too_long": 1}


def test_without_a_negotiated_mtu_no_frame_is_too_long() -> None:
    rig = Rig()
    rig.send(header() + tagged(b"", 9000))
    assert len(rig.sent) == 1


@pytest.mark.parametrize("tags", TAGS, ids=len)
def test_segments_of_a_full_payload_are_sent_under_any_tags(tags: bytes) -> None:
    rig = Rig([*TSO, F.VIRTIO_NET_F_MTU])
    tcp = 34 + len(tags)
    offload = header(NEEDS_CSUM, GsoType.TCPV4, tcp + 20, 1460, tcp, 16)
    rig.send(offload + tagged(tags, 4000))
    assert len(rig.sent) == 1, rig.dropped


@pytest.mark.parametrize(
    ("content", "counter"),
    [
        (b"", "tx_dropped_header"),
        (header()[:11], "tx_dropped_header"),
        (header(), "tx_dropped_too_short"),
        (header() + frame(13), "tx_dropped_too_short"),
        (header() + frame(LONGEST + 1), "tx_dropped_too_long"),
        (header() + frame(LONGEST + 5, vlan=5), "tx_dropped_too_long"),
    ],
)
def test_a_frame_of_no_lawful_length_is_dropped_and_its_buffer_returned(
    content: bytes, counter: str
) -> None:
    rig = Rig([F.VIRTIO_NET_F_MTU])
    assert [used.length for used in rig.send(content)] == [0]
    assert rig.sent == []
    assert rig.dropped == {counter: 1}
    rig.send(header() + frame())
    assert len(rig.sent) == 1


def test_a_buffer_that_the_device_may_only_write_is_no_frame() -> None:
    rig = Rig()
    rig.driver.queues[TX].add([Piece(0x1000, 100, writable=True)])
    assert [used.length for used in rig.driver.collect(TX)] == [0]
    assert rig.dropped == {"tx_dropped_header": 1}


LIES = {
    "checksum outside of the frame": header(NEEDS_CSUM, csum_start=34, csum_offset=100),
    "checksum that ends outside": header(NEEDS_CSUM, csum_start=34, csum_offset=65),
    "checksum at the top of the range": header(NEEDS_CSUM, csum_start=0xFFFF, csum_offset=0xFFFF),
    "checksum in the Ethernet header": header(NEEDS_CSUM, csum_start=13, csum_offset=6),
    "segmentation without a checksum": header(0, GsoType.TCPV4, 54, 1000),
    "segments of no size": header(NEEDS_CSUM, GsoType.TCPV4, 54, 0, 34, 16),
    "segments beyond the MTU": header(NEEDS_CSUM, GsoType.TCPV4, 54, 1465, 34, 16),
    "segments of the largest size": header(NEEDS_CSUM, GsoType.TCPV6, 74, 0xFFFF, 34, 16),
    "unknown gso_type": header(NEEDS_CSUM, 2, 54, 1000, 34, 16),
    "deprecated gso_type": header(NEEDS_CSUM, 3, 54, 1000, 34, 16),
    "UDP_L4": header(NEEDS_CSUM, 5, 54, 1000, 34, 16),
    "a tunnel": header(NEEDS_CSUM, 0x21, 54, 1000, 34, 16),
    "ECN that was not negotiated": header(
        NEEDS_CSUM, GsoType.TCPV4 | GsoType.ECN, 54, 1000, 34, 16
    ),
    "ECN and nothing else": header(NEEDS_CSUM, GsoType.ECN, 54, 1000, 34, 16),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_not_believed(lie: str) -> None:
    rig = Rig([*TSO, F.VIRTIO_NET_F_MTU])
    assert [used.length for used in rig.send(LIES[lie] + frame(100))] == [0]
    assert rig.sent == []
    assert rig.dropped == {"tx_dropped_header": 1}


@pytest.mark.parametrize("features", [(), (CSUM,)])
def test_offloads_that_were_not_negotiated_are_refused(features: Iterable[int]) -> None:
    rig = Rig(features)
    rig.send(header(NEEDS_CSUM, GsoType.TCPV4, 54, 1000, 34, 16) + frame(3000))
    assert rig.dropped == {"tx_dropped_header": 1}


def test_a_partial_checksum_is_for_the_link() -> None:
    rig = Rig([CSUM])
    content = header(NEEDS_CSUM, csum_start=34, csum_offset=6) + frame()
    rig.send(content)
    assert rig.sent == [content]


@pytest.mark.parametrize("gso_type", [GsoType.TCPV4, GsoType.TCPV6, GsoType.TCPV4 | GsoType.ECN])
def test_a_frame_to_be_segmented_may_be_long(gso_type: int) -> None:
    rig = Rig([*TSO, F.VIRTIO_NET_F_HOST_ECN])
    content = header(NEEDS_CSUM, gso_type, 54, 1448, 34, 16) + frame(60000)
    rig.send(content)
    assert rig.sent == [content]


def test_a_frame_too_long_even_to_be_segmented_is_dropped() -> None:
    rig = Rig(TSO)
    rig.send(header(NEEDS_CSUM, GsoType.TCPV6, 74, 1428, 54, 16) + frame(65590))
    assert rig.dropped == {"tx_dropped_too_long": 1}


def test_flags_that_nobody_knows_are_ignored() -> None:
    """5.1.9.2.2: the device MUST ignore flag bits that it does not recognize."""
    rig = Rig([CSUM])
    rig.send(header(0xFE) + frame())
    assert rig.sent == [header() + frame()]


def test_csum_start_means_nothing_without_needs_csum() -> None:
    rig = Rig([CSUM])
    rig.send(header(0, csum_start=0xFFFF, csum_offset=0xFFFF) + frame())
    assert rig.sent == [header() + frame()]


def test_num_buffers_is_unused_in_what_is_sent() -> None:
    """5.1.9.2: the driver sets it to zero; this field is unused on transmitted packets."""
    rig = Rig()
    rig.send(header(num_buffers=0xFFFF) + frame())
    assert rig.sent == [header() + frame()]


def test_a_hdr_len_beyond_the_frame_is_not_relied_on() -> None:
    """5.1.9.2.2: the device MUST NOT rely on hdr_len to be correct."""
    rig = Rig(TSO)
    rig.send(header(NEEDS_CSUM, GsoType.TCPV4, 0xFFFF, 1000, 34, 16) + frame(3000))
    assert rig.sent == [header(NEEDS_CSUM, GsoType.TCPV4, 3000, 1000, 34, 16) + frame(3000)]


def test_a_header_that_changes_after_the_check_is_sent_as_it_was_checked() -> None:
    rig = Rig([CSUM])
    head = rig.offer(header() + frame())
    address = rig.driver.queues[TX].descriptors[head].addr
    rig.link.meddle = lambda: rig.memory.write(address, b"\xff" * HEADER)
    rig.driver.kick(TX)
    assert rig.sent == [header() + frame()]


def test_frames_wait_when_the_link_has_no_room_and_go_in_order_when_it_has() -> None:
    rig = Rig()
    rig.link.room = 2
    frames = [header() + frame(seed=n) for n in range(5)]
    for content in frames[:4]:
        rig.offer(content)
    assert len(rig.driver.collect(TX)) == 2
    assert rig.watched() & WRITABLE
    assert rig.device.counts.tx_waits == 1

    rig.send(frames[4])
    rig.link.room = 10
    rig.ready(WRITABLE)

    assert rig.sent == frames
    assert len(rig.driver.queues[TX].take_all_used()) == 3
    assert not rig.watched() & WRITABLE
    assert rig.dropped == {"tx_waits": 2}


def test_a_frame_that_waits_is_forgotten_by_a_reset() -> None:
    rig = Rig()
    rig.link.room = 0
    rig.send(header() + frame())
    rig.driver.reset()
    rig.link.room = 10
    rig.driver.start([])
    rig.send(header() + frame(seed=7))
    assert rig.sent == [header() + frame(seed=7)]


@pytest.mark.parametrize(
    ("error", "counter"),
    [
        (errno.EIO, "tx_dropped_link_down"),
        (errno.EBADFD, "tx_dropped_link_down"),
        (errno.EINVAL, "tx_dropped_refused"),
        (errno.ENOMEM, "tx_dropped_refused"),
    ],
)
def test_a_frame_that_the_host_refuses_is_counted_and_its_buffer_returned(
    error: int, counter: str
) -> None:
    rig = Rig()
    rig.link.write_error = OSError(error, "refused")
    assert len(rig.send(header() + frame())) == 1
    assert rig.dropped == {counter: 1}
    rig.link.write_error = None
    rig.send(header() + frame())
    assert len(rig.sent) == 1


def test_many_frames_are_sent_in_turns_with_others() -> None:
    rig = Rig(queue_size=1024)
    for _ in range(BUDGET + 10):
        rig.offer(header() + frame())
    rig.driver.kick(TX)
    assert len(rig.sent) == BUDGET
    (more,) = [half for half in rig.loop.bottom_halves if half.scheduled]
    more.run()
    assert len(rig.sent) == BUDGET + 10
    assert not more.scheduled


def test_sending_asks_for_an_interrupt_once_a_batch() -> None:
    rig = Rig()
    for _ in range(10):
        rig.offer(header() + frame())
    rig.driver.kick(TX)
    assert rig.lines == [True]
    assert rig.driver.interrupts() == Interrupt.USED_BUFFER


# Reception (5.1.9.3, 5.1.9.4)


@pytest.mark.parametrize("length", [14, 60, LONGEST])
def test_a_frame_is_received_with_num_buffers_1(length: int) -> None:
    rig = Rig()
    rig.supply(HEADER + LONGEST)
    rig.driver.kick(RX)
    rig.arrive(frame(length))
    assert rig.received() == [header(num_buffers=1) + frame(length)]
    assert rig.driver.interrupts() == Interrupt.USED_BUFFER
    assert rig.dropped == {}


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    length=st.integers(14, 100),
)
def test_a_received_frame_is_the_same_however_its_buffer_is_cut(
    sizes: list[int], length: int
) -> None:
    rig = Rig()
    rig.supply(*sizes, HEADER + length)
    rig.driver.kick(RX)
    rig.arrive(frame(length))
    assert rig.received() == [header(num_buffers=1) + frame(length)]


@given(
    sizes=st.lists(st.integers(HEADER, 200), min_size=1, max_size=40),
    length=st.integers(14, LONGEST),
)
def test_a_merged_frame_fills_every_buffer_but_the_last(sizes: list[int], length: int) -> None:
    rig = Rig([MRG])
    for size in (*sizes, 2000):
        rig.supply(size)
    rig.driver.kick(RX)
    rig.arrive(frame(length))
    parts = rig.received()
    assert b"".join(parts) == header(num_buffers=len(parts)) + frame(length)
    expected = [*sizes, 2000][: len(parts)]
    assert [len(part) for part in parts[:-1]] == expected[:-1]
    assert 0 < len(parts[-1]) <= expected[-1]


def test_the_buffers_of_a_merged_frame_are_seen_together() -> None:
    rig = Rig([MRG])
    seen: list[int] = []
    for _ in range(8):
        rig.supply(100)
    rig.driver.kick(RX)
    rig.device.host.used_buffer_notification = (  # type: ignore[method-assign]
        lambda queue: seen.append(rig.driver.queues[RX].used.idx)
    )
    rig.arrive(frame(600))
    assert seen == [7]


def test_a_merged_frame_in_more_pieces_than_a_system_call_takes_is_received() -> None:
    rig = Rig([MRG], queue_size=2048)
    for _ in range(110):
        rig.supply(*[1] * HEADER)
    rig.driver.kick(RX)
    rig.arrive(frame(1300))
    assert (
        b"".join(rig.received())
        == header(num_buffers=110)[:12] + frame(1300)[: 108 * 12] + frame(1300)[1296:]
    )


def test_no_frame_is_read_before_there_is_a_buffer() -> None:
    rig = Rig()
    rig.arrive(frame())
    assert not rig.watched() & READABLE
    assert len(rig.link.incoming[0]) == 1

    rig.supply(2048)
    rig.driver.kick(RX)

    assert rig.received() == [header(num_buffers=1) + frame()]
    assert rig.dropped == {}


def test_frames_stay_in_the_link_when_the_buffers_run_out() -> None:
    rig = Rig()
    rig.supply(2048)
    rig.supply(2048)
    rig.driver.kick(RX)
    frames = [frame(seed=n) for n in range(5)]
    rig.arrive(*frames)
    assert len(rig.received()) == 2
    assert len(rig.link.incoming[0]) == 3
    assert rig.watched() == 0

    for n in range(3):
        rig.supply(2048)
        rig.driver.kick(RX)
        assert rig.received() == [header(num_buffers=1) + frames[2 + n]]
    assert rig.dropped == {}


def test_buffers_that_were_there_before_driver_ok_are_used_without_a_kick() -> None:
    rig = Rig(None)
    rig.driver.negotiate([])
    for index in range(3):
        rig.driver.set_up_queue(index, 16)
    rig.supply(2048)
    rig.driver.set_status(DeviceStatus.DRIVER_OK)
    rig.arrive(frame())
    assert rig.received() == [header(num_buffers=1) + frame()]


def test_a_frame_longer_than_the_buffer_is_dropped_and_the_buffer_kept() -> None:
    rig = Rig()
    rig.supply(100)
    rig.driver.kick(RX)
    rig.arrive(frame(89), frame(88))
    assert rig.received() == [header(num_buffers=1) + frame(88)]
    assert rig.dropped == {"rx_dropped_too_long": 1}


@pytest.mark.parametrize("features", [(), (MRG,)])
@pytest.mark.parametrize("size", [1, 11])
def test_a_buffer_without_room_for_the_header_is_given_back(
    features: Iterable[int], size: int
) -> None:
    rig = Rig(features)
    rig.supply(size)
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.arrive(frame())
    assert rig.received() == [b"", header(num_buffers=1) + frame()]
    assert rig.dropped == {"rx_buffers_too_small": 1}


def test_a_buffer_that_the_device_may_only_read_is_given_back() -> None:
    rig = Rig()
    rig.driver.queues[RX].add([Piece(0x1000, 2048)])
    assert [used.length for used in rig.driver.collect(RX)] == [0]
    assert rig.dropped == {"rx_buffers_too_small": 1}


def test_a_buffer_that_is_too_small_waits_for_those_before_it() -> None:
    """Buffers are used in the order of the ring: what is left of it can be delegated."""
    rig = Rig()
    for size in (2048, 11, 2048):
        rig.supply(size)
    rig.driver.kick(RX)
    assert rig.received() == []
    rig.arrive(frame(seed=1))
    assert rig.received() == [header(num_buffers=1) + frame(seed=1), b""]
    rig.arrive(frame(seed=2))
    assert rig.received() == [header(num_buffers=1) + frame(seed=2)]
    assert rig.dropped == {"rx_buffers_too_small": 1}


def test_a_small_buffer_behind_the_first_holds_its_part_of_a_merged_frame() -> None:
    rig = Rig([MRG])
    for size in (200, 5, 2048):
        rig.supply(size)
    rig.driver.kick(RX)
    rig.arrive(frame(1000))
    parts = rig.received()
    assert [len(part) for part in parts] == [200, 5, 12 + 1000 - 205]
    assert b"".join(parts) == header(num_buffers=3) + frame(1000)
    assert rig.dropped == {}


def test_a_frame_that_needs_more_merged_buffers_waits_for_them() -> None:
    rig = Rig([MRG])
    rig.supply(200)
    rig.supply(200)
    rig.driver.kick(RX)
    rig.arrive(frame(1000), frame(seed=2))
    assert rig.received() == []
    assert rig.watched() == 0

    for _ in range(5):
        rig.supply(200)
    rig.driver.kick(RX)

    parts = rig.received()
    assert b"".join(parts[:6]) == header(num_buffers=6) + frame(1000)
    assert parts[6:] == [header(num_buffers=1) + frame(seed=2)]
    assert rig.dropped == {}


def test_a_frame_that_finds_too_few_merged_buffers_twice_is_dropped() -> None:
    rig = Rig([MRG])
    rig.supply(200)
    rig.driver.kick(RX)
    rig.arrive(frame(1000), frame(seed=2))
    rig.supply(200)
    rig.driver.kick(RX)
    assert rig.received() == [header(num_buffers=1) + frame(seed=2)]
    assert rig.dropped == {"rx_dropped_no_buffer": 1}


def test_a_frame_that_uses_up_the_buffers_at_a_kick_is_not_dropped() -> None:
    rig = Rig([MRG])
    rig.supply(500)
    rig.driver.kick(RX)
    rig.arrive(frame(900))
    rig.supply(500)
    rig.driver.kick(RX)
    assert b"".join(rig.received()) == header(num_buffers=2) + frame(900)
    assert rig.dropped == {}


@pytest.mark.parametrize("length", [0, 1, 13])
def test_a_frame_shorter_than_an_ethernet_header_never_reaches_the_driver(length: int) -> None:
    rig = Rig()
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.arrive(frame(length), frame(14))
    assert rig.received() == [header(num_buffers=1) + frame(14)]
    assert rig.dropped == {"rx_dropped_too_short": 1}


def test_a_frame_longer_than_a_negotiated_mtu_never_reaches_the_driver() -> None:
    rig = Rig([F.VIRTIO_NET_F_MTU])
    assert not wanted(rig, frame(LONGEST + 1))
    assert rig.dropped == {"rx_dropped_too_long": 1}
    assert wanted(rig, frame(LONGEST))
    assert wanted(rig, frame(LONGEST + 4, vlan=9))


def test_a_long_frame_reaches_a_driver_that_did_not_negotiate_the_mtu() -> None:
    assert wanted(Rig(), frame(LONGEST + 100))


def test_a_large_segmented_frame_is_received_in_merged_buffers() -> None:
    rig = Rig([MRG, F.VIRTIO_NET_F_MTU, *GUEST_TSO])
    for _ in range(64):
        rig.supply(1536)
    rig.driver.kick(RX)
    offloads = header(NEEDS_CSUM, GsoType.TCPV4, 54, 1448, 34, 16)
    rig.arrive(frame(65000), header_=offloads)
    parts = rig.received()
    assert len(parts) == 43
    assert b"".join(parts) == offloads[:10] + b"\x2b\0" + frame(65000)


@pytest.mark.parametrize(
    ("features", "stale"),
    [
        ((), header(NEEDS_CSUM, csum_start=34, csum_offset=6)),
        ((F.VIRTIO_NET_F_GUEST_CSUM,), header(NEEDS_CSUM, GsoType.TCPV4, 54, 1448, 34, 16)),
        (GUEST_TSO, header(NEEDS_CSUM, GsoType.TCPV4 | GsoType.ECN, 54, 1448, 34, 16)),
        # To be segmented, without a checksum to complete or a size (5.1.9.4.1).
        (GUEST_TSO, header(0, GsoType.TCPV4, 54, 1448, 34, 16)),
        (GUEST_TSO, header(NEEDS_CSUM, GsoType.TCPV4, 54, 0, 34, 16)),
    ],
)
def test_a_frame_with_offloads_for_an_earlier_driver_is_dropped(
    features: Iterable[int], stale: bytes
) -> None:
    rig = Rig(features)
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.arrive(frame(), header_=stale)
    assert rig.received() == []
    assert rig.dropped == {"rx_dropped_offload": 1}


@pytest.mark.parametrize(
    ("features", "flags"), [((), 0), ((F.VIRTIO_NET_F_GUEST_CSUM,), HeaderFlag.DATA_VALID)]
)
def test_flags_are_zero_without_guest_csum(features: Iterable[int], flags: int) -> None:
    rig = Rig(features)
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.arrive(frame(), header_=header(HeaderFlag.DATA_VALID))
    assert rig.received() == [header(flags, num_buffers=1) + frame()]


@pytest.mark.parametrize("flag", [1 << bit for bit in range(2, 8)])
def test_a_flag_of_a_feature_that_is_not_offered_never_reaches_the_driver(flag: int) -> None:
    rig = Rig((F.VIRTIO_NET_F_GUEST_CSUM,))
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.arrive(frame(), header_=header(HeaderFlag.DATA_VALID | flag))
    assert rig.received() == [header(HeaderFlag.DATA_VALID, num_buffers=1) + frame()]


def test_many_frames_are_received_in_turns_with_others() -> None:
    rig = Rig(queue_size=1024)
    for _ in range(BUDGET + 10):
        rig.supply(100)
    rig.driver.kick(RX)
    rig.arrive(*[frame(60)] * (BUDGET + 10))
    assert len(rig.driver.queues[RX].take_all_used()) == BUDGET
    assert rig.watched() & READABLE
    rig.ready(READABLE)
    assert len(rig.driver.queues[RX].take_all_used()) == 10


def test_receiving_asks_for_an_interrupt_once_a_batch() -> None:
    rig = Rig()
    for _ in range(10):
        rig.supply(100)
    rig.driver.kick(RX)
    rig.arrive(*[frame(60)] * 10)
    assert rig.lines == [True]


@pytest.mark.parametrize("features", [(), (Feature.VIRTIO_F_EVENT_IDX,)])
def test_a_driver_is_asked_for_kicks_only_when_its_buffers_ran_out(
    features: Iterable[int],
) -> None:
    rig = Rig(features)
    queue = rig.driver.queues[RX]
    rig.supply(2048)
    rig.supply(2048)
    assert queue.should_kick()
    rig.driver.kick(RX)
    rig.arrive(frame())
    rig.supply(2048)
    assert not queue.should_kick()
    rig.arrive(frame(), frame())
    rig.supply(2048)
    assert queue.should_kick()


def test_buffers_are_forgotten_by_a_reset() -> None:
    rig = Rig()
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.driver.reset()
    assert rig.watched() == 0
    rig.arrive(frame())
    rig.driver.start([])
    rig.supply(2048)
    rig.driver.kick(RX)
    assert rig.received() == [header(num_buffers=1) + frame()]


def test_a_receive_queue_that_is_reset_leaves_its_frames_in_the_link() -> None:
    rig = Rig([Feature.VIRTIO_F_RING_RESET])
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.driver.write(Register.QueueSel, RX)
    rig.driver.write(Register.QueueReset, 1)
    assert rig.watched() == 0
    rig.arrive(frame())
    rig.driver.set_up_queue(RX, 16)
    rig.supply(2048)
    rig.driver.kick(RX)
    assert rig.received() == [header(num_buffers=1) + frame()]


def test_frames_for_a_receive_queue_that_is_reset_go_to_another() -> None:
    rig = Rig([*MQ, Feature.VIRTIO_F_RING_RESET], pairs=2)
    rig.use_pairs(2)
    rig.supply(2048, queue=2)
    rig.driver.kick(2)
    rig.reset_queue(RX)
    rig.arrive(frame(), pair=0)
    assert rig.received(2) == [header(num_buffers=1) + frame()]
    assert rig.watched(0) == 0, "there is no buffer left"
    rig.supply(2048, queue=2)
    rig.link.incoming[0].append(header() + frame(seed=2))
    rig.driver.kick(2)
    assert rig.received(2) == [header(num_buffers=1) + frame(seed=2)]

    rig.driver.set_up_queue(RX, 16)
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.arrive(frame(), pair=0)
    assert rig.received(RX) == [header(num_buffers=1) + frame()]


def test_frames_for_another_stay_in_the_link_when_that_one_is_disabled() -> None:
    rig = Rig([*MQ, Feature.VIRTIO_F_RING_RESET], pairs=2)
    rig.use_pairs(2)
    rig.supply(2048, queue=2)
    rig.driver.kick(2)
    rig.reset_queue(RX)
    rig.driver.write(Register.QueueSel, 2)
    rig.driver.write(Register.QueueReady, 0)
    rig.arrive(frame(), pair=0)
    assert rig.watched(0) == 0, "nobody takes the frame, and the loop would look for ever"


def test_frames_are_dropped_while_all_receive_queues_are_reset() -> None:
    rig = Rig([*MQ, Feature.VIRTIO_F_RING_RESET], pairs=2)
    rig.use_pairs(2)
    rig.reset_queue(RX)
    rig.reset_queue(2)
    rig.arrive(frame(), pair=0)
    # This one is there before the loop has looked.
    rig.link.incoming[1].append(header() + frame())
    rig.driver.set_up_queue(2, 16)
    rig.supply(2048, queue=2)
    rig.driver.kick(2)
    assert rig.received(2) == []
    assert rig.dropped == {"rx_dropped_queue_reset": 2}
    rig.arrive(frame(), pair=0)
    assert rig.received(2) == [header(num_buffers=1) + frame()]


@pytest.mark.parametrize("index", [RX, TX])
def test_a_broken_ring_needs_a_reset_and_the_device_works_again_after_it(index: int) -> None:
    rig = Rig()
    queue = rig.driver.queues[index]
    queue.available.idx = queue.next_available + queue.size + 1
    rig.driver.kick(index)
    assert rig.driver.status & DeviceStatus.DEVICE_NEEDS_RESET
    assert rig.watched() == 0

    rig.driver.start([])
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.arrive(frame())
    assert rig.received() == [header(num_buffers=1) + frame()]


def test_a_ring_that_breaks_while_frames_come_needs_a_reset_and_the_loop_lives() -> None:
    rig = Rig()
    rig.supply(2048)
    rig.driver.kick(RX)
    queue = rig.driver.queues[RX]
    queue.available.idx = queue.next_available + queue.size + 1
    rig.arrive(frame(), frame())
    assert rig.driver.status & DeviceStatus.DEVICE_NEEDS_RESET
    assert rig.watched() == 0


@pytest.mark.parametrize("index", [RX, TX])
def test_a_chain_outside_of_memory_is_given_back_and_others_are_served(index: int) -> None:
    rig = Rig()
    rig.driver.queues[index].add([Piece(1 << 40, 2048, writable=index == RX)])
    assert len(rig.driver.collect(index)) == 1
    if index == TX:
        rig.send(header() + frame())
        assert len(rig.sent) == 1
    else:
        assert wanted(rig, frame())


# The link's state (5.1.4)


def test_a_link_that_goes_down_and_up_is_told_to_the_driver() -> None:
    rig = Rig([F.VIRTIO_NET_F_STATUS])
    for is_up in (False, True):
        rig.link.up = is_up
        rig.loop.watches[99].callback(READABLE)
        assert rig.driver.interrupts() == Interrupt.CONFIG_CHANGE
        assert rig.config(CONFIG_STATUS) == int(is_up)


def test_news_of_the_link_that_change_nothing_are_not_told() -> None:
    rig = Rig([F.VIRTIO_NET_F_STATUS])
    rig.loop.watches[99].callback(READABLE)
    assert rig.driver.interrupts() == Interrupt(0)


def test_a_device_on_a_link_that_is_down_says_so_from_the_start() -> None:
    link = FakeLink()
    link.up = False
    device = Net(link, mac=MAC)
    assert device.config_space()[CONFIG_STATUS[0]] == 0


@pytest.mark.parametrize("event", [select.EPOLLERR, select.EPOLLHUP])
def test_a_link_that_vanishes_is_down_and_watched_no_more(event: int) -> None:
    rig = Rig([F.VIRTIO_NET_F_STATUS])
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.loop.watches[100].callback(event)
    assert 100 not in rig.loop.watches
    assert rig.config(CONFIG_STATUS) == 0
    assert rig.driver.interrupts() & Interrupt.CONFIG_CHANGE

    rig.link.write_error = OSError(errno.EBADFD, "File descriptor in bad state")
    rig.send(header() + frame())
    rig.supply(2048)
    rig.driver.kick(RX)
    assert rig.dropped == {"tx_dropped_link_down": 1}
    assert rig.watched() == 0


def test_a_link_that_fails_to_be_read_is_down() -> None:
    rig = Rig([F.VIRTIO_NET_F_STATUS])
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.link.read_error = OSError(errno.EBADFD, "File descriptor in bad state")
    rig.ready(READABLE)
    assert rig.config(CONFIG_STATUS) == 0
    assert rig.watched() == 0


def test_closing_the_device_closes_the_link_and_watches_nothing() -> None:
    rig = Rig()
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.device.reset()
    rig.device.close()
    assert rig.link.closed
    assert rig.loop.watches == {}


# Announcements (5.1.9.5.4)


def test_a_link_that_comes_up_again_is_announced_until_acknowledged() -> None:
    rig = Rig(ANNOUNCE)
    rig.link.up = False
    rig.device.link_changed()
    rig.link.up = True
    rig.device.link_changed()
    assert rig.config(CONFIG_STATUS) == Status.LINK_UP | Status.ANNOUNCE
    assert rig.command(ControlClass.ANNOUNCE, AnnounceCommand.ACK) == Ack.OK
    assert rig.config(CONFIG_STATUS) == Status.LINK_UP


def test_an_announcement_can_be_asked_for_and_a_reset_ends_it() -> None:
    rig = Rig(ANNOUNCE)
    rig.device.announce()
    assert rig.driver.interrupts() == Interrupt.CONFIG_CHANGE
    assert rig.config(CONFIG_STATUS) == Status.LINK_UP | Status.ANNOUNCE
    rig.driver.reset()
    assert rig.config(CONFIG_STATUS) == Status.LINK_UP


def test_a_driver_that_cannot_announce_is_not_asked_to() -> None:
    rig = Rig([F.VIRTIO_NET_F_STATUS])
    rig.device.announce()
    assert rig.config(CONFIG_STATUS) == Status.LINK_UP


# The receive filter (5.1.9.5.1, 5.1.9.5.2)


def test_without_ctrl_rx_every_frame_is_received() -> None:
    rig = Rig()
    for destination in (MAC, OTHER_MAC, GROUP, BROADCAST):
        assert wanted(rig, frame(destination=destination))


def accepted(rig: Rig) -> set[str]:
    """Which kinds of frames are received."""
    kinds = {"own": MAC, "unicast": OTHER_MAC, "multicast": GROUP, "broadcast": BROADCAST}
    return {kind for kind, mac in kinds.items() if wanted(rig, frame(destination=mac))}


@pytest.mark.parametrize(
    ("modes", "kinds"),
    [
        ((), {"own", "broadcast"}),
        ((RxCommand.PROMISC,), {"own", "unicast", "multicast", "broadcast"}),
        ((RxCommand.ALLMULTI,), {"own", "multicast", "broadcast"}),
        ((RxCommand.ALLUNI,), {"own", "unicast", "broadcast"}),
        ((RxCommand.NOMULTI,), {"own", "broadcast"}),
        ((RxCommand.NOMULTI, RxCommand.ALLMULTI), {"own", "broadcast"}),
        ((RxCommand.NOUNI,), {"broadcast"}),
        ((RxCommand.NOUNI, RxCommand.ALLUNI), {"broadcast"}),
        ((RxCommand.NOBCAST,), {"own"}),
        ((RxCommand.NOBCAST, RxCommand.ALLMULTI), {"own", "multicast"}),
        (
            (RxCommand.NOBCAST, RxCommand.NOUNI, RxCommand.NOMULTI, RxCommand.PROMISC),
            {"own", "unicast", "multicast", "broadcast"},
        ),
    ],
)
def test_the_receive_modes_choose_what_is_received(
    modes: Iterable[RxCommand], kinds: set[str]
) -> None:
    rig = Rig(CTRL_RX)
    for mode in modes:
        rig.mode(mode)
    assert accepted(rig) == kinds
    assert rig.device.counts.rx_filtered == 4 - len(kinds)


@pytest.mark.parametrize("mode", RxCommand)
def test_a_receive_mode_can_be_turned_off_again(mode: RxCommand) -> None:
    rig = Rig(CTRL_RX)
    rig.mode(mode, 1)
    rig.mode(mode, 0)
    assert accepted(rig) == {"own", "broadcast"}


def mac_table(unicast: Sequence[bytes], multicast: Sequence[bytes]) -> bytes:
    """Two of struct virtio_net_ctrl_mac (5.1.9.5.2)."""
    return b"".join(struct.pack("<I", len(macs)) + b"".join(macs) for macs in (unicast, multicast))


def test_the_mac_table_adds_addresses_until_it_is_set_again() -> None:
    rig = Rig(CTRL_RX)
    assert rig.command(1, MacCommand.TABLE_SET, mac_table([OTHER_MAC], [GROUP])) == Ack.OK
    assert accepted(rig) == {"own", "unicast", "multicast", "broadcast"}
    assert rig.command(1, MacCommand.TABLE_SET, mac_table([], [])) == Ack.OK
    assert accepted(rig) == {"own", "broadcast"}


def test_a_new_mac_address_is_in_the_configuration_space_and_the_filter() -> None:
    rig = Rig(CTRL_MAC)
    assert rig.command(ControlClass.MAC, MacCommand.ADDR_SET, OTHER_MAC) == Ack.OK
    assert rig.config(CONFIG_MAC).to_bytes(6, "little") == OTHER_MAC
    assert accepted(rig) == {"unicast", "broadcast"}


def test_a_reset_empties_the_filter_and_brings_the_first_mac_address_back() -> None:
    rig = Rig(CTRL_MAC)
    rig.command(ControlClass.MAC, MacCommand.ADDR_SET, OTHER_MAC)
    rig.command(ControlClass.MAC, MacCommand.TABLE_SET, mac_table([], [GROUP]))
    rig.mode(RxCommand.PROMISC)
    rig.driver.reset()
    rig.driver.start(CTRL_RX)
    assert rig.config(CONFIG_MAC).to_bytes(6, "little") == MAC
    assert accepted(rig) == {"own", "broadcast"}


def test_only_vlans_in_the_table_are_received() -> None:
    rig = Rig(CTRL_VLAN)
    assert wanted(rig, frame())
    assert not wanted(rig, frame(vlan=5))
    assert rig.command(ControlClass.VLAN, VlanCommand.ADD, b"\x05\0") == Ack.OK
    assert wanted(rig, frame(vlan=5))
    # A priority is no part of the VLAN ID.
    assert wanted(rig, frame(vlan=0xE005))
    assert not wanted(rig, frame(vlan=6))
    assert rig.command(ControlClass.VLAN, VlanCommand.DEL, b"\x05\0") == Ack.OK
    assert not wanted(rig, frame(vlan=5))


def test_without_ctrl_vlan_every_vlan_is_received() -> None:
    assert wanted(Rig(), frame(vlan=5))


def test_the_filter_works_in_buffers_of_single_bytes() -> None:
    rig = Rig(CTRL_RX)
    rig.supply(*[1] * 32, 100)
    rig.driver.kick(RX)
    rig.arrive(frame(destination=OTHER_MAC), frame())
    assert rig.received() == [header(num_buffers=1) + frame()]


# Bad commands (5.1.9.5)

ALL_CTRL = (*CTRL_RX, F.VIRTIO_NET_F_CTRL_MAC_ADDR, *CTRL_VLAN, *ANNOUNCE, *MQ)

BAD_COMMANDS = {
    "unknown class": (9, 0, b""),
    "unknown command": (ControlClass.RX, 6, b"\1"),
    "mode without its byte": (ControlClass.RX, RxCommand.PROMISC, b""),
    "mode of two bytes": (ControlClass.RX, RxCommand.PROMISC, b"\1\0"),
    "mode neither on nor off": (ControlClass.RX, RxCommand.PROMISC, b"\2"),
    "MAC table without its second part": (1, MacCommand.TABLE_SET, struct.pack("<I", 0)),
    "MAC table with too few addresses": (1, MacCommand.TABLE_SET, struct.pack("<I", 2) + MAC),
    "MAC table with an absurd count": (1, 0, struct.pack("<I", 0xFFFFFFFF) + MAC),
    "MAC table with more behind it": (1, 0, mac_table([], []) + b"\0"),
    "MAC table with a group among the others": (1, 0, mac_table([GROUP], [])),
    "MAC table with a station among the groups": (1, 0, mac_table([], [MAC])),
    "MAC address too short": (ControlClass.MAC, MacCommand.ADDR_SET, MAC[:5]),
    "MAC address too long": (ControlClass.MAC, MacCommand.ADDR_SET, MAC + b"\0"),
    "MAC address of a group": (ControlClass.MAC, MacCommand.ADDR_SET, GROUP),
    "MAC address of zeroes": (ControlClass.MAC, MacCommand.ADDR_SET, bytes(6)),
    "VLAN id truncated": (ControlClass.VLAN, VlanCommand.ADD, b"\5"),
    "VLAN id out of range": (ControlClass.VLAN, VlanCommand.ADD, b"\0\x10"),
    "announcement with data": (ControlClass.ANNOUNCE, AnnounceCommand.ACK, b"\0"),
    "no pairs": (ControlClass.MQ, MqCommand.VQ_PAIRS_SET, b"\0\0"),
    "too many pairs": (ControlClass.MQ, MqCommand.VQ_PAIRS_SET, b"\3\0"),
    "pairs truncated": (ControlClass.MQ, MqCommand.VQ_PAIRS_SET, b"\1"),
    "RSS, which is not offered": (ControlClass.MQ, 1, b"\1\0"),
    "longer than any command": (ControlClass.MAC, 0, bytes(1 << 16)),
}


@pytest.mark.parametrize("fault", BAD_COMMANDS)
def test_a_bad_command_is_answered_with_err_and_changes_nothing(fault: str) -> None:
    rig = Rig(ALL_CTRL, pairs=2)
    before = (rig.device.config_space(), repr(rig.device.filter), rig.link.enabled)
    assert rig.command(*BAD_COMMANDS[fault]) == Ack.ERR
    assert (rig.device.config_space(), repr(rig.device.filter), rig.link.enabled) == before
    assert rig.dropped == {"ctrl_refused": 1}
    rig.mode(RxCommand.PROMISC)


@pytest.mark.parametrize(
    ("class_", "command", "data"),
    [
        (ControlClass.RX, RxCommand.PROMISC, b"\1"),
        (ControlClass.RX, RxCommand.NOBCAST, b"\1"),
        (ControlClass.MAC, MacCommand.TABLE_SET, mac_table([], [])),
        (ControlClass.MAC, MacCommand.ADDR_SET, OTHER_MAC),
        (ControlClass.VLAN, VlanCommand.ADD, b"\5\0"),
        (ControlClass.ANNOUNCE, AnnounceCommand.ACK, b""),
        (ControlClass.MQ, MqCommand.VQ_PAIRS_SET, b"\1\0"),
    ],
)
def test_a_command_whose_feature_was_not_negotiated_is_refused(
    class_: int, command: int, data: bytes
) -> None:
    rig = Rig([F.VIRTIO_NET_F_CTRL_VQ], pairs=2)
    assert rig.command(class_, command, data) == Ack.ERR


@pytest.mark.parametrize("length", [0, 1])
def test_a_command_without_class_or_command_is_refused(length: int) -> None:
    rig = Rig(CTRL_RX)
    pieces = [Piece(0x1000, length)] if length else []
    rig.driver.queues[CTRL].add([*pieces, Piece(0x2000, 1, writable=True)])
    assert [used.length for used in rig.driver.collect(CTRL)] == [1]
    assert rig.memory.read(0x2000, 1)[0] == Ack.ERR


def test_a_command_without_an_ack_byte_is_not_carried_out() -> None:
    rig = Rig(CTRL_RX)
    rig.memory.write(0x1000, b"\0\0\1")
    rig.driver.queues[CTRL].add([Piece(0x1000, 3)])
    assert [used.length for used in rig.driver.collect(CTRL)] == [0]
    assert rig.device.filter.modes == set()
    assert rig.dropped == {"ctrl_refused": 1}


@given(cuts=st.lists(st.integers(0, 22), max_size=5))
def test_a_command_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    rig = Rig(CTRL_RX)
    content = bytes([ControlClass.MAC, MacCommand.TABLE_SET]) + mac_table([OTHER_MAC], [GROUP])
    rig.memory.write(0x1000, content)
    edges = [0, *sorted(cuts), len(content)]
    rig.driver.queues[CTRL].add(
        [
            *(Piece(0x1000 + a, b - a) for a, b in itertools.pairwise(edges)),
            Piece(0x2000, 3, writable=True),
        ]
    )
    rig.driver.collect(CTRL)
    assert rig.memory.read(0x2000, 1)[0] == Ack.OK
    assert rig.device.filter.table == {OTHER_MAC, GROUP}


# Several pairs of queues (5.1.9.5.6)


def test_only_the_first_pair_is_used_by_default() -> None:
    rig = Rig(MQ, pairs=2)
    assert rig.link.enabled == 1
    rig.send(header() + frame(), queue=3)
    assert rig.link.sent == [[], []]
    assert rig.dropped == {"tx_dropped_disabled_queue": 1}


def test_pairs_are_used_from_the_command_on_and_until_a_reset() -> None:
    rig = Rig(MQ, pairs=2)
    assert rig.command(ControlClass.MQ, MqCommand.VQ_PAIRS_SET, b"\2\0") == Ack.OK
    assert rig.link.enabled == 2
    rig.send(header() + frame(seed=1), queue=1)
    rig.send(header() + frame(seed=2), queue=3)
    assert rig.link.sent == [[header() + frame(seed=1)], [header() + frame(seed=2)]]
    rig.supply(2048, queue=2)
    rig.driver.kick(2)
    rig.arrive(frame(seed=3), pair=1)
    assert rig.received(queue=2) == [header(num_buffers=1) + frame(seed=3)]
    rig.driver.reset()
    assert rig.link.enabled == 1


def test_without_mq_controlq_is_the_third_queue_whatever_the_device_has() -> None:
    rig = Rig(CTRL_RX, pairs=4)
    rig.mode(RxCommand.PROMISC)
    assert rig.device.filter.modes == {RxCommand.PROMISC}


@pytest.mark.parametrize("index", [3, 4, 8])
def test_a_kick_of_a_queue_that_the_features_leave_out_does_nothing(index: int) -> None:
    rig = Rig(pairs=4)
    rig.driver.kick(index)
    assert rig.dropped == {}


@pytest.mark.parametrize(
    "mac", [b"", MAC[:5], GROUP, BROADCAST], ids=["none", "short", "group", "broadcast"]
)
def test_a_device_is_not_made_with_a_bad_mac_address(mac: bytes) -> None:
    with pytest.raises(ValueError, match="unicast"):
        Net(FakeLink(), mac=mac)


@pytest.mark.parametrize("mtu", [67, 65536])
def test_a_device_is_not_made_with_an_mtu_that_cannot_be_offered(mtu: int) -> None:
    with pytest.raises(ValueError, match="MTU"):
        Net(FakeLink(mtu), mac=MAC)


@given(data=st.binary(max_size=200), features=st.sampled_from([(), TSO, (*TSO, MRG)]))
def test_whatever_is_sent_the_buffer_comes_back_and_the_device_lives(
    data: bytes, features: Iterable[int]
) -> None:
    rig = Rig(features)
    assert [used.length for used in rig.send(data)] == [0]
    assert total([memoryview(content) for content in rig.sent]) in (0, len(data))
    rig.send(header() + frame())
    assert rig.sent[-1] == header() + frame()


# Records


class FakeRecorder:
    def __init__(self) -> None:
        self.frames: list[tuple[bool, bytes]] = []
        self.closed = False

    def record(self, frame: bytes, *, inbound: bool) -> None:
        self.frames.append((inbound, frame))

    def close(self) -> None:
        self.closed = True


def test_a_recorded_link_records_what_passes_both_ways() -> None:
    link, recorder = FakeLink(), FakeRecorder()
    recorded = RecordedLink(link, recorder)
    link.incoming[0].append(header() + frame(100))
    pieces = [memoryview(bytearray(size)) for size in (5, 20, 2000)]
    assert recorded.read(0, pieces) == HEADER + 100
    recorded.write(0, [header(), frame(60)[:20], frame(60)[20:]])
    assert recorder.frames == [(True, frame(100)), (False, frame(60))]
    assert link.sent[0] == [header() + frame(60)]
    recorded.close()
    assert link.closed
    assert recorder.closed


def test_a_frame_that_the_link_does_not_take_is_not_recorded() -> None:
    link, recorder = FakeLink(), FakeRecorder()
    recorded = RecordedLink(link, recorder)
    link.room = 0
    with pytest.raises(BlockingIOError):
        recorded.write(0, [header(), frame()])
    assert recorder.frames == []
