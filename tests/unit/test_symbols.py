"""Functions by their addresses, as an ELF file's symbol table has them."""

import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.test_elf import build
from virtiopy.boot.symbols import symbol_at

LINKED, LOADED = 0xFFFF_FFFF_8100_0000, 0x100_0000
SHT_SYMTAB, SHT_STRTAB = 2, 3
STT_OBJECT, STT_FUNC = 1, 2

#: Address, size, and type of each symbol.
Symbols = Mapping[str, tuple[int, int, int]]
KERNEL: Symbols = {
    "startup": (LINKED, 0, STT_FUNC),
    "a_table": (LINKED + 0x20, 0x1000, STT_OBJECT),
    "start_kernel": (LINKED + 0x40, 0x100, STT_FUNC),
    "idle": (LINKED + 0x200, 0x10, STT_FUNC),
}


def add_symbols(elf: bytes, symbols: Symbols) -> bytes:
    """Give an ELF-64 file without sections a symbol table."""
    names, table = b"\0", bytes(24)
    for symbol, (start, size, kind) in symbols.items():
        table += struct.pack("<IBBHQQ", len(names), 1 << 4 | kind, 0, 1, start, size)
        names += symbol.encode() + b"\0"
    section_names = b"\0.symtab\0.strtab\0"
    content, headers = elf, bytes(64)
    for name, kind, data, link, entry in (
        (1, SHT_SYMTAB, table, 2, 24),
        (9, SHT_STRTAB, names, 0, 0),
        (9, SHT_STRTAB, section_names, 0, 0),
    ):
        places = (0, 0, len(content), len(data), link, 0, 1, entry)
        headers += struct.pack("<IIQQQQIIQQ", name, kind, *places)
        content += data
    changed = bytearray(content + headers)
    struct.pack_into("<Q", changed, 0x28, len(content))  # e_shoff
    struct.pack_into("<HHH", changed, 0x3A, 64, 4, 3)  # e_shentsize, e_shnum, e_shstrndx
    return bytes(changed)


def kernel(path: Path) -> Path:
    """A kernel of one segment, linked high and loaded low, with symbols and no code."""
    elf = bytearray(build((LOADED, b"", 0x1000), notes=()))
    struct.pack_into("<Q", elf, 64 + 16, LINKED)  # p_vaddr
    path.write_bytes(add_symbols(bytes(elf), KERNEL))
    return path


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (LINKED, "startup+0x0"),
        # Assembly without a size, and data is no function.
        (LINKED + 0x30, "startup+0x30"),
        (LINKED + 0x40, "start_kernel+0x0"),
        (LINKED + 0x13F, "start_kernel+0xff"),
        (LINKED + 0x20F, "idle+0xf"),
        # Before it has paging, a kernel runs where it is loaded.
        (LOADED + 0x44, "start_kernel+0x4"),
        # Beyond all functions, and between two.
        (LINKED + 0x210, None),
        (LINKED + 0x180, None),
        (LINKED - 1, None),
        (LOADED + 0x1000, None),
        (0, None),
    ],
)
def test_an_address_is_named_by_the_function_that_it_is_in(
    tmp_path: Path, address: int, name: str | None
) -> None:
    assert symbol_at(kernel(tmp_path / "vmlinux"), address) == name


@pytest.mark.parametrize("size", range(0, 720, 60))
def test_a_damaged_file_names_nothing_or_the_right_thing(tmp_path: Path, size: int) -> None:
    path = kernel(tmp_path / "vmlinux")
    path.write_bytes(path.read_bytes()[:size])
    assert symbol_at(path, LINKED + 0x44) in (None, "start_kernel+0x4")


def test_no_file_names_nothing(tmp_path: Path) -> None:
    assert symbol_at(tmp_path / "none", LINKED) is None


def test_a_file_of_32_bits_has_its_symbols_named(tmp_path: Path) -> None:
    source, path = tmp_path / "kernel.s", tmp_path / "kernel.elf"
    source.write_text(
        ".globl _start\n.type _start, @function\n_start: nop\n.size _start, 1\n"
        ".type wait, @function\nwait: jmp wait\n.size wait, 2\n"
    )
    subprocess.run(
        ["gcc", "-m32", "-nostdlib", "-static", "-Wl,-Ttext=0x100000", "-o", path, source],
        check=True,
    )
    assert symbol_at(path, 0x10_0000) == "_start+0x0"
    assert symbol_at(path, 0x10_0002) == "wait+0x1"
