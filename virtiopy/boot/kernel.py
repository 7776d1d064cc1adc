"""A kernel of anyone's making: what its file is, and the way to boot it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from virtiopy.accel.base import Cpu
from virtiopy.boot import pvh
from virtiopy.boot.bzimage import BzImage
from virtiopy.boot.content import read_content
from virtiopy.boot.elf import GuestImage
from virtiopy.boot.multiboot import MultibootKernel
from virtiopy.boot.parameters import BootParameters
from virtiopy.boot.unpack import DamagedError, packed_with, unpack
from virtiopy.cpu.x86 import Registers, long_mode, protected_mode, write_page_tables
from virtiopy.errors import ConfigError
from virtiopy.memory import GuestMemory

_ELF = b"\x7fELF"
#: `ARM\x64` at 56: an arm64 Image (Documentation/arch/arm64/booting.rst).
_ARM64, _ARM64_AT = b"ARM\x64", 56
_RISCV, _RISCV_AT = b"RSC\x05", 56

#: Three pages of page tables for a plain 64-bit ELF, below the first MiB.
_PAGE_TABLES = 0x9000
_IDENTITY_END = 1 << 30

#: COMMAND_LINE_SIZE of arch/x86: with its end, bytes. Of a longer one Linux takes the beginning.
LINUX_COMMAND_LINE = 2048
_LINUX_BANNER = b"Linux version "

_PVH_REMEDY = (
    "give it a PVH note, five lines of assembly: "
    '.section .note.Xen, "a"; .long 4, 4, 18; .asciz "Xen"; .long _start32; .previous'
)


class Kernel(Protocol):
    """What a kernel's file turned out to be."""

    @property
    def path(self) -> Path:
        """The file."""

    def prepare(self, memory: GuestMemory, cpu: Cpu, parameters: BootParameters) -> None:
        """Load the kernel, and set `cpu` to its entry point; raises ConfigError."""


@dataclass(slots=True, frozen=True)
class PvhKernel:
    """An ELF file with a PVH note: Linux's vmlinux, and guests of this project."""

    image: GuestImage

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.image.path)

    def prepare(self, memory: GuestMemory, cpu: Cpu, parameters: BootParameters) -> None:
        """Boot by the note."""
        if len(parameters.encoded(pvh.COMMAND_LINE_MAX)) > LINUX_COMMAND_LINE and self._is_linux():
            raise ConfigError(
                f"The command line has {len(parameters.command_line)} bytes, and Linux takes "
                f"{LINUX_COMMAND_LINE - 1}: give it less with --append."
            )
        pvh.prepare(memory, cpu, self.image, parameters)

    def _is_linux(self) -> bool:
        return any(_LINUX_BANNER in bytes(segment.data) for segment in self.image.segments)


@dataclass(slots=True, frozen=True)
class PlainKernel:
    """An ELF file without a boot protocol: it is entered at its entry point, and told nothing.

    A 32-bit one in protected mode without paging, a 64-bit one with the first GiB mapped to itself.
    """

    image: GuestImage

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.image.path)

    def prepare(self, memory: GuestMemory, cpu: Cpu, parameters: BootParameters) -> None:
        """Load the segments, and enter."""
        if parameters.initrd is not None:
            raise ConfigError(
                f"The kernel {self.path} has no boot protocol that could tell it of an initrd: "
                f"leave that out, or {_PVH_REMEDY}"
            )
        self.image.load(memory)
        if self.image.is_64_bit:
            write_page_tables(memory, _PAGE_TABLES)
            cpu.set_system_registers(long_mode(_PAGE_TABLES))
        else:
            cpu.set_system_registers(protected_mode())
        cpu.set_registers(Registers(rip=self.image.entry))


def open_kernel(path: Path) -> Kernel:
    """Say what a kernel's file is; raises ConfigError, with the remedy, where it cannot boot."""
    try:
        content = read_content(path)
    except OSError as error:
        raise ConfigError(
            f"The kernel {path} cannot be read ({error.strerror}): name a bzImage, a vmlinux or "
            "another ELF file."
        ) from error
    if packed_with(content) is not None:
        content = unpack(content, f"The kernel {path}")
    if content.startswith(_ELF):
        return _elf_kernel(path, content)
    bzimage = BzImage.parse(path, content)
    if bzimage is not None:
        return _unpacked(bzimage)
    for name, magic, at in (("arm64", _ARM64, _ARM64_AT), ("RISC-V", _RISCV, _RISCV_AT)):
        if content[at : at + 4] == magic:
            raise ConfigError(
                f"The kernel {path} is an {name} Image, and this machine is x86: "
                "build it for x86-64."
            )
    multiboot = MultibootKernel.parse(path, content, None)
    if multiboot is not None:
        return multiboot
    raise ConfigError(
        f"The file {path} is no kernel that can be booted: name a bzImage (as /boot/vmlinuz-*), a "
        "vmlinux, or another ELF file with a PVH note or a multiboot header."
    )


def _unpacked(bzimage: BzImage) -> Kernel:
    """Prefer the kernel in a bzImage: unpacking it here is a hundred times faster than there."""
    reason: ConfigError | None = None
    if packed_with(bzimage.payload) is not None:
        try:
            content = unpack(bzimage.payload, f"The kernel {bzimage.path}")
        except DamagedError:
            # It would find that out by itself, and stand still without a word.
            raise
        except ConfigError as error:
            reason = error
        else:
            image = GuestImage.parse(bzimage.path, content)
            if image.pvh_entry is not None:
                return PvhKernel(image)
    if bzimage.has_64_bit_entry:
        return bzimage
    raise reason or ConfigError(
        f"The kernel {bzimage.path} is for 32 bits, and has no PVH note: build it for x86-64, or "
        "with CONFIG_PVH."
    )


def _elf_kernel(path: Path, content: bytes) -> Kernel:
    image = GuestImage.parse(path, content)
    if image.pvh_entry is not None:
        return PvhKernel(image)
    multiboot = MultibootKernel.parse(path, content, image)
    if multiboot is not None:
        return multiboot
    if not image.is_identical or (image.is_64_bit and image.end > _IDENTITY_END):
        raise ConfigError(
            f"The kernel {path} has no PVH note and no multiboot header, and its segments are not "
            f"where they are linked to run: build Linux with CONFIG_PVH=y; or {_PVH_REMEDY}"
        )
    return PlainKernel(image)
