"""A vCPU: its registers, running it, and stopping it from another thread."""

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Mapping

from virtiopy._native import CData, ffi, lib
from virtiopy.accel.kvm.decode import decode
from virtiopy.accel.kvm.statistics import read_statistics
from virtiopy.closing import Closing
from virtiopy.cpu.activity import Activity
from virtiopy.cpu.exits import Answer, Exit, IoExit, MmioExit
from virtiopy.cpu.x86 import DescriptorTable, Registers, Segment, SystemRegisters
from virtiopy.errors import HostError

_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_TABLES = ("gdt", "idt")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")


class Vcpu(Closing):
    """A KVM vCPU. Made by `Vm.create_vcpu`. Only `stop` may be called from another thread."""

    def __init__(self, fd: int, mmap_size: int) -> None:
        self.fd = fd
        # Unmapped with its last view; an exit that is still held, by a traceback say, has one.
        self._data = memoryview(mmap.mmap(fd, mmap_size))
        self._run = ffi.cast("struct kvm_run *", ffi.from_buffer("char[]", self._data))
        self._stop_event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waker: _Waker | None = None
        # Reentrant, because a signal handler may call stop() while run() acknowledges one.
        self._stop_lock = threading.RLock()

    def close(self) -> None:
        """Close the vCPU's files and unmap what it shares with KVM."""
        if self._waker is not None:
            self._waker.close()
        self._run = ffi.NULL
        self._data.release()
        os.close(self._stop_event)
        os.close(self.fd)

    def _ioctl(self, name: str, struct: CData) -> int:
        result = lib.vp_ioctl(self.fd, getattr(lib, name), int(ffi.cast("uintptr_t", struct)))
        if result < 0:
            raise HostError(f"{name} fails: {os.strerror(-result)}.")
        return result

    # Running

    def run(self, answer: Answer | None = None) -> Exit | None:
        """Run the guest until it exits to userspace, or `stop` is called: then None.

        What the exit's `data` is set to is given to the guest by the next call. With `answer`,
        port and MMIO exits go there as long as it returns True; when it returns False, this
        returns None. The calling thread holds no lock of the interpreter while the guest runs.
        """
        while isinstance(exit_ := self._run_once(), IoExit | MmioExit) and answer is not None:
            if not answer(exit_):
                return None
        return exit_

    def _run_once(self) -> Exit | None:
        if self._waker is None or self._waker.thread != threading.get_ident():
            if self._waker is not None:
                self._waker.close()
            self._waker = make_waker(self._stop_event)
        while True:
            result = lib.vp_ioctl(self.fd, lib.KVM_RUN, 0)
            if result == 0:
                return decode(self._run, self._data)
            if result in (-errno.EINTR, -errno.EAGAIN):
                if self._run.immediate_exit:
                    self._acknowledge_stop()
                    return None
                continue
            if result == -errno.EFAULT:
                raise HostError("KVM_RUN fails: the guest's memory is gone or too small.")
            raise HostError(f"KVM_RUN fails: {os.strerror(-result)}.")

    def stop(self) -> None:
        """Make `run` return None, now if it is running and else when it is next called.

        No signal is used where the kernel has io_uring: the running thread has a poll pending on
        an eventfd, and its completion takes it out of KVM_RUN (see _native/wake.c).
        """
        with self._stop_lock:
            # One write for each time that run() returns None: the completion queue is small, and
            # the poll ends when it is full.
            if self._run.immediate_exit:
                return
            # First the flag, for a thread on its way into KVM_RUN; then the kick, for one inside.
            self._run.immediate_exit = 1
            os.eventfd_write(self._stop_event, 1)
            if self._waker is not None:
                self._waker.kick()

    def _acknowledge_stop(self) -> None:
        with self._stop_lock:
            self._run.immediate_exit = 0
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._stop_event)
            if self._waker is not None:
                self._waker.drain()

    @property
    def wakes_by(self) -> str:
        """How `stop` reaches the running thread: "io_uring" or "signal"; "" before any run."""
        return "" if self._waker is None else self._waker.name

    # State

    def get_registers(self) -> Registers:
        """Read the general registers (api.rst 4.11)."""
        regs = ffi.new("struct kvm_regs *")
        self._ioctl("KVM_GET_REGS", regs)
        return Registers(**{name: getattr(regs, name) for name in Registers.__match_args__})

    def set_registers(self, registers: Registers) -> None:
        """Write the general registers (api.rst 4.12)."""
        values = {name: getattr(registers, name) for name in Registers.__match_args__}
        regs = ffi.new("struct kvm_regs *", values)
        self._ioctl("KVM_SET_REGS", regs)

    def get_system_registers(self) -> SystemRegisters:
        """Read segments, descriptor tables and control registers (api.rst 4.13)."""
        sregs = ffi.new("struct kvm_sregs *")
        self._ioctl("KVM_GET_SREGS", sregs)
        state = SystemRegisters(apic_base=sregs.apic_base)
        for name in _SEGMENTS:
            segment = getattr(sregs, name)
            values = {part: getattr(segment, part) for part in Segment.__match_args__}
            setattr(state, name, Segment(**values))
        for name in _TABLES:
            table = getattr(sregs, name)
            setattr(state, name, DescriptorTable(table.base, table.limit))
        for name in _CONTROL:
            setattr(state, name, getattr(sregs, name))
        return state

    def set_system_registers(self, state: SystemRegisters) -> None:
        """Write segments, descriptor tables and control registers (api.rst 4.14)."""
        sregs = ffi.new("struct kvm_sregs *")
        # Start from what is there: the struct holds more than `state` does.
        self._ioctl("KVM_GET_SREGS", sregs)
        for name in _SEGMENTS:
            segment, values = getattr(sregs, name), getattr(state, name)
            for part in Segment.__match_args__:
                setattr(segment, part, getattr(values, part))
        for name in _TABLES:
            table, value = getattr(sregs, name), getattr(state, name)
            table.base, table.limit = value.base, value.limit
        for name in _CONTROL:
            setattr(sregs, name, getattr(state, name))
        if state.apic_base is not None:
            sregs.apic_base = state.apic_base
        self._ioctl("KVM_SET_SREGS", sregs)

    def get_fpu(self) -> CData:
        """Read the FPU state, a `struct kvm_fpu *` (api.rst 4.22)."""
        fpu = ffi.new("struct kvm_fpu *")
        self._ioctl("KVM_GET_FPU", fpu)
        return fpu

    def set_fpu(self, fpu: CData) -> None:
        """Write the FPU state, a `struct kvm_fpu *` (api.rst 4.23)."""
        self._ioctl("KVM_SET_FPU", fpu)

    def get_msrs(self, indices: list[int]) -> dict[int, int]:
        """Read model-specific registers; those that KVM refuses are left out (api.rst 4.18)."""
        values: dict[int, int] = {}
        while indices:
            msrs = ffi.new("struct kvm_msrs *", {"entries": len(indices)})
            msrs.nmsrs = len(indices)
            for position, index in enumerate(indices):
                msrs.entries[position].index = index
            done = self._ioctl("KVM_GET_MSRS", msrs)
            values |= {msrs.entries[i].index: msrs.entries[i].data for i in range(done)}
            # KVM stops at the first that it refuses.
            indices = indices[done + 1 :]
        return values

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Write model-specific registers; raises HostError for one that KVM refuses."""
        msrs = ffi.new("struct kvm_msrs *", {"entries": len(values)})
        msrs.nmsrs = len(values)
        for position, (index, data) in enumerate(values.items()):
            msrs.entries[position].index = index
            msrs.entries[position].data = data
        done = self._ioctl("KVM_SET_MSRS", msrs)
        if done < len(values):
            raise HostError(f"KVM_SET_MSRS refuses register {msrs.entries[done].index:#x}.")

    def activity(self) -> Activity:
        """Say what the vCPU does when it is run (api.rst 4.38)."""
        state = ffi.new("struct kvm_mp_state *")
        self._ioctl("KVM_GET_MP_STATE", state)
        if state.mp_state == lib.KVM_MP_STATE_RUNNABLE:
            return Activity.RUNNING
        return (
            Activity.HALTED if state.mp_state == lib.KVM_MP_STATE_HALTED else Activity.NOT_STARTED
        )

    def set_cpuid(self, cpuid: CData) -> None:
        """Say what the guest's CPUID instruction answers, a `struct kvm_cpuid2 *`."""
        self._ioctl("KVM_SET_CPUID2", cpuid)

    def statistics(self) -> dict[str, int]:
        """Read the kernel's counters for this vCPU; empty where it has none."""
        return read_statistics(self.fd)


