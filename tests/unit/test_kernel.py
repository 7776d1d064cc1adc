"""Kernels' files, told apart and prepared; no CPU runs them here."""

import bz2
import errno
import gzip
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import lz4.block
import pytest
import zstandard

from tests.unit.test_elf import EM_AARCH64, MIB, RecordingCpu, build
from virtiopy._native import ffi
from virtiopy.accel.base import Cpu
from virtiopy.boot.bzimage import BzImage
from virtiopy.boot.kernel import PlainKernel, PvhKernel, open_kernel
from virtiopy.boot.multiboot import MultibootKernel
from virtiopy.boot.parameters import BIOS_AREA_START, BootParameters, Initrd
from virtiopy.boot.pvh import START_INFO
from virtiopy.boot.unpack import packed_with
from virtiopy.errors import ConfigError
from virtiopy.linux.unpacked import unpacked
from virtiopy.memory import HOLE_END, HOLE_START, GuestMemory

VMLINUX = build((MIB, b"the kernel", 0x1000))
INITRD = Initrd(Path("initrd.img"), b"an initrd" * 1000)


def pack_lz4(data: bytes) -> bytes:
    """What `lz4 -l` makes, blocks of 8 MiB, and the kernel's build after it: the unpacked size."""
    packed = bytes.fromhex("02214c18")
    for start in range(0, len(data), 8 << 20):
        block: bytes = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        packed += len(block).to_bytes(4, "little") + block
    return packed + len(data).to_bytes(4, "little")


