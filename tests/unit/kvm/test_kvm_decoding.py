"""KVM: struct kvm_run (api.rst 5), filled in by hand, is decoded."""

import pytest

from virtiopy._native import ffi, lib
from virtiopy.accel.kvm.decode import decode
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
