"""The network device (5.1): reception (5.1.9.3, 5.1.9.4)."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.net.rig import (
    GUEST_TSO,
    HEADER,
    LONGEST,
    MQ,
    MRG,
    NEEDS_CSUM,
    RX,
    TX,
    F,
    Rig,
    frame,
    header,
    wanted,
)
from virtiopy.devices.net.header import GsoType, HeaderFlag
from virtiopy.devices.net.path import BUDGET
from virtiopy.eventloop import READABLE
from virtiopy.spec import DeviceStatus, Feature
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.driver import Piece


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
