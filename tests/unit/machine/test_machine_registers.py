"""The machine: registers without exits, boot and end."""

from pathlib import Path

import pytest

from tests.unit.machine.bench import (
    FIRST,
    SECOND,
    Bench,
    FakeAccelerator,
    FakeDevice,
    bench_of,
    ignore,
)
from virtiopy._native import ffi
from virtiopy.boot import pvh
from virtiopy.boot.elf import GuestImage, LoadSegment
from virtiopy.cpu.x86 import CR0_PE
from virtiopy.errors import HostError
from virtiopy.memory import GuestMemory
from virtiopy.transport.registers import MAGIC_VALUE, Interrupt, Register
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode

# Registers without exits


@pytest.mark.parametrize("exit_free", [True, None])
def test_registers_are_in_read_only_memory_until_the_machine_is_closed(
    memory: GuestMemory, exit_free: bool | None
) -> None:
    accelerator = FakeAccelerator(has_read_only_memory=True)
    with Machine(memory, accelerator, console=ignore, exit_free=exit_free) as machine:
        machine.add_device(FakeDevice(), "rng0", IoMode.IOEVENTFD)
        machine.add_device(FakeDevice(), "rng1", IoMode.TRAPPED)
        assert set(accelerator.read_only) == {FIRST, SECOND}
        magic = ffi.cast("uint32_t *", accelerator.read_only[FIRST])
        assert magic[0] == MAGIC_VALUE
    assert not accelerator.read_only


def test_the_kernel_takes_the_acknowledgements_of_used_buffers_where_interrupts_are_irqfds(
    memory: GuestMemory,
) -> None:
    accelerator = FakeAccelerator(has_read_only_memory=True)
    with Machine(memory, accelerator, console=ignore, exit_free=True) as machine:
        machine.add_device(FakeDevice(), "rng0", IoMode.IOEVENTFD)
        machine.add_device(FakeDevice(), "rng1", IoMode.TRAPPED)
        for slot in machine.slots:
            slot.transport.lifecycle.activate()
        acknowledgements = [
            (address, value)
            for address, value in accelerator.kicks
            if address & 0xFFF == Register.InterruptACK
        ]
    assert acknowledgements == [(FIRST + Register.InterruptACK, Interrupt.USED_BUFFER)]


@pytest.mark.parametrize("exit_free", [False, None])
def test_registers_are_left_to_exits_where_that_is_asked_for_or_nothing_else_can_be_had(
    memory: GuestMemory, exit_free: bool | None
) -> None:
    accelerator = FakeAccelerator(has_read_only_memory=exit_free is False)
    with Machine(memory, accelerator, console=ignore, exit_free=exit_free) as machine:
        machine.add_device(FakeDevice(), "rng0", IoMode.IOEVENTFD)
        assert not machine.exit_free
        assert not accelerator.read_only
        assert accelerator.kicks == [(FIRST + Register.QueueNotify, 0)]


def test_registers_without_exits_are_refused_where_they_cannot_be_had(memory: GuestMemory) -> None:
    with pytest.raises(HostError, match=r"no registers without exits on fake.* --accel kvm"):
        Machine(memory, FakeAccelerator(), console=ignore, exit_free=True)


# Boot and end


IMAGE = GuestImage(
    Path("guest.elf"), 0x10_0000, 0x10_0010, (LoadSegment(0x10_0000, b"\x90" * 32, 64),)
)


def _command_line(memory: GuestMemory) -> str:
    return memory.read(pvh.COMMAND_LINE, 0x200).split(b"\0")[0].decode()


def test_the_command_line_names_every_device_and_then_the_arguments(
    bench: Bench, memory: GuestMemory
) -> None:
    for name in ("rng0", "rng1"):
        bench.machine.add_device(FakeDevice(), name, IoMode.TRAPPED)
    bench.machine.boot(IMAGE, "blk.requests=7")
    assert _command_line(memory) == (
        "virtio_mmio.device=4K@0xd0000000:16 virtio_mmio.device=4K@0xd0001000:17 blk.requests=7"
    )


@pytest.mark.parametrize("arguments", ["", "quiet"])
def test_without_devices_the_command_line_is_the_arguments(
    bench: Bench, memory: GuestMemory, arguments: str
) -> None:
    bench.machine.boot(IMAGE, arguments)
    assert _command_line(memory) == arguments


def test_the_cpu_starts_at_the_pvh_entry_in_protected_mode(bench: Bench) -> None:
    bench.machine.boot(IMAGE)
    assert (bench.cpu.registers.rip, bench.cpu.registers.rbx) == (0x10_0010, pvh.START_INFO)
    assert bench.cpu.system_registers.cr0 & CR0_PE


def test_closing_the_machine_resets_and_closes_devices_and_cpu(memory: GuestMemory) -> None:
    bench, device = bench_of(memory), FakeDevice()
    with bench.machine:
        bench.machine.add_device(device, "rng0", IoMode.TRAPPED)
    assert (device.ends, bench.cpu.closed) == (["reset", "close"], True)
