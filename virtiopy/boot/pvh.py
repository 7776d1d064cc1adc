"""PVH boot: what the guest finds in memory, and the state its CPU starts in.

The protocol is Xen's (xen/include/public/arch-x86/hvm/start_info.h), which QEMU, Firecracker and
cloud-hypervisor follow too: 32-bit protected mode without paging, and the address of a `struct
hvm_start_info` in ebx.
"""

from virtiopy._native import ffi, lib
from virtiopy.accel.base import Cpu
from virtiopy.boot.elf import GuestImage
from virtiopy.boot.parameters import (
    BIOS_AREA_END,
    BootParameters,
    memory_map,
    place_initrd,
)
from virtiopy.cpu.x86 import Registers, protected_mode
from virtiopy.errors import ConfigError
from virtiopy.memory import GuestMemory

#: Where the boot parameters go: below the first MiB, where no image is linked.
START_INFO = 0x6000
MODULES = 0x6800
MEMORY_MAP = 0x7000
COMMAND_LINE = 0x8000
COMMAND_LINE_MAX = 0x8000


def prepare(memory: GuestMemory, cpu: Cpu, image: GuestImage, parameters: BootParameters) -> None:
    """Load `image`, write its boot parameters, and set `cpu` to its entry point.

    Raises ConfigError for an image that has no PVH entry or does not fit.
    """
    if image.pvh_entry is None:
        raise ConfigError(
            f"The guest image {image.path} has no PVH note (XEN_ELFNOTE_PHYS32_ENTRY): "
            "link one in, as guest_drivers/ shows."
        )
    low = min(segment.address for segment in image.segments)
    if low < BIOS_AREA_END:
        raise ConfigError(
            f"The guest image {image.path} starts at {low:#x}, below 1 MiB, where the boot "
            "parameters are: link it at 1 MiB or above."
        )
    image.load(memory)
    _write_boot_parameters(memory, image, parameters)
    cpu.set_system_registers(protected_mode())
    cpu.set_registers(Registers(rip=image.pvh_entry, rbx=START_INFO))


def _write_boot_parameters(
    memory: GuestMemory, image: GuestImage, parameters: BootParameters
) -> None:
    memory.write(COMMAND_LINE, parameters.encoded(COMMAND_LINE_MAX))

    ranges = memory_map(memory)
    entries = ffi.new(
        "struct hvm_memmap_table_entry[]",
        [(address, size, lib.HVM_MEMMAP_TYPE_RAM, 0) for address, size in ranges],
    )
    memory.write(MEMORY_MAP, bytes(ffi.buffer(entries)))

    start_info = ffi.new("struct hvm_start_info *")
    start_info.magic = lib.HVM_START_MAGIC_VALUE
    start_info.version = 1
    start_info.cmdline_paddr = COMMAND_LINE
    start_info.memmap_paddr = MEMORY_MAP
    start_info.memmap_entries = len(ranges)
    start_info.rsdp_paddr = parameters.rsdp
    if parameters.initrd is not None:
        module = ffi.new("struct hvm_modlist_entry *")
        module.paddr = place_initrd(memory, parameters.initrd, image.end)
        module.size = len(parameters.initrd.content)
        memory.write(MODULES, bytes(ffi.buffer(module)))
        start_info.modlist_paddr, start_info.nr_modules = MODULES, 1
    memory.write(START_INFO, bytes(ffi.buffer(start_info)))
