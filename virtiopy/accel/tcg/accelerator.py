"""The software CPU and its interrupt lines, behind the door that KVM has too."""

import os
from collections.abc import Callable

from virtiopy.accel.tcg.apic import InterruptChips
from virtiopy.accel.tcg.cpu import TcgCpu
from virtiopy.errors import ConfigError, HostError
from virtiopy.eventloop import READABLE, EventLoop
from virtiopy.memory import GuestMemory


class TcgAccelerator:
    """One CPU, and the models of the interrupt chips unless told otherwise.

    Without them a HLT comes back as an exit; with them it waits for an interrupt.
    """

    name = "tcg"
    has_read_only_memory = False
    translates = True

    def __init__(self, memory: GuestMemory, *, interrupts: bool = True) -> None:
        self._memory = memory
        self._chips = InterruptChips() if interrupts else None
        self._cpu: TcgCpu | None = None
        #: By address and value.
        self._ioeventfds: dict[tuple[int, int], int] = {}
        self._irqfds: list[int] = []
        self._loop: EventLoop | None = None

    def create_cpu(self, number: int = 0, count: int = 1) -> TcgCpu:
        """Make the CPU; there is only one."""
        if count > 1 or self._cpu is not None:
            raise ConfigError(
                "The software CPU (tcg) is one alone: give the guest one CPU, or use --accel kvm."
            )
        self._cpu = TcgCpu(self._memory, self._chips, self._ioeventfds)
        return self._cpu

    def code_written(self, address: int, length: int) -> None:
        """Have what is translated of this memory translated again; from any thread."""
        if self._cpu is not None:
            self._cpu.code_written(address, length)

    def set_irq_line(self, gsi: int, level: bool) -> None:
        """Set the level of an IOAPIC input; from any thread."""
        if self._chips is None or self._cpu is None:
            raise HostError(f"Interrupt line {gsi} has no interrupt chips to go to.")
        with self._cpu.lock:
            self._chips.io_apic.set_line(gsi, level)
            self._cpu.interrupts_changed()

    def statistics(self) -> dict[str, int]:
        """Return nothing: Unicorn counts nothing."""
        return {}

    def add_ioeventfd(self, address: int, value: int, eventfd: int) -> Callable[[], None]:
        """Turn writes into an eventfd: in the translator's callback, as it has no kernel to ask."""
        self._ioeventfds[address, value] = os.dup(eventfd)
        return lambda: os.close(self._ioeventfds.pop((address, value)))

    def add_irqfd(self, gsi: int, eventfd: int) -> None:
        """Turn an eventfd into an edge-triggered interrupt, on a thread that waits for it."""
        if self._loop is None:
            self._loop = EventLoop("irqfds")
            self._loop.start()
        interrupt = os.dup(eventfd)
        self._irqfds.append(interrupt)

        def pulse(events: int) -> None:
            os.eventfd_read(interrupt)
            self.set_irq_line(gsi, True)
            self.set_irq_line(gsi, False)

        self._loop.watch(interrupt, READABLE, pulse, f"irqfd of GSI {gsi}")

    def add_read_only_memory(
        self, guest_address: int, size: int, host_address: int
    ) -> Callable[[], None]:
        """Refuse: where memory is, the translator calls no hook for writes."""
        raise HostError("The software CPU has no read-only memory: use --accel kvm.")

    def close(self) -> None:
        """Close the eventfds; the CPU is closed."""
        if self._loop is not None:
            self._loop.close()
        for eventfd in [*self._ioeventfds.values(), *self._irqfds]:
            os.close(eventfd)