class _Waker:
    """Takes the thread that made it out of KVM_RUN."""

    name: str

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def kick(self) -> None:
        """Interrupt the thread; called after the eventfd was written."""

    def drain(self) -> None:
        """Forget the kicks that have arrived; called on the thread itself."""

    def close(self) -> None:
        """Free what it holds."""


class _UringWaker(_Waker):
    name = "io_uring"

    def __init__(self, wake: CData) -> None:
        super().__init__()
        self._wake = wake

    def drain(self) -> None:
        lib.vp_wake_drain(self._wake)

    def close(self) -> None:
        lib.vp_wake_free(self._wake)


class _SignalWaker(_Waker):
    name = "signal"

    def __init__(self) -> None:
        # Imported late: it makes three enumerations, and hosts without io_uring are few.
        from signal import SIGRTMIN, pthread_kill  # noqa: PLC0415

        super().__init__()
        #: Interrupts KVM_RUN; it has no handler.
        self._signal = SIGRTMIN + 3
        self._send = pthread_kill
        result = lib.vp_ignore_signal(self._signal)
        if result < 0:
            raise HostError(f"Signal {self._signal} cannot be had: {os.strerror(-result)}.")

    def kick(self) -> None:
        self._send(self.thread, self._signal)


def make_waker(eventfd: int) -> _Waker:
    """Arrange that a write to `eventfd`, and a `kick`, interrupt the calling thread's KVM_RUN."""
    error = ffi.new("int *")
    wake = lib.vp_wake_new(eventfd, error)
    if wake == ffi.NULL:
        # Too old a kernel, or forbidden: /proc/sys/kernel/io_uring_disabled, seccomp.
        return _SignalWaker()
    return _UringWaker(wake)
