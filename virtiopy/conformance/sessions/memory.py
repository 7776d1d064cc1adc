"""The guest memory of a test: with a seam and a hole in it, as that of many machines has."""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence

from virtiopy.memory import GuestMemory, Region

MIB = 1 << 20
PAGE = 4096

_EMPTY = bytes(PAGE)

#: Guest physical addresses of the regions, [start, end). The driver's rings and buffers are in
#: the first. The second is its neighbour in the guest's addresses, though not in the host's, so a
#: buffer may lie on both sides of SEAM. From HOLE on there is no memory until the third.
REGIONS = ((0, 32 * MIB), (32 * MIB, 48 * MIB), (64 * MIB, 80 * MIB))
SEAM = REGIONS[0][1]
HOLE = REGIONS[1][1]
HOLE_SIZE = REGIONS[2][0] - HOLE
END = REGIONS[2][1]

#: The part that sessions hand out; page 0 stays unused, so that an address of 0 is a fault's.
DRIVERS_PART = (0x1000, REGIONS[0][1] - MIB)

#: Memory that no ring and no buffer of a session's is in: what a driver may put into a balloon.
SPARE = (36 * MIB, 44 * MIB)


class SessionMemory(GuestMemory):
    """The memory of one test, all of it zeroes."""

    def __init__(self) -> None:
        fd = os.memfd_create("virtiopy-conformance", os.MFD_CLOEXEC)
        os.ftruncate(fd, sum(end - start for start, end in REGIONS))
        regions = []
        offset = 0
        for start, end in REGIONS:
            regions.append(Region.map(start, end - start, fd, offset))
            offset += end - start
        super().__init__(regions)
        self._fds.append(fd)
        self._fd = fd

    def snapshot(self) -> dict[int, bytes]:
        """Return the pages that are not empty, by guest physical address."""
        pages = {}
        offset = 0
        for start, end in REGIONS:
            for at, length in self._extents(offset, offset + end - start):
                data = os.pread(self._fd, length, at)
                for page in range(0, length, PAGE):
                    pages[start + at - offset + page] = data[page : page + PAGE]
            offset += end - start
        return pages

    def _extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield where the file has data: offset and length of each piece, in whole pages."""
        while start < end:
            try:
                start = os.lseek(self._fd, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return
            if start >= end:
                return
            stop = min(end, os.lseek(self._fd, start, os.SEEK_HOLE))
            yield start, stop - start
            start = stop


def changed(
    before: Mapping[int, bytes], after: Mapping[int, bytes], allowed: Sequence[tuple[int, int]]
) -> int | None:
    """Return the first address at which two snapshots differ outside of ranges that may change.

    Ranges are [start, end), guest physical.
    """
    for page in sorted(before.keys() | after.keys()):
        old, new = before.get(page, _EMPTY), after.get(page, _EMPTY)
        if old == new:
            continue
        for at in range(PAGE):
            address = page + at
            if old[at] != new[at] and not any(start <= address < end for start, end in allowed):
                return address
    return None
