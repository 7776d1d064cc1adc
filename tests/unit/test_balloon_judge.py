"""What the judge of a balloon's driver makes of a balloon whose `actual` was not written."""

from virtiopy.check.watch import DriverCheck
from virtiopy.devices.balloon import Balloon
from virtiopy.memory import GuestMemory
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.driver import Allocator, Piece

MEMORY_SIZE = 1 << 20

#: The driver writes `actual` after it changed the balloon.
ACTUAL = "5.5.6.1:11"


def inflate(memory: GuestMemory, check: DriverCheck) -> MmioTransport:
    """Have a driver give one page, and not write `actual`; return the device's registers."""
    transport = MmioTransport(Balloon(target=4096), memory, LevelInterrupt(lambda level: None))
    watched = check.watch_registers("balloon0", transport, sees_reads=True, sees_kicks=True)
    driver = MmioDriver(watched, memory, Allocator(0x1000, MEMORY_SIZE))
    driver.start()
    page = driver.allocator.take(4)
    memory.write(page, (MEMORY_SIZE // 4096 - 1).to_bytes(4, "little"))
    driver.queues[0].add([Piece(page, 4)])
    driver.kick(0)
    assert driver.queues[0].take_used() is not None
    return transport


def found(check: DriverCheck) -> set[str]:
    return {finding.statement.id for finding in check.finish().findings}


def test_a_run_that_ends_before_actual_was_written_is_no_finding() -> None:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        check = DriverCheck()
        inflate(memory, check)
        # The driver may have been about to write it: Linux does so some pages later.
        assert ACTUAL not in found(check)


def test_a_driver_that_resets_the_device_and_never_wrote_actual_is_one() -> None:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        check = DriverCheck()
        transport = inflate(memory, check)
        transport.write(Register.Status, bytes(4))
        assert ACTUAL in found(check)
