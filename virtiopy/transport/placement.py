"""Where a device stands in a VM: what finds it there, and what it is wired to.

A VM knows devices by their placements alone, so that one behind registers of MMIO and one on a PCI
bus can stand side by side.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Protocol

from virtiopy.devices.base import VirtioDevice
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.transport.interrupts import Irqfd
from virtiopy.transport.lifecycle import Lifecycle


class Wires(Protocol):
    """What a transport is wired to: the interrupt lines, and what executes the guest."""

    def level(self, gsi: int) -> Callable[[bool], None]:
        """Return what sets one device's level of an interrupt line, which others may have, too."""

    def add_ioeventfd(self, address: int, value: int, eventfd: int) -> Callable[[], None]:
        """Turn 32-bit writes of `value` at guest physical `address` into writes to `eventfd`.

        Returns what ends that, while the eventfd is open.
        """

    def irqfd(self, gsi: int) -> Irqfd:
        """Return the eventfd whose writes pulse an interrupt line; it stays the VM's."""

    def add_read_only_memory(
        self, guest_address: int, size: int, host_address: int
    ) -> Callable[[], None]:
        """Have the guest read memory of this process; returns what takes it away again."""


@dataclass(slots=True, frozen=True)
class Site:
    """The VM around a device: its memory, the loop that its devices share, and its wires."""

    memory: GuestMemory
    loop: EventLoop
    wires: Wires


class Transport(Protocol):
    """A device at its place, as the VM's bus sees it: `read` and `write` are the guest's."""

    lifecycle: Lifecycle

    def read(self, offset: int, size: int) -> bytes:
        """Return the `size` bytes that the guest reads at `offset`."""

    def write(self, offset: int, data: bytes) -> None:
        """Take what the guest writes at `offset`."""

    def register_name(self, offset: int) -> str:
        """Name the register at `offset`, for the exit report."""


class Placement(Protocol):
    """A place for one device: `size` bytes of guest physical addresses, and an interrupt line."""

    #: The ACPI hardware ID that an operating system finds such a device by; None for one that is
    #: found on a bus of its own.
    hid: ClassVar[str | None]

    @property
    def address(self) -> int:
        """The guest physical address of the first register."""

    @property
    def size(self) -> int:
        """Bytes of registers."""

    @property
    def gsi(self) -> int:
        """The interrupt line."""

    @property
    def command_line(self) -> str:
        """What the kernel's command line says of the device; nothing where it is found by a bus."""

    def plug(
        self, device: VirtioDevice, name: str, site: Site, release: ExitStack, *, trapped: bool
    ) -> Transport:
        """Put a device here.

        `trapped` says that kicks are exits and the interrupt is a level; else both are eventfds.
        What has to be let go of in the end goes to `release`. Raises ConfigError or HostError.
        """

    def leave_out_exits(
        self, transport: Transport, site: Site, release: ExitStack, *, always: bool
    ) -> None:
        """Have the guest read registers without exits; `transport` is what `plug` returned.

        Unless `always`, only as far as each register reads as it should at every moment.
        """
