"""KVM: memory slots."""

import struct

import pytest

from tests.unit.kvm.guest import CODE, HLT, MEMORY_SIZE, NO_MEMORY, PAGE_TABLES, guest_of, needs_kvm
from virtiopy._native import lib
from virtiopy.accel.kvm.system import Capability, Kvm
from virtiopy.cpu.exits import ExitReason, MmioExit
from virtiopy.cpu.x86 import (
    PAGE_PRESENT,
    PAGE_SIZE_FLAG,
    PAGE_WRITABLE,
    Registers,
    long_mode,
)
from virtiopy.errors import HostError
from virtiopy.memory import HOLE_END, HOLE_START, GuestMemory


def _map_above_4_gib(memory: GuestMemory) -> None:
    """Map 2 MiB from 4 GiB on to themselves, beside what write_page_tables() does."""
    flags = PAGE_PRESENT | PAGE_WRITABLE
    directory = PAGE_TABLES + 0x3000
    memory.write(PAGE_TABLES + 0x1000 + 8 * 4, struct.pack("<Q", directory | flags))
    memory.write(directory, struct.pack("<Q", HOLE_END | flags | PAGE_SIZE_FLAG))


@needs_kvm
def test_memory_above_4_gib_is_the_guests_and_the_hosts() -> None:
    # mov eax, [rdi]; mov [rdi + 4], eax; hlt
    code = bytes.fromhex("8b 07 89 47 04 f4")
    with guest_of(
        code,
        state=long_mode(PAGE_TABLES),
        registers=Registers(rdi=HOLE_END),
        memory_size=HOLE_START + MEMORY_SIZE,
    ) as guest:
        _map_above_4_gib(guest.memory)
        guest.memory.write(HOLE_END, b"high")
        assert guest.next_exit().reason is ExitReason.HLT
        assert guest.memory.read(HOLE_END, 8) == b"highhigh"


@needs_kvm
def test_what_the_guest_writes_the_host_reads_at_the_last_byte_of_memory() -> None:
    store_twice = bytes.fromhex("88 07 88 47 01")  # at rdi and at rdi + 1
    registers = Registers(rax=0x42, rdi=MEMORY_SIZE - 1)
    with guest_of(store_twice, state=long_mode(PAGE_TABLES), registers=registers) as guest:
        exit_ = guest.next_exit()
        assert isinstance(exit_, MmioExit)
        assert exit_.address == MEMORY_SIZE
        assert guest.flag(MEMORY_SIZE - 1) == 0x42


@needs_kvm
def test_memory_slots_that_overlap_are_refused() -> None:
    with guest_of(HLT) as guest:
        region = guest.memory.regions[0]
        with pytest.raises(HostError, match="KVM_SET_USER_MEMORY_REGION fails: File exists"):
            guest.accelerator.vm.set_memory_slot(1, 0x1000, 0x1000, region.host_address)


@needs_kvm
def test_an_unmapped_memory_slot_is_no_memory() -> None:
    registers = Registers(rdi=NO_MEMORY)
    with guest_of(
        bytes.fromhex("8a 07 8a 07"), state=long_mode(PAGE_TABLES), registers=registers
    ) as guest:
        vm, region = guest.accelerator.vm, guest.memory.regions[0]
        vm.set_memory_slot(1, NO_MEMORY, 0x1000, region.host_address)
        vm.set_memory_slot(1, NO_MEMORY, 0, 0)
        assert isinstance(guest.next_exit(), MmioExit)


@needs_kvm
def test_a_read_only_memory_slot_is_read_without_an_exit_and_written_with_one() -> None:
    with Kvm() as kvm:
        if not kvm.check_extension(Capability.READONLY_MEM):
            pytest.skip("this KVM has no read-only memory slots")
    # mov al, [rdi]; mov [rdi], al
    code, registers = bytes.fromhex("8a 07 88 07"), Registers(rdi=NO_MEMORY)
    with guest_of(code, state=long_mode(PAGE_TABLES), registers=registers) as guest:
        vm, region = guest.accelerator.vm, guest.memory.regions[0]
        vm.set_memory_slot(
            1, NO_MEMORY, 0x1000, region.host_address + CODE, flags=lib.KVM_MEM_READONLY
        )
        exit_ = guest.next_exit()
        assert isinstance(exit_, MmioExit)
        assert (exit_.is_write, bytes(exit_.data)) == (True, code[:1])
