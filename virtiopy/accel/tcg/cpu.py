"""A CPU made of a Unicorn engine, which is QEMU's TCG as a library.

Unicorn executes instructions and nothing else. What a PC's CPU does besides is here and beside
here: interrupts and exceptions are taken through the guest's IDT (events.py, and
_native/tcg_events.c where there are many), the interrupt chips are models (apic.py), HLT waits.
Guest memory is mapped, not copied; and so is the CPU's state (layout.py).
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from unicorn import Uc, UcError, x86_const
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import uclib

from virtiopy._native import CData, ffi, lib
from virtiopy.accel.tcg.apic import (
    IOAPIC_BASE,
    LEGACY_PORTS,
    LOCAL_APIC_BASE,
    InterruptChips,
    IoApic,
    LocalApic,
)
from virtiopy.accel.tcg.apic import PAGE_SIZE as CHIP_SIZE
from virtiopy.accel.tcg.cpuid import Leaf, leaves
from virtiopy.accel.tcg.events import Event, Exception_, TripleFault, take
from virtiopy.accel.tcg.layout import (
    DEBUG_MARKS,
    REGISTER_MARKS,
    SYSCALL_MARKS,
    find_cpu,
    leave_out_exit_checks,
)
from virtiopy.accel.tcg.paging import LinearMemory, PageFault
from virtiopy.accel.tcg.state import REGISTER_ORDER, TcgState
from virtiopy.closing import Closing
from virtiopy.cpu.activity import Activity
from virtiopy.cpu.exits import (
    Answer,
    Exit,
    ExitReason,
    IoExit,
    MmioExit,
)
from virtiopy.cpu.rare_exits import InternalError, InternalErrorExit
from virtiopy.cpu.x86 import Registers, SystemRegisters
from virtiopy.errors import HostError
from virtiopy.memory import AddressError, GuestMemory

#: Guest physical addresses end here: 40 bits, what Unicorn's CPU says it has.
PHYSICAL_END = 1 << 40

#: The state of the FPU after reset (SDM volume 3, table 9-1), which KVM gives its CPUs too.
_FPU_CONTROL = 0x037F
_FPU_TAGS_EMPTY = 0xFFFF
_MXCSR = 0x1F80

_INSTRUCTION_MAX = 15

#: What native code hooks, in the order that it expects.
_HOOKS = ("BLOCK", "INTR", "INSN_INVALID", "INSN")
_INSTRUCTIONS = ("SYSCALL", "CPUID", "RDTSC")

#: LSTAR, CSTAR and FMASK.
_SYSCALL_MSRS = (0xC000_0082, 0xC000_0083, 0xC000_0084)

#: Whether native code takes the plain events of 64-bit mode. Python can take all of them.
NATIVE_EVENTS = True

#: Whether blocks of code call native code by themselves, where Unicorn's own functions can be
#: replaced. A hook has them do it, too, and costs every block another call.
REPLACES = True

#: No timer runs.
_NEVER = (1 << 64) - 1

#: Errors of emu_start that say where the guest was, and what for.
_FETCHES = (uc_const.UC_ERR_FETCH_UNMAPPED, uc_const.UC_ERR_FETCH_PROT)


class UnrunnableExit(InternalErrorExit):
    """An instruction that Unicorn cannot run, or one that is not in memory."""

    __slots__ = ("_told",)

    def __init__(self, told: str) -> None:
        super().__init__(ExitReason.INTERNAL_ERROR, InternalError.EMULATION, ())
        self._told = told

    def describe(self) -> str:
        """Tell a person what happened."""
        return self._told


class TcgCpu(Closing):
    """A CPU made of a Unicorn engine. Made by `TcgAccelerator.create_cpu`.

    `run` is for one thread at a time; `stop` and `interrupts_changed` are for any.
    """

    def __init__(
        self,
        memory: GuestMemory,
        chips: InterruptChips | None,
        ioeventfds: Mapping[tuple[int, int], int],
    ) -> None:
        self._memory = memory
        self._chips = chips
        self._ioeventfds = ioeventfds
        looks_around = REPLACES and lib.vp_tcg_prepare(os.fsencode(uclib._name)) > 0
        self._engine = engine = Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
        self._tcg = _prepare_engine(engine, memory, looks_around=looks_around)
        self._state = TcgState(self._tcg.cpu, self._tcg.exceptions)
        #: Guards what follows, and the chips.
        self.lock = threading.Condition(threading.RLock())
        self._stop_wanted = False
        self._written: list[tuple[int, int]] = []
        self._halted = False
        #: No access is answered any more: the last one was told to be the last.
        self._finished = False
        self._owed: Exit | None = None
        self._answer: Answer = _no_answer
        self._map_memory()
        engine.hook_add(uc_const.UC_HOOK_INSN, self._on_in, None, 1, 0, x86_const.UC_X86_INS_IN)
        engine.hook_add(uc_const.UC_HOOK_INSN, self._on_out, None, 1, 0, x86_const.UC_X86_INS_OUT)

    def _map_memory(self) -> None:
        """Map the guest's memory, and what answers in the gaps between."""
        for region in self._memory.regions:
            self._engine.mem_map_ptr(
                region.guest_address, region.size, uc_const.UC_PROT_ALL, region.host_address
            )
        taken = [(region.guest_address, region.end) for region in self._memory.regions]
        if self._chips is not None:
            for base, chip in (
                (LOCAL_APIC_BASE, self._chips.local_apic),
                (IOAPIC_BASE, self._chips.io_apic),
            ):
                self._engine.mmio_map(
                    base, CHIP_SIZE, self._read_chip, chip, self._write_chip, chip
                )
                taken.append((base, base + CHIP_SIZE))
        for start, end in _gaps(taken):
            self._engine.mmio_map(
                start, end - start, self._read_mmio, start, self._write_mmio, start
            )

    def close(self) -> None:
        """Let go of the guest's memory, which is not the CPU's to free."""
        for region in self._memory.regions:
            self._engine.mem_unmap(region.guest_address, region.size)
        lib.vp_tcg_free(self._tcg)

    def statistics(self) -> dict[str, int]:
        """Return nothing: Unicorn counts nothing."""
        return {}

    @property
    def native_mmu(self) -> bool:
        """Whether TLB misses in 64-bit mode are seen to by native code: without, all is slower."""
        return bool(self._tcg.has_mmu)

    @property
    def hooks_blocks(self) -> bool:
        """Whether a hook asks at each block of code whether to stop: slower than need be."""
        return bool(self._tcg.hooks_blocks)

    # Running

    def run(self, answer: Answer) -> Exit | None:
        """Run the guest until it needs more than an answered access, or `stop` is called.

        `answer` is called within the instruction. When it returns False the rest of the block of
        code that the instruction is in is executed, without accesses to devices.
        """
        self._answer = answer
        self._finished = False
        owed, self._owed = self._owed, None
        if owed is not None:
            return owed
        while self._prepare():
            exit_ = self._execute()
            if self._finished:
                # What came after the last answer, in the same block, is the next call's.
                self._owed = exit_
                return None
            if exit_ is not None:
                return exit_
        return None

    def stop(self) -> None:
        """Make `run` return None, now if it is running and else when it is next called."""
        with self.lock:
            self._stop_wanted = True
            self._look_around()

    def activity(self) -> Activity:
        """Say whether the CPU is halted."""
        return Activity.HALTED if self._halted else Activity.RUNNING

    def interrupts_changed(self) -> None:
        """Look at the interrupt chips again; `lock` is held."""
        if self._chips is not None and self._chips.local_apic.pending() is not None:
            self._look_around()

    def code_written(self, address: int, length: int) -> None:
        """Forget the code that was translated of this memory, before the next interrupt."""
        if lib.vp_tcg_has_code(self._tcg, address, length):
            with self.lock:
                self._written.append((address, length))
                self._look_around()

    def _look_around(self) -> None:
        """Take the CPU out of its sleep, or of translated code at the next block."""
        self._tcg.stop_wanted = 1
        self.lock.notify_all()

    def _prepare(self) -> bool:
        """Wait while the CPU is halted, take an interrupt; False when it was told to stop."""
        with self.lock:
            while True:
                self._tcg.stop_wanted = 0
                while self._written:
                    lib.vp_tcg_written(self._tcg, *self._written.pop())
                if self._stop_wanted:
                    self._stop_wanted = False
                    return False
                pending = self._look_at_chips()
                if not self._halted or (pending and self._state.interrupts_enabled):
                    break
                self.lock.wait(self._seconds_to_timer())
            self._halted = False
            self._tcg.window_wanted = 0
            if pending and self._chips is not None:
                self._offer_interrupt(self._chips)
            return True

    def _look_at_chips(self) -> bool:
        """Let the timer run; return whether an interrupt is pending."""
        if self._chips is None:
            return False
        apic = self._chips.local_apic
        apic.run_timer()
        self._follow_timer()
        return apic.pending() is not None

    def _follow_timer(self) -> None:
        """Have translated code stop when the timer is due."""
        deadline = None if self._chips is None else self._chips.local_apic.deadline
        self._tcg.deadline = _NEVER if deadline is None else deadline

    def _seconds_to_timer(self) -> float | None:
        if self._tcg.deadline == _NEVER:
            return None
        return max(0, int(self._tcg.deadline) - time.monotonic_ns()) / 1e9

    def _offer_interrupt(self, chips: InterruptChips) -> None:
        """Take the pending interrupt, or arrange to be back when the guest can take it."""
        state = self._state
        if not state.interrupts_enabled or state.in_shadow:
            self._tcg.window_wanted = 1
            return
        vector = chips.local_apic.acknowledge()
        assert vector is not None
        self._take(Event(vector, external=True))

    def _take(self, event: Event) -> Exit | None:
        if NATIVE_EVENTS and lib.vp_tcg_take(
            self._tcg, event.vector, event.software, event.external, event.error_code
        ):
            return None
        try:
            take(event, self._state, self._memory)
        except TripleFault:
            return Exit(ExitReason.SHUTDOWN)
        return None

    def _execute(self) -> Exit | None:
        """Run translated code until something stops it; say what, if it is the caller's."""
        self._tcg.exception = -1
        self._tcg.stopped = 0
        error = uc_const.UC_ERR_OK
        lib.vp_tcg_enter(self._tcg)
        try:
            self._engine.emu_start(self._state.cpu.eip, 0)
        except UcError as failure:
            error = failure.errno
        finally:
            lib.vp_tcg_enter(ffi.NULL)
        if self._tcg.exception >= 0:
            return self._take_exception(self._tcg.exception)
        if error == uc_const.UC_ERR_INSN_INVALID:
            return self._take_exception(Exception_.INVALID_OPCODE)
        if error != uc_const.UC_ERR_OK:
            return self._cannot_run(error)
        if not self._tcg.stopped:
            # No request stopped it, so it was HLT.
            if self._chips is None:
                return Exit(ExitReason.HLT)
            self._halted = True
        return None

    def _take_exception(self, vector: int) -> Exit | None:
        exceptions = self._state.exceptions
        self._state.exception_taken()
        invalid = vector == Exception_.INVALID_OPCODE
        software = bool(exceptions.exception_is_int) and not invalid
        error_code = 0 if software or invalid else exceptions.error_code
        return self._take(Event(vector, error_code & 0xFFFF_FFFF, software=software))

    def _cannot_run(self, error: int) -> Exit:
        state = self._state
        cpu = state.cpu
        linear = LinearMemory(self._memory, cpu.cr[0], cpu.cr[3], cpu.cr[4], cpu.efer)
        code = b""
        with contextlib.suppress(PageFault, AddressError):
            for offset in range(_INSTRUCTION_MAX):
                code += linear.read(state.instruction_address + offset, 1)
        if error in _FETCHES or not code:
            return UnrunnableExit("an instruction that is not in memory")
        why, hexadecimal = UcError(error), code.hex(" ")
        return UnrunnableExit(
            f"an instruction that Unicorn cannot run ({why}), in the bytes {hexadecimal}"
        )

    # What Unicorn calls

    def _ask(self, exit_: IoExit | MmioExit) -> None:
        """Have an access answered, unless the last answer was to be the last."""
        if self._finished:
            return
        self._finished = True  # and stays so if this raises
        self._finished = not self._answer(exit_)
        if self._finished:
            self._tcg.stop_wanted = 1

    def _read_mmio(self, engine: Uc, offset: int, size: int, base: int) -> int:
        data = bytearray(size)
        self._ask(MmioExit(ExitReason.MMIO, base + offset, False, memoryview(data)))
        return int.from_bytes(data, "little")

    def _write_mmio(self, engine: Uc, offset: int, size: int, value: int, base: int) -> None:
        if size == 4 and (eventfd := self._ioeventfds.get((base + offset, value))) is not None:
            os.eventfd_write(eventfd, 1)
            return
        data = memoryview(value.to_bytes(size, "little"))
        self._ask(MmioExit(ExitReason.MMIO, base + offset, True, data))

    def _on_in(self, engine: Uc, port: int, size: int, data: object) -> int:
        if self._chips is not None and port in LEGACY_PORTS:
            return self._chips.read_port(port)
        buffer = bytearray(size)
        self._ask(IoExit(ExitReason.IO, port, size, 1, False, memoryview(buffer)))
        return int.from_bytes(buffer, "little")

    def _on_out(self, engine: Uc, port: int, size: int, value: int, data: object) -> None:
        if self._chips is not None and port in LEGACY_PORTS:
            self._chips.write_port(port, value)
            return
        content = memoryview(value.to_bytes(size, "little"))
        self._ask(IoExit(ExitReason.IO, port, size, 1, True, content))

    def _read_chip(self, engine: Uc, offset: int, size: int, chip: LocalApic | IoApic) -> int:
        with self.lock:
            return chip.read(offset)

    def _write_chip(
        self,
        engine: Uc,
        offset: int,
        size: int,
        value: int,
        chip: LocalApic | IoApic,
    ) -> None:
        with self.lock:
            chip.write(offset, value)
            self._follow_timer()
            self.interrupts_changed()

    # State

    def get_registers(self) -> Registers:
        """Read the general registers."""
        return self._state.get_registers()

    def set_registers(self, registers: Registers) -> None:
        """Write the general registers."""
        self._state.set_registers(registers)

    def get_system_registers(self) -> SystemRegisters:
        """Read segments, descriptor tables and control registers."""
        return self._state.get_system_registers()

    def set_system_registers(self, state: SystemRegisters) -> None:
        """Write segments, descriptor tables and control registers."""
        self._state.set_system_registers(state)
        self._engine.ctl(uc_const.UC_CTL_TLB_FLUSH, uc_const.UC_CTL_IO_WRITE)


