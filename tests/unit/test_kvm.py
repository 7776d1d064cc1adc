"""KVM: registers, exits, stopping, memory slots, interrupts, by guests of a few bytes."""

import contextlib
import errno
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Self, TypeVar

import pytest

from tests.openfiles import open_files
from tests.patience import PATIENCE
from virtiopy._native import CData, ffi, lib
from virtiopy.accel.kvm import statistics as statistics_module
from virtiopy.accel.kvm import system as system_module
from virtiopy.accel.kvm import vcpu as vcpu_module
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.accel.kvm.decode import decode
from virtiopy.accel.kvm.statistics import read_statistics
from virtiopy.accel.kvm.system import Capability, Kvm
from virtiopy.accel.kvm.vcpu import Vcpu
from virtiopy.cpu.exits import Exit, ExitReason, IoExit, MmioExit
from virtiopy.cpu.rare_exits import (
    ExceptionExit,
    FailEntryExit,
    HypercallExit,
    InternalErrorExit,
    IoapicEoiExit,
    MsrExit,
    NotifyExit,
    SystemEventExit,
    TprAccessExit,
    UnknownExit,
)
from virtiopy.cpu.x86 import (
    PAGE_PRESENT,
    PAGE_SIZE_FLAG,
    PAGE_WRITABLE,
    Registers,
    SystemRegisters,
    long_mode,
    protected_mode,
    real_mode,
    write_page_tables,
)
from virtiopy.errors import HostError
from virtiopy.memory import HOLE_END, HOLE_START, GuestMemory
from virtiopy.vm.bus import UnassignedAccessError
from virtiopy.vm.machine import Machine

MEMORY_SIZE = 2 << 20
CODE = 0x1000
STACK = 0x8000
PAGE_TABLES = 0x10000

#: Where page tables lead and no memory is.
NO_MEMORY = 0x3000_0000

#: What the guests below report at, and wait for.
COUNTER = 0x400
QUIT = 0x500


HLT = b"\xf4"

T = TypeVar("T")


def _why_no_kvm() -> str:
    try:
        Kvm().close()
    except HostError as error:
        return str(error)
    return ""


needs_kvm = pytest.mark.skipif(bool(_why_no_kvm()), reason=_why_no_kvm())


class PatchedLib:
    """The native library, with some of its functions answering what a test says."""

    def __init__(self, **results: Callable[..., object]) -> None:
        self._results = results

    def __getattr__(self, name: str) -> object:
        return self._results.get(name) or getattr(lib, name)


@dataclass
class Guest:
    """A vCPU about to execute `code` at 0x1000."""

    memory: GuestMemory
    accelerator: KvmAccelerator
    cpu: Vcpu

    def next_exit(self) -> Exit:
        exit_ = self.cpu.run()
        assert exit_ is not None
        return exit_

    def flag(self, address: int) -> int:
        return self.memory.read(address, 1)[0]


@contextlib.contextmanager
def guest_of(
    code: bytes,
    *,
    state: SystemRegisters | None = None,
    registers: Registers | None = None,
    interrupts: bool = False,
    memory_size: int = MEMORY_SIZE,
) -> Iterator[Guest]:
    """Make a guest, in real mode if `state` does not say otherwise."""
    with GuestMemory.allocate(memory_size) as memory:
        memory.write(CODE, code)
        write_page_tables(memory, PAGE_TABLES)
        accelerator = KvmAccelerator(memory, interrupts=interrupts)
        cpu = accelerator.create_cpu()
        cpu.set_system_registers(state or real_mode())
        cpu.set_registers(replace(registers or Registers(), rip=CODE, rsp=STACK))
        try:
            yield Guest(memory, accelerator, cpu)
        finally:
            cpu.close()
            accelerator.close()


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
    names = [field.name for field in fields(Registers) if field.name != "rflags"]
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
    state.fs = replace(state.fs, base=0x7000, selector=0x700)
    with guest_of(HLT) as guest:
        guest.cpu.set_system_registers(state)
        seen = guest.cpu.get_system_registers()
    assert replace(seen, apic_base=None) == state


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
        guest.cpu.set_system_registers(replace(protected_mode(), apic_base=0xFEE0_0100))
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


# Exits


