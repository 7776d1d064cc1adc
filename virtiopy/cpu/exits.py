"""Why KVM_RUN returned: `struct kvm_run` decoded (api.rst 5)."""

import enum
from collections.abc import Callable
from dataclasses import dataclass

from virtiopy._native import CData, ffi, lib


class ExitReason(enum.IntEnum):
    """KVM_EXIT_*, those that exist on x86."""

    UNKNOWN = lib.KVM_EXIT_UNKNOWN
    EXCEPTION = lib.KVM_EXIT_EXCEPTION
    IO = lib.KVM_EXIT_IO
    HYPERCALL = lib.KVM_EXIT_HYPERCALL
    DEBUG = lib.KVM_EXIT_DEBUG
    HLT = lib.KVM_EXIT_HLT
    MMIO = lib.KVM_EXIT_MMIO
    IRQ_WINDOW_OPEN = lib.KVM_EXIT_IRQ_WINDOW_OPEN
    SHUTDOWN = lib.KVM_EXIT_SHUTDOWN
    FAIL_ENTRY = lib.KVM_EXIT_FAIL_ENTRY
    INTR = lib.KVM_EXIT_INTR
    SET_TPR = lib.KVM_EXIT_SET_TPR
    TPR_ACCESS = lib.KVM_EXIT_TPR_ACCESS
    NMI = lib.KVM_EXIT_NMI
    INTERNAL_ERROR = lib.KVM_EXIT_INTERNAL_ERROR
    WATCHDOG = lib.KVM_EXIT_WATCHDOG
    SYSTEM_EVENT = lib.KVM_EXIT_SYSTEM_EVENT
    IOAPIC_EOI = lib.KVM_EXIT_IOAPIC_EOI
    HYPERV = lib.KVM_EXIT_HYPERV
    X86_RDMSR = lib.KVM_EXIT_X86_RDMSR
    X86_WRMSR = lib.KVM_EXIT_X86_WRMSR
    DIRTY_RING_FULL = lib.KVM_EXIT_DIRTY_RING_FULL
    AP_RESET_HOLD = lib.KVM_EXIT_AP_RESET_HOLD
    X86_BUS_LOCK = lib.KVM_EXIT_X86_BUS_LOCK
    XEN = lib.KVM_EXIT_XEN
    NOTIFY = lib.KVM_EXIT_NOTIFY


class InternalError(enum.IntEnum):
    """KVM_INTERNAL_ERROR_*."""

    EMULATION = lib.KVM_INTERNAL_ERROR_EMULATION
    SIMUL_EX = lib.KVM_INTERNAL_ERROR_SIMUL_EX
    DELIVERY_EV = lib.KVM_INTERNAL_ERROR_DELIVERY_EV
    UNEXPECTED_EXIT_REASON = lib.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON


class SystemEvent(enum.IntEnum):
    """KVM_SYSTEM_EVENT_*."""

    SHUTDOWN = lib.KVM_SYSTEM_EVENT_SHUTDOWN
    RESET = lib.KVM_SYSTEM_EVENT_RESET
    CRASH = lib.KVM_SYSTEM_EVENT_CRASH


@dataclass(slots=True)
class Exit:
    """A return of KVM_RUN whose reason says it all (HLT, SHUTDOWN, IRQ_WINDOW_OPEN, ...)."""

    reason: ExitReason

    def describe(self) -> str:
        """Tell a person what happened."""
        return f"KVM_EXIT_{self.reason.name}"


@dataclass(slots=True)
class UnknownExit(Exit):
    """KVM_EXIT_UNKNOWN, or a reason that this version of virtiopy does not know."""

    number: int
    hardware_exit_reason: int

    def describe(self) -> str:
        """Tell a person what happened."""
        return f"exit reason {self.number}, hardware reason {self.hardware_exit_reason:#x}"


@dataclass(slots=True)
class IoExit(Exit):
    """Port I/O: `count` accesses of `size` bytes each to `port`.

    `data` is what the guest wrote, all accesses together, or the buffer of `count` * `size` bytes
    to put what it reads into.
    """

    port: int
    size: int
    count: int
    is_write: bool
    data: memoryview


@dataclass(slots=True)
class MmioExit(Exit):
    """An access to a guest physical `address` that is no memory.

    `data` is what the guest wrote, 1 to 8 bytes, or the buffer to put what it reads into.
    """

    address: int
    is_write: bool
    data: memoryview


#: Answers an access of the guest's, filling `data` if it is a read; returns whether to run on.
Answer = Callable[[IoExit | MmioExit], bool]


@dataclass(slots=True)
class ExceptionExit(Exit):
    """KVM_EXIT_EXCEPTION: an exception that KVM would not deliver."""

    exception: int
    error_code: int

    def describe(self) -> str:
        """Tell a person what happened."""
        return f"exception {self.exception}, error code {self.error_code:#x}"


@dataclass(slots=True)
class HypercallExit(Exit):
    """KVM_EXIT_HYPERCALL."""

    number: int
    arguments: tuple[int, ...]

    def describe(self) -> str:
        """Tell a person what happened."""
        return f"hypercall {self.number}"


