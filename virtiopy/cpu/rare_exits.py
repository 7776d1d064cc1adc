"""The rarer reasons for which KVM_RUN returns, of which each ends most runs (api.rst 5)."""

import enum

from virtiopy._native import CData, lib
from virtiopy.cpu.exits import Exit, ExitReason


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


class UnknownExit(Exit):
    """KVM_EXIT_UNKNOWN, or a reason that this version of virtiopy does not know."""

    number: int
    hardware_exit_reason: int

    def describe(self) -> str:
        """Tell a person what happened."""
        return f"exit reason {self.number}, hardware reason {self.hardware_exit_reason:#x}"


class ExceptionExit(Exit):
    """KVM_EXIT_EXCEPTION: an exception that KVM would not deliver."""

    exception: int
    error_code: int

    def describe(self) -> str:
        """Tell a person what happened."""
        return f"exception {self.exception}, error code {self.error_code:#x}"


class HypercallExit(Exit):
    """KVM_EXIT_HYPERCALL."""

    number: int
    arguments: tuple[int, ...]

    def describe(self) -> str:
        """Tell a person what happened."""
        return f"hypercall {self.number}"


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


class TprAccessExit(Exit):
    """KVM_EXIT_TPR_ACCESS: the guest touched the task priority register."""

    rip: int
    is_write: bool


class IoapicEoiExit(Exit):
    """KVM_EXIT_IOAPIC_EOI: end of a level-triggered interrupt, for an IOAPIC in userspace."""

    vector: int


class MsrExit(Exit):
    """KVM_EXIT_X86_RDMSR or WRMSR: a model-specific register left to userspace."""

    index: int
    data: int
    why: int

    def describe(self) -> str:
        """Tell a person what happened."""
        return f"KVM_EXIT_{self.reason.name} of register {self.index:#x}"


class NotifyExit(Exit):
    """KVM_EXIT_NOTIFY: no event window opened for too long."""

    flags: int


def decode_rare(reason: ExitReason, run: CData) -> Exit:
    """Decode `struct kvm_run`, whose reason is neither of I/O nor HLT."""
    decoder = _DECODERS.get(reason)
    return decoder(reason, run) if decoder else Exit(reason)


def _unknown(reason: ExitReason, run: CData) -> Exit:
    number = run.exit_reason
    known = number == ExitReason.UNKNOWN
    return UnknownExit(reason, number, run.hw.hardware_exit_reason if known else 0)


def _exception(reason: ExitReason, run: CData) -> Exit:
    return ExceptionExit(reason, run.ex.exception, run.ex.error_code)


def _hypercall(reason: ExitReason, run: CData) -> Exit:
    return HypercallExit(reason, run.hypercall.nr, tuple(run.hypercall.args))


def _fail_entry(reason: ExitReason, run: CData) -> Exit:
    fail = run.fail_entry
    return FailEntryExit(reason, fail.hardware_entry_failure_reason, fail.cpu)


def _internal_error(reason: ExitReason, run: CData) -> Exit:
    internal = run.internal
    return InternalErrorExit(reason, internal.suberror, tuple(internal.data[0 : internal.ndata]))


def _system_event(reason: ExitReason, run: CData) -> Exit:
    event = run.system_event
    return SystemEventExit(reason, event.type, tuple(event.data[0 : event.ndata]))


def _tpr_access(reason: ExitReason, run: CData) -> Exit:
    return TprAccessExit(reason, run.tpr_access.rip, bool(run.tpr_access.is_write))


def _ioapic_eoi(reason: ExitReason, run: CData) -> Exit:
    return IoapicEoiExit(reason, run.eoi.vector)


def _msr(reason: ExitReason, run: CData) -> Exit:
    return MsrExit(reason, run.msr.index, run.msr.data, run.msr.reason)


def _notify(reason: ExitReason, run: CData) -> Exit:
    return NotifyExit(reason, run.notify.flags)


_DECODERS = {
    ExitReason.UNKNOWN: _unknown,
    ExitReason.EXCEPTION: _exception,
    ExitReason.HYPERCALL: _hypercall,
    ExitReason.FAIL_ENTRY: _fail_entry,
    ExitReason.TPR_ACCESS: _tpr_access,
    ExitReason.INTERNAL_ERROR: _internal_error,
    ExitReason.SYSTEM_EVENT: _system_event,
    ExitReason.IOAPIC_EOI: _ioapic_eoi,
    ExitReason.X86_RDMSR: _msr,
    ExitReason.X86_WRMSR: _msr,
    ExitReason.NOTIFY: _notify,
}
