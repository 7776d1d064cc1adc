"""Giving guest memory back to the host."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtiopy._native import lib
from virtiopy.memory import HOLE_END, HOLE_START, PAGE_SIZE, AddressError, GuestMemory

MIB = 1 << 20
SIZE = 4 * MIB


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(SIZE) as memory:
        memory.write(0, b"\xab" * SIZE)
        yield memory


def test_discarded_memory_is_the_hosts_and_reads_as_zeroes(memory: GuestMemory) -> None:
    assert memory.allocated == SIZE
    memory.discard(MIB, MIB)
    assert memory.allocated == SIZE - MIB
    assert memory.read(MIB, MIB) == bytes(MIB)
    assert memory.read(0, MIB) == memory.read(2 * MIB, MIB) == b"\xab" * MIB


def test_discarded_memory_can_be_written_again(memory: GuestMemory) -> None:
    memory.discard(0, SIZE)
    memory.write(MIB, b"new")
    assert memory.read(MIB, 4) == b"new\0"
    assert memory.allocated == PAGE_SIZE


def test_a_part_of_a_page_is_zeroed_and_the_page_kept(memory: GuestMemory) -> None:
    memory.discard(PAGE_SIZE + 100, 200)
    assert memory.allocated == SIZE
    assert memory.read(PAGE_SIZE, 400) == b"\xab" * 100 + bytes(200) + b"\xab" * 100


@pytest.mark.parametrize(("address", "length"), [(SIZE, 1), (SIZE - 1, 2), (1 << 63, PAGE_SIZE)])
def test_what_is_no_memory_is_refused_and_nothing_is_discarded(
    memory: GuestMemory, address: int, length: int
) -> None:
    with pytest.raises(AddressError):
        memory.discard(address, length)
    assert memory.read(0, SIZE) == b"\xab" * SIZE


def test_memory_above_the_hole_is_discarded_where_it_lies_in_the_file() -> None:
    with GuestMemory.allocate(HOLE_START + MIB) as memory:
        memory.write(HOLE_START - PAGE_SIZE, b"\xab" * PAGE_SIZE)
        memory.write(HOLE_END, b"\xab" * 2 * PAGE_SIZE)
        memory.discard(HOLE_END, PAGE_SIZE)
        assert memory.read(HOLE_START - PAGE_SIZE, 1) == b"\xab"
        assert memory.read(HOLE_END, PAGE_SIZE + 1) == bytes(PAGE_SIZE) + b"\xab"


def test_a_file_that_can_have_no_holes_says_so(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtiopy.memory.lib", _Refusing(), raising=True)
    with pytest.raises(OSError, match="not supported"):
        memory.discard(0, PAGE_SIZE)


class _Refusing:
    def vp_fallocate(self, fd: int, mode: int, offset: int, length: int) -> int:
        assert mode == lib.FALLOC_FL_PUNCH_HOLE | lib.FALLOC_FL_KEEP_SIZE
        return -errno.EOPNOTSUPP


@pytest.mark.parametrize("address", [0, 5, SIZE - 10, HOLE_END, HOLE_END + MIB - 10])
def test_a_view_has_the_address_that_it_was_asked_for_by(address: int) -> None:
    with GuestMemory.allocate(HOLE_START + MIB) as memory:
        [view] = memory.views(address, 10)
        assert memory.address_of(view) == address
        assert memory.address_of(view[3:]) == address + 3
        view.release()


def test_a_view_of_something_else_has_no_address(memory: GuestMemory) -> None:
    with pytest.raises(ValueError, match="not of this memory"):
        memory.address_of(memoryview(bytearray(10)))


def test_the_granule_is_a_page_in_a_memfd_and_in_a_plain_file(tmp_path: Path) -> None:
    with (
        GuestMemory.allocate(SIZE) as memory,
        GuestMemory.allocate(SIZE, path=tmp_path / "ram") as in_file,
    ):
        assert memory.granule == in_file.granule == PAGE_SIZE
