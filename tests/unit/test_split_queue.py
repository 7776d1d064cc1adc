import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from os import close, ftruncate, memfd_create

import pytest

from virtiopy._native import CData
from virtiopy.memory import HOLE_START, GuestMemory, Region
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.buffers import gather, scatter, total
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece, Used
from virtiopy.virtqueue.formats import split_queue_type
from virtiopy.virtqueue.layout import (
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    AreaLayout,
    RingFormat,
)
from virtiopy.virtqueue.malformed import BUFFER, CHAINS, TABLES, Ground, Malformed
from virtiopy.virtqueue.native import NativeQueue
from virtiopy.virtqueue.queue import Chain, QueueAreas, QueueError, QueueState
from virtiopy.virtqueue.split import SplitQueue

NEXT, WRITE, INDIRECT = VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VIRTQ_DESC_F_INDIRECT

MEMORY_SIZE = 4 << 20
PAGE = 4096
ALL_SIZES = [1 << exponent for exponent in range(16)]

# Where indexes start: at the beginning, mid-ring, and so that they wrap at 2^16 during the test.
STARTS = [0, 5, 32766, 65533, 65535]


# What Python reads and writes can be watched; test_native_queue.py holds C to the same.
python_only = pytest.mark.parametrize("native", ["off"], indirect=True)


@dataclass
class Rig:
    memory: GuestMemory
    driver: DriverQueue
    device: SplitQueue | NativeQueue
    allocator: Allocator

    def readable(self, data: bytes) -> Piece:
        address = self.allocator.take(len(data))
        self.memory.write(address, data)
        return Piece(address, len(data))

    def writable(self, length: int) -> Piece:
        return Piece(self.allocator.take(length), length, writable=True)

    def room(self, count: int) -> int:
        return self.allocator.take(16 * count)

    def table(self, *entries: tuple[int, int, int, int]) -> int:
        address = self.room(len(entries))
        self.memory.write(address, b"".join(struct.pack("<QIHH", *entry) for entry in entries))
        return address

    def offer(self, *pieces: Piece) -> int:
        return self.driver.add(pieces or [self.writable(64)])

    def pop(self) -> Chain:
        chain = self.device.pop()
        assert chain is not None
        return chain

    def successor(self) -> SplitQueue | NativeQueue:
        return split_queue_type()(
            self.memory,
            self.device.size,
            self.device.areas,
            event_idx=self.device.event_idx,
            indirect=self.device.indirect,
            state=self.device.state,
        )

    def field16(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 2), "little")


def build(
    memory: GuestMemory,
    size: int = 8,
    *,
    event_idx: bool = False,
    indirect: bool = True,
    start: int = 0,
) -> Rig:
    allocator = Allocator(PAGE, memory.regions[0].end)
    driver = DriverQueue(memory, size, allocator, event_idx=event_idx)
    driver.available.idx = driver.next_available = start
    driver.used.idx = driver.last_used = start
    driver.should_kick()
    device = split_queue_type()(
        memory,
        size,
        driver.areas,
        event_idx=event_idx,
        indirect=indirect,
        state=QueueState(start),
    )
    return Rig(memory, driver, device, allocator)