@needs_kvm
@pytest.mark.parametrize(
    ("instruction", "size"), [("ee", 1), ("ef", 2), ("66 ef", 4)], ids=["outb", "outw", "outl"]
)
def test_an_out_instruction_is_an_exit_with_its_data(instruction: str, size: int) -> None:
    registers = Registers(rax=0x4433_2211, rdx=0x1234)
    with guest_of(bytes.fromhex(instruction) + HLT, registers=registers) as guest:
        exit_ = guest.next_exit()
        assert isinstance(exit_, IoExit)
        assert (exit_.port, exit_.size, exit_.count, exit_.is_write) == (0x1234, size, 1, True)
        assert exit_.data == b"\x11\x22\x33\x44"[:size]


@needs_kvm
@pytest.mark.parametrize(
    ("instruction", "size"), [("ec", 1), ("ed", 2), ("66 ed", 4)], ids=["inb", "inw", "inl"]
)
def test_an_in_instruction_reads_what_is_put_into_its_exit(instruction: str, size: int) -> None:
    registers = Registers(rax=0xFFFF_FFFF, rdx=0x1234)
    with guest_of(bytes.fromhex(instruction) + HLT, registers=registers) as guest:
        exit_ = guest.next_exit()
        assert isinstance(exit_, IoExit)
        assert (exit_.port, exit_.size, exit_.count, exit_.is_write) == (0x1234, size, 1, False)
        exit_.data[:] = b"\x11\x22\x33\x44"[:size]
        assert guest.next_exit().reason is ExitReason.HLT
        rax = guest.cpu.get_registers().rax
    assert rax.to_bytes(8, "little")[:4] == b"\x11\x22\x33\x44"[:size] + b"\xff" * (4 - size)


@needs_kvm
@pytest.mark.parametrize(
    ("instruction", "size"), [("f3 6e", 1), ("f3 6f", 2), ("66 f3 6f", 4)], ids=["b", "w", "l"]
)
def test_a_string_of_outs_arrives_whole_in_however_many_exits(instruction: str, size: int) -> None:
    data, count = bytes(range(1, 1 + 20 * size)), 20
    registers = Registers(rcx=count, rsi=0x2000, rdx=0x1234)
    with guest_of(bytes.fromhex(instruction) + HLT, registers=registers) as guest:
        guest.memory.write(0x2000, data)
        written = b""
        while isinstance(exit_ := guest.next_exit(), IoExit):
            assert (exit_.port, exit_.size, exit_.is_write) == (0x1234, size, True)
            assert len(exit_.data) == exit_.size * exit_.count
            written += bytes(exit_.data)
        assert exit_.reason is ExitReason.HLT
    assert written == data


@needs_kvm
def test_a_string_of_ins_fills_memory() -> None:
    data = bytes(range(1, 21))
    registers = Registers(rcx=20, rdi=0x2000, rdx=0x1234)
    with guest_of(bytes.fromhex("f3 6c") + HLT, registers=registers) as guest:
        given = 0
        while isinstance(exit_ := guest.next_exit(), IoExit):
            assert not exit_.is_write
            exit_.data[:] = data[given : given + len(exit_.data)]
            given += len(exit_.data)
        assert guest.memory.read(0x2000, 21) == data + b"\0"


LONG_WRITES = [("88 07", 1), ("66 89 07", 2), ("89 07", 4), ("48 89 07", 8)]
LONG_READS = [("8a 07", 1), ("66 8b 07", 2), ("8b 07", 4), ("48 8b 07", 8)]


@needs_kvm
@pytest.mark.parametrize(("instruction", "size"), LONG_WRITES)
def test_a_write_where_no_memory_is_becomes_an_exit_with_its_data(
    instruction: str, size: int
) -> None:
    registers = Registers(rax=0x8877_6655_4433_2211, rdi=NO_MEMORY)
    state = long_mode(PAGE_TABLES)
    with guest_of(bytes.fromhex(instruction) + HLT, state=state, registers=registers) as guest:
        exit_ = guest.next_exit()
        assert isinstance(exit_, MmioExit)
        assert (exit_.address, exit_.is_write) == (NO_MEMORY, True)
        assert exit_.data == bytes.fromhex("1122334455667788")[:size]


