"""What every way of booting a kernel tells it: its words, its initrd, its memory, the machine."""

import os
from dataclasses import dataclass
from pathlib import Path

from virtiopy.boot.content import read_content
from virtiopy.errors import ConfigError
from virtiopy.memory import PAGE_SIZE, GuestMemory

#: What of the first MiB the guest may not count as its memory.
BIOS_AREA_START = 0x9FC00
BIOS_AREA_END = 0x100000

#: Memory that a guest may use, in the BIOS's own numbering (E820).
E820_RAM = 1

#: Above here some kernels expect no initrd.
_INITRD_END = 0x8000_0000


@dataclass(slots=True, frozen=True)
class Initrd:
    """An initial ramdisk, and where it is from."""

    path: Path
    content: bytes

    @classmethod
    def read(cls, path: Path) -> "Initrd":
        """Read a file; raises ConfigError."""
        try:
            return cls(path, read_content(path))
        except OSError as error:
            raise ConfigError(
                f"The initrd {path} cannot be read ({error.strerror}): name a file that can."
            ) from error


@dataclass(slots=True, frozen=True)
class BootParameters:
    """What a kernel is told besides its memory; `rsdp` is 0 where there are no ACPI tables."""

    command_line: str = ""
    initrd: Initrd | None = None
    rsdp: int = 0

    def encoded(self, most: int) -> bytes:
        """Return the command line with its end, `most` bytes at most; raises ConfigError."""
        # The user's bytes, text or not, as a shell hands them to us.
        encoded = os.fsencode(self.command_line) + b"\0"
        if len(encoded) > most:
            raise ConfigError(f"The guest's command line has more than {most} bytes: give it less.")
        return encoded


def memory_map(memory: GuestMemory) -> list[tuple[int, int]]:
    """Return address and size of each range that the guest may use."""
    ranges = []
    for region in memory.regions:
        if region.guest_address == 0 and region.end > BIOS_AREA_END:
            ranges += [(0, BIOS_AREA_START), (BIOS_AREA_END, region.end - BIOS_AREA_END)]
        else:
            ranges.append((region.guest_address, region.size))
    return ranges


def place_initrd(memory: GuestMemory, initrd: Initrd, after: int) -> int:
    """Put the initrd as high as it may be, above `after`; return its address.

    Raises ConfigError where it does not fit.
    """
    region = memory.regions[0]
    address = (min(region.end, _INITRD_END) - len(initrd.content)) & ~(PAGE_SIZE - 1)
    if address < max(after, BIOS_AREA_END):
        needed = max(after, BIOS_AREA_END) + len(initrd.content)
        raise ConfigError(
            f"The initrd {initrd.path} of {len(initrd.content) / (1 << 20):.1f} MiB does not fit "
            f"in memory beside the kernel: give it more than {needed >> 20} MiB with --memory."
        )
    memory.write(address, initrd.content)
    return address
