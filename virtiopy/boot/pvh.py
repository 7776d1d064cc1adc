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
    BIOS_AREA_START,
    BootParameters,
    memory_map,
    place_initrd,
)
from virtiopy.cpu.x86 import Registers, protected_mode
from virtiopy.errors import ConfigError
from virtiopy.memory import PAGE_SIZE, GuestMemory

#: Where the boot parameters go, unless the image is there: below the first MiB.
START_INFO = 0x6000
MODULES = 0x6800
MEMORY_MAP = 0x7000
COMMAND_LINE = 0x8000
COMMAND_LINE_MAX = 0x8000

#: Bytes of all of them together, and the first address that no 32-bit pointer reaches.
PARAMETERS_SIZE = COMMAND_LINE + COMMAND_LINE_MAX - START_INFO
POINTERS_END = 1 << 32


def prepare(memory: GuestMemory, cpu: Cpu, image: GuestImage, parameters: BootParameters) -> None:
    """Load `image`, write its boot parameters, and set `cpu` to its entry point.

    Raises ConfigError for an image that has no PVH entry or does not fit.
    """
    if image.pvh_entry is None:
        raise ConfigError(
            f"The guest image {image.path} has no PVH note (XEN_ELFNOTE_PHYS32_ENTRY): "
            "link one in, of type 18 and name Xen, that holds the entry point's address in 4 bytes."
        )
    base = _place(memory, image, parameters)
    image.load(memory)
    _write_boot_parameters(memory, image, parameters, base - START_INFO)
    cpu.set_system_registers(protected_mode())
    cpu.set_registers(Registers(rip=image.pvh_entry, rbx=base))


def _place(memory: GuestMemory, image: GuestImage, parameters: BootParameters) -> int:
    """Return where the boot parameters go: in memory of the guest's, and beside the image.

    That is their usual place, or the first page from which on there is room. Raises ConfigError
    where there is none.
    """
    used = sorted((s.address, s.address + s.memory_size) for s in image.segments)
    if parameters.rsdp and any(a < BIOS_AREA_END and z > BIOS_AREA_START for a, z in used):
        raise ConfigError(
            f"The guest image {image.path} has a segment between {BIOS_AREA_START:#x} and 1 MiB, "
            "where the ACPI tables are: link it elsewhere."
        )
    ends = [-(-end // PAGE_SIZE) * PAGE_SIZE for _, end in used]
    for start in (START_INFO, PAGE_SIZE, *sorted([*ends, BIOS_AREA_END])):
        end = start + PARAMETERS_SIZE
        in_memory = any(
            first <= start and end <= min(first + size, POINTERS_END)
            for first, size in memory_map(memory)
        )
        if in_memory and all(end <= first or last <= start for first, last in used):
            return start
    raise ConfigError(
        f"The guest image {image.path} leaves no {PARAMETERS_SIZE >> 10} KiB of memory for its "
        "boot parameters: give it more with --memory."
    )


def _write_boot_parameters(
    memory: GuestMemory, image: GuestImage, parameters: BootParameters, moved: int
) -> None:
    """Write them, `moved` bytes from their usual place."""
    command_line, map_ = COMMAND_LINE + moved, MEMORY_MAP + moved
    memory.write(command_line, parameters.encoded(COMMAND_LINE_MAX))

    ranges = memory_map(memory)
    entries = ffi.new(
        "struct hvm_memmap_table_entry[]",
        [(address, size, lib.HVM_MEMMAP_TYPE_RAM, 0) for address, size in ranges],
    )
    memory.write(map_, bytes(ffi.buffer(entries)))

    start_info = ffi.new("struct hvm_start_info *")
    start_info.magic = lib.HVM_START_MAGIC_VALUE
    start_info.version = 1
    start_info.cmdline_paddr = command_line
    start_info.memmap_paddr = map_
    start_info.memmap_entries = len(ranges)
    start_info.rsdp_paddr = parameters.rsdp
    if parameters.initrd is not None:
        module = ffi.new("struct hvm_modlist_entry *")
        after = max(image.end, command_line + COMMAND_LINE_MAX)
        module.paddr = place_initrd(memory, parameters.initrd, after)
        module.size = len(parameters.initrd.content)
        modules = MODULES + moved
        memory.write(modules, bytes(ffi.buffer(module)))
        start_info.modlist_paddr, start_info.nr_modules = modules, 1
    memory.write(START_INFO + moved, bytes(ffi.buffer(start_info)))
