import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.openfiles import open_files
from virtiopy._native import ffi
from virtiopy.errors import ConfigError, HostError
from virtiopy.memory import (
    HOLE_END,
    HOLE_START,
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    AddressError,
    GuestMemory,
    Region,
)

GIB = 1 << 30


def lay_out(*extents: tuple[int, int]) -> GuestMemory:
    # Regions (address, size in pages), whose host memory is in the opposite order.
    fd = os.memfd_create("test-memory")
    try:
        os.ftruncate(fd, PAGE_SIZE * sum(pages for _, pages in extents))
        regions, offset = [], 0
        for address, pages in reversed(extents):
            regions.append(Region.map(address, pages * PAGE_SIZE, fd, offset))
            offset += pages * PAGE_SIZE
    finally:
        os.close(fd)
    return GuestMemory(regions)


# Three regions: two that touch, and one after a hole.
LOW, MIDDLE, HIGH = 0, 2 * PAGE_SIZE, 8 * PAGE_SIZE
MIDDLE_END, HIGH_END = MIDDLE + PAGE_SIZE, HIGH + PAGE_SIZE


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with lay_out((LOW, 2), (MIDDLE, 1), (HIGH, 1)) as memory:
        yield memory


# Reaching memory


def test_regions_are_in_ascending_order_however_they_were_given() -> None:
    with lay_out((HIGH, 1), (LOW, 2), (MIDDLE, 1)) as memory:
        assert [region.guest_address for region in memory.regions] == [LOW, MIDDLE, HIGH]


@pytest.mark.parametrize("address", [0, 1, PAGE_SIZE - 2, MIDDLE_END - 4, HIGH, HIGH_END - 4])
def test_what_is_written_is_read_back(memory: GuestMemory, address: int) -> None:
    memory.write(address, b"data")
    assert memory.read(address, 4) == b"data"


def test_new_memory_is_zero(memory: GuestMemory) -> None:
    assert memory.read(0, MIDDLE_END) == bytes(MIDDLE_END)


@pytest.mark.parametrize("inside", [1, 3, 5])
def test_what_crosses_into_a_neighbouring_region_is_in_two_views(
    memory: GuestMemory, inside: int
) -> None:
    memory.write(MIDDLE - inside, b"border")
    views = memory.views(MIDDLE - inside, 6)
    assert [bytes(view) for view in views] == [b"border"[:inside], b"border"[inside:]]
    assert memory.read(MIDDLE - inside, 6) == b"border"


def test_a_view_is_the_memory_itself(memory: GuestMemory) -> None:
    (view,) = memory.views(HIGH + 8, 4)
    view[:] = b"seen"
    assert memory.read(HIGH + 8, 4) == b"seen"


@pytest.mark.parametrize(
    ("address", "length"),
    [
        pytest.param(MIDDLE_END, 1, id="hole"),
        pytest.param(MIDDLE_END - 1, 2, id="into-the-hole"),
        pytest.param(MIDDLE_END - 1, HIGH - MIDDLE_END + 2, id="over-the-hole"),
        pytest.param(HIGH - 1, 2, id="out-of-the-hole"),
        pytest.param(HIGH_END - 1, 2, id="over-the-end"),
        pytest.param(HIGH_END, 1, id="end"),
        pytest.param(0, 1 << 63, id="length-with-the-sign-bit"),
        pytest.param(1 << 63, 1, id="address-with-the-sign-bit"),
        pytest.param((1 << 64) - 1, 1, id="last-address"),
        pytest.param((1 << 64) - 4, 8, id="wraps-to-address-0"),
        pytest.param(4, (1 << 64) - 4, id="wraps-by-its-length"),
    ],
)
class TestWhatIsNotMemory:
    def test_has_no_views(self, memory: GuestMemory, address: int, length: int) -> None:
        with pytest.raises(AddressError) as caught:
            memory.views(address, length)
        assert (caught.value.address, caught.value.length) == (address, length)

    def test_has_no_pointer(self, memory: GuestMemory, address: int, length: int) -> None:
        with pytest.raises(AddressError):
            memory.pointer(address, length)

    def test_cannot_be_read(self, memory: GuestMemory, address: int, length: int) -> None:
        with pytest.raises(AddressError):
            memory.read(address, length)


@pytest.mark.parametrize("address", [MIDDLE_END - 2, HIGH_END - 2])
def test_a_write_that_does_not_fit_writes_nothing(memory: GuestMemory, address: int) -> None:
    with pytest.raises(AddressError):
        memory.write(address, b"over")
    assert memory.read(address, 2) == b"\0\0"


@pytest.mark.parametrize("address", [0, MIDDLE_END, HIGH_END, 1 << 63])
def test_no_bytes_are_memory_anywhere(memory: GuestMemory, address: int) -> None:
    assert memory.views(address, 0) == []
    assert memory.read(address, 0) == b""
    memory.write(address, b"")


