"""Split virtqueues (2.7): chains (2.7.5, 2.7.13.1)."""

import struct

import pytest

from tests.unit.split_queue.rig import INDIRECT, MEMORY_SIZE, NEXT, WRITE, Rig, build
from virtiopy.memory import GuestMemory
from virtiopy.virtqueue.buffers import gather, scatter, total
from virtiopy.virtqueue.driver import Piece


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