@dataclass(slots=True)
class FailEntryExit(Exit):
    """KVM_EXIT_FAIL_ENTRY: the CPU refused the guest's state."""

    hardware_reason: int
    cpu: int

    def describe(self) -> str:
        """Tell a person what happened."""
        return (
            f"KVM_EXIT_FAIL_ENTRY, hardware entry failure reason {self.hardware_reason:#x} "
            f"on CPU {self.cpu}"
        )


@dataclass(slots=True)
class InternalErrorExit(Exit):
    """KVM_EXIT_INTERNAL_ERROR: KVM gave up, most often on an instruction it cannot emulate."""

    suberror: int
    data: tuple[int, ...]

    def describe(self) -> str:
        """Tell a person what happened."""
        try:
            name = InternalError(self.suberror).name
        except ValueError:
            name = str(self.suberror)
        words = " ".join(f"{word:#x}" for word in self.data)
        return f"KVM_EXIT_INTERNAL_ERROR, suberror {name}, data [{words}]"


@dataclass(slots=True)
class SystemEventExit(Exit):
    """KVM_EXIT_SYSTEM_EVENT: the guest asked to be shut down or reset, or says it crashed."""

    type: int
    data: tuple[int, ...]

    def describe(self) -> str:
        """Tell a person what happened."""
        try:
            return f"system event {SystemEvent(self.type).name}"
        except ValueError:
            return f"system event {self.type}"


@dataclass(slots=True)
class TprAccessExit(Exit):
    """KVM_EXIT_TPR_ACCESS: the guest touched the task priority register."""

    rip: int
    is_write: bool


@dataclass(slots=True)
class IoapicEoiExit(Exit):
    """KVM_EXIT_IOAPIC_EOI: end of a level-triggered interrupt, for an IOAPIC in userspace."""

    vector: int


@dataclass(slots=True)
class MsrExit(Exit):
    """KVM_EXIT_X86_RDMSR or WRMSR: a model-specific register left to userspace."""

    index: int
    data: int
    why: int

    def describe(self) -> str:
        """Tell a person what happened."""
        return f"KVM_EXIT_{self.reason.name} of register {self.index:#x}"


@dataclass(slots=True)
class NotifyExit(Exit):
    """KVM_EXIT_NOTIFY: no event window opened for too long."""

    flags: int


def decode(run: CData, data: memoryview) -> Exit:
    """Decode `struct kvm_run`; `data` is the whole of the mapping that it starts."""
    number = run.exit_reason
    try:
        reason = ExitReason(number)
    except ValueError:
        return UnknownExit(ExitReason.UNKNOWN, number, 0)
    decoder = _DECODERS.get(reason)
    return decoder(reason, run, data) if decoder else Exit(reason)


def _io(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    io = run.io
    start = io.data_offset
    return IoExit(
        reason,
        io.port,
        io.size,
        io.count,
        io.direction == lib.KVM_EXIT_IO_OUT,
        data[start : start + io.size * io.count],
    )


_MMIO_DATA = ffi.offsetof("struct kvm_run", "mmio", "data")


def _mmio(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    mmio = run.mmio
    return MmioExit(
        reason, mmio.phys_addr, bool(mmio.is_write), data[_MMIO_DATA : _MMIO_DATA + mmio.len]
    )


def _unknown(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    return UnknownExit(reason, reason, run.hw.hardware_exit_reason)


def _exception(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    return ExceptionExit(reason, run.ex.exception, run.ex.error_code)


def _hypercall(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    return HypercallExit(reason, run.hypercall.nr, tuple(run.hypercall.args))


def _fail_entry(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    fail = run.fail_entry
    return FailEntryExit(reason, fail.hardware_entry_failure_reason, fail.cpu)


def _internal_error(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    internal = run.internal
    return InternalErrorExit(reason, internal.suberror, tuple(internal.data[0 : internal.ndata]))


def _system_event(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    event = run.system_event
    return SystemEventExit(reason, event.type, tuple(event.data[0 : event.ndata]))


def _tpr_access(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    return TprAccessExit(reason, run.tpr_access.rip, bool(run.tpr_access.is_write))


def _ioapic_eoi(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    return IoapicEoiExit(reason, run.eoi.vector)


def _msr(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    return MsrExit(reason, run.msr.index, run.msr.data, run.msr.reason)


def _notify(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    return NotifyExit(reason, run.notify.flags)


_DECODERS = {
    ExitReason.UNKNOWN: _unknown,
    ExitReason.EXCEPTION: _exception,
    ExitReason.IO: _io,
    ExitReason.HYPERCALL: _hypercall,
    ExitReason.MMIO: _mmio,
    ExitReason.FAIL_ENTRY: _fail_entry,
    ExitReason.TPR_ACCESS: _tpr_access,
    ExitReason.INTERNAL_ERROR: _internal_error,
    ExitReason.SYSTEM_EVENT: _system_event,
    ExitReason.IOAPIC_EOI: _ioapic_eoi,
    ExitReason.X86_RDMSR: _msr,
    ExitReason.X86_WRMSR: _msr,
    ExitReason.NOTIFY: _notify,
}