def test_a_pointer_leads_to_the_bytes(memory: GuestMemory) -> None:
    memory.write(MIDDLE + 5, b"pointed")
    pointer = memory.pointer(MIDDLE + 5, 7)
    assert bytes(ffi.buffer(ffi.cast("char *", pointer), 7)) == b"pointed"


def test_a_pointer_may_take_in_a_whole_region(memory: GuestMemory) -> None:
    assert memory.pointer(MIDDLE, PAGE_SIZE) == memory.regions[1].host_address


def test_bytes_in_two_regions_have_no_one_pointer(memory: GuestMemory) -> None:
    assert memory.pointer(MIDDLE - 1, 2) is None


@pytest.mark.parametrize(
    "extents",
    [
        pytest.param([(0, 2), (PAGE_SIZE, 1)], id="partly"),
        pytest.param([(0, 1), (0, 1)], id="wholly"),
        pytest.param([(0, 4), (PAGE_SIZE, 1)], id="inside"),
        pytest.param([(PAGE_SIZE, 1), (8 * PAGE_SIZE, 1), (0, 2)], id="given-out-of-order"),
    ],
)
def test_regions_that_overlap_are_refused(extents: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="overlap"):
        lay_out(*extents)


def test_size_counts_every_region(memory: GuestMemory) -> None:
    assert memory.size == 4 * PAGE_SIZE


# Pages of random regions, and what a byte-by-byte look at them says.
layouts = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=4)


