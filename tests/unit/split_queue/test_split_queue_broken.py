"""Split virtqueues (2.7): only a reset mends a broken ring."""

import pytest

from tests.unit.split_queue.rig import ALL_SIZES, STARTS, Rig, _layout, build
from virtiopy.memory import GuestMemory
from virtiopy.virtqueue.driver import Used
from virtiopy.virtqueue.queue import QueueError


def _keeps_raising(rig: Rig, words: str) -> None:
    used = rig.memory.read(rig.driver.areas.device, _layout(rig.device.size).device.size)
    for attempt in (rig.device.pop, rig.device.pop, rig.device.pop_many, rig.device.pop):
        with pytest.raises(QueueError, match=words):
            attempt()
    assert used == rig.memory.read(rig.driver.areas.device, _layout(rig.device.size).device.size)


@pytest.mark.parametrize("head", [8, 9, 0x8000, 0xFFFF])
def test_a_head_out_of_range_breaks_the_queue(rig: Rig, head: int) -> None:
    rig.driver.make_available(head)
    _keeps_raising(rig, "out of range")


def test_chains_before_a_head_out_of_range_are_served(rig: Rig) -> None:
    good = rig.driver.place([rig.writable(1)])
    rig.driver.make_available(good, 8)
    rig.device.push(rig.pop(), 1)
    assert rig.driver.take_all_used() == [Used(good, 1)]
    _keeps_raising(rig, "out of range")


# 2.7: at most queue size buffers can be queued at any given time.
@pytest.mark.parametrize("size", ALL_SIZES)
@pytest.mark.parametrize("start", [0, 65535])
def test_an_available_idx_too_far_ahead_breaks_the_queue(
    memory: GuestMemory, size: int, start: int
) -> None:
    rig = build(memory, size, start=start)
    rig.driver.available.idx = (start + size + 1) % 65536
    _keeps_raising(rig, "available idx")


# 2.7.6.1: a driver must not decrement the available idx.
@pytest.mark.parametrize("steps", [1, 2, 100])
@pytest.mark.parametrize("start", STARTS)
def test_an_available_idx_that_goes_backwards_breaks_the_queue(
    memory: GuestMemory, start: int, steps: int
) -> None:
    rig = build(memory, start=start)
    rig.offer()
    rig.device.push(rig.pop(), 0)
    rig.driver.available.idx = (start + 1 - steps) % 65536
    _keeps_raising(rig, "available idx")


@pytest.mark.parametrize("in_flight", [1, 5, 8])
def test_buffers_in_flight_count_against_what_the_available_idx_may_offer(
    rig: Rig, in_flight: int
) -> None:
    for _ in range(in_flight):
        rig.offer(rig.writable(1))
    rig.device.pop_many()
    rig.driver.available.idx = 8 + 1
    _keeps_raising(rig, f"{in_flight} are in flight")


def test_the_queue_may_be_filled_up_while_buffers_are_in_flight(rig: Rig) -> None:
    for _ in range(5):
        rig.offer(rig.writable(1))
    rig.device.pop_many()
    for _ in range(3):
        rig.offer(rig.writable(1))
    assert len(rig.device.pop_many()) == 3
    assert rig.device.in_flight == 8
