"""Names of addresses, from the symbols that an ELF file still has."""

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
    except (OSError, ELFError, ConstructError, ValueError, LookupError, TypeError):
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
    """Read a table as words: a kernel's has 200,000 entries, and an object for each takes seconds.

    An entry has three words of 8 bytes, or four of 4: its name, kind and section are one.
    """
    data = memoryview(table.data())
    if wide:
        words = data[: len(data) // 24 * 24].cast("Q")
        for told, start, size in zip(words[0::3], words[1::3], words[2::3], strict=True):
            if told >> 32 & _TYPE_MASK == _FUNCTION:
                yield _Function(start, size, told & 0xFFFF_FFFF)
    else:
        words = data[: len(data) // 16 * 16].cast("I")
        parts = (words[0::4], words[1::4], words[2::4], words[3::4])
        for name, start, size, told in zip(*parts, strict=True):
            if told & _TYPE_MASK == _FUNCTION:
                yield _Function(start, size, name)
