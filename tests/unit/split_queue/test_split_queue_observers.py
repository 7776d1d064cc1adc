"""Split virtqueues (2.7): rings are handed to another."""

import pytest

from tests.unit.split_queue.rig import STARTS, build
from virtiopy.memory import GuestMemory
from virtiopy.virtqueue.queue import QueueState


@pytest.mark.parametrize("start", STARTS)
def test_chains_given_back_unserved_are_popped_again(memory: GuestMemory, start: int) -> None:
    rig = build(memory, start=start)
    heads = [rig.offer() for _ in range(6)]
    first = rig.pop()
    rig.device.pop_many()
    rig.device.push(first, 0)

    rig.device.unpop(5)

    assert rig.device.in_flight == 0
    assert rig.device.state == QueueState((start + 1) % 65536)
    assert [chain.token for chain in rig.device.pop_many()] == heads[1:]


@pytest.mark.parametrize("count", [-1, 2])
def test_no_more_chains_are_given_back_than_are_in_flight(memory: GuestMemory, count: int) -> None:
    rig = build(memory)
    rig.offer()
    rig.pop()
    with pytest.raises(ValueError, match="in flight"):
        rig.device.unpop(count)


@pytest.mark.parametrize("start", STARTS)
def test_a_queue_goes_on_where_another_left_it(memory: GuestMemory, start: int) -> None:
    rig = build(memory, start=start)
    other = rig.successor()
    for _ in range(5):
        rig.offer()
    other.push_many([(chain, 0) for chain in other.pop_many(3)])

    rig.device.resume(other.state)

    # The other has sent the notification for these.
    assert not rig.device.should_interrupt()
    rig.device.push_many([(chain, 1) for chain in rig.device.pop_many()])
    assert rig.device.should_interrupt()
    assert [used.length for used in rig.driver.take_all_used()] == [0, 0, 0, 1, 1]
