"""The wires of a device in this process: what a VM's accelerator does for its transport.

So the suite reaches a device as a guest in virtiopy's own VM does: kicks and acknowledgements are
eventfds, interrupts are pulses, and registers are read from a page where the device lets them.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from virtiopy import eventfds
from virtiopy._native import ffi
from virtiopy.closing import Closing
from virtiopy.transport.interrupts import Irqfd
from virtiopy.transport.placement import Transport


@dataclass(slots=True)
class SoftwareWires(Closing):
    """Wires between a driver in this process and its device (transport.placement.Wires)."""

    #: Eventfds by address and value of the 32-bit writes that signal them.
    kicks: dict[tuple[int, int], int] = field(default_factory=dict)
    #: The interrupt lines, by GSI.
    lines: dict[int, Irqfd] = field(default_factory=dict)
    #: Pages that are read as memory: their host addresses and sizes, by guest physical address.
    pages: dict[int, tuple[int, int]] = field(default_factory=dict)

    def close(self) -> None:
        """Close the lines."""
        for line in self.lines.values():
            os.close(line.fd)

    def level(self, gsi: int) -> Callable[[bool], None]:
        """Return what sets the level of a line: devices have eventfds for lines here."""
        raise NotImplementedError

    def add_ioeventfd(self, address: int, value: int, eventfd: int) -> Callable[[], None]:
        """Turn 32-bit writes of `value` at `address` into signals of `eventfd`."""
        self.kicks[address, value] = eventfd

        def remove() -> None:
            del self.kicks[address, value]

        return remove

    def irqfd(self, gsi: int) -> Irqfd:
        """Return the eventfd that is an interrupt line."""
        if gsi not in self.lines:
            self.lines[gsi] = Irqfd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        return self.lines[gsi]

    def add_read_only_memory(
        self, guest_address: int, size: int, host_address: int
    ) -> Callable[[], None]:
        """Have memory read in place of registers."""
        self.pages[guest_address] = (host_address, size)

        def remove() -> None:
            del self.pages[guest_address]

        return remove

    def take_interrupts(self, gsi: int) -> int:
        """Return how often a line was pulsed since the last call."""
        return eventfds.take(self.lines[gsi].fd) or 0


class WiredRegisters:
    """The registers of a device at `address`, as a driver behind `wires` reads and writes them."""

    def __init__(self, wires: SoftwareWires, transport: Transport, address: int) -> None:
        self._wires = wires
        self._transport = transport
        self._address = address

    def peek(self, offset: int, size: int) -> bytes | None:
        """Return `size` bytes at `offset` from memory; None where the device is to be asked."""
        page = self._wires.pages.get(self._address)
        if page is None:
            return None
        return bytes(ffi.buffer(ffi.cast("char *", page[0] + offset), size))

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset`, from memory where there is any."""
        known = self.peek(offset, size)
        return self._transport.read(offset, size) if known is None else known

    def signal(self, offset: int, data: bytes) -> bool:
        """Signal what a write is to signal; say whether there is such a thing."""
        value = int.from_bytes(data, "little")
        eventfd = self._wires.kicks.get((self._address + offset, value))
        if eventfd is None or len(data) != 4:
            return False
        eventfds.signal(eventfd)
        return True

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`: a signal where that is asked for, else a write."""
        if not self.signal(offset, data):
            self._transport.write(offset, data)
