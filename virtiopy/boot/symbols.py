"""Names of addresses, from the symbols that an ELF file still has."""

from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection


def symbol_at(path: Path, address: int) -> str | None:
    """Return the function at an address, as name+offset; None where the file does not say."""
    try:
        with path.open("rb") as stream:
            tables = [
                section
                for section in ELFFile(stream).iter_sections()
                if isinstance(section, SymbolTableSection)
            ]
            best: tuple[int, str] | None = None
            for table in tables:
                for symbol in table.iter_symbols():
                    start = symbol["st_value"]
                    is_function = symbol["st_info"]["type"] == "STT_FUNC"
                    if is_function and start <= address and (best is None or start > best[0]):
                        best = (start, symbol.name)
    except (OSError, ELFError):
        return None
    return None if best is None else f"{best[1]}+{address - best[0]:#x}"
