"""Why a CPU left the guest, in KVM's words (api.rst 5): see `rare_exits` for those not here."""

import enum
from collections.abc import Callable

from virtiopy._native import lib
from virtiopy.records import Record


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


class Exit(Record):
    """A return of KVM_RUN whose reason says it all (HLT, SHUTDOWN, IRQ_WINDOW_OPEN, ...)."""

    reason: ExitReason

    def describe(self) -> str:
        """Tell a person what happened."""
        return f"KVM_EXIT_{self.reason.name}"


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

    # Written out, as in MmioExit: guests make many of these a second.
    def __init__(  # noqa: PLR0917 - a record's values are given by place
        self,
        reason: ExitReason,
        port: int,
        size: int,
        count: int,
        is_write: bool,
        data: memoryview,
    ) -> None:
        self.reason = reason
        self.port = port
        self.size = size
        self.count = count
        self.is_write = is_write
        self.data = data


class MmioExit(Exit):
    """An access to a guest physical `address` that is no memory.

    `data` is what the guest wrote, 1 to 8 bytes, or the buffer to put what it reads into.
    """

    address: int
    is_write: bool
    data: memoryview

    def __init__(self, reason: ExitReason, address: int, is_write: bool, data: memoryview) -> None:
        self.reason = reason
        self.address = address
        self.is_write = is_write
        self.data = data


#: Answers an access of the guest's, filling `data` if it is a read; returns whether to run on.
Answer = Callable[[IoExit | MmioExit], bool]