def with_size(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Append the unpacked size, as the kernel's build does."""
    return lambda data: pack(data) + len(data).to_bytes(4, "little")


PACKERS = {
    "gzip": gzip.compress,
    "xz": with_size(lzma.compress),
    "lzma": with_size(lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    "bzip2": with_size(bz2.compress),
    "zstd": with_size(zstandard.ZstdCompressor().compress),
    "lz4": pack_lz4,
}


def bzimage(payload: bytes, *, xloadflags: int = 1, version: int = 0x20F) -> bytes:
    """A bzImage whose code does nothing; its payload is 1 KiB into it."""
    header = ffi.new("struct setup_header *")
    header.setup_sects, header.boot_flag, header.version = 1, 0xAA55, version
    header.xloadflags, header.cmdline_size = xloadflags, 2047
    header.pref_address, header.init_size = MIB, 0x10000
    header.payload_offset, header.payload_length = 0x400, len(payload)
    header.kernel_version = 0x100
    code = b"\xf4" * 0x400 + payload
    code += bytes(-len(code) % 16)
    header.syssize = len(code) // 16
    sectors = bytearray(1024)
    raw = bytes(ffi.buffer(header))
    sectors[0x1F1 : 0x1F1 + len(raw)] = raw
    sectors[0x202:0x206] = b"HdrS"
    sectors[0x300:0x320] = b"6.1.0-test (nobody@here)\0".ljust(32, b"\0")
    return bytes(sectors) + code


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(4 * MIB) as memory:
        yield memory


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "kernel"
        path.write_bytes(content)
        return path

    return write


File = Callable[[bytes], Path]


@pytest.mark.parametrize("name", PACKERS)
def test_the_kernel_in_a_bzimage_is_unpacked_and_boots_by_its_note(name: str, file: File) -> None:
    payload = PACKERS[name](VMLINUX)
    assert packed_with(payload) == name
    kernel = open_kernel(file(bzimage(payload)))

    assert isinstance(kernel, PvhKernel)
    assert kernel.image.segments[0].data == b"the kernel"


@pytest.mark.parametrize("name", PACKERS)
def test_a_payload_that_is_cut_short_is_refused(name: str, file: File) -> None:
    # The kernel's own code would stand still, and tell no serial port why.
    payload = PACKERS[name](VMLINUX * 10)
    with pytest.raises(ConfigError, match=r"and damaged|is cut short|no ELF file"):
        open_kernel(file(bzimage(payload[: len(payload) // 2])))


@pytest.mark.parametrize("name", PACKERS)
def test_a_vmlinux_may_be_packed_as_a_whole(name: str, file: File) -> None:
    kernel = open_kernel(file(PACKERS[name](VMLINUX)))
    assert isinstance(kernel, PvhKernel)


def test_a_payload_that_cannot_be_unpacked_here_unpacks_itself_there(
    file: File, memory: GuestMemory
) -> None:
    kernel = open_kernel(file(bzimage(b"\x89LZO" + bytes(100))))
    assert isinstance(kernel, BzImage)
    cpu = RecordingCpu()
    kernel.prepare(memory, cast("Cpu", cpu), BootParameters("root=/dev/vda", INITRD, 0xE0000))

    assert cpu.registers.rip == MIB + 0x200
    params = cpu.registers.rsi
    assert memory.read(MIB, 4) == b"\xf4" * 4
    found = ffi.new("struct boot_params *")
    ffi.memmove(found, memory.read(params, ffi.sizeof(found[0])), ffi.sizeof(found[0]))
    assert memory.read(found.hdr.cmd_line_ptr, 14) == b"root=/dev/vda\0"
    assert found.hdr.type_of_loader == 0xFF
    assert found.acpi_rsdp_addr == 0xE0000
    content = memory.read(found.hdr.ramdisk_image, found.hdr.ramdisk_size)
    assert content == INITRD.content
    ranges = [(e.addr, e.size, e.type) for e in found.e820_table[0 : found.e820_entries]]
    assert ranges == [(0, BIOS_AREA_START, 1), (MIB, 3 * MIB, 1)]
    state = cpu.system_registers
    assert (state.cs.selector, state.cs.l, state.ds.selector) == (0x10, 1, 0x18)
    assert memory.read(state.gdt.base + 0x10, 8).hex() == "ffff0000009baf00"


def test_linux_is_given_no_command_line_that_it_would_cut(file: File, memory: GuestMemory) -> None:
    linux = build((MIB, b"Linux version 6.1.0-test", 0x1000))
    cpu = cast("Cpu", RecordingCpu())
    for content in (linux, bzimage(PACKERS["gzip"](linux))):
        kernel = open_kernel(file(content))
        kernel.prepare(memory, cpu, BootParameters("x" * 2047))
        with pytest.raises(ConfigError, match=r"has 2048 bytes, and Linux takes 2047: .* --append"):
            kernel.prepare(memory, cpu, BootParameters("x" * 2048))
    # Another may take more.
    open_kernel(file(VMLINUX)).prepare(memory, cpu, BootParameters("x" * 2048))


def test_a_kernel_for_32_bits_is_refused_where_it_has_no_note(file: File) -> None:
    with pytest.raises(ConfigError, match="is for 32 bits, and has no PVH note"):
        open_kernel(file(bzimage(b"who knows", xloadflags=0)))
    with pytest.raises(ConfigError, match="packed with lzo, which virtiopy cannot unpack"):
        open_kernel(file(bzimage(b"\x89LZO", xloadflags=0)))


def test_a_bzimage_tells_its_version(file: File) -> None:
    path = file(bzimage(b""))
    image = BzImage.parse(path, path.read_bytes())
    assert image is not None
    assert image.version == "6.1.0-test"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "is no kernel that can be booted", id="empty"),
        pytest.param(b"#!/bin/sh\n", "is no kernel that can be booted", id="script"),
        pytest.param(bytes(1 << 16), "is no kernel that can be booted", id="zeroes"),
        pytest.param(
            bytes(56) + b"ARM\x64" + bytes(8), "arm64 Image, and this machine", id="arm64"
        ),
        pytest.param(bytes(56) + b"RSC\x05" + bytes(8), "RISC-V Image, and this", id="riscv"),
        pytest.param(build((MIB, b"x", 1), machine=EM_AARCH64), "not for x86", id="arm64-elf"),
        pytest.param(bzimage(bytes(4096))[:4000], "is cut short: copy it again", id="cut"),
        pytest.param(gzip.compress(VMLINUX)[:-20], "and damaged (its end is", id="cut-gzip"),
        pytest.param(b"\x89LZO" + bytes(9), "packed with lzo, which virtiopy cannot", id="lzo"),
        pytest.param(b"\x7fELF" + bytes(100), "no ELF file that can be understood", id="no-elf"),
    ],
)
def test_what_cannot_be_booted_is_named_with_the_remedy(
    content: bytes, words: str, file: File
) -> None:
    with pytest.raises(ConfigError) as caught:
        open_kernel(file(content))
    assert words in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        open_kernel(tmp_path / "none")


def test_a_device_is_no_kernel_and_no_ramdisk() -> None:
    # Which would be read until all memory is used.
    with pytest.raises(ConfigError, match="it is a device"):
        open_kernel(Path("/dev/zero"))
    with pytest.raises(ConfigError, match="it is a device"):
        Initrd.read(Path("/dev/zero"))


def test_a_file_that_no_guest_could_hold_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="more than 4G"):
        open_kernel(path)


def test_an_elf_without_a_protocol_is_told_the_lines_that_would_mend_it(file: File) -> None:
    # Linked to run where it is not loaded: 64 is the offset of the segment's virtual address.
    content = bytearray(build((MIB, b"x", 1), notes=()))
    content[64 + 16 : 64 + 24] = (0xFFFF_FFFF_8000_0000).to_bytes(8, "little")
    with pytest.raises(ConfigError, match=r"five lines of assembly: \.section \.note\.Xen"):
        open_kernel(file(bytes(content)))


def test_a_plain_elf_is_entered_with_the_first_gib_mapped(file: File, memory: GuestMemory) -> None:
    kernel = open_kernel(file(build((MIB, b"x", 1), notes=(), entry=MIB + 4)))
    assert isinstance(kernel, PlainKernel)
    cpu = RecordingCpu()
    kernel.prepare(memory, cast("Cpu", cpu), BootParameters())
    assert cpu.registers.rip == MIB + 4
    assert cpu.system_registers.cs.l == 1

    with pytest.raises(ConfigError, match="no boot protocol that could tell it of an initrd"):
        kernel.prepare(memory, cast("Cpu", cpu), BootParameters("", INITRD))


def multiboot(flags: int, *words: int) -> bytes:
    magic = 0x1BADB002
    header = (magic, flags, -(magic + flags) & 0xFFFF_FFFF, *words)
    return b"".join(word.to_bytes(4, "little") for word in header)


def test_a_multiboot_kernel_is_told_of_its_memory_and_its_module(
    file: File, memory: GuestMemory
) -> None:
    content = b"\x90" * 16 + multiboot(1 << 16, MIB + 16, MIB, 0, MIB + 0x2000, MIB + 8) + b"end!"
    kernel = open_kernel(file(content))
    assert isinstance(kernel, MultibootKernel)
    cpu = RecordingCpu()
    kernel.prepare(memory, cast("Cpu", cpu), BootParameters("words", INITRD))

    assert memory.read(MIB, len(content)) == content
    assert (cpu.registers.rip, cpu.registers.rax) == (MIB + 8, 0x2BADB002)
    assert cpu.system_registers.cr0 & 1
    found = ffi.new("struct multiboot_info *")
    size = ffi.sizeof("struct multiboot_info")
    ffi.memmove(found, memory.read(cpu.registers.rbx, size), size)
    assert found.flags == 0x4D
    assert found.mem_upper == 3 * 1024
    assert memory.read(found.cmdline, 6) == b"words\0"
    module = ffi.new("struct multiboot_module *")
    ffi.memmove(module, memory.read(found.mods_addr, 16), 16)
    assert memory.read(module.mod_start, module.mod_end - module.mod_start) == INITRD.content
    assert found.mmap_length == 2 * 24
    assert int.from_bytes(memory.read(found.mmap_addr + 24 + 4, 8), "little") == MIB


def test_a_multiboot_header_in_an_elf_has_its_segments_loaded(file: File) -> None:
    content = build((MIB, multiboot(0) + b"code", 64), notes=())
    assert isinstance(open_kernel(file(content)), MultibootKernel)


def test_a_multiboot_kernel_that_wants_a_video_mode_is_refused(file: File) -> None:
    with pytest.raises(ConfigError, match="asks its loader for a video mode"):
        open_kernel(file(multiboot(1 << 2) + bytes(64)))


# What all of them are told


def test_memory_on_both_sides_of_the_hole_is_told(file: File) -> None:
    with GuestMemory.allocate(HOLE_START + 16 * MIB) as memory:
        kernel = open_kernel(file(VMLINUX))
        kernel.prepare(memory, cast("Cpu", RecordingCpu()), BootParameters("", INITRD, 0xE0000))
        info = ffi.new("struct hvm_start_info *")
        size = ffi.sizeof("struct hvm_start_info")
        ffi.memmove(info, memory.read(START_INFO, size), size)
        assert (info.rsdp_paddr, info.nr_modules, info.memmap_entries) == (0xE0000, 1, 3)
        last = memory.read(info.memmap_paddr + 2 * 24, 16)
        assert int.from_bytes(last[:8], "little") == HOLE_END
        assert int.from_bytes(last[8:], "little") == 16 * MIB
        module = ffi.new("struct hvm_modlist_entry *")
        ffi.memmove(module, memory.read(info.modlist_paddr, 32), 32)
        assert memory.read(module.paddr, module.size) == INITRD.content
        # Below 2 GiB, where kernels take it from.
        assert module.paddr + module.size <= 2 << 30


def test_an_initrd_larger_than_memory_is_told_with_what_is_needed(
    file: File, memory: GuestMemory
) -> None:
    kernel = open_kernel(file(VMLINUX))
    large = Initrd(Path("large.img"), bytes(4 * MIB))
    with pytest.raises(ConfigError, match=r"large.img of 4.0 MiB does not fit .* more than 5 MiB"):
        kernel.prepare(memory, cast("Cpu", RecordingCpu()), BootParameters("", large))


@pytest.mark.parametrize(
    "content", [VMLINUX, bzimage(b"\x89LZO"), multiboot(1 << 16, MIB, MIB, 0, 0, MIB)]
)
def test_a_command_line_that_is_too_long_is_told(
    content: bytes, file: File, memory: GuestMemory
) -> None:
    kernel = open_kernel(file(content))
    with pytest.raises(ConfigError, match=r"command line has more than [0-9]+ bytes: give it less"):
        kernel.prepare(memory, cast("Cpu", RecordingCpu()), BootParameters("x" * 0x8000))


def test_an_initrd_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The initrd .*none cannot be read"):
        Initrd.read(tmp_path / "none")


def test_a_kernel_unpacked_before_is_had_from_a_cache_that_cannot_be_written(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, cache = file(bzimage(gzip.compress(VMLINUX))), tmp_path / "cache"
    kept = unpacked(image, cache)
    assert kept.read_bytes() == VMLINUX

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    assert unpacked(image, cache) == kept
