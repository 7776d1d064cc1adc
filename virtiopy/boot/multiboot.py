"""Multiboot, version 1: the header of a kernel's first 8 KiB, and what it is told.

The Multiboot Specification 0.6.96, with its names of the fields.
"""

from dataclasses import dataclass
from pathlib import Path

from virtiopy._native import ffi
from virtiopy.accel.base import Cpu
from virtiopy.boot.elf import GuestImage, LoadSegment
from virtiopy.boot.parameters import (
    BIOS_AREA_END,
    BIOS_AREA_START,
    BootParameters,
    memory_map,
    place_initrd,
)
from virtiopy.cpu.x86 import Registers, protected_mode
from virtiopy.errors import ConfigError
from virtiopy.memory import GuestMemory

_SEARCH = 8192
_HEADER_MAGIC = 0x1BADB002
_BOOTLOADER_MAGIC = 0x2BADB002
_HAS_ADDRESSES = 1 << 16
#: Those of the lower 16 bits, which must be understood, that are: page alignment, memory.
_UNDERSTOOD = 3

# What of the information is there (3.3).
_MEMORY, _COMMAND_LINE_FLAG, _MODULES_FLAG, _MAP_FLAG = 1 << 0, 1 << 2, 1 << 3, 1 << 6
_INFORMATION, _MODULES, _MAP, _COMMAND_LINE = 0x6000, 0x6800, 0x7000, 0x8000
_COMMAND_LINE_MAX = 0x8000
_RAM = 1


@dataclass(slots=True, frozen=True)
class MultibootKernel:
    """A kernel that has the header, with what it has loaded."""

    path: Path
    image: GuestImage

    @classmethod
    def parse(
        cls, path: Path, content: bytes, image: GuestImage | None
    ) -> "MultibootKernel | None":
        """Find the header in a kernel, which may be an ELF `image`; None where there is none.

        Raises ConfigError where it asks for what is not here.
        """
        magic = _HEADER_MAGIC.to_bytes(4, "little")
        offset = content[:_SEARCH].find(magic)
        while offset >= 0:
            words = [
                int.from_bytes(content[offset + n : offset + n + 4], "little")
                for n in range(0, 32, 4)
            ]
            if offset % 4 == 0 and sum(words[:3]) & 0xFFFF_FFFF == 0:
                break
            offset = content[:_SEARCH].find(magic, offset + 1)
        else:
            return None
        flags = words[1]
        if flags & 0xFFFF & ~_UNDERSTOOD:
            raise ConfigError(
                f"The kernel {path} asks its loader for a video mode or more (multiboot flags "
                f"{flags:#x}): build it for a text console, as with the serial port."
            )
        if not flags & _HAS_ADDRESSES:
            return None if image is None else cls(path, image)
        header, load, load_end, bss_end, entry = words[3:]
        start = offset - (header - load)
        data = content[start : start + load_end - load if load_end else None]
        size = max(len(data), bss_end - load)
        segment = LoadSegment(load, data, size)
        return cls(path, GuestImage(path, entry, None, (segment,), is_64_bit=False))

    def prepare(self, memory: GuestMemory, cpu: Cpu, parameters: BootParameters) -> None:
        """Load the kernel, and set `cpu` to its entry point; raises ConfigError."""
        low = min(segment.address for segment in self.image.segments)
        if low < BIOS_AREA_END:
            raise ConfigError(
                f"The kernel {self.path} starts at {low:#x}, below 1 MiB, where the boot "
                "parameters are: link it at 1 MiB or above."
            )
        self.image.load(memory)
        memory.write(_COMMAND_LINE, parameters.encoded(_COMMAND_LINE_MAX))
        information = ffi.new("struct multiboot_info *")
        information.flags = _MEMORY | _COMMAND_LINE_FLAG | _MAP_FLAG
        information.mem_lower = BIOS_AREA_START >> 10
        information.mem_upper = (memory.regions[0].end - BIOS_AREA_END) >> 10
        information.cmdline = _COMMAND_LINE
        entries = ffi.new(
            "struct multiboot_mmap_entry[]",
            [(20, address, size, _RAM) for address, size in memory_map(memory)],
        )
        information.mmap_addr, information.mmap_length = _MAP, ffi.sizeof(entries)
        memory.write(_MAP, bytes(ffi.buffer(entries)))
        if parameters.initrd is not None:
            address = place_initrd(memory, parameters.initrd, self.image.end)
            module = ffi.new("struct multiboot_module *")
            module.mod_start = address
            module.mod_end = address + len(parameters.initrd.content)
            memory.write(_MODULES, bytes(ffi.buffer(module)))
            information.flags |= _MODULES_FLAG
            information.mods_count, information.mods_addr = 1, _MODULES
        memory.write(_INFORMATION, bytes(ffi.buffer(information)))
        cpu.set_system_registers(protected_mode())
        cpu.set_registers(Registers(rip=self.image.entry, rax=_BOOTLOADER_MAGIC, rbx=_INFORMATION))