@needs_kvm
@pytest.mark.parametrize(("instruction", "size"), LONG_READS)
def test_a_read_where_no_memory_is_gets_what_is_put_into_its_exit(
    instruction: str, size: int
) -> None:
    registers = Registers(rax=0, rdi=NO_MEMORY + 8)
    state = long_mode(PAGE_TABLES)
    with guest_of(bytes.fromhex(instruction) + HLT, state=state, registers=registers) as guest:
        exit_ = guest.next_exit()
        assert isinstance(exit_, MmioExit)
        assert (exit_.address, exit_.is_write, len(exit_.data)) == (NO_MEMORY + 8, False, size)
        exit_.data[:] = bytes.fromhex("1122334455667788")[:size]
        assert guest.next_exit().reason is ExitReason.HLT
        rax = guest.cpu.get_registers().rax
    assert rax.to_bytes(8, "little") == bytes.fromhex("1122334455667788")[:size].ljust(8, b"\0")


@needs_kvm
def test_without_interrupt_chips_hlt_is_an_exit_after_which_the_guest_goes_on() -> None:
    with guest_of(HLT + HLT) as guest:
        assert guest.next_exit() == Exit(ExitReason.HLT)
        assert guest.next_exit() == Exit(ExitReason.HLT)
        assert guest.cpu.get_registers().rip == CODE + 2


@needs_kvm
def test_a_triple_fault_is_an_exit() -> None:
    state = long_mode(PAGE_TABLES)
    state.idt.limit = 0
    with guest_of(b"\x0f\x0b", state=state) as guest:
        assert guest.next_exit() == Exit(ExitReason.SHUTDOWN)


@needs_kvm
def test_executing_what_is_no_memory_is_an_internal_error_that_can_be_described() -> None:
    # jmp rax
    with guest_of(
        b"\xff\xe0", state=long_mode(PAGE_TABLES), registers=Registers(rax=NO_MEMORY)
    ) as guest:
        exit_ = guest.next_exit()
    assert isinstance(exit_, InternalErrorExit)
    assert exit_.describe().startswith("KVM_EXIT_INTERNAL_ERROR, suberror EMULATION, data [")


# Decoding struct kvm_run (api.rst 5), filled in by hand


class KvmRun:
    """A struct kvm_run with the page behind it."""

    def __init__(self, reason: int) -> None:
        self.memory = bytearray(2 * 4096)
        self.struct = ffi.cast("struct kvm_run *", ffi.from_buffer("char[]", self.memory))
        self.struct.exit_reason = reason

    def decode(self) -> Exit:
        return decode(self.struct, memoryview(self.memory))


@pytest.mark.parametrize("reason", list(ExitReason), ids=lambda reason: reason.name)
def test_every_known_reason_decodes_to_itself_and_can_be_described(reason: ExitReason) -> None:
    exit_ = KvmRun(reason).decode()
    assert exit_.reason is reason
    assert exit_.describe()


def test_a_reason_newer_than_virtiopy_is_unknown_but_keeps_its_number() -> None:
    exit_ = KvmRun(9999).decode()
    assert exit_ == UnknownExit(ExitReason.UNKNOWN, 9999, 0)
    assert "9999" in exit_.describe()


def test_unknown_carries_the_hardware_reason() -> None:
    run = KvmRun(ExitReason.UNKNOWN)
    run.struct.hw.hardware_exit_reason = 0x8000_0021
    exit_ = run.decode()
    assert exit_ == UnknownExit(ExitReason.UNKNOWN, 0, 0x8000_0021)
    assert "0x80000021" in exit_.describe()


def test_fail_entry_carries_reason_and_cpu() -> None:
    run = KvmRun(ExitReason.FAIL_ENTRY)
    run.struct.fail_entry.hardware_entry_failure_reason = 0x8000_0021
    run.struct.fail_entry.cpu = 3
    exit_ = run.decode()
    assert exit_ == FailEntryExit(ExitReason.FAIL_ENTRY, 0x8000_0021, 3)
    assert "0x80000021 on CPU 3" in exit_.describe()


