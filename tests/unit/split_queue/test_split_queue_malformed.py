"""Split virtqueues (2.7): where the parts may be, and malformed chains."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.split_queue.rig import (
    BAD,
    MALFORMED,
    MEMORY_SIZE,
    PAGE,
    Malform,
    Rig,
    _layout,
    build,
)
from virtiopy.memory import HOLE_START, GuestMemory
from virtiopy.virtqueue.buffers import gather
from virtiopy.virtqueue.driver import Piece, Used
from virtiopy.virtqueue.formats import split_queue_type
from virtiopy.virtqueue.queue import QueueAreas, QueueError

# Where the parts may be (2.7, 2.7.1)


def _sound(size: int) -> QueueAreas:
    table = _layout(size).descriptor.size
    return QueueAreas(PAGE, PAGE + table, PAGE + table + 0x1000)


@pytest.mark.parametrize("size", [-1, 0, 3, 6, 100, 32767, 32769, 65536])
def test_a_queue_size_that_is_no_power_of_2_up_to_32768_is_refused(
    memory: GuestMemory, size: int
) -> None:
    with pytest.raises(QueueError, match="no power of 2"):
        split_queue_type()(memory, size, _sound(8))


@pytest.mark.parametrize(("part", "alignment"), [("descriptor", 16), ("driver", 2), ("device", 4)])
def test_a_misaligned_part_is_refused(memory: GuestMemory, part: str, alignment: int) -> None:
    for offset in range(1, alignment):
        addresses = replace(_sound(8), **{part: 8 * PAGE + offset})
        with pytest.raises(QueueError, match=f"aligned to {alignment} bytes"):
            split_queue_type()(memory, 8, addresses)


def test_the_least_alignment_is_enough(memory: GuestMemory) -> None:
    split_queue_type()(memory, 8, QueueAreas(PAGE + 16, 2 * PAGE + 2, 3 * PAGE + 4))


@pytest.mark.parametrize("address", [MEMORY_SIZE, HOLE_START, 1 << 63, (1 << 64) - 16])
@pytest.mark.parametrize("part", ["descriptor", "driver", "device"])
def test_a_part_outside_memory_is_refused(memory: GuestMemory, part: str, address: int) -> None:
    with pytest.raises(QueueError, match="not memory"):
        split_queue_type()(memory, 8, replace(_sound(8), **{part: address}))


# Each part's size as the table in 2.7 gives it, the event field included.
@pytest.mark.parametrize("size", [1, 8, 256])
@pytest.mark.parametrize(
    ("part", "alignment", "length"),
    [
        ("descriptor", 16, lambda size: 16 * size),
        ("driver", 2, lambda size: 6 + 2 * size),
        ("device", 4, lambda size: 6 + 8 * size),
    ],
)
def test_a_part_must_be_in_memory_to_its_last_byte(
    memory: GuestMemory, part: str, alignment: int, length: Callable[[int], int], size: int
) -> None:
    last = (MEMORY_SIZE - length(size)) // alignment * alignment
    split_queue_type()(memory, size, replace(_sound(size), **{part: last}))
    with pytest.raises(QueueError, match="not memory"):
        split_queue_type()(memory, size, replace(_sound(size), **{part: last + alignment}))


# 2.7: each part is physically contiguous; regions are neighbours for the guest, but not for us.
@pytest.mark.parametrize("part", ["descriptor", "driver", "device"])
def test_a_part_that_spans_regions_is_refused(two_regions: GuestMemory, part: str) -> None:
    border = two_regions.regions[1].guest_address
    with pytest.raises(QueueError, match="not contiguous"):
        split_queue_type()(two_regions, 8, replace(_sound(8), **{part: border - 16}))


# Malformed chains, each with descriptor BAD for its head; the queue has 8.


@pytest.mark.parametrize(("malform", "section"), MALFORMED)
def test_a_malformed_chain_goes_back_unserved_and_the_next_is_served(
    rig: Rig, malform: Malform, section: str
) -> None:
    good = rig.driver.place([rig.readable(b"good"), rig.writable(4)])
    malform(rig)
    rig.driver.make_available(BAD, good)
    chain = rig.pop()
    assert gather(chain.readable) == b"good"
    rig.device.push(chain, 4)
    assert rig.driver.take_all_used() == [Used(BAD, 0), Used(good, 4)]
    assert rig.device.rejected == {section: 1}
    assert rig.device.in_flight == 0


@pytest.mark.parametrize(("malform", "section"), MALFORMED)
def test_a_malformed_chain_costs_the_queue_nothing_however_often_it_comes(
    rig: Rig, malform: Malform, section: str
) -> None:
    malform(rig)
    for _ in range(20):
        rig.driver.make_available(BAD)
        assert rig.device.pop() is None
    assert rig.device.rejected == {section: 20}
    assert rig.device.in_flight == 0


def _snapshot_without_used_ring(rig: Rig) -> bytes:
    everything = rig.memory.read(0, 1 << 18)
    start = rig.driver.areas.device
    return everything[:start] + everything[start + _layout(rig.device.size).device.size :]


# 2.7.5.1: the device must not write to any descriptor table entry; 2.7.6: nor the available ring.
@pytest.mark.parametrize(("malform", "section"), MALFORMED)
def test_a_malformed_chain_changes_nothing_but_the_used_ring(
    rig: Rig, malform: Malform, section: str
) -> None:
    malform(rig)
    rig.driver.make_available(BAD)
    before = _snapshot_without_used_ring(rig)
    assert rig.device.pop() is None
    assert _snapshot_without_used_ring(rig) == before


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_service_changes_nothing_but_the_used_ring(
    memory: GuestMemory, size: int, event_idx: bool
) -> None:
    rig = build(memory, size, event_idx=event_idx, start=65530)
    table = rig.room(size)
    for _ in range(2 * size + 1):
        rig.driver.add([rig.writable(8)] * size, direct=0, table=table)
        rig.driver.should_kick()
        before = _snapshot_without_used_ring(rig)
        rig.device.disable_kicks()
        rig.device.push_many([(chain, 8) for chain in rig.device.pop_many()])
        rig.device.should_interrupt()
        rig.device.enable_kicks()
        assert _snapshot_without_used_ring(rig) == before
        rig.driver.take_all_used()


def test_an_indirect_table_that_was_not_negotiated_is_refused(memory: GuestMemory) -> None:
    rig = build(memory, indirect=False)
    bad = rig.driver.add([rig.readable(b"table")], direct=0, table=rig.room(1))
    rig.offer(rig.readable(b"direct"))
    assert gather(rig.pop().readable) == b"direct"
    assert rig.driver.take_all_used() == [Used(bad, 0)]
    assert rig.device.rejected == {"2.7.5.3.1": 1}


@pytest.mark.parametrize("writable", [False, True])
def test_a_chain_of_more_than_2_to_the_32_bytes_is_refused(writable: bool) -> None:
    with GuestMemory.allocate(1 << 30) as memory:
        rig = build(memory)
        bad = rig.offer(*[Piece(0, 1 << 30, writable)] * 4, Piece(0, 1, writable))
        good = rig.offer(rig.writable(1))
        assert rig.pop().token == good
        assert rig.driver.take_all_used() == [Used(bad, 0)]
        assert rig.device.rejected == {"2.7.5.2": 1}


def test_pop_many_leaves_malformed_chains_out(rig: Rig) -> None:
    good = [rig.driver.place([rig.writable(1)]) for _ in range(3)]
    rig.driver.write_descriptor(BAD, MEMORY_SIZE, 1, 0, 0)
    rig.driver.make_available(good[0], BAD, good[1], BAD, good[2])
    assert [chain.token for chain in rig.device.pop_many()] == good
    assert rig.driver.take_all_used() == [Used(BAD, 0)] * 2
