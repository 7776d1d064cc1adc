"""What the judge of registers makes of an interrupt that comes between two steps of a driver's."""

from collections.abc import Iterator

import pytest

from tests.unit.blk.bench import FakeDisk
from virtiopy.check.watch import DriverCheck
from virtiopy.devices.blk import Blk
from virtiopy.memory import GuestMemory
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.placement import Transport
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.driver import Allocator

MEMORY_SIZE = 1 << 20


@pytest.fixture
def driven() -> Iterator[tuple[Transport, DriverCheck]]:
    """A disk whose driver has started."""
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        check = DriverCheck()
        transport = MmioTransport(Blk(FakeDisk()), memory, LevelInterrupt(lambda level: None))
        watched = check.watch_registers("blk0", transport, sees_reads=True, sees_kicks=True)
        MmioDriver(watched, memory, Allocator(0x1000, MEMORY_SIZE)).start()
        yield watched, check


def write(transport: Transport, register: Register, value: int) -> None:
    transport.write(register, value.to_bytes(4, "little"))


def handle_interrupt(transport: Transport) -> None:
    transport.read(Register.InterruptStatus, 4)
    write(transport, Register.InterruptACK, 1)


def found(check: DriverCheck) -> set[str]:
    return {finding.statement.id for finding in check.finish().findings}


@pytest.mark.parametrize(("reads", "broken"), [(True, set[str]()), (False, {"4.2.2.2:17"})])
def test_an_interrupt_between_queue_ready_0_and_its_read_is_no_step(
    driven: tuple[Transport, DriverCheck], reads: bool, broken: set[str]
) -> None:
    transport, check = driven
    write(transport, Register.QueueSel, 0)
    before = found(check)
    write(transport, Register.QueueReady, 0)
    handle_interrupt(transport)
    if reads:
        transport.read(Register.QueueReady, 4)
    write(transport, Register.QueueSel, 0)
    assert found(check) - before == broken


@pytest.mark.parametrize(("reads", "broken"), [(True, set[str]()), (False, {"2.5.1:2"})])
def test_an_interrupt_among_the_reads_of_a_wide_field_is_no_step(
    driven: tuple[Transport, DriverCheck], reads: bool, broken: set[str]
) -> None:
    transport, check = driven
    before = found(check)
    transport.read(Register.ConfigGeneration, 4)
    transport.read(Register.Config, 4)
    handle_interrupt(transport)
    transport.read(Register.Config + 4, 4)
    handle_interrupt(transport)
    if reads:
        transport.read(Register.ConfigGeneration, 4)
    write(transport, Register.QueueSel, 0)
    assert found(check) - before == broken
