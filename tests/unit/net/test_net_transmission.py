"""The network device (5.1): transmission (5.1.9.2)."""

import errno
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.net.rig import (
    CSUM,
    HEADER,
    LONGEST,
    MAC,
    MTU,
    NEEDS_CSUM,
    TSO,
    TX,
    F,
    Rig,
    frame,
    header,
    wanted,
)
from virtiopy.devices.net.header import GsoType
from virtiopy.devices.net.path import BUDGET
from virtiopy.eventloop import WRITABLE
from virtiopy.transport.registers import Interrupt
from virtiopy.virtqueue.driver import Piece


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
