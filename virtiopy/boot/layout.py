"""Which parts of an ELF file go where in memory, and the layouts of files that were read before.

The library that reads ELF files takes longer to import than a small guest takes to run, so what it
found is kept: a file of numbers beside the others in the cache, for each image.
"""

import contextlib
import os
import time
from typing import NamedTuple, Self

from virtiopy.cache import cache_path

#: Of what a kept layout says: a file of another version is read anew.
_VERSION = 1
#: How many numbers there are for the file, and for the image as a whole; each piece has four.
_OF_FILE, _OF_IMAGE = 6, 4
_NO_ENTRY = -1

#: The most layouts that are kept.
_PLACES = 256

#: How long a file has been as it is before its layout is kept, in nanoseconds.
_SETTLED = 2_000_000_000


class Layout(NamedTuple):
    """An ELF file's parts, and where it starts: see `GuestImage`.

    Each of `pieces` has an address, an offset in the file, how many bytes are there, and how many
    it takes in memory.
    """

    entry: int
    pvh_entry: int | None
    is_64_bit: bool
    is_identical: bool
    pieces: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def of_numbers(cls, numbers: list[int]) -> Self:
        """Return the layout that `numbers` were made of."""
        entry, pvh_entry, is_64_bit, is_identical = numbers[:_OF_IMAGE]
        rest = iter(numbers[_OF_IMAGE:])
        return cls(
            entry,
            None if pvh_entry == _NO_ENTRY else pvh_entry,
            bool(is_64_bit),
            bool(is_identical),
            tuple(zip(rest, rest, rest, rest, strict=True)),
        )

    def numbers(self) -> list[int]:
        """Return all of it as numbers."""
        pvh_entry = _NO_ENTRY if self.pvh_entry is None else self.pvh_entry
        image = [self.entry, pvh_entry, int(self.is_64_bit), int(self.is_identical)]
        return [*image, *(number for piece in self.pieces for number in piece)]


def _identity(stat: os.stat_result) -> list[int]:
    """Return what is another for another file or content: no program sets a ctime."""
    return [_VERSION, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _place(stat: os.stat_result) -> str:
    return os.path.join(cache_path(), "images", f"{stat.st_ino % _PLACES:02x}")


def kept_layout(stat: os.stat_result) -> Layout | None:
    """Return the layout of a file that was read before; None for one that was not."""
    # Whatever is wrong with what was kept, the file can be read anew.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        with open(_place(stat), encoding="ascii") as file:
            numbers = [int(word) for word in file.read().split()]
        if numbers[:_OF_FILE] == _identity(stat):
            return Layout.of_numbers(numbers[_OF_FILE:])
    return None


def keep_layout(stat: os.stat_result, layout: Layout) -> None:
    """Keep the layout of a file, where there is a cache to keep it in.

    One that has just been written may be written again without another time of change.
    """
    if time.time_ns() - stat.st_ctime_ns < _SETTLED:
        return
    with contextlib.suppress(OSError, RuntimeError):
        place = _place(stat)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        beside = f"{place}.{os.getpid()}"
        with open(beside, "w", encoding="ascii") as file:
            file.write(" ".join(map(str, [*_identity(stat), *layout.numbers()])))
        os.replace(beside, place)
