"""Split virtqueues (2.7): indexes that wrap, and what is taken and given back."""

import struct

import pytest

from tests.unit.split_queue.rig import (
    ALL_SIZES,
    PAGE,
    STARTS,
    WRITE,
    Rig,
    _layout,
    _python_queue,
    _Recorder,
    build,
    python_only,
)
from virtiopy.memory import GuestMemory
from virtiopy.virtqueue.buffers import gather
from virtiopy.virtqueue.driver import Piece, Used
from virtiopy.virtqueue.queue import QueueState

# Rings of every size, and indexes that wrap (2.7, 2.7.13.3)


@pytest.mark.parametrize("start", [0, 65535])
@pytest.mark.parametrize("size", ALL_SIZES)
def test_a_queue_of_any_size_works_on_its_first_and_last_entry(
    memory: GuestMemory, size: int, start: int
) -> None:
    rig = build(memory, size, start=start)
    buffer = rig.writable(size)
    rig.driver.write_descriptor(size - 1, buffer.address, buffer.length, WRITE, 0)
    for count in range(3):
        rig.driver.make_available(size - 1)
        chain = rig.pop()
        rig.device.push(chain, size)
        slot = (start + count) % size
        address = rig.driver.areas.device + 4 + 8 * slot
        assert rig.memory.read(address, 8) == struct.pack("<II", size - 1, size)
    assert rig.driver.used.idx == (start + 3) % 65536


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("size", [1, 2, 8, 16])
def test_a_full_ring_is_served_whole_and_in_order(
    memory: GuestMemory, size: int, start: int
) -> None:
    rig = build(memory, size, start=start)
    heads = [rig.driver.place([rig.writable(1)]) for _ in range(size)]
    rig.driver.make_available(*heads)
    assert [chain.token for chain in rig.device.pop_many()] == heads


def test_a_full_ring_of_32768_is_not_taken_for_an_empty_one(memory: GuestMemory) -> None:
    rig = build(memory, 32768)
    rig.driver.write_descriptor(0, PAGE, 1, WRITE, 0)
    rig.driver.available.idx = 32768
    assert rig.pop().token == 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_indexes_wrap_at_65536_without_losing_a_chain(memory: GuestMemory, size: int) -> None:
    rig = build(memory, size, start=65530)
    for serial in range(20):
        head = rig.offer(rig.readable(bytes([serial])), *[rig.writable(2)] * (size > 1))
        chain = rig.pop()
        assert gather(chain.readable) == bytes([serial])
        rig.device.push(chain, 2 * (size > 1))
        assert rig.driver.take_all_used() == [Used(head, 2 * (size > 1))]
    assert rig.device.state == QueueState((65530 + 20) % 65536)
    assert rig.driver.used.idx == (65530 + 20) % 65536


@pytest.mark.parametrize("size", ALL_SIZES)
def test_avail_event_is_the_field_behind_the_used_ring(memory: GuestMemory, size: int) -> None:
    rig = build(memory, size, event_idx=True, start=0xABCD)
    rig.device.enable_kicks()
    address = rig.driver.areas.device + _layout(size).device.size - 2
    assert rig.field16(address) == 0xABCD


@pytest.mark.parametrize("size", ALL_SIZES)
def test_used_event_is_the_field_behind_the_available_ring(memory: GuestMemory, size: int) -> None:
    rig = build(memory, size, event_idx=True, start=0xABCD)
    address = rig.driver.areas.driver + _layout(size).driver.size - 2
    memory.write(address, (0xABCD).to_bytes(2, "little"))
    rig.offer(rig.writable(1))
    rig.device.push(rig.pop(), 1)
    assert rig.device.should_interrupt()


# Taking and giving back (2.7.6, 2.7.8)


def test_chains_may_be_pushed_in_any_order(rig: Rig) -> None:
    heads = [rig.offer() for _ in range(4)]
    chains = rig.device.pop_many()
    for position in (2, 0, 3, 1):
        rig.device.push(chains[position], position)
    assert rig.driver.take_all_used() == [Used(heads[n], n) for n in (2, 0, 3, 1)]


def test_push_many_keeps_the_order_it_is_given(rig: Rig) -> None:
    heads = [rig.offer() for _ in range(3)]
    chains = rig.device.pop_many()
    rig.device.push_many((chain, chain.token + 10) for chain in reversed(chains))
    assert rig.driver.take_all_used() == [Used(head, head + 10) for head in reversed(heads)]


