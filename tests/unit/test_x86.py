from collections.abc import Callable, Iterator

import pytest

from virtiopy.cpu.x86 import (
    Registers,
    Segment,
    SystemRegisters,
    long_mode,
    paged_mode,
    protected_mode,
    real_mode,
    write_page_directory,
    write_page_tables,
)
from virtiopy.memory import GuestMemory

MIB, GIB = 1 << 20, 1 << 30
TABLES = 0x9000

# The manual's bits, volume 3: 2.5 (control registers), 2.2.1 (IA32_EFER).
PE, PG, PSE, PAE, LME, LMA = 1 << 0, 1 << 31, 1 << 4, 1 << 5, 1 << 8, 1 << 10


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(MIB) as memory:
        memory.write(0, b"\xff" * MIB)
        yield memory


class PageFaultError(Exception):
    pass


def walk_32_bit(memory: GuestMemory, cr3: int, linear: int) -> int:
    # 32-bit paging with 4 MiB pages (4.3): just what our directory may use.
    entry = int.from_bytes(memory.read((cr3 & ~0xFFF) + 4 * (linear >> 22), 4), "little")
    if not entry & 1:
        raise PageFaultError
    assert entry & 0b1000_0010 == 0b1000_0010, "a writable 4 MiB page"
    assert entry & 0x003F_F000 == 0, "reserved bits, and the address above 4 GiB"
    return (entry & 0xFFC0_0000) | (linear & 0x003F_FFFF)


def walk_4_level(memory: GuestMemory, cr3: int, linear: int) -> int:
    # 4-level paging (4.5), pages of 4 KiB, 2 MiB and 1 GiB.
    table = cr3 & ~0xFFF
    for shift in (39, 30, 21, 12):
        index = linear >> shift & 0x1FF
        entry = int.from_bytes(memory.read(table + 8 * index, 8), "little")
        if not entry & 1:
            raise PageFaultError
        assert entry & 2, "writable"
        assert not entry >> 52, "executable, and no bits beyond the physical address"
        address = entry & 0x000F_FFFF_FFFF_F000
        if shift == 12 or (shift != 39 and entry & 1 << 7):
            assert address % (1 << shift) == 0, "reserved bits of a large page"
            return address | linear & ((1 << shift) - 1)
        table = address
    raise AssertionError


# Page tables


@pytest.mark.parametrize("linear", [0, 1, 0x1000, 0x12_3456, 4 * MIB - 1])
def test_the_page_directory_maps_the_first_4_mib_to_themselves(
    memory: GuestMemory, linear: int
) -> None:
    write_page_directory(memory, TABLES)
    assert walk_32_bit(memory, paged_mode(TABLES).cr3, linear) == linear


@pytest.mark.parametrize("linear", [4 * MIB, GIB, (1 << 32) - 1])
def test_the_page_directory_maps_nothing_else(memory: GuestMemory, linear: int) -> None:
    write_page_directory(memory, TABLES)
    with pytest.raises(PageFaultError):
        walk_32_bit(memory, paged_mode(TABLES).cr3, linear)


@pytest.mark.parametrize("linear", [0, 1, 0x1F_FFFF, 2 * MIB, 0x1234_5678, GIB - 1])
def test_the_page_tables_map_the_first_gib_to_itself(memory: GuestMemory, linear: int) -> None:
    write_page_tables(memory, TABLES)
    assert walk_4_level(memory, long_mode(TABLES).cr3, linear) == linear


def test_the_page_tables_map_every_page_of_the_first_gib(memory: GuestMemory) -> None:
    write_page_tables(memory, TABLES)
    pages = range(0, GIB, 2 * MIB)
    assert [walk_4_level(memory, TABLES, page) for page in pages] == list(pages)


@pytest.mark.parametrize("linear", [GIB, 4 * GIB, 1 << 39, (1 << 48) - 1])
def test_the_page_tables_map_nothing_else(memory: GuestMemory, linear: int) -> None:
    write_page_tables(memory, TABLES)
    with pytest.raises(PageFaultError):
        walk_4_level(memory, TABLES, linear)