@pytest.mark.parametrize(("suberror", "name"), [(1, "EMULATION"), (3, "DELIVERY_EV"), (77, "77")])
def test_internal_error_carries_suberror_and_data(suberror: int, name: str) -> None:
    run = KvmRun(ExitReason.INTERNAL_ERROR)
    run.struct.internal.suberror = suberror
    run.struct.internal.ndata = 2
    run.struct.internal.data[0], run.struct.internal.data[1] = 0x10, 0x20
    run.struct.internal.data[2] = 0x30
    exit_ = run.decode()
    assert exit_ == InternalErrorExit(ExitReason.INTERNAL_ERROR, suberror, (0x10, 0x20))
    assert exit_.describe() == f"KVM_EXIT_INTERNAL_ERROR, suberror {name}, data [0x10 0x20]"


@pytest.mark.parametrize(
    ("type_", "name"), [(1, "SHUTDOWN"), (2, "RESET"), (3, "CRASH"), (99, "99")]
)
def test_system_event_carries_type_and_data(type_: int, name: str) -> None:
    run = KvmRun(ExitReason.SYSTEM_EVENT)
    run.struct.system_event.type = type_
    run.struct.system_event.ndata = 1
    run.struct.system_event.data[0] = 7
    exit_ = run.decode()
    assert exit_ == SystemEventExit(ExitReason.SYSTEM_EVENT, type_, (7,))
    assert exit_.describe() == f"system event {name}"


def test_hypercall_carries_number_and_arguments() -> None:
    run = KvmRun(ExitReason.HYPERCALL)
    run.struct.hypercall.nr = 12
    for position in range(6):
        run.struct.hypercall.args[position] = position + 1
    exit_ = run.decode()
    assert exit_ == HypercallExit(ExitReason.HYPERCALL, 12, (1, 2, 3, 4, 5, 6))
    assert exit_.describe() == "hypercall 12"


def test_exception_carries_vector_and_error_code() -> None:
    run = KvmRun(ExitReason.EXCEPTION)
    run.struct.ex.exception, run.struct.ex.error_code = 14, 2
    exit_ = run.decode()
    assert exit_ == ExceptionExit(ExitReason.EXCEPTION, 14, 2)
    assert exit_.describe() == "exception 14, error code 0x2"


@pytest.mark.parametrize("reason", [ExitReason.X86_RDMSR, ExitReason.X86_WRMSR])
def test_an_msr_exit_carries_index_data_and_why(reason: ExitReason) -> None:
    run = KvmRun(reason)
    run.struct.msr.index, run.struct.msr.data, run.struct.msr.reason = 0xC000_0080, 1 << 40, 2
    exit_ = run.decode()
    assert exit_ == MsrExit(reason, 0xC000_0080, 1 << 40, 2)
    assert exit_.describe() == f"KVM_EXIT_{reason.name} of register 0xc0000080"


def test_tpr_access_ioapic_eoi_and_notify_carry_their_fields() -> None:
    tpr, eoi, notify = (
        KvmRun(ExitReason.TPR_ACCESS),
        KvmRun(ExitReason.IOAPIC_EOI),
        KvmRun(ExitReason.NOTIFY),
    )
    tpr.struct.tpr_access.rip, tpr.struct.tpr_access.is_write = 0x1234, 1
    eoi.struct.eoi.vector = 0x31
    notify.struct.notify.flags = 1
    assert tpr.decode() == TprAccessExit(ExitReason.TPR_ACCESS, 0x1234, True)
    assert eoi.decode() == IoapicEoiExit(ExitReason.IOAPIC_EOI, 0x31)
    assert notify.decode() == NotifyExit(ExitReason.NOTIFY, 1)


@pytest.mark.parametrize("is_write", [False, True])
def test_an_i_o_exit_shows_the_data_where_kvm_says_they_are(is_write: bool) -> None:
    run = KvmRun(ExitReason.IO)
    io = run.struct.io
    io.direction = lib.KVM_EXIT_IO_OUT if is_write else lib.KVM_EXIT_IO_IN
    io.port, io.size, io.count, io.data_offset = 0x3F8, 2, 3, 4096
    run.memory[4096 : 4096 + 7] = b"abcdefg"
    exit_ = run.decode()
    assert isinstance(exit_, IoExit)
    assert (exit_.port, exit_.size, exit_.count, exit_.is_write) == (0x3F8, 2, 3, is_write)
    assert bytes(exit_.data) == b"abcdef"
    exit_.data[:] = b"ABCDEF"
    assert run.memory[4096 : 4096 + 7] == b"ABCDEFg"


