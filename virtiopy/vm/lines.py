"""Interrupt lines of a VM's devices: which one each gets, and how several devices share one.

The IOAPIC has 24 pins (82093AA), fewer than there may be devices. Drivers take the lines by their
edges (ACPI says so), so what shares a line must make an edge of each notification:

- Devices whose interrupts are irqfds have one eventfd a line. KVM turns it into a pulse, one after
  another; two eventfds on one line could be pulsed at a time, and be one edge.
- Devices that set the line's level raise it again where it is high already.
- A pulse on a line that is high is no edge: devices of the one kind share none with the other.
"""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial

from virtiopy.accel.base import Accelerator
from virtiopy.closing import Closing
from virtiopy.transport.interrupts import Irqfd

#: Pins that only the IOAPIC has, so that the 8259 is no matter.
GSIS = range(16, 24)

#: A pin that no part of this PC has, for the kind of devices that came when the other had all.
SPARE_GSI = 5


class Lines(Closing):
    """Wires the devices of a VM (transport.placement.Wires), until `close`."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._trapped: dict[int, bool] = {}
        self._devices: Counter[int] = Counter()
        self._shared: dict[int, _SharedLine] = {}
        self._irqfds: dict[int, Irqfd] = {}

    def close(self) -> None:
        """Close the eventfds; the devices are gone."""
        for irqfd in self._irqfds.values():
            os.close(irqfd.fd)

    def take(self, release: contextlib.ExitStack, *, trapped: bool) -> int:
        """Return the line for a device, which sets its level if it is `trapped`."""
        gsi = self._choose(trapped=trapped)
        self._trapped[gsi] = trapped
        self._devices[gsi] += 1
        release.callback(self._give_back, gsi)
        return gsi

    def _choose(self, *, trapped: bool) -> int:
        free = [gsi for gsi in GSIS if not self._devices[gsi]]
        if free:
            return free[0]
        same_kind = [
            gsi
            for gsi in (*GSIS, SPARE_GSI)
            if self._devices[gsi] and self._trapped[gsi] == trapped
        ]
        return min(same_kind, key=lambda gsi: self._devices[gsi], default=SPARE_GSI)

    def _give_back(self, gsi: int) -> None:
        self._devices[gsi] -= 1

    def level(self, gsi: int) -> Callable[[bool], None]:
        """Return what sets a device's own level of a line, from any thread."""
        line = self._shared.setdefault(
            gsi, _SharedLine(partial(self._accelerator.set_irq_line, gsi))
        )
        return line.join()

    def irqfd(self, gsi: int) -> Irqfd:
        """Return the eventfd that pulses a line."""
        irqfd = self._irqfds.get(gsi)
        if irqfd is None:
            irqfd = Irqfd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._irqfds[gsi] = irqfd
            self._accelerator.add_irqfd(gsi, irqfd.fd)
        return irqfd

    def add_ioeventfd(self, address: int, value: int, eventfd: int) -> Callable[[], None]:
        """Have the accelerator turn writes into an eventfd."""
        return self._accelerator.add_ioeventfd(address, value, eventfd)

    def add_read_only_memory(
        self, guest_address: int, size: int, host_address: int
    ) -> Callable[[], None]:
        """Have the accelerator let the guest read memory of this process."""
        return self._accelerator.add_read_only_memory(guest_address, size, host_address)


class _SharedLine:
    """A line that is high while any of its devices raises it."""

    def __init__(self, set_level: Callable[[bool], None]) -> None:
        self._set_level = set_level
        self._lock = threading.Lock()
        self._members = 0
        self._raised: set[int] = set()

    def join(self) -> Callable[[bool], None]:
        """Return what sets the level of one more device."""
        member = self._members
        self._members += 1
        return partial(self._set, member)

    def _set(self, member: int, level: bool) -> None:
        with self._lock:
            others = self._raised - {member}
            if level:
                self._raised.add(member)
            else:
                self._raised.discard(member)
            if not others:
                self._set_level(level)
            elif level:
                # Once more, for a driver that takes the line by its edges.
                self._set_level(False)
                self._set_level(True)
