from collections.abc import Iterator

import pytest

from virtiopy.accel.tcg.paging import CR0_WP, LinearMemory, PageFault
from virtiopy.cpu.x86 import CR0_PE, CR0_PG, CR4_PAE, CR4_PSE, EFER_LMA, EFER_LME
from virtiopy.memory import AddressError, GuestMemory

ROOT = 0x1000
PRESENT, WRITABLE, LARGE = 1, 2, 0x80
ON = CR0_PE | CR0_PG | CR0_WP
LONG = EFER_LME | EFER_LMA


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(1 << 20) as memory:
        yield memory


def put(memory: GuestMemory, address: int, entry: int, size: int = 8) -> None:
    memory.write(address, entry.to_bytes(size, "little"))


def test_without_paging_addresses_are_physical_and_of_32_bits(memory: GuestMemory) -> None:
    linear = LinearMemory(memory, CR0_PE, 0, 0, 0)
    assert linear.translate(0x1_0000_2345) == 0x2345


def test_32_bit_paging_goes_through_two_levels(memory: GuestMemory) -> None:
    put(memory, ROOT + 4 * 1, 0x2000 | PRESENT | WRITABLE, 4)
    put(memory, 0x2000 + 4 * 3, 0x9000 | PRESENT | WRITABLE, 4)
    linear = LinearMemory(memory, ON, ROOT, 0, 0)
    assert linear.translate(1 << 22 | 3 << 12 | 0x678, is_write=True) == 0x9678


def test_a_4_mib_page_needs_cr4_pse(memory: GuestMemory) -> None:
    put(memory, ROOT, LARGE | PRESENT, 4)
    assert LinearMemory(memory, ON, ROOT, CR4_PSE, 0).translate(0x12_3456) == 0x12_3456
    with pytest.raises(PageFault):
        LinearMemory(memory, ON, ROOT, 0, 0).translate(0x12_3456)


def test_pae_paging_goes_through_four_pointers(memory: GuestMemory) -> None:
    put(memory, ROOT + 0x20 + 8 * 2, 0x2000 | PRESENT)
    put(memory, 0x2000 + 8 * 1, 0x40_0000 | LARGE | PRESENT | WRITABLE)
    linear = LinearMemory(memory, ON, ROOT + 0x20, CR4_PAE, 0)
    assert linear.translate(2 << 30 | 1 << 21 | 0x1234, is_write=True) == 0x40_1234


@pytest.mark.parametrize("level", [30, 21, 12])
def test_long_mode_paging_ends_at_a_page_of_any_size(memory: GuestMemory, level: int) -> None:
    table = ROOT
    for shift in (39, 30, 21, 12):
        index = 0x8123_4567_89AB >> shift & 511
        if shift == level:
            put(memory, table + 8 * index, LARGE * (level > 12) | PRESENT)
            break
        put(memory, table + 8 * index, table + 0x1000 | PRESENT)
        table += 0x1000
    linear = LinearMemory(memory, ON, ROOT, CR4_PAE, LONG)
    address = 0xFFFF_8123_4567_89AB
    assert linear.translate(address) == address & (1 << level) - 1


def test_a_page_that_is_not_there_faults_with_what_was_done(memory: GuestMemory) -> None:
    linear = LinearMemory(memory, ON, ROOT, 0, 0)
    for is_write, code in ((False, 0), (True, 2)):
        with pytest.raises(PageFault) as caught:
            linear.translate(0x5000, is_write=is_write)
        assert (caught.value.address, caught.value.error_code) == (0x5000, code)


def test_a_supervisors_write_needs_a_writable_page_if_write_protect_is_on(
    memory: GuestMemory,
) -> None:
    put(memory, ROOT, 0x2000 | PRESENT | WRITABLE, 4)
    put(memory, 0x2000, 0x9000 | PRESENT, 4)
    with pytest.raises(PageFault) as caught:
        LinearMemory(memory, ON, ROOT, 0, 0).translate(0, is_write=True)
    assert caught.value.error_code == 3
    lax = LinearMemory(memory, ON & ~CR0_WP, ROOT, 0, 0)
    assert lax.translate(0, is_write=True) == 0x9000


def test_bytes_over_two_pages_go_to_both_or_neither(memory: GuestMemory) -> None:
    put(memory, ROOT, 0x2000 | PRESENT | WRITABLE, 4)
    put(memory, 0x2000, 0x9000 | PRESENT | WRITABLE, 4)
    linear = LinearMemory(memory, ON, ROOT, 0, 0)
    with pytest.raises(PageFault):
        linear.write(0xFFE, b"abcd")
    assert memory.read(0x9FFE, 2) == bytes(2)

    put(memory, 0x2004, 0x7000 | PRESENT | WRITABLE, 4)
    linear.write(0xFFE, b"abcd")
    assert (memory.read(0x9FFE, 2), memory.read(0x7000, 2)) == (b"ab", b"cd")
    assert linear.read(0xFFE, 4) == b"abcd"


def test_a_page_where_no_memory_is_cannot_be_written(memory: GuestMemory) -> None:
    put(memory, ROOT, 0x2000 | PRESENT | WRITABLE, 4)
    put(memory, 0x2000, 0xD000_0000 | PRESENT | WRITABLE, 4)
    with pytest.raises(AddressError):
        LinearMemory(memory, ON, ROOT, 0, 0).write(0, b"a")
