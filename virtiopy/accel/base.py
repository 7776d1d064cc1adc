"""What executes guest code, whichever way it does: the one door to it."""

from collections.abc import Callable
from typing import Protocol

from virtiopy.cpu.activity import Activity
from virtiopy.cpu.exits import Answer, Exit
from virtiopy.cpu.x86 import Registers, SystemRegisters


class Cpu(Protocol):
    """A virtual CPU."""

    def run(self, answer: Answer) -> Exit | None:
        """Execute the guest until it needs more of userspace than an answered access.

        Each port and MMIO access goes to `answer`, on this thread. None when `stop` was called,
        or `answer` returned False.
        """

    def stop(self) -> None:
        """Make `run` return None; from any thread."""

    def get_registers(self) -> Registers:
        """Read the general registers."""

    def set_registers(self, registers: Registers) -> None:
        """Write the general registers."""

    def get_system_registers(self) -> SystemRegisters:
        """Read what says which mode the CPU is in."""

    def set_system_registers(self, state: SystemRegisters) -> None:
        """Write what says which mode the CPU is in."""

    def statistics(self) -> dict[str, int]:
        """Return the counters of the mechanism itself, by its names; empty where it has none."""

    def activity(self) -> Activity:
        """Say what the CPU, which is not running, does when it is run."""

    def close(self) -> None:
        """Free the CPU, which is not running."""


class Accelerator(Protocol):
    """Executes the code of one guest."""

    name: str

    #: Whether `add_read_only_memory` can be had.
    has_read_only_memory: bool

    #: Whether code is translated, and `code_written` has to be told what devices write.
    translates: bool

    def code_written(self, address: int, length: int) -> None:
        """See that a device has written memory that may be code; from any thread."""

    def create_cpu(self, number: int = 0, count: int = 1) -> Cpu:
        """Make virtual CPU `number` of the guest's `count`; its APIC ID is the number.

        CPU 0 starts where it is told; the others, where the guest starts them. Raises ConfigError
        or HostError for more CPUs than there can be.
        """

    def set_irq_line(self, gsi: int, level: bool) -> None:
        """Set the level of an interrupt line."""

    def add_ioeventfd(self, address: int, value: int, eventfd: int) -> Callable[[], None]:
        """Turn 32-bit writes of `value` at guest physical `address` into writes to `eventfd`.

        The CPU does not stop for them. Returns what ends that, while the eventfd is open.
        """

    def add_irqfd(self, gsi: int, eventfd: int) -> None:
        """Make a write to `eventfd` pulse an interrupt line."""

    def add_read_only_memory(
        self, guest_address: int, size: int, host_address: int
    ) -> Callable[[], None]:
        """Have the guest read memory of this process; sizes and addresses are of whole pages.

        What it writes there are accesses to be answered, or ioeventfds, as before. Returns what
        takes the memory away again.
        """

    def statistics(self) -> dict[str, int]:
        """Return the mechanism's counters for the guest as a whole; empty where it has none."""

    def close(self) -> None:
        """Free the guest; its CPUs are closed."""