@pytest.mark.parametrize("size", range(1, 9))
def test_an_mmio_exit_shows_as_many_bytes_as_were_accessed(size: int) -> None:
    run = KvmRun(ExitReason.MMIO)
    mmio = run.struct.mmio
    mmio.phys_addr, mmio.len, mmio.is_write = 0xFEDC_BA98_7654_3210, size, 1
    mmio.data = b"abcdefgh"
    exit_ = run.decode()
    assert isinstance(exit_, MmioExit)
    assert (exit_.address, exit_.is_write) == (0xFEDC_BA98_7654_3210, True)
    assert exit_.data == b"abcdefgh"[:size]


# Stopping a guest


class CpuThread:
    """A thread that does one call after another, as a vCPU's thread does."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._calls.put(None)
        self._thread.join(PATIENCE)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def start(self, call: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()

        def do() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised again by result()
                future.set_exception(error)

        self._calls.put(do)
        return future

    def do(self, call: Callable[[], T]) -> T:
        return self.start(call).result(PATIENCE)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        os.sched_yield()


#: inc dword [COUNTER]; cmp byte [QUIT], 0; je to the start; hlt
SPIN = bytes.fromhex("66 ff06 0004  80 3e 0005 00  74 f4  f4")


@dataclass
class Spinner:
    """A guest that counts until it is told to quit, and the thread that runs it."""

    guest: Guest
    thread: CpuThread

    def start(self) -> "Future[Exit | None]":
        return self.thread.start(self.guest.cpu.run)

    def stop(self) -> None:
        self.guest.cpu.stop()

    def wait_until_it_counts(self) -> None:
        before = self.guest.memory.read(COUNTER, 4)
        wait_until(lambda: self.guest.memory.read(COUNTER, 4) != before)

    def quit(self) -> None:
        self.guest.memory.write(QUIT, b"\1")

    def runs_to_its_end(self) -> bool:
        """Let it count and quit, and say whether nothing came between."""
        future = self.start()
        self.wait_until_it_counts()
        self.quit()
        return future.result(PATIENCE) == Exit(ExitReason.HLT)


@pytest.fixture(params=["io_uring", "signal"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How stop() reaches the thread."""
    way: str = request.param
    if way == "signal":
        patched = PatchedLib(vp_wake_new=lambda eventfd, error: ffi.NULL)
        monkeypatch.setattr(vcpu_module, "lib", patched)
    return way


@pytest.fixture
def spinner(way: str) -> Iterator[Spinner]:
    with guest_of(SPIN) as guest, CpuThread() as thread:
        spinner = Spinner(guest, thread)
        spinner.stop()
        spinner.thread.do(spinner.guest.cpu.run)
        if spinner.guest.cpu.wakes_by != way:
            pytest.skip("this kernel lets nobody use io_uring")
        yield spinner
        # Whatever the test did, the guest leaves KVM_RUN before its memory goes.
        spinner.quit()


@needs_kvm
def test_stop_takes_a_spinning_guest_out_of_run(spinner: Spinner) -> None:
    future = spinner.start()
    spinner.wait_until_it_counts()
    spinner.stop()
    assert future.result(PATIENCE) is None


@needs_kvm
def test_stop_before_run_makes_run_return_at_once(spinner: Spinner) -> None:
    spinner.stop()
    before = spinner.guest.memory.read(COUNTER, 4)
    assert spinner.start().result(PATIENCE) is None
    assert spinner.guest.memory.read(COUNTER, 4) == before


@needs_kvm
def test_a_stopped_guest_goes_on_at_the_next_run(spinner: Spinner) -> None:
    future = spinner.start()
    spinner.wait_until_it_counts()
    spinner.stop()
    assert future.result(PATIENCE) is None
    assert spinner.runs_to_its_end()


@needs_kvm
def test_of_a_thousand_stops_none_is_lost_and_none_invented(spinner: Spinner) -> None:
    for number in range(1000):
        future = spinner.start()
        if number % 4 == 0:
            spinner.wait_until_it_counts()
        spinner.stop()
        assert future.result(PATIENCE) is None
    assert spinner.runs_to_its_end()