@given(
    gaps_and_sizes=layouts,
    address=st.integers(0, 26 * PAGE_SIZE),
    length=st.one_of(st.integers(0, 64), st.integers(0, 26 * PAGE_SIZE)),
    snap=st.integers(-3, 3),
)
def test_views_are_what_a_page_by_page_look_says(
    gaps_and_sizes: list[tuple[int, int]], address: int, length: int, snap: int
) -> None:
    if snap:  # near a page's edge, where mistakes are
        address = max(0, address // PAGE_SIZE * PAGE_SIZE + snap)
    extents, page_owner, page = [], {}, 0
    for gap, size in gaps_and_sizes:
        page += gap
        extents.append((page * PAGE_SIZE, size))
        page_owner.update(dict.fromkeys(range(page, page + size), len(extents)))
        page += size
    touched = range(address // PAGE_SIZE, -(-(address + length) // PAGE_SIZE)) if length else []
    owners = [page_owner.get(page) for page in touched]

    with lay_out(*extents) as memory:
        if None in owners:
            with pytest.raises(AddressError):
                memory.views(address, length)
            return
        for start, size in extents:
            memory.write(start, b"".join(_page(start // PAGE_SIZE + n) for n in range(size)))
        expected = b"".join(map(_page, touched))
        offset = address % PAGE_SIZE
        views = memory.views(address, length)
        assert b"".join(views) == expected[offset : offset + length]
        assert len(views) == len(set(owners))
        assert (memory.pointer(address, length) is not None) == (
            len(views) == 1 or (length == 0 and page_owner.get(address // PAGE_SIZE) is not None)
        )


def _page(number: int) -> bytes:
    return bytes((number + position * 7) % 256 for position in range(64)) * (PAGE_SIZE // 64)


# Making memory


@pytest.mark.parametrize("size", [PAGE_SIZE, 64 << 20, HOLE_START - PAGE_SIZE, HOLE_START])
def test_memory_up_to_the_hole_is_one_region(size: int) -> None:
    with GuestMemory.allocate(size) as memory:
        (region,) = memory.regions
        assert (region.guest_address, region.size) == (0, size)


@pytest.mark.parametrize("above", [PAGE_SIZE, GIB, 5 * GIB])
def test_memory_beyond_3_gib_goes_on_above_the_hole(above: int) -> None:
    with GuestMemory.allocate(HOLE_START + above) as memory:
        assert [(r.guest_address, r.size) for r in memory.regions] == [
            (0, 0xC000_0000),
            (0x1_0000_0000, above),
        ]
        assert memory.size == HOLE_START + above


def test_the_two_sides_of_the_hole_are_different_memory() -> None:
    with GuestMemory.allocate(HOLE_START + PAGE_SIZE) as memory:
        memory.write(HOLE_START - 3, b"low")
        memory.write(HOLE_END, b"high")
        assert memory.read(HOLE_START - 3, 3) == b"low"
        assert memory.read(HOLE_END, 4) == b"high"
        assert memory.read(0, 4) == bytes(4)
        for address in (HOLE_START, HOLE_END - 1):
            with pytest.raises(AddressError):
                memory.read(address, 1)


def test_a_region_says_where_it_is_in_its_file() -> None:
    # What vhost-user's frontend sends to its backend.
    with GuestMemory.allocate(HOLE_START + PAGE_SIZE) as memory:
        memory.write(HOLE_END + 7, b"shared")
        region = memory.regions[1]
        assert os.pread(region.fd, 6, region.offset + 7) == b"shared"


@pytest.mark.parametrize("size", [-PAGE_SIZE, -1, 0, 1, 4095, 4097, (64 << 20) + 512])
def test_a_size_that_is_no_number_of_pages_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 4096"):
        GuestMemory.allocate(size)


@pytest.mark.parametrize("size", [PAGE_SIZE, HUGE_PAGE_SIZE + PAGE_SIZE])
def test_a_size_that_is_no_number_of_huge_pages_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 2097152"):
        GuestMemory.allocate(size, huge_pages=True)


@pytest.mark.parametrize("size", [1 << 60, 1 << 63, 1 << 64, 1 << 70])
def test_more_memory_than_there_can_be_is_the_hosts_lack(size: int) -> None:
    before = open_files()
    with pytest.raises(HostError, match="give a smaller size"):
        GuestMemory.allocate(size)
    gc.collect()
    assert open_files() == before


def _reserved_huge_pages() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("HugePages_Total"):
            return int(line.split()[1])
    return 0


def test_huge_pages_that_nobody_reserved_are_the_hosts_lack() -> None:
    if _reserved_huge_pages():
        pytest.skip("this machine has huge pages reserved")
    with pytest.raises(HostError, match=r"nr_hugepages|hugetlbfs"):
        GuestMemory.allocate(HUGE_PAGE_SIZE, huge_pages=True)


# Memory in a file


def test_a_memory_file_shows_what_the_guest_has(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with GuestMemory.allocate(4 * PAGE_SIZE, path=path) as memory:
        memory.write(PAGE_SIZE + 1, b"guest")
        assert path.read_bytes()[PAGE_SIZE + 1 :][:5] == b"guest"


def test_a_write_to_a_memory_file_reaches_the_guest(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with GuestMemory.allocate(4 * PAGE_SIZE, path=path) as memory:
        with path.open("r+b") as other:
            other.seek(100)
            other.write(b"outside")
        assert memory.read(100, 7) == b"outside"


def test_a_memory_file_stays_when_the_guest_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with GuestMemory.allocate(2 * PAGE_SIZE, path=path) as memory:
        memory.write(PAGE_SIZE, b"remains")
    assert path.stat().st_size == 2 * PAGE_SIZE
    assert path.read_bytes()[PAGE_SIZE:][:7] == b"remains"


def test_a_memory_file_leaves_out_the_hole(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with GuestMemory.allocate(HOLE_START + PAGE_SIZE, path=path) as memory:
        memory.write(HOLE_END, b"above")
        with path.open("rb") as other:
            other.seek(HOLE_START)
            assert other.read(5) == b"above"


def test_memory_in_an_old_file_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(b"old" * PAGE_SIZE)
    with GuestMemory.allocate(PAGE_SIZE, path=path, reset=True) as memory:
        assert memory.read(0, PAGE_SIZE) == bytes(PAGE_SIZE)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda folder: folder, id="folder"),
        pytest.param(lambda folder: folder / "missing" / "file", id="no-such-folder"),
    ],
)
def test_a_memory_file_that_cannot_be_made_is_the_users_fault(
    tmp_path: Path, place: Callable[[Path], Path]
) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        GuestMemory.allocate(PAGE_SIZE, path=place(tmp_path))


def test_a_memory_file_and_huge_pages_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hugetlbfs"):
        GuestMemory.allocate(HUGE_PAGE_SIZE, path=tmp_path / "memory", huge_pages=True)
    assert not (tmp_path / "memory").exists()


# Closing


def test_close_gives_every_file_descriptor_back(tmp_path: Path) -> None:
    before = open_files()
    with ExitStack() as stack:
        stack.enter_context(GuestMemory.allocate(HOLE_START + PAGE_SIZE))
        stack.enter_context(GuestMemory.allocate(PAGE_SIZE, path=tmp_path / "memory"))
        stack.enter_context(lay_out((0, 1)))
        assert len(open_files()) > len(before)
    assert open_files() == before


def test_closing_twice_is_closing_once() -> None:
    before = open_files()
    memory = GuestMemory.allocate(PAGE_SIZE)
    memory.close()
    memory.close()
    assert open_files() == before


def test_a_view_that_outlives_the_memory_stays_good_and_then_lets_go() -> None:
    before = open_files()
    memory = GuestMemory.allocate(PAGE_SIZE)
    memory.write(0, b"held")
    views = memory.views(0, 4)
    memory.close()
    assert bytes(views[0]) == b"held"
    views.clear()
    del memory
    gc.collect()
    assert open_files() == before


def test_nothing_can_be_reached_after_close() -> None:
    memory = GuestMemory.allocate(PAGE_SIZE)
    memory.close()
    with pytest.raises(ValueError, match="released"):
        memory.read(0, 1)
