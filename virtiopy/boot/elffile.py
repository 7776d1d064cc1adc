"""ELF files, as pyelftools reads them."""

import os
from typing import IO

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from virtiopy._native import lib
from virtiopy.boot.layout import Layout
from virtiopy.errors import ConfigError


def read_layout(path: str | os.PathLike[str], stream: IO[bytes], size: int) -> Layout:
    """Read the layout of an image of `size` bytes, the content of `path`.

    Raises ConfigError for what is no image.
    """
    try:
        return _read(path, ELFFile(stream), size)
    # pyelftools lets a damaged file surface as any of these.
    except (
        ELFError,
        ConstructError,
        ValueError,
        OverflowError,
        LookupError,
        AttributeError,
        TypeError,
        AssertionError,
    ) as error:
        raise ConfigError(
            f"The guest image {path} is no ELF file that can be understood ({error}): "
            "name an x86 ELF executable."
        ) from error


def _read(path: str | os.PathLike[str], elf: ELFFile, size: int) -> Layout:
    machine = elf["e_machine"]
    if machine not in ("EM_X86_64", "EM_386"):
        raise ConfigError(
            f"The guest image {path} is for {machine}, not for x86: build it for x86-64."
        )
    pieces, pvh_entry, identical = [], None, True
    for segment in elf.iter_segments():
        if segment["p_type"] == "PT_LOAD" and segment["p_memsz"]:
            offset, count = segment["p_offset"], segment["p_filesz"]
            if offset + count > size or count > segment["p_memsz"]:
                raise ConfigError(f"The guest image {path} is cut short: build or copy it again.")
            identical = identical and segment["p_paddr"] == segment["p_vaddr"]
            pieces.append((segment["p_paddr"], offset, count, segment["p_memsz"]))
        elif isinstance(segment, NoteSegment):
            for note in segment.iter_notes():
                kind: object = note["n_type"]
                if note["n_name"] == "Xen" and kind == lib.XEN_ELFNOTE_PHYS32_ENTRY:
                    pvh_entry = _pvh_entry(path, note["n_descdata"])
    if not pieces:
        raise ConfigError(f"The guest image {path} has nothing to load: link it as an executable.")
    return Layout(elf["e_entry"], pvh_entry, elf.elfclass == 64, identical, tuple(pieces))


def _pvh_entry(path: str | os.PathLike[str], description: bytes) -> int:
    entry = int.from_bytes(description, "little")
    if len(description) not in (4, 8) or entry >> 32:
        raise ConfigError(
            f"The guest image {path} has a PVH note without a 32-bit address in it: "
            "link one in, of type 18 and name Xen, that holds the entry point's address in 4 bytes."
        )
    return entry
