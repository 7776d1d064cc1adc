"""Linear to physical addresses, as the CPU translates them (SDM volume 3, chapter 4).

For who reads and writes guest memory in the CPU's place: it knows which pages are present and
writable, and leaves accessed and dirty bits as they are.
"""

from virtiopy.cpu.x86 import (
    CR0_PG,
    CR4_PAE,
    CR4_PSE,
    EFER_LMA,
    PAGE_PRESENT,
    PAGE_SIZE_FLAG,
    PAGE_WRITABLE,
)
from virtiopy.memory import AddressError, GuestMemory

CR0_WP = 1 << 16
_PAGE = 0x1000
_ADDRESS = 0x000F_FFFF_FFFF_F000
_POINTERS = 0x20  # PAE: four entries, aligned to their size


class PageFault(Exception):  # noqa: N818 - the manual's name
    """A linear address that is not mapped, or not for writing."""

    def __init__(self, address: int, *, present: bool, is_write: bool) -> None:
        super().__init__(f"page fault at {address:#x}")
        self.address = address
        self.error_code = present | is_write << 1


class LinearMemory:
    """Guest memory by linear address, for a supervisor's accesses with these control registers."""

    def __init__(self, memory: GuestMemory, cr0: int, cr3: int, cr4: int, efer: int) -> None:
        self._memory = memory
        self._paging = bool(cr0 & CR0_PG)
        self._write_protect = bool(cr0 & CR0_WP)
        self._root = cr3
        self._large_pages = bool(cr4 & CR4_PSE)
        self._levels: tuple[int, ...]
        # Bits of a linear address that index a table, from the root on, and the size of an entry.
        if efer & EFER_LMA:
            self._levels, self._width, self._entry_size = (39, 30, 21, 12), 48, 8
        elif cr4 & CR4_PAE:
            self._levels, self._width, self._entry_size = (30, 21, 12), 32, 8
        else:
            self._levels, self._width, self._entry_size = (22, 12), 32, 4

    def translate(self, address: int, *, is_write: bool = False) -> int:
        """Return the physical address; raises PageFault."""
        if not self._paging:
            return address & 0xFFFF_FFFF
        pae_root = self._levels[0] == 30
        table = self._root & ~((_POINTERS if pae_root else _PAGE) - 1)
        writable = True
        above = self._width
        for level in self._levels:
            index = address >> level & (1 << above - level) - 1
            try:
                data = self._memory.read(table + index * self._entry_size, self._entry_size)
            except AddressError:
                data = b""
            entry = int.from_bytes(data, "little")
            if not entry & PAGE_PRESENT:
                raise PageFault(address, present=False, is_write=is_write)
            if not (pae_root and level == 30):
                writable = writable and bool(entry & PAGE_WRITABLE)
            if level == 12 or self._is_large(entry, level, pae_root=pae_root):
                break
            table, above = entry & _ADDRESS, level
        if is_write and self._write_protect and not writable:
            raise PageFault(address, present=True, is_write=True)
        offset = (1 << level) - 1
        return (entry & _ADDRESS & ~offset) | (address & offset)

    def _is_large(self, entry: int, level: int, *, pae_root: bool) -> bool:
        if not entry & PAGE_SIZE_FLAG or level > 30 or (pae_root and level == 30):
            return False
        return self._large_pages or self._entry_size == 8

    def _pieces(self, address: int, length: int, *, is_write: bool) -> list[tuple[int, int]]:
        pieces = []
        while length:
            count = min(length, _PAGE - address % _PAGE)
            pieces.append((self.translate(address, is_write=is_write), count))
            address, length = address + count, length - count
        return pieces

    def read(self, address: int, length: int) -> bytes:
        """Copy bytes out; raises PageFault, and AddressError where there is no memory."""
        pieces = self._pieces(address, length, is_write=False)
        return b"".join(self._memory.read(physical, count) for physical, count in pieces)

    def write(self, address: int, data: bytes) -> None:
        """Copy `data` in, or nothing; raises PageFault, and AddressError where is no memory."""
        pieces = self._pieces(address, len(data), is_write=True)
        for physical, count in pieces:
            self._memory.views(physical, count)
        for physical, count in pieces:
            self._memory.write(physical, data[:count])
            data = data[count:]
