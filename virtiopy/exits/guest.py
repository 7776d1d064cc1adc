"""What runs in the VM of a measurement: a guest of virtiopy's own, or Linux with a command."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from virtiopy.boot.elf import GuestImage
from virtiopy.boot.guests import guest_path
from virtiopy.boot.kernel import open_kernel
from virtiopy.boot.parameters import Initrd
from virtiopy.vm.machine import Machine
from virtiopy.vm.pc import Pc


class Guest(Protocol):
    """A guest that marks its requests, and says on its last line how many there were."""

    @property
    def memory_size(self) -> int:
        """Its memory, bytes."""

    @property
    def is_kernel(self) -> bool:
        """Whether it is an operating system's: it probes for devices that are not there."""

    def boot(
        self, machine: Machine, output: Callable[[bytes], None], stack: contextlib.ExitStack
    ) -> None:
        """Load it; `output` is given what it says, `stack` ends what it needs besides."""


@dataclass(slots=True, frozen=True)
class OwnGuest:
    """A guest driver of virtiopy's, by its name, and its arguments."""

    name: str
    arguments: str
    memory_size: int = 64 << 20
    is_kernel: bool = False

    def boot(
        self, machine: Machine, output: Callable[[bytes], None], stack: contextlib.ExitStack
    ) -> None:
        """Load the ELF; its output is the debug console's, which the machine has already."""
        machine.boot(GuestImage.open(guest_path(self.name)), self.arguments)


@dataclass(slots=True, frozen=True)
class LinuxGuest:
    """Linux, whose `initrd` runs a command between two marks and counts its requests."""

    image: Path
    command_line: str
    initrd: Initrd
    memory_size: int = 512 << 20
    is_kernel: bool = True

    def boot(
        self, machine: Machine, output: Callable[[bytes], None], stack: contextlib.ExitStack
    ) -> None:
        """Load the kernel; its output is the serial port's."""
        pc = stack.enter_context(Pc(machine, output))
        pc.boot(open_kernel(self.image), self.command_line, self.initrd)
