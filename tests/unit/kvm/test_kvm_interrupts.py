"""KVM: interrupts reach the guest."""

import contextlib
import os
import struct
from collections.abc import Iterator

import pytest

from tests.patience import PATIENCE
from tests.unit.kvm.guest import (
    COUNTER,
    HLT,
    QUIT,
    CpuThread,
    Guest,
    guest_of,
    needs_kvm,
    wait_until,
)
from virtiopy._native import lib
from virtiopy.accel.kvm import statistics as statistics_module
from virtiopy.cpu.exits import IoExit
from virtiopy.errors import HostError

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
