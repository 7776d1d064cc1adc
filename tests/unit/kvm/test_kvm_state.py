"""KVM: /dev/kvm, and the state of a vCPU."""

import errno
import os
import struct
from pathlib import Path

import pytest

from tests.openfiles import open_files
from tests.unit.kvm.guest import HLT, PAGE_TABLES, PatchedLib, guest_of, needs_kvm
from virtiopy._native import CData, ffi, lib
from virtiopy.accel.kvm import system as system_module
from virtiopy.accel.kvm.system import Capability, Kvm
from virtiopy.cpu.exits import Exit, ExitReason, IoExit
from virtiopy.cpu.x86 import (
    Registers,
    SystemRegisters,
    long_mode,
    protected_mode,
    real_mode,
)
from virtiopy.errors import HostError

# /dev/kvm


@needs_kvm
@pytest.mark.parametrize(
    "capability",
    [
        Capability.USER_MEMORY,
        Capability.IRQCHIP,
        Capability.IOEVENTFD,
        Capability.IRQFD,
        Capability.IMMEDIATE_EXIT,
        Capability.EXT_CPUID,
    ],
)
def test_kvm_has_what_virtiopy_cannot_do_without(capability: Capability) -> None:
    with Kvm() as kvm:
        assert kvm.check_extension(capability) > 0


@needs_kvm
def test_numbers_of_capabilities_are_numbers() -> None:
    with Kvm() as kvm:
        assert kvm.check_extension(Capability.MAX_VCPUS) >= kvm.check_extension(Capability.NR_VCPUS)
        assert kvm.check_extension(Capability.NR_MEMSLOTS) >= 32


def test_without_a_device_file_the_remedy_is_named() -> None:
    with pytest.raises(HostError, match=r"^/no/kvm does not exist: enable virtualization in the"):
        Kvm("/no/kvm")


def test_a_device_that_is_not_kvm_is_refused_and_closed() -> None:
    before = open_files()
    with pytest.raises(HostError, match=r"^/dev/null is not KVM "):
        Kvm("/dev/null")
    assert open_files() == before


def test_without_rights_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    Path("kvm").touch(mode=0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(HostError, match=r"^kvm may not be opened by this user: join the group"):
            Kvm("kvm")
    finally:
        os.seteuid(user)


@needs_kvm
def test_a_vm_outlives_the_opened_device() -> None:
    with Kvm() as kvm:
        vm = kvm.create_vm()
    with vm, vm.create_vcpu() as cpu:
        assert cpu.get_registers().rip == 0xFFF0


@needs_kvm
def test_an_interrupted_creation_of_a_vm_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    interruptions = [-errno.EINTR] * 3

    def ioctl(fd: int, request: int, argument: int) -> int:
        if request == lib.KVM_CREATE_VM and interruptions:
            return interruptions.pop()
        return lib.vp_ioctl(fd, request, argument)

    monkeypatch.setattr(system_module, "lib", PatchedLib(vp_ioctl=ioctl))
    with Kvm() as kvm:
        kvm.create_vm().close()
    assert interruptions == []


@needs_kvm
def test_a_vm_that_cannot_be_made_is_the_hosts_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(fd: int, request: int, argument: int) -> int:
        if request == lib.KVM_CREATE_VM:
            return -errno.EBUSY
        return lib.vp_ioctl(fd, request, argument)

    monkeypatch.setattr(system_module, "lib", PatchedLib(vp_ioctl=ioctl))
    message = r"makes no VM \(Device or resource busy\): see whether another hypervisor"
    with Kvm() as kvm, pytest.raises(HostError, match=message):
        kvm.create_vm()


@needs_kvm
def test_the_second_cpu_of_the_same_number_is_refused_and_leaves_nothing_open() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0):
        before = open_files()
        with pytest.raises(HostError, match="KVM_CREATE_VCPU fails: File exists"):
            vm.create_vcpu(0)
        assert open_files() == before


@needs_kvm
def test_a_hundred_guests_leave_nothing_open() -> None:
    def live() -> None:
        with guest_of(HLT, interrupts=False) as guest:
            assert guest.next_exit().reason is ExitReason.HLT

    live()
    before = open_files()
    for _ in range(100):
        live()
    assert open_files() == before


@needs_kvm
def test_a_cpu_can_be_closed_while_an_exit_is_held() -> None:
    before = open_files()
    with guest_of(bytes.fromhex("e6 42")) as guest:
        held: Exit | None = guest.next_exit()
    assert isinstance(held, IoExit)
    del held
    assert open_files() == before


# State


@needs_kvm
def test_general_registers_are_read_as_they_were_written() -> None:
    names = [name for name in Registers.__match_args__ if name != "rflags"]
    values = {name: 0x1111_0000_0000_0000 + n for n, name in enumerate(names)}
    registers = Registers(**values, rflags=0x246)
    with guest_of(HLT) as guest:
        guest.cpu.set_registers(registers)
        assert guest.cpu.get_registers() == registers