@needs_kvm
def test_stops_before_a_run_count_as_one(spinner: Spinner) -> None:
    for _ in range(3):
        spinner.stop()
    assert spinner.start().result(PATIENCE) is None
    assert spinner.runs_to_its_end()


@needs_kvm
def test_many_stops_while_the_thread_is_elsewhere_do_not_lose_a_later_one(spinner: Spinner) -> None:
    for _ in range(10):
        spinner.stop()
        # The thread passes through the kernel, which tells it of the stop.
        spinner.thread.do(lambda: None)
    assert spinner.start().result(PATIENCE) is None
    future = spinner.start()
    spinner.wait_until_it_counts()
    spinner.stop()
    assert future.result(PATIENCE) is None


@needs_kvm
def test_stops_by_several_threads_at_once_are_not_lost(spinner: Spinner) -> None:
    with contextlib.ExitStack() as stack:
        threads = [stack.enter_context(CpuThread()) for _ in range(4)]
        for _ in range(50):
            future = spinner.start()
            stops = [thread.start(spinner.stop) for thread in threads]
            assert future.result(PATIENCE) is None
            for stop in stops:
                stop.result(PATIENCE)
            # One of them may have come after run() returned: take it with one more.
            spinner.stop()
            assert spinner.start().result(PATIENCE) is None
    assert spinner.runs_to_its_end()


@needs_kvm
def test_a_cpu_that_moved_to_another_thread_can_be_stopped_there(spinner: Spinner) -> None:
    with CpuThread() as other:
        future = other.start(spinner.guest.cpu.run)
        spinner.wait_until_it_counts()
        spinner.stop()
        assert future.result(PATIENCE) is None


@needs_kvm
def test_a_cpu_that_moves_between_threads_leaves_no_file_open(way: str) -> None:
    before = open_files()
    with guest_of(HLT * 5) as guest:
        for _ in range(5):
            with CpuThread() as thread:
                thread.do(guest.cpu.run)
    assert open_files() == before


@needs_kvm
def test_before_any_run_nobody_knows_how_a_stop_will_reach_the_thread() -> None:
    with guest_of(HLT) as guest:
        assert guest.cpu.wakes_by == ""


#: mov byte [COUNTER], 1; hlt, with interrupts off
HALT = bytes.fromhex("c6 06 0004 01 f4")


@needs_kvm
def test_stop_takes_a_guest_that_halted_in_the_kernel_out_of_run(way: str) -> None:
    with guest_of(HALT, interrupts=True) as guest, CpuThread() as thread:
        future = thread.start(guest.cpu.run)
        wait_until(lambda: guest.flag(COUNTER) == 1)
        guest.cpu.stop()
        assert future.result(PATIENCE) is None


# Interrupts


IRQ, VECTOR_BASE, HANDLER = 5, 0x20, 0x1800

#: 8259 (ICW1 to ICW4, then all masked but IRQ 5); mov byte [COUNTER], 1; sti; hlt; out 0x10, al
WAIT_FOR_IRQ = bytes.fromhex(
    "b011e620 b020e621 b004e621 b001e621 b0dfe621  c606 0004 01  fb f4  e610 f4"
)
#: mov byte [QUIT], 1; mov al, 0x20; out 0x20, al; iret
HANDLE_IRQ = bytes.fromhex("c606 0005 01  b020 e620  cf")


@contextlib.contextmanager
def guest_that_waits_for_an_interrupt() -> Iterator[Guest]:
    with guest_of(WAIT_FOR_IRQ, interrupts=True) as guest:
        guest.memory.write(HANDLER, HANDLE_IRQ)
        guest.memory.write(4 * (VECTOR_BASE + IRQ), struct.pack("<HH", HANDLER, 0))
        yield guest


@needs_kvm
def test_an_interrupt_wakes_a_halted_guest() -> None:
    with guest_that_waits_for_an_interrupt() as guest, CpuThread() as thread:
        # Opened now, because the vCPU's ioctls wait while it runs.
        counters = lib.vp_ioctl(guest.cpu.fd, lib.KVM_GET_STATS_FD, 0)
        try:
            future = thread.start(guest.cpu.run)
            if counters >= 0:
                wait_until(lambda: statistics_module._parse(counters)["halt_exits"] > 0)
            wait_until(lambda: guest.flag(COUNTER) == 1)
            assert guest.flag(QUIT) == 0
            guest.accelerator.set_irq_line(IRQ, True)
            exit_ = future.result(PATIENCE)
        finally:
            if counters >= 0:
                os.close(counters)
        assert isinstance(exit_, IoExit)
        assert (exit_.port, guest.flag(QUIT)) == (0x10, 1)