def test_push_many_of_nothing_changes_nothing(rig: Rig) -> None:
    rig.offer()
    rig.pop()
    rig.device.push_many([])
    assert rig.driver.take_all_used() == []
    assert rig.device.in_flight == 1


@python_only
def test_push_many_exposes_its_chains_with_one_update_of_idx(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        rig.offer()
    chains = rig.device.pop_many()
    stores = _Recorder(_python_queue(rig), monkeypatch)
    rig.device.push_many([(chain, 0) for chain in chains])
    assert stores.values == [5]


# 2.7.8.2: id and len are written before idx.
@python_only
def test_idx_is_stored_after_the_entries_it_exposes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = rig.offer()
    chain = rig.pop()
    stores = _Recorder(_python_queue(rig), monkeypatch)
    rig.device.push(chain, 33)
    assert stores.entries == [(head, 33)]


def test_pop_many_takes_no_more_than_its_limit(rig: Rig) -> None:
    heads = [rig.offer() for _ in range(5)]
    assert [chain.token for chain in rig.device.pop_many(0)] == []
    assert [chain.token for chain in rig.device.pop_many(2)] == heads[:2]
    assert [chain.token for chain in rig.device.pop_many(9)] == heads[2:]
    assert rig.device.pop_many() == []


def test_chains_that_come_while_others_are_in_flight_are_popped(rig: Rig) -> None:
    first = rig.offer()
    assert rig.pop().token == first
    second = rig.offer()
    assert rig.pop().token == second
    assert rig.device.in_flight == 2


@pytest.mark.parametrize("written", [0, 1, 63, 64])
def test_used_len_is_what_the_device_wrote(rig: Rig, written: int) -> None:
    head = rig.offer(rig.readable(b"request"), rig.writable(60), rig.writable(4))
    rig.device.push(rig.pop(), written)
    assert rig.driver.take_all_used() == [Used(head, written)]


def test_used_len_of_a_full_chain_of_2_to_the_32_bytes_is_the_most_that_le32_holds() -> None:
    # 2.7.8.2 permits an underestimate.
    with GuestMemory.allocate(1 << 30) as memory:
        rig = build(memory)
        head = rig.offer(*[Piece(0, 1 << 30, writable=True)] * 4)
        chain = rig.pop()
        # The used ring is inside these buffers, which nobody writes.
        rig.device.push(chain, 1 << 32)
        assert rig.driver.take_all_used() == [Used(head, 0xFFFF_FFFF)]


@pytest.mark.parametrize("written", [-1, 65, 1 << 32])
def test_more_written_than_there_is_room_for_is_the_devices_fault(rig: Rig, written: int) -> None:
    rig.offer(rig.readable(bytes(100)), rig.writable(64))
    chain = rig.pop()
    with pytest.raises(ValueError, match="less room"):
        rig.device.push(chain, written)
    assert rig.driver.take_all_used() == []


def test_pushing_a_chain_twice_is_the_devices_fault(rig: Rig) -> None:
    head = rig.offer()
    chain = rig.pop()
    rig.device.push(chain, 0)
    with pytest.raises(ValueError, match="not in flight"):
        rig.device.push(chain, 0)
    assert rig.driver.take_all_used() == [Used(head, 0)]


def test_push_many_with_one_bad_entry_pushes_none(rig: Rig) -> None:
    rig.offer()
    rig.offer()
    good, bad = rig.device.pop_many()
    with pytest.raises(ValueError, match="less room"):
        rig.device.push_many([(good, 0), (bad, 65)])
    assert rig.driver.take_all_used() == []
    assert rig.device.in_flight == 2


# Handover: the rings go on where another left off


@pytest.mark.parametrize("start", STARTS)
def test_a_successor_goes_on_exactly_where_a_queue_left_off(
    memory: GuestMemory, start: int
) -> None:
    rig = build(memory, start=start)
    heads = [rig.offer() for _ in range(5)]
    first = rig.device.pop_many(2)
    rig.device.push_many([(chain, 1) for chain in reversed(first)])

    second = rig.successor()
    rest = second.pop_many()
    second.push_many([(chain, 2) for chain in rest])

    served = [(heads[1], 1), (heads[0], 1), *[(head, 2) for head in heads[2:]]]
    assert rig.driver.take_all_used() == [Used(*entry) for entry in served]


def test_a_successor_asks_for_no_interrupt_for_what_its_predecessor_used(rig: Rig) -> None:
    rig.offer()
    rig.device.push(rig.pop(), 0)
    assert rig.device.should_interrupt()
    assert not rig.successor().should_interrupt()
