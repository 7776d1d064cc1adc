"""What the tests of the machine share."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from tests.patience import PATIENCE
from virtiopy.cpu.activity import Activity
from virtiopy.cpu.exits import Answer, Exit, ExitReason, IoExit, MmioExit
from virtiopy.cpu.x86 import Registers, SystemRegisters
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError
from virtiopy.memory import GuestMemory
from virtiopy.metrics.exitlog import ExitKind
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.queue import Chain, Virtqueue
from virtiopy.vm.machine import Machine

FIRST, SECOND = 0xD000_0000, 0xD000_1000
CONSOLE, EXIT = 0xE9, 0xF4
NOBODYS_PORT, NOBODYS_ADDRESS = 0x5555, 0xC000_0000
Step = Exit | Callable[[], Exit | None]


class FakeCpu:
    """Returns the exits that a test wrote down, and then runs on until it is stopped."""

    def __init__(self) -> None:
        self.script: list[Step] = []
        self.registers = Registers(rip=0x1234)
        self.system_registers = SystemRegisters()
        self.counters = {"exits": 100, "halt_exits": 3}
        self.stops = 0
        self.closed = False
        self._stopped = threading.Event()

    def run(self, answer: Answer) -> Exit | None:
        while self.script:
            self.counters["exits"] += 1
            step = self.script.pop(0)
            exit_ = step if isinstance(step, Exit) else step()
            if not isinstance(exit_, IoExit | MmioExit):
                return exit_
            if not answer(exit_):
                return None
        self.counters["exits"] += 1
        self.spin()
        return None

    def spin(self) -> None:
        assert self._stopped.wait(PATIENCE), "nobody stopped the CPU"
        self._stopped.clear()

    def stop(self) -> None:
        self.stops += 1
        self._stopped.set()

    def get_registers(self) -> Registers:
        return self.registers

    def set_registers(self, registers: Registers) -> None:
        self.registers = registers

    def get_system_registers(self) -> SystemRegisters:
        return self.system_registers

    def set_system_registers(self, state: SystemRegisters) -> None:
        self.system_registers = state

    def activity(self) -> Activity:
        return Activity.RUNNING

    def statistics(self) -> dict[str, int]:
        return dict(self.counters)

    def close(self) -> None:
        self.closed = True


class FakeAccelerator:
    """Makes the CPU of the test, and records the interrupt lines."""

    name = "fake"

    translates = False

    def __init__(self, *, has_read_only_memory: bool = False) -> None:
        self.has_read_only_memory = has_read_only_memory
        #: Host addresses of what is read only, by guest physical address.
        self.read_only: dict[int, int] = {}
        self.cpus = [FakeCpu()]
        self.lines: list[tuple[int, bool]] = []
        self.kicks: list[tuple[int, int]] = []
        self.irqfds: list[int] = []
        #: The CPU that cannot be made.
        self.refused: int | None = None

    @property
    def cpu(self) -> FakeCpu:
        return self.cpus[0]

    def code_written(self, address: int, length: int) -> None:
        pass

    def create_cpu(self, number: int = 0, count: int = 1) -> FakeCpu:
        if number == self.refused:
            raise ConfigError("for the test")
        while len(self.cpus) < count:
            self.cpus.append(FakeCpu())
        return self.cpus[number]

    def set_irq_line(self, gsi: int, level: bool) -> None:
        self.lines.append((gsi, level))

    def add_ioeventfd(self, address: int, value: int, eventfd: int) -> Callable[[], None]:
        self.kicks.append((address, value))
        return lambda: self.kicks.remove((address, value))

    def add_irqfd(self, gsi: int, eventfd: int) -> None:
        self.irqfds.append(gsi)

    def add_read_only_memory(
        self, guest_address: int, size: int, host_address: int
    ) -> Callable[[], None]:
        assert size == 0x1000
        self.read_only[guest_address] = host_address

        def remove() -> None:
            del self.read_only[guest_address]

        return remove

    def statistics(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """Free nothing."""


class FakeDevice(VirtioDevice):
    """A device with a queue and 8 bytes of configuration, which may fail when it is configured."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY

    def __init__(self) -> None:
        super().__init__()
        self.queue_sizes = [4]
        self.config = b"\1\2\3\4\5\6\7\x08"
        self.error: Exception | None = None
        self.ends: list[str] = []

    def config_space(self) -> bytes:
        return self.config

    def write_config(self, offset: int, data: bytes) -> bool:
        if self.error is not None:
            raise self.error
        self.config = self.config[:offset] + data + self.config[offset + len(data) :]
        return True

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        return 0

    def reset(self) -> None:
        super().reset()
        self.ends.append("reset")

    def close(self) -> None:
        self.ends.append("close")


def mmio_write(address: int, data: bytes) -> MmioExit:
    return MmioExit(ExitReason.MMIO, address, True, memoryview(bytearray(data)))


def mmio_read(address: int, size: int) -> MmioExit:
    return MmioExit(ExitReason.MMIO, address, False, memoryview(bytearray(size)))


def io_write(port: int, data: bytes, size: int = 1) -> IoExit:
    return IoExit(ExitReason.IO, port, size, len(data) // size, True, memoryview(bytearray(data)))


def io_read(port: int, size: int, count: int = 1) -> IoExit:
    return IoExit(ExitReason.IO, port, size, count, False, memoryview(bytearray(size * count)))


def quit_with(status: int) -> IoExit:
    return io_write(EXIT, bytes([status]))


@dataclass
class Bench:
    """A machine whose CPU does what `run` is given."""

    machine: Machine
    accelerator: FakeAccelerator
    output: bytearray = field(default_factory=bytearray)

    @property
    def cpu(self) -> FakeCpu:
        return self.accelerator.cpu

    def run(self, *steps: Step) -> int | None:
        """Run the steps and the exit port's status 0; returns the run's status."""
        self.cpu.script = [*steps, quit_with(0)]
        return self.machine.run(PATIENCE).status

    def counts(self, *steps: Step) -> dict[ExitKind, int]:
        """Run the steps and return what was counted for them."""
        self.run(*steps)
        counts = dict(self.machine.exits.counts)
        del counts[ExitKind("IO", "exit port", "status", "write")]
        return counts


def bench_of(memory: GuestMemory, *, ignore_unassigned: bool = False) -> Bench:
    accelerator, output = FakeAccelerator(), bytearray()
    machine = Machine(
        memory, accelerator, console=output.extend, ignore_unassigned=ignore_unassigned
    )
    return Bench(machine, accelerator, output)


def ignore(data: bytes) -> None:
    """Take what the guest writes to the console."""
