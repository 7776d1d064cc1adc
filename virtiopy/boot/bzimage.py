"""Linux's bzImage: the kernel in it, and the 64-bit boot protocol for what cannot be unpacked.

Documentation/arch/x86/boot.rst of Linux, with its names of the header's fields.
"""

from dataclasses import dataclass
from pathlib import Path

from virtiopy._native import CData, ffi
from virtiopy.accel.base import Cpu
from virtiopy.boot.parameters import E820_RAM, BootParameters, memory_map, place_initrd
from virtiopy.cpu.x86 import DescriptorTable, Registers, long_mode, write_page_tables
from virtiopy.errors import ConfigError
from virtiopy.memory import AddressError, GuestMemory

_HEADER = 0x1F1
_BOOT_FLAG, _MAGIC = 0xAA55, b"HdrS"
_SECTOR = 512
#: The first protocol that says where the payload is.
_PAYLOAD_VERSION = 0x0208
#: And the first that has a 64-bit entry point, this far into the kernel.
_XLOADFLAGS_VERSION = 0x020C
_KERNEL_64 = 1 << 0
_ENTRY_64 = 0x200
_LOADER_UNDEFINED = 0xFF

# Where things go, below the first MiB.
_GDT, _BOOT_PARAMS, _PAGE_TABLES, _COMMAND_LINE = 0x6000, 0x7000, 0x9000, 0x2_0000
_COMMAND_LINE_MAX = 0x8000
_BOOT_CS, _BOOT_DS = 0x10, 0x18
_FLAT_CODE, _FLAT_DATA = 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF


@dataclass(slots=True, frozen=True)
class BzImage:
    """A bzImage: its header, and the file that it is the header of."""

    path: Path
    content: bytes
    header: CData

    @classmethod
    def parse(cls, path: Path, content: bytes) -> "BzImage | None":
        """Read a bzImage; None for what is none, ConfigError for one that is not whole."""
        header = ffi.new("struct setup_header *")
        size = ffi.sizeof("struct setup_header")
        if content[_HEADER + 0x11 : _HEADER + 0x15] != _MAGIC or len(content) < _HEADER + size:
            return None
        ffi.memmove(header, content[_HEADER : _HEADER + size], size)
        if header.boot_flag != _BOOT_FLAG:
            return None
        image = cls(path, content, header)
        if len(content) < image._kernel_offset + header.syssize * 16:
            raise ConfigError(f"The kernel {path} is cut short: copy it again.")
        return image

    @property
    def _kernel_offset(self) -> int:
        """Where the part for protected mode begins in the file."""
        return ((self.header.setup_sects or 4) + 1) * _SECTOR

    @property
    def version(self) -> str:
        """The first word of what the kernel says of itself; nothing where it says nothing."""
        if not self.header.kernel_version:
            return ""
        start = self.header.kernel_version + 0x200
        text = self.content[start : start + 256].partition(b"\0")[0]
        return (text.decode("ascii", "replace").split() or [""])[0]

    @property
    def payload(self) -> bytes:
        """The packed vmlinux; nothing where the header does not say where it is."""
        if self.header.version < _PAYLOAD_VERSION:
            return b""
        start = self._kernel_offset + self.header.payload_offset
        return self.content[start : start + self.header.payload_length]

    @property
    def has_64_bit_entry(self) -> bool:
        """Whether it unpacks itself when it is entered in 64-bit mode."""
        header = self.header
        return bool(header.version >= _XLOADFLAGS_VERSION and header.xloadflags & _KERNEL_64)

    def prepare(self, memory: GuestMemory, cpu: Cpu, parameters: BootParameters) -> None:
        """Load the kernel as it is, and set `cpu` to its 64-bit entry point.

        Raises ConfigError where it has none, or does not fit.
        """
        header = self.header
        address, size = header.pref_address, header.init_size
        try:
            memory.views(address, size)
            memory.write(address, self.content[self._kernel_offset :])
        except AddressError as error:
            raise ConfigError(
                f"The kernel {self.path} does not fit in memory: it needs {size >> 20} MiB at "
                f"{address >> 20} MiB; give it more with --memory."
            ) from error
        most = min(header.cmdline_size + 1, _COMMAND_LINE_MAX)
        memory.write(_COMMAND_LINE, parameters.encoded(most))
        header.type_of_loader = _LOADER_UNDEFINED
        header.cmd_line_ptr = _COMMAND_LINE
        if parameters.initrd is not None:
            header.ramdisk_image = place_initrd(memory, parameters.initrd, address + size)
            header.ramdisk_size = len(parameters.initrd.content)
        boot_params = ffi.new("struct boot_params *")
        boot_params.hdr = header[0]
        boot_params.acpi_rsdp_addr = parameters.rsdp
        ranges = memory_map(memory)
        boot_params.e820_entries = len(ranges)
        for (start, length), entry in zip(ranges, boot_params.e820_table, strict=False):
            entry.addr, entry.size, entry.type = start, length, E820_RAM
        memory.write(_BOOT_PARAMS, bytes(ffi.buffer(boot_params)))
        self._set_cpu(memory, cpu, address + _ENTRY_64)

    @staticmethod
    def _set_cpu(memory: GuestMemory, cpu: Cpu, entry: int) -> None:
        write_page_tables(memory, _PAGE_TABLES)
        table = [0, 0, _FLAT_CODE, _FLAT_DATA]
        memory.write(_GDT, b"".join(entry.to_bytes(8, "little") for entry in table))
        state = long_mode(_PAGE_TABLES)
        state.gdt = DescriptorTable(_GDT, len(table) * 8 - 1)
        state.cs.selector = _BOOT_CS
        for segment in (state.ds, state.es, state.fs, state.gs, state.ss):
            segment.selector = _BOOT_DS
        cpu.set_system_registers(state)
        cpu.set_registers(Registers(rip=entry, rsi=_BOOT_PARAMS))
