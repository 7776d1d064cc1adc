"""Names of addresses, from the symbols that an ELF file still has."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

_FUNCTION = 2  # STT_FUNC
_TYPE_MASK = 0xF

#: Bytes for which a function counts that has no size, as some in assembly.
_SIZELESS = 1 << 12

# An entry of a symbol table, ELF-64 and ELF-32: see _read. A kernel has 200,000 of them, and what
# reads each as an object takes seconds.
_ENTRY64 = struct.Struct("<IBBHQQ")
_ENTRY32 = struct.Struct("<IIIBBH")


@dataclass(slots=True, frozen=True)
class _Function:
    start: int
    size: int
    #: Where its name is in the table of names.
    name: int


def symbol_at(path: Path, address: int) -> str | None:
    """Return the function at an address, as name+offset; None where the file does not say.

    The address is one that the file is linked for; or, as a kernel runs before it has paging, the
    physical one that this is loaded at.
    """
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            return _name(elf, address) or next(
                filter(None, (_name(elf, linked) for linked in _linked(elf, address))), None
            )
    # pyelftools lets a damaged file surface as any of these.
    except (OSError, ELFError, ConstructError, ValueError, LookupError, TypeError, struct.error):
        return None


def _linked(elf: ELFFile, address: int) -> Iterator[int]:
    """Return what addresses the code at a physical address is linked for."""
    for segment in elf.iter_segments("PT_LOAD"):
        offset = address - segment["p_paddr"]
        if 0 <= offset < segment["p_memsz"] and segment["p_vaddr"] != segment["p_paddr"]:
            yield segment["p_vaddr"] + offset


def _name(elf: ELFFile, address: int) -> str | None:
    for table in elf.iter_sections():
        if not isinstance(table, SymbolTableSection):
            continue
        found = max(
            (one for one in _functions(table, wide=elf.elfclass == 64) if one.start <= address),
            key=lambda one: one.start,
            default=None,
        )
        # Far from any function is what the file does not have: a module's code, or rubbish.
        if found is not None and address - found.start < (found.size or _SIZELESS):
            name: str = table.stringtable.get_string(found.name)
            return f"{name}+{address - found.start:#x}"
    return None


def _functions(table: SymbolTableSection, *, wide: bool) -> Iterator[_Function]:
    layout = _ENTRY64 if wide else _ENTRY32
    data = table.data()
    for entry in layout.iter_unpack(data[: len(data) // layout.size * layout.size]):
        if wide:
            name, info, _, _, start, size = entry
        else:
            name, start, size, info, _, _ = entry
        if info & _TYPE_MASK == _FUNCTION:
            yield _Function(start, size, name)