@pytest.mark.parametrize(
    ("write", "size"), [(write_page_directory, 0x1000), (write_page_tables, 0x3000)]
)
def test_tables_take_the_room_they_say_and_no_more(
    memory: GuestMemory, write: Callable[[GuestMemory, int], None], size: int
) -> None:
    write(memory, TABLES)
    assert memory.read(TABLES - 16, 16) == b"\xff" * 16
    assert memory.read(TABLES + size, 16) == b"\xff" * 16
    assert b"\xff" * 16 not in memory.read(TABLES, size)


# Modes


@pytest.mark.parametrize(
    ("state", "cr0", "cr4", "efer"),
    [
        pytest.param(real_mode(), 0, 0, 0, id="real"),
        pytest.param(protected_mode(), PE, 0, 0, id="protected"),
        pytest.param(paged_mode(TABLES), PE | PG, PSE, 0, id="paged"),
        pytest.param(long_mode(TABLES), PE | PG, PAE, LME | LMA, id="long"),
    ],
)
def test_a_mode_is_what_its_control_bits_say(
    state: SystemRegisters, cr0: int, cr4: int, efer: int
) -> None:
    assert state.cr0 & (PE | PG) == cr0
    assert state.cr4 & (PSE | PAE) == cr4
    assert state.efer & (LME | LMA) == efer


@pytest.mark.parametrize(
    ("state", "cr3"),
    [
        (real_mode(), 0),
        (protected_mode(), 0),
        (paged_mode(TABLES), TABLES),
        (long_mode(TABLES), TABLES),
    ],
    ids=["real", "protected", "paged", "long"],
)
def test_cr3_has_the_tables_of_a_mode_that_pages(state: SystemRegisters, cr3: int) -> None:
    assert state.cr3 == cr3


# The L and D bits of the code segment (3.4.5): L=1 with D=1 is reserved.
@pytest.mark.parametrize(
    ("state", "bits"),
    [(real_mode(), 16), (protected_mode(), 32), (paged_mode(TABLES), 32), (long_mode(TABLES), 64)],
    ids=["real", "protected", "paged", "long"],
)
def test_the_code_segment_says_how_wide_code_is(state: SystemRegisters, bits: int) -> None:
    width = {(0, 0): 16, (1, 0): 32, (0, 1): 64}
    assert width[state.cs.db, state.cs.l] == bits


ALL_MODES = [real_mode(), protected_mode(), paged_mode(TABLES), long_mode(TABLES)]


# What a VM entry checks of a segment (26.3.1.2): code is accessed and executable, data writable and
# accessed; all present, at base 0, and in the ring that the CPU starts in.
@pytest.mark.parametrize("state", ALL_MODES, ids=["real", "protected", "paged", "long"])
def test_segments_are_such_as_a_cpu_may_run_with(state: SystemRegisters) -> None:
    assert state.cs.type & 0b1001 == 0b1001
    data = [state.ds, state.es, state.fs, state.gs, state.ss]
    assert all(segment.type & 0b1011 == 0b0011 for segment in data)
    for segment in [state.cs, *data]:
        assert (segment.present, segment.s, segment.base, segment.dpl) == (1, 1, 0, 0)


@pytest.mark.parametrize("state", ALL_MODES, ids=["real", "protected", "paged", "long"])
def test_limit_and_granularity_agree(state: SystemRegisters) -> None:
    # 3.4.5: with G=1 the low 12 bits of the limit are ones; without, it ends at 1 MiB.
    for segment in (state.cs, state.ds, state.es, state.fs, state.gs, state.ss):
        assert segment.limit & 0xFFF == 0xFFF if segment.g else segment.limit < MIB


@pytest.mark.parametrize("state", ALL_MODES, ids=["real", "protected", "paged", "long"])
def test_the_task_register_holds_a_busy_tss(state: SystemRegisters) -> None:
    assert (state.tr.type, state.tr.s, state.tr.present) == (0xB, 0, 1)


def test_real_mode_has_its_interrupt_vectors_at_0() -> None:
    state = real_mode()
    assert (state.idt.base, state.idt.limit) == (0, 4 * 256 - 1)
    assert {s.selector for s in (state.cs, state.ds, state.es, state.ss)} == {0}


def test_modes_share_no_state() -> None:
    first, second = protected_mode(), protected_mode()
    first.cs.base = first.tr.base = first.gdt.base = 1
    assert (second.cs.base, second.tr.base, second.gdt.base) == (0, 0, 0)
    assert Segment().base == 0


def test_the_reserved_bit_of_rflags_is_set() -> None:
    assert Registers().rflags == 2