def _no_answer(access: IoExit | MmioExit) -> bool:
    raise AssertionError(access)


def _gaps(taken: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of physical addresses that are in none of `taken`."""
    position = 0
    for start, end in sorted(taken):
        if position < start:
            yield position, start
        position = end
    yield position, PHYSICAL_END


def _prepare_engine(engine: Uc, memory: GuestMemory, *, looks_around: bool) -> CData:
    """Make the engine a CPU in its first state; return what it shares with native code.

    `looks_around` says whether blocks call native code without a hook.
    """
    engine.ctl_exits_enabled(True)
    engine.ctl_set_cpu_model(x86_const.UC_CPU_X86_HASWELL)
    told = leaves(_asker(engine), 0)
    tcg = ffi.new("struct vp_tcg *")
    # The binding's hook_add is for Python functions, so the engine's handle is taken from inside.
    handle = engine._uch.value
    # What is called at the start of a block must not be called within it.
    tcg.hooks_blocks = not (leave_out_exit_checks(handle) and looks_around)
    tcg.eflags = x86_const.UC_X86_REG_EFLAGS
    tcg.deadline = _NEVER
    tcg.native_events = NATIVE_EVENTS
    for region, place in zip(memory.regions, tcg.regions, strict=False):
        place.guest_address, place.size = region.guest_address, region.size
        place.host_address = region.host_address
        tcg.region_count += 1
    _find_state(engine, handle, tcg)
    for ((leaf, subleaf), values), entry in zip(told.items(), tcg.cpuid, strict=False):
        entry.leaf, entry.subleaf, entry.values = leaf, subleaf, values
        tcg.cpuid_count += 1
    types = [getattr(uc_const, f"UC_HOOK_{name}") for name in _HOOKS]
    instructions = [getattr(x86_const, f"UC_X86_INS_{name}") for name in _INSTRUCTIONS]
    error = lib.vp_tcg_hook(
        os.fsencode(uclib._name),
        handle,
        ffi.new("int[]", types),
        ffi.new("int[]", instructions),
        tcg,
    )
    if error < 0:
        raise HostError(f"Unicorn is not what it seems in {uclib._name}: install it again.")
    if error != uc_const.UC_ERR_OK:
        raise UcError(error)
    return tcg


def _asker(engine: Uc) -> Callable[[int, int], Leaf]:
    """Return what executes CPUID, in memory that the guest has not got yet."""
    registers = [getattr(x86_const, f"UC_X86_REG_{name}") for name in ("EAX", "EBX", "ECX", "EDX")]

    def ask(leaf: int, subleaf: int) -> Leaf:
        engine.mem_map(0, 0x1000)
        engine.mem_write(0, b"\x0f\xa2\xf4")  # cpuid; hlt
        engine.reg_write(x86_const.UC_X86_REG_RAX, leaf)
        engine.reg_write(x86_const.UC_X86_REG_RCX, subleaf)
        engine.emu_start(0, 0)
        engine.mem_unmap(0, 0x1000)
        eax, ebx, ecx, edx = (engine.reg_read(register) for register in registers)
        return eax, ebx, ecx, edx

    return ask


def _find_state(engine: Uc, handle: int, tcg: CData) -> None:
    """Point `tcg` at the engine's CPU, and reset that."""
    order = [getattr(x86_const, f"UC_X86_REG_{name.upper()}") for name in REGISTER_ORDER]
    debug = [getattr(x86_const, f"UC_X86_REG_DR{index}") for index in range(4)]
    marked = [*zip(order, REGISTER_MARKS, strict=True), *zip(debug, DEBUG_MARKS, strict=True)]
    for register, mark in marked:
        engine.reg_write(register, mark)
    for number, mark in zip(_SYSCALL_MSRS, SYSCALL_MARKS, strict=True):
        engine.msr_write(number, mark)
    for register, mark in zip(order, REGISTER_MARKS, strict=True):
        engine.reg_write(register, mark)
    places = find_cpu(handle)
    tcg.cpu, tcg.syscall, tcg.exceptions = places.cpu, places.syscall, places.exceptions
    tcg.has_mmu = lib.vp_tcg_take_over_mmu(os.fsencode(uclib._name), tcg, places.state)
    if tcg.has_mmu < 0:
        raise HostError("The host has no memory for the software CPU: give the guest less.")
    TcgState(tcg.cpu, tcg.exceptions).check()
    for number in _SYSCALL_MSRS:
        engine.msr_write(number, 0)
    for register, _ in marked:
        engine.reg_write(register, 0)
    engine.reg_write(x86_const.UC_X86_REG_FPCW, _FPU_CONTROL)
    engine.reg_write(x86_const.UC_X86_REG_FPTAG, _FPU_TAGS_EMPTY)
    engine.reg_write(x86_const.UC_X86_REG_MXCSR, _MXCSR)
