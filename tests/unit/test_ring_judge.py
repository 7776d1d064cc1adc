"""What the judge of rings makes of kicks that did not come."""

from collections.abc import Iterator

import pytest

from virtiopy.check.watch import DriverCheck
from virtiopy.devices.rng import Rng
from virtiopy.memory import GuestMemory
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.virtqueue.driver import Allocator, Piece

MEMORY_SIZE = 1 << 20


class Bench:
    """An entropy device whose driver is judged, and its driver."""

    def __init__(self, memory: GuestMemory) -> None:
        self.transport = MmioTransport(Rng(), memory, LevelInterrupt(lambda level: None))
        self.check = DriverCheck()
        watched = self.check.watch_registers(
            "rng0", self.transport, sees_reads=True, sees_kicks=True
        )
        self.driver = MmioDriver(watched, memory, Allocator(0x1000, MEMORY_SIZE))
        self.driver.start()

    def add(self) -> None:
        """Make a buffer available, and do not kick."""
        address = self.driver.allocator.take(16)
        self.driver.queues[0].add([Piece(address, 16, writable=True)])

    def found(self) -> set[str]:
        return {finding.statement.id for finding in self.check.finish().findings}


@pytest.fixture
def bench() -> Iterator[Bench]:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        yield Bench(memory)


def test_buffers_that_were_never_kicked_are_found(bench: Bench) -> None:
    bench.add()
    assert "2.7.10.1:6" in bench.found()


def test_a_device_that_needs_a_reset_is_told_of_no_kick(bench: Bench) -> None:
    bench.transport.lifecycle.needs_reset("the test says so")
    bench.add()
    bench.driver.kick(0)
    assert "2.7.10.1:6" not in bench.found()