@needs_kvm
@pytest.mark.parametrize(
    "state", [real_mode(), protected_mode(), long_mode(PAGE_TABLES)], ids=["real", "32", "64"]
)
def test_system_registers_are_read_as_they_were_written(state: SystemRegisters) -> None:
    state.gdt.base, state.gdt.limit = 0x2000, 0x37
    state.idt.base, state.idt.limit = 0x3000, 0xFF
    state.cr2 = 0x1234_5000
    state.fs = state.fs.replace(base=0x7000, selector=0x700)
    with guest_of(HLT) as guest:
        guest.cpu.set_system_registers(state)
        seen = guest.cpu.get_system_registers()
    assert seen.replace(apic_base=None) == state


@needs_kvm
def test_system_registers_leave_the_apic_base_alone_unless_told() -> None:
    with guest_of(HLT, interrupts=True) as guest:
        before = guest.cpu.get_system_registers().apic_base
        guest.cpu.set_system_registers(protected_mode())
        assert guest.cpu.get_system_registers().apic_base == before == 0xFEE0_0900


@needs_kvm
def test_the_apic_base_is_read_as_it_was_written() -> None:
    # At its place, on the first CPU, and switched off
    with guest_of(HLT, interrupts=True) as guest:
        guest.cpu.set_system_registers(protected_mode().replace(apic_base=0xFEE0_0100))
        assert guest.cpu.get_system_registers().apic_base == 0xFEE0_0100


@needs_kvm
def test_the_fpu_state_is_read_as_it_was_written() -> None:
    with guest_of(HLT) as guest:
        fpu = guest.cpu.get_fpu()
        # KVM does not carry mxcsr here.
        fpu.fcw, fpu.fsw, fpu.last_ip = 0x027F, 0x3800, 0x1234
        for register in range(16):
            fpu.xmm[register] = bytes(range(register, register + 16))
        guest.cpu.set_fpu(fpu)
        seen = guest.cpu.get_fpu()
    assert bytes(ffi.buffer(seen.xmm)) == bytes(ffi.buffer(fpu.xmm))
    assert (seen.fcw, seen.fsw, seen.last_ip) == (0x027F, 0x3800, 0x1234)


SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176
NO_MSR = 0x0DEA_DBEE


@needs_kvm
def test_model_specific_registers_are_read_as_they_were_written() -> None:
    values = {SYSENTER_CS: 0x10, SYSENTER_ESP: 0x7FFF_1234_5678, SYSENTER_EIP: 0x1_0000_0000}
    with guest_of(HLT) as guest:
        guest.cpu.set_msrs(values)
        assert guest.cpu.get_msrs(list(values)) == values


@needs_kvm
def test_model_specific_registers_that_kvm_refuses_are_left_out() -> None:
    with guest_of(HLT) as guest:
        guest.cpu.set_msrs({SYSENTER_CS: 0x10})
        indices = [NO_MSR, SYSENTER_CS, NO_MSR, NO_MSR, SYSENTER_ESP, NO_MSR]
        assert guest.cpu.get_msrs(indices) == {SYSENTER_CS: 0x10, SYSENTER_ESP: 0}


@needs_kvm
def test_the_model_specific_register_that_kvm_refuses_to_write_is_named() -> None:
    with guest_of(HLT) as guest:
        with pytest.raises(HostError, match="refuses register 0xdeadbee"):
            guest.cpu.set_msrs({SYSENTER_CS: 0x10, NO_MSR: 1, SYSENTER_ESP: 1})
        assert guest.cpu.get_msrs([SYSENTER_CS, SYSENTER_ESP]) == {
            SYSENTER_CS: 0x10,
            SYSENTER_ESP: 0,
        }


@needs_kvm
def test_kvm_lists_the_model_specific_registers_that_it_saves() -> None:
    with Kvm() as kvm:
        assert {SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP} <= set(kvm.msr_indices())


def _cpuid_entry(cpuid: CData, function: int) -> CData:
    for position in range(cpuid.nent):
        entry: CData = cpuid.entries[position]
        if entry.function == function:
            return entry
    raise LookupError(f"no CPUID function {function:#x}")


#: mov eax, 0x40000000; cpuid; hlt
CPUID = bytes.fromhex("b8 00000040 0fa2 f4")


@needs_kvm
def test_the_guest_sees_the_processor_that_kvm_supports() -> None:
    with guest_of(CPUID, state=long_mode(PAGE_TABLES)) as guest:
        assert guest.next_exit().reason is ExitReason.HLT
        seen = guest.cpu.get_registers()
    assert struct.pack("<3I", seen.rbx, seen.rcx, seen.rdx).startswith(b"KVMKVMKVM")


@needs_kvm
def test_the_guest_sees_the_processor_that_it_is_given() -> None:
    with Kvm() as kvm, guest_of(CPUID, state=long_mode(PAGE_TABLES)) as guest:
        cpuid = kvm.supported_cpuid()
        _cpuid_entry(cpuid, 0x4000_0000).ebx = 0x5950_5456
        guest.cpu.set_cpuid(cpuid)
        guest.next_exit()
        assert guest.cpu.get_registers().rbx == 0x5950_5456