@pytest.fixture(autouse=True, params=["off", "on"], ids=["python", "native"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VIRTIOPY_NATIVE", request.param)
    return str(request.param)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        yield memory


@pytest.fixture
def rig(memory: GuestMemory) -> Rig:
    return build(memory)


@pytest.fixture
def two_regions() -> Iterator[GuestMemory]:
    # Neighbours in guest memory that are in the opposite order in host memory.
    fd = memfd_create("two-regions")
    ftruncate(fd, 32 * PAGE)
    regions = [
        Region.map(0, 16 * PAGE, fd, 16 * PAGE),
        Region.map(16 * PAGE, 16 * PAGE, fd, 0),
    ]
    close(fd)
    with GuestMemory(regions) as memory:
        yield memory


# Chains (2.7.5, 2.7.13.1)


def test_an_empty_ring_gives_no_chain(rig: Rig) -> None:
    assert rig.device.pop() is None


def test_a_direct_chain_is_delivered_buffer_by_buffer(rig: Rig) -> None:
    head = rig.offer(rig.readable(b"head"), rig.readable(b"er"), rig.writable(3), rig.writable(5))
    chain = rig.pop()
    assert chain.token == head
    assert [bytes(view) for view in chain.readable] == [b"head", b"er"]
    assert [len(view) for view in chain.writable] == [3, 5]


def test_an_indirect_chain_is_delivered_buffer_by_buffer(rig: Rig) -> None:
    pieces = [rig.readable(b"one"), rig.readable(b"two"), rig.writable(7)]
    rig.driver.add(pieces, direct=0, table=rig.room(3))
    chain = rig.pop()
    assert [bytes(view) for view in chain.readable] == [b"one", b"two"]
    assert [len(view) for view in chain.writable] == [7]


# 2.7.5.3.2: zero or more direct descriptors, then a single indirect one.
@pytest.mark.parametrize("direct", range(4))
def test_a_table_may_follow_direct_descriptors(rig: Rig, direct: int) -> None:
    pieces = [
        rig.readable(b"a"),
        rig.readable(b"b"),
        rig.writable(2),
        rig.writable(3),
    ]
    rig.driver.add(pieces, direct=direct, table=rig.room(4))
    chain = rig.pop()
    assert gather(chain.readable) == b"ab"
    assert [len(view) for view in chain.writable] == [2, 3]


# 2.7.5.3.2: the write-only flag of the descriptor that refers to the table is ignored.
@pytest.mark.parametrize("flags", [INDIRECT, INDIRECT | WRITE])
def test_the_write_flag_of_an_indirect_descriptor_is_ignored(rig: Rig, flags: int) -> None:
    first, second = rig.readable(b"direct "), rig.readable(b"indirect")
    table = rig.table((second.address, second.length, 0, 0))
    rig.driver.write_descriptor(0, first.address, first.length, NEXT, 1)
    rig.driver.write_descriptor(1, table, 16, flags, 0)
    rig.driver.make_available(0)
    chain = rig.pop()
    assert gather(chain.readable) == b"direct indirect"
    assert chain.writable == []


def test_a_table_is_followed_by_next_and_not_in_order(rig: Rig) -> None:
    a, b, c = (rig.readable(data) for data in (b"a", b"b", b"c"))
    table = rig.table(
        (a.address, 1, NEXT, 3),
        (1 << 63, 1, WRITE, 0),  # not on the chain's way
        (c.address, 1, 0, 9999),  # next means nothing without NEXT
        (b.address, 1, NEXT, 2),
    )
    rig.driver.write_descriptor(0, table, 64, INDIRECT, 9999)
    rig.driver.make_available(0)
    assert gather(rig.pop().readable) == b"abc"


def test_a_direct_chain_may_visit_descriptors_in_any_order(rig: Rig) -> None:
    for index, data, following in [(7, b"x", 2), (2, b"y", 5), (5, b"z", 0)]:
        piece = rig.readable(data)
        rig.driver.write_descriptor(index, piece.address, 1, 0 if index == 5 else NEXT, following)
    rig.driver.make_available(7)
    assert gather(rig.pop().readable) == b"xyz"


def test_an_indirect_table_needs_no_alignment(rig: Rig) -> None:
    rig.allocator.take(3)
    rig.driver.add([rig.readable(b"odd"), rig.writable(1)], direct=0, table=rig.room(2) | 1)
    assert gather(rig.pop().readable) == b"odd"


def test_an_indirect_table_may_have_more_entries_than_the_queue(memory: GuestMemory) -> None:
    rig = build(memory, 2)
    last = rig.readable(b"far")
    table = rig.room(1000)
    rig.memory.write(table, struct.pack("<QIHH", last.address, 1, NEXT, 999))
    rig.memory.write(table + 999 * 16, struct.pack("<QIHH", last.address + 1, 2, 0, 0))
    rig.driver.write_descriptor(0, table, 16000, INDIRECT, 0)
    rig.driver.make_available(0)
    assert gather(rig.pop().readable) == b"far"


# 2.7.5: the queue size is the maximum chain length.
@pytest.mark.parametrize("size", [1, 2, 8, 64])
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_a_chain_may_be_as_long_as_the_queue(
    memory: GuestMemory, size: int, indirect: bool
) -> None:
    rig = build(memory, size)
    pieces = [rig.readable(bytes([index])) for index in range(size)]
    rig.driver.add(pieces, direct=0 if indirect else size, table=rig.room(size))
    assert gather(rig.pop().readable) == bytes(range(size))


def test_a_chain_of_2_to_the_32_bytes_is_served() -> None:
    # 2.7.5.2 forbids only more.
    with GuestMemory.allocate(1 << 30) as memory:
        rig = build(memory)
        rig.offer(*[Piece(0, 1 << 30)] * 4)
        assert total(rig.pop().readable) == 1 << 32


def test_zero_length_buffers_leave_the_others_as_they_are(rig: Rig) -> None:
    rig.offer(
        rig.readable(b""),
        rig.readable(b"data"),
        rig.readable(b""),
        rig.writable(0),
        rig.writable(4),
        rig.writable(0),
    )
    chain = rig.pop()
    assert gather(chain.readable) == b"data"
    assert total(chain.writable) == 4


@pytest.mark.parametrize("address", [0, MEMORY_SIZE, 1 << 63, (1 << 64) - 1])
def test_a_zero_length_buffer_may_be_anywhere(rig: Rig, address: int) -> None:
    rig.offer(Piece(address, 0))
    assert total(rig.pop().readable) == 0


def test_buffers_are_guest_memory_and_not_copies(rig: Rig) -> None:
    source, target = rig.readable(b"before"), rig.writable(4)
    rig.offer(source, target)
    chain = rig.pop()
    rig.memory.write(source.address, b"after!")
    scatter(chain.writable, b"done")
    assert gather(chain.readable) == b"after!"
    assert rig.memory.read(target.address, 4) == b"done"


def test_a_buffer_that_spans_regions_comes_in_two_views(two_regions: GuestMemory) -> None:
    rig = build(two_regions)
    border = two_regions.regions[1].guest_address
    two_regions.write(border - 3, b"spanned")
    rig.offer(Piece(border - 3, 7))
    assert [bytes(view) for view in rig.pop().readable] == [b"spa", b"nned"]


@pytest.mark.parametrize("inside", [8, 16, 24, 40])
def test_an_indirect_table_that_spans_regions_is_followed(
    two_regions: GuestMemory, inside: int
) -> None:
    rig = build(two_regions)
    border = two_regions.regions[1].guest_address
    pieces = [rig.readable(b"a"), rig.readable(b"b"), rig.writable(9)]
    rig.driver.add(pieces, direct=0, table=border - inside)
    chain = rig.pop()
    assert gather(chain.readable) == b"ab"
    assert total(chain.writable) == 9


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


# Used buffer notifications (2.7.7.2)


def _use(rig: Rig, count: int) -> None:
    for _ in range(count):
        rig.offer(rig.writable(1))
    for chain in rig.device.pop_many():
        rig.device.push(chain, 0)
    rig.driver.take_all_used()


@pytest.mark.parametrize("event_idx", [False, True])
def test_no_interrupt_is_due_when_nothing_was_used(memory: GuestMemory, event_idx: bool) -> None:
    rig = build(memory, event_idx=event_idx)
    assert not rig.device.should_interrupt()


@pytest.mark.parametrize("event_idx", [False, True])
def test_an_interrupt_is_due_once_for_a_batch(memory: GuestMemory, event_idx: bool) -> None:
    rig = build(memory, event_idx=event_idx)
    _use(rig, 3)
    assert rig.device.should_interrupt()
    assert not rig.device.should_interrupt()


def test_without_event_idx_flags_1_suppresses_interrupts_until_it_is_0(rig: Rig) -> None:
    rig.driver.available.flags = 1
    _use(rig, 1)
    assert not rig.device.should_interrupt()
    rig.driver.available.flags = 0
    _use(rig, 1)
    assert rig.device.should_interrupt()


@pytest.mark.parametrize("used_event", [0, 1, 7, 65535])
def test_without_event_idx_used_event_is_ignored(rig: Rig, used_event: int) -> None:
    rig.driver.used_event[0] = used_event
    _use(rig, 1)
    assert rig.device.should_interrupt()


def test_with_event_idx_the_flag_is_ignored(memory: GuestMemory) -> None:
    rig = build(memory, event_idx=True)
    rig.driver.available.flags = 1
    _use(rig, 1)
    assert rig.device.should_interrupt()


# "If the idx field in the used ring (which determined where that descriptor index was placed) was
# equal to used_event, the device MUST send a notification."
@pytest.mark.parametrize("count", range(5))
@pytest.mark.parametrize("start", STARTS)
def test_with_event_idx_an_interrupt_is_due_when_entry_used_event_was_written(
    memory: GuestMemory, start: int, count: int
) -> None:
    written = {(start + offset) % 65536 for offset in range(count)}
    for offset in range(-3, 8):
        rig = build(memory, event_idx=True, start=start)
        rig.driver.used_event[0] = used_event = (start + offset) % 65536
        _use(rig, count)
        assert rig.device.should_interrupt() == (used_event in written), used_event


# The example in 2.7.7.2: used_event 0 asks for the first entry, and again once idx has wrapped.
def test_with_used_event_0_only_the_entry_after_the_wrap_interrupts(memory: GuestMemory) -> None:
    rig = build(memory, 1, event_idx=True, start=65535)
    rig.driver.used_event[0] = 0
    due = []
    for _ in range(3):
        _use(rig, 1)
        due.append(rig.device.should_interrupt())
    assert due == [False, True, False]


def test_a_malformed_chain_given_back_asks_for_an_interrupt(rig: Rig) -> None:
    rig.driver.write_descriptor(0, 1 << 63, 1, 0, 0)
    rig.driver.make_available(0)
    assert rig.device.pop() is None
    assert rig.device.should_interrupt()


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_driver_that_enables_interrupts_gets_the_next(
    memory: GuestMemory, event_idx: bool
) -> None:
    rig = build(memory, event_idx=event_idx, start=65535)
    rig.driver.enable_interrupts()
    _use(rig, 1)
    assert rig.device.should_interrupt()
    rig.driver.disable_interrupts()
    _use(rig, 1)
    assert not rig.device.should_interrupt()
    rig.driver.enable_interrupts()
    _use(rig, 1)
    assert rig.device.should_interrupt()


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_driver_that_disables_interrupts_gets_not_even_the_first(
    memory: GuestMemory, event_idx: bool
) -> None:
    rig = build(memory, event_idx=event_idx)
    rig.driver.disable_interrupts()
    _use(rig, 1)
    assert not rig.device.should_interrupt()


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_driver_that_enables_interrupts_is_told_of_buffers_used_before(
    memory: GuestMemory, event_idx: bool
) -> None:
    rig = build(memory, event_idx=event_idx)
    assert not rig.driver.enable_interrupts()
    rig.offer()
    rig.device.push(rig.pop(), 0)
    assert rig.driver.enable_interrupts()


# Available buffer notifications (2.7.10)


def test_without_event_idx_disabling_notifications_sets_flags_to_1(rig: Rig) -> None:
    rig.device.disable_kicks()
    assert rig.field16(rig.driver.areas.device) == 1
    rig.device.enable_kicks()
    assert rig.field16(rig.driver.areas.device) == 0


# 2.7.10.2: with VIRTIO_F_EVENT_IDX the device MUST set flags to 0.
def test_with_event_idx_flags_stay_0(memory: GuestMemory) -> None:
    rig = build(memory, event_idx=True)
    rig.device.disable_kicks()
    assert rig.field16(rig.driver.areas.device) == 0
    rig.device.enable_kicks()
    assert rig.field16(rig.driver.areas.device) == 0


def test_without_event_idx_avail_event_is_left_alone(rig: Rig) -> None:
    rig.driver.avail_event[0] = 0x5A5A
    rig.offer()
    rig.pop()
    rig.device.disable_kicks()
    rig.device.enable_kicks()
    assert rig.driver.avail_event[0] == 0x5A5A


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("event_idx", [False, True])
def test_enabled_notifications_ask_for_the_next_kick(
    memory: GuestMemory, event_idx: bool, start: int
) -> None:
    rig = build(memory, event_idx=event_idx, start=start)
    for _ in range(3):
        rig.device.disable_kicks()
        rig.device.enable_kicks()
        rig.offer()
        assert rig.driver.should_kick()
        rig.device.pop()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("event_idx", [False, True])
def test_disabled_notifications_ask_for_no_kick_for_what_follows(
    memory: GuestMemory, event_idx: bool, start: int
) -> None:
    rig = build(memory, event_idx=event_idx, start=start)
    rig.device.enable_kicks()
    rig.offer()
    assert rig.driver.should_kick()
    rig.device.disable_kicks()
    rig.offer()
    assert not rig.driver.should_kick()


@pytest.mark.parametrize("event_idx", [False, True])
def test_enabling_notifications_says_whether_buffers_came_meanwhile(
    memory: GuestMemory, event_idx: bool
) -> None:
    rig = build(memory, event_idx=event_idx)
    assert not rig.device.enable_kicks()
    rig.offer()
    assert rig.device.enable_kicks()
    rig.pop()
    assert not rig.device.enable_kicks()


@pytest.mark.parametrize("event_idx", [False, True])
def test_enabling_notifications_counts_buffers_that_were_seen_but_not_popped(
    memory: GuestMemory, event_idx: bool
) -> None:
    rig = build(memory, event_idx=event_idx)
    rig.offer()
    rig.offer()
    rig.pop()
    assert rig.device.enable_kicks()


# "If the idx field in the available ring (which determined where that descriptor index was placed)
# was equal to avail_event, the driver MUST send a notification." (2.7.10.1)
@pytest.mark.parametrize("count", range(5))
@pytest.mark.parametrize("start", STARTS)
def test_with_event_idx_a_kick_is_due_when_entry_avail_event_was_written(
    memory: GuestMemory, start: int, count: int
) -> None:
    written = {(start + offset) % 65536 for offset in range(count)}
    for offset in range(-3, 8):
        rig = build(memory, event_idx=True, start=start)
        rig.driver.avail_event[0] = avail_event = (start + offset) % 65536
        for _ in range(count):
            rig.offer()
        assert rig.driver.should_kick() == (avail_event in written), avail_event


# Where the parts may be (2.7, 2.7.1)


def _layout(size: int) -> AreaLayout:
    return layout.areas(RingFormat.SPLIT, size)


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

BAD = 4
BADS = (BAD, 5, 6, 7)
Malform = Callable[[Rig], None]


def _malform(malformed: Malformed) -> Malform:
    def malform(rig: Rig) -> None:
        ground = Ground(
            BADS,
            rig.device.size,
            buffer=rig.allocator.take(BUFFER),
            table=rig.room(rig.device.size + 1),
            end=MEMORY_SIZE,
            hole=HOLE_START,
        )
        chain, table = malformed.write(ground)
        for index, entry in zip(BADS, chain, strict=False):
            rig.driver.write_descriptor(index, *entry)
        rig.memory.write(ground.table, b"".join(struct.pack("<QIHH", *one) for one in table))

    return malform


#: A hole that has memory before it is not here: this one is behind the end of memory.
MALFORMED = [pytest.param(_malform(one), one.section, id=one.name) for one in (*CHAINS, *TABLES)]


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


# Broken rings: only a reset can mend them


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


# The driver may change memory at any moment: every field is read once


# A descriptor's field or a ring entry: ("queue" or "table" or "ring", index, field).
Read = tuple[str, int, str]


class _CountedFields:
    def __init__(self, real: CData, name: tuple[str, int], reads: Counter[Read]) -> None:
        self._real = real
        self._name = name
        self._reads = reads

    def __getattr__(self, field: str) -> int:
        self._reads[(*self._name, field)] += 1
        value: int = getattr(self._real, field)
        return value


class _CountedTable:
    def __init__(self, real: CData, name: str, reads: Counter[Read]) -> None:
        self._real = real
        self._name = name
        self._reads = reads

    def __getitem__(self, index: int) -> _CountedFields:
        return _CountedFields(self._real[index], (self._name, index), self._reads)


class _CountedRing:
    # Stands for struct vring_avail: counts reads of each entry of its ring.
    def __init__(self, real: CData, reads: Counter[Read]) -> None:
        self._real = real
        self._reads = reads

    @property
    def ring(self) -> "_CountedRing":
        return self

    def __getitem__(self, index: int) -> int:
        self._reads["ring", index, ""] += 1
        value: int = self._real.ring[index]
        return value


def _python_queue(rig: Rig) -> SplitQueue:
    assert isinstance(rig.device, SplitQueue)
    return rig.device


class _Recorder:
    # Notes every store to the used ring's idx, and the first used entry at that moment.
    def __init__(self, queue: SplitQueue, monkeypatch: pytest.MonkeyPatch) -> None:
        from virtiopy._native import lib as real

        self.values: list[int] = []
        self.entries: list[tuple[int, int]] = []
        recorder = self

        class Library:
            def __getattr__(self, name: str) -> object:
                return getattr(real, name)

            def vp_store_release(self, location: CData, value: int) -> None:
                recorder.values.append(value)
                recorder.entries.append((queue._used.ring[0].id, queue._used.ring[0].len))
                real.vp_store_release(location, value)

        monkeypatch.setattr("virtiopy.virtqueue.split.lib", Library())


@pytest.fixture
def reads(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Counter[Read]:
    counted: Counter[Read] = Counter()
    queue = _python_queue(rig)
    real_table = queue._indirect_table

    def counted_table(address: int, size: int, flags: int) -> tuple[_CountedTable, int]:
        table, entries = real_table(address, size, flags)
        return _CountedTable(table, "table", counted), entries

    monkeypatch.setattr(queue, "_descriptors", _CountedTable(queue._descriptors, "queue", counted))
    monkeypatch.setattr(queue, "_indirect_table", counted_table)
    monkeypatch.setattr(queue, "_available", _CountedRing(queue._available, counted))
    return counted


@python_only
def test_each_field_of_a_descriptor_is_read_at_most_once(rig: Rig, reads: Counter[Read]) -> None:
    pieces = [rig.readable(b"a"), rig.readable(b"b"), rig.writable(1), rig.writable(2)]
    rig.driver.add(pieces, direct=2, table=rig.room(2))
    rig.pop()
    visited = [("queue", 0), ("queue", 1), ("queue", 2), ("table", 0), ("table", 1)]
    for table, index in visited:
        for field in ("addr", "len", "flags"):
            assert reads[table, index, field] == 1
    assert set(reads.values()) == {1}


@python_only
@pytest.mark.parametrize(("malform", "section"), MALFORMED)
def test_a_malformed_chains_fields_are_read_once_a_visit(
    rig: Rig, reads: Counter[Read], malform: Malform, section: str
) -> None:
    malform(rig)
    rig.driver.make_available(BAD)
    assert rig.device.pop() is None
    # A loop comes by again, and checks what it finds then anew.
    for (table, index, _), count in list(reads.items()):
        if table != "ring":
            assert count == reads[table, index, "flags"]


@python_only
def test_each_entry_of_the_available_ring_is_read_once(rig: Rig, reads: Counter[Read]) -> None:
    for _ in range(4):
        rig.offer(rig.writable(1))
    rig.device.pop_many()
    assert [reads["ring", slot, ""] for slot in range(8)] == [1, 1, 1, 1, 0, 0, 0, 0]


def test_what_a_driver_changes_after_pop_no_longer_matters(rig: Rig) -> None:
    head = rig.offer(rig.readable(b"sound"), rig.writable(4))
    chain = rig.pop()
    rig.driver.write_descriptor(head, 1 << 63, 0xFFFF_FFFF, NEXT | INDIRECT | WRITE, 0xFFFF)
    rig.driver.available.ring[0] = 0xFFFF
    assert gather(chain.readable) == b"sound"
    rig.device.push(chain, 4)
    assert rig.driver.take_all_used() == [Used(head, 4)]


def test_an_idx_taken_back_before_it_was_looked_at_again_unexposes_nothing(rig: Rig) -> None:
    heads = [rig.offer(rig.writable(1)) for _ in range(3)]
    assert rig.pop().token == heads[0]
    rig.driver.available.idx = 1
    assert [rig.pop().token, rig.pop().token] == heads[1:]
    with pytest.raises(QueueError, match="available idx"):
        rig.device.pop()


# Handing the rings to another


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