@needs_kvm
def test_without_interrupt_chips_there_is_no_interrupt_line() -> None:
    with guest_of(HLT) as guest, pytest.raises(HostError, match="KVM_IRQ_LINE fails: "):
        guest.accelerator.set_irq_line(5, True)


@needs_kvm
def test_with_interrupt_chips_timer_and_speaker_port_are_answered_in_the_kernel() -> None:
    # in al, 0x40; in al, 0x61; out 0x10, al
    with guest_of(bytes.fromhex("e440 e461 e610"), interrupts=True) as guest:
        exit_ = guest.next_exit()
        assert isinstance(exit_, IoExit)
        assert exit_.port == 0x10


@needs_kvm
def test_an_accelerator_makes_one_cpu_after_another() -> None:
    with guest_of(HLT) as guest, guest.accelerator.create_cpu(1, 2) as second:
        assert second.get_registers().rip == 0xFFF0


# Memory slots


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


# Statistics (api.rst 4.133)


def _has_statistics() -> bool:
    with contextlib.suppress(HostError), Kvm() as kvm:
        return bool(kvm.check_extension(Capability.BINARY_STATS_FD))
    return False


needs_statistics = pytest.mark.skipif(
    not _has_statistics(), reason=_why_no_kvm() or "this KVM has no binary statistics"
)


@needs_statistics
def test_the_counter_of_exits_grows_with_exits() -> None:
    with guest_of(HLT * 10) as guest:
        seen = [guest.cpu.statistics()["exits"]]
        for _ in range(10):
            guest.next_exit()
            seen.append(guest.cpu.statistics()["exits"])
    assert seen == sorted(set(seen))


@needs_statistics
def test_the_vm_has_counters_of_its_own() -> None:
    with guest_of(HLT) as guest:
        names = set(guest.accelerator.statistics())
        assert "remote_tlb_flush" in names
        assert "exits" not in names


@needs_statistics
def test_reading_statistics_leaves_nothing_open() -> None:
    with guest_of(HLT) as guest:
        before = open_files()
        for _ in range(10):
            guest.cpu.statistics()
        assert open_files() == before


def test_a_kernel_without_statistics_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "lib", PatchedLib(vp_ioctl=lambda *arguments: -25))
    assert read_statistics(0) == {}


# x86 state as data


@pytest.mark.parametrize("make", [real_mode, protected_mode])
def test_the_start_states_share_nothing_from_one_call_to_the_next(
    make: Callable[[], SystemRegisters],
) -> None:
    state = make()
    state.idt.limit = 0x123
    state.cs.base = 0x456
    assert astuple(make()) != astuple(state)


# Eventfds


@needs_kvm
def test_an_ioeventfd_that_was_removed_leaves_its_address_to_another() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        first, second = (os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2))
        remove = vm.add_ioeventfd(0xD000_0050, 0, first)
        with pytest.raises(HostError, match="KVM_IOEVENTFD fails: File exists"):
            vm.add_ioeventfd(0xD000_0050, 0, second)
        remove()
        vm.add_ioeventfd(0xD000_0050, 0, second)
        os.close(first)
        os.close(second)


# A machine on KVM


@needs_kvm
def test_an_unassigned_access_is_what_the_caller_of_a_kvm_machine_sees() -> None:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        memory.write(CODE, bytes.fromhex("e6 55"))
        accelerator = KvmAccelerator(memory)

        def run() -> None:
            with Machine(memory, accelerator, console=lambda data: None) as machine:
                machine.cpus[0].cpu.set_system_registers(real_mode())
                machine.cpus[0].cpu.set_registers(Registers(rip=CODE))
                machine.run(PATIENCE)

        with (
            contextlib.closing(accelerator),
            pytest.raises(UnassignedAccessError, match="wrote 1 byte at port 0x55"),
        ):
            run()
