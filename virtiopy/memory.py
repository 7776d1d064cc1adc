"""Guest memory: memfd-backed regions, and the one door through which it is reached.

Whatever reads or writes guest memory on the driver's word (an address in a descriptor, a ring's
location) asks `GuestMemory` for it, and gets host memory that lies inside the guest's, or an
`AddressError`.
"""

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import stat
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from virtiopy._native import ffi, lib
from virtiopy.closing import Closing
from virtiopy.errors import ConfigError, DriverError, HostError
from virtiopy.guard import Guard

if TYPE_CHECKING:
    from pathlib import Path

PAGE_SIZE = 4096
HUGE_PAGE_SIZE = 2 << 20

_PUNCH_HOLE = lib.FALLOC_FL_PUNCH_HOLE | lib.FALLOC_FL_KEEP_SIZE

#: Guest physical addresses [HOLE_START, HOLE_END) hold devices; memory continues above.
HOLE_START = 0xC000_0000
HOLE_END = 0x1_0000_0000


class AddressError(DriverError):
    """Guest physical addresses that are not memory."""

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"{length} bytes at guest physical address {address:#x} are not memory")
        self.address = address
        self.length = length


class Region(NamedTuple):
    """A contiguous piece of guest memory: `size` bytes at `guest_address`, at `offset` in `fd`."""

    guest_address: int
    size: int
    fd: int
    offset: int
    mapping: mmap.mmap
    #: All of the region.
    view: memoryview
    host_address: int

    @classmethod
    def map(cls, guest_address: int, size: int, fd: int, offset: int) -> Self:
        """Map a part of the file `fd`; raises OSError."""
        mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, offset=offset)
        host_address = int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", mapping)))
        return cls(guest_address, size, fd, offset, mapping, memoryview(mapping), host_address)

    @property
    def end(self) -> int:
        """The first guest physical address after the region."""
        return self.guest_address + self.size

    def close(self) -> None:
        """Unmap. Views that were handed out and are still alive keep the mapping until they go."""
        self.view.release()
        with contextlib.suppress(BufferError):
            self.mapping.close()


class GuestMemory(Closing):
    """The regions of a guest's memory, in ascending order, none overlapping another."""

    def __init__(self, regions: Iterable[Region], *, granule: int = PAGE_SIZE) -> None:
        #: The least that can be given back to the host, bytes: see `discard`.
        self.granule = granule
        self.regions: Sequence[Region] = ()
        #: An eventfd, written when memory is used that another process took away by making its
        #: file smaller; None where the memory is in no file.
        self.shrunk: int | None = None
        self._path: Path | None = None
        self._fds: list[int] = []
        self._guards: list[Guard] = []
        self.set_regions(regions)

    def set_regions(self, regions: Iterable[Region]) -> None:
        """Have these regions from now on; raises ValueError where they overlap.

        A holder of views or pointers from before has let go of them, or keeps the mapping.
        """
        ascending = sorted(regions, key=lambda region: region.guest_address)
        for below, above in itertools.pairwise(ascending):
            if below.end > above.guest_address:
                raise ValueError("memory regions overlap")
        self.regions = ascending
        self._starts = [region.guest_address for region in ascending]

    @classmethod
    def allocate(
        cls,
        size: int,
        *,
        path: "Path | None" = None,
        huge_pages: bool = False,
        reset: bool = False,
    ) -> "GuestMemory":
        """Make `size` bytes of zeroed memory at guest physical address 0, leaving out the hole.

        With `path` the memory is that file, laid out as the guest's addresses are but for the
        hole: others see it while the guest runs, and it stays afterwards. What they take away by
        making it smaller reads as zeroes: see `shrunk` and `check_file`. A file that holds
        anything is zeroed if an earlier guest's memory is in it, or with `reset`.

        Raises ConfigError for a size or file that cannot be used, HostError where the host has
        not the memory.
        """
        granule = HUGE_PAGE_SIZE if huge_pages else PAGE_SIZE
        if size <= 0 or size % granule:
            raise ConfigError(
                f"Guest memory of {size} bytes is no multiple of {granule} bytes: "
                "give a size such as 64M."
            )
        if path is not None and huge_pages:
            raise ConfigError(
                "Memory in a file is in huge pages when the file is on hugetlbfs: "
                "leave out the option for huge pages."
            )
        fd = _open_backing(path, huge_pages, reset=reset)
        try:
            _resize(fd, size)
            if path is None:
                seal_size(fd)
            below = min(size, HOLE_START)
            regions = [Region.map(0, below, fd, 0)]
            if size > below:
                regions.append(Region.map(HOLE_END, size - below, fd, below))
        except (OSError, OverflowError) as error:
            os.close(fd)
            reason = error.strerror if isinstance(error, OSError) else "no file is that large"
            what = f"of {size >> 20} MiB" + (" in huge pages" if huge_pages else "")
            remedy = (
                "reserve some by writing their number to /proc/sys/vm/nr_hugepages"
                if huge_pages
                else "give a smaller size"
            )
            raise HostError(
                f"The host has no memory {what} to give ({reason}): {remedy}."
            ) from error
        memory = cls(regions, granule=max(granule, _huge_block_size(fd)))
        memory._fds.append(fd)
        if path is not None:
            memory._guard(path)
        return memory

    def _guard(self, path: "Path") -> None:
        """Have a file that shrinks be no SIGBUS: see `check_file`."""
        self._path = path
        self.shrunk = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._fds.append(self.shrunk)
        for region in self.regions:
            page = max(PAGE_SIZE, _huge_block_size(region.fd))
            self._guards.append(Guard(region.host_address, region.size, page, self.shrunk))

    def check_file(self) -> None:
        """Raise HostError if another process has made the memory's file smaller."""
        if self._path is not None and os.fstat(self._fds[0]).st_size < self.size:
            raise HostError(
                f"The memory file {self._path} was made smaller while the guest ran: let no other "
                "program write to it."
            )

    def close(self) -> None:
        """Unmap the memory and close the files behind it."""
        for guard in self._guards:
            guard.close()
        self._guards.clear()
        for region in self.regions:
            region.close()
        if self._path is not None and self._fds:
            from virtiopy.files import finish  # noqa: PLC0415 - most guests' memory is in no file

            finish(self._fds[0])
        while self._fds:
            os.close(self._fds.pop())

    @property
    def size(self) -> int:
        """Bytes of memory in all regions."""
        return sum(region.size for region in self.regions)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The guest physical addresses that are memory: [start, end) of each region."""
        return [(region.guest_address, region.end) for region in self.regions]

    @property
    def allocated(self) -> int:
        """Bytes of the host's memory, or of its file system, that the guest's occupies."""
        return sum(os.fstat(fd).st_blocks for fd in {r.fd for r in self.regions}) * 512

    def _region(self, address: int) -> Region | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        region = self.regions[index]
        return region if address - region.guest_address < region.size else None

    def views(self, address: int, length: int) -> list[memoryview]:
        """Return the `length` bytes at guest physical `address` as views, one for each region.

        Raises AddressError when any of it is not memory. A length of 0 gives no view, at any
        address.
        """
        region = self._region(address)
        if region is not None and 0 < length <= region.size - (address - region.guest_address):
            # As most are.
            start = address - region.guest_address
            return [region.view[start : start + length]]
        views = []
        position, left = address, length
        while left > 0:
            region = self._region(position)
            if region is None:
                raise AddressError(address, length)
            start = position - region.guest_address
            count = min(left, region.size - start)
            views.append(region.view[start : start + count])
            position += count
            left -= count
        return views

    def pointer(self, address: int, length: int) -> int | None:
        """Return the host address of `length` contiguous bytes at guest physical `address`.

        None when they span regions, which are not neighbours in host memory; AddressError when
        any of it is not memory.
        """
        region = self._region(address)
        if region is not None and address + length <= region.end:
            return region.host_address + (address - region.guest_address)
        self.views(address, length)
        return None

    def read(self, address: int, length: int) -> bytes:
        """Copy `length` bytes out of guest memory; raises AddressError."""
        return b"".join(self.views(address, length))

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Copy `data` into guest memory; raises AddressError, and writes nothing then."""
        position = 0
        for view in self.views(address, len(data)):
            view[:] = data[position : position + len(view)]
            position += len(view)

    # Giving memory back to the host

    def discard(self, address: int, length: int) -> None:
        """Give memory back to the host: it reads as zeroes, and is new memory when next touched.

        Of a block of `granule` bytes that is covered in part the bytes are zeroed, and the block
        is kept. Raises AddressError, and discards nothing then; OSError where the file behind the
        memory can have no holes.
        """
        self.views(address, length)
        for region in self.regions:
            start = max(address, region.guest_address)
            end = min(address + length, region.end)
            if start >= end:
                continue
            offset = region.offset + start - region.guest_address
            result = lib.vp_fallocate(region.fd, _PUNCH_HOLE, offset, end - start)
            if result < 0:
                raise OSError(-result, os.strerror(-result))

    def address_of(self, view: memoryview) -> int:
        """Return the guest physical address of a view that `views` gave, of 1 byte or more."""
        host_address = int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", view)))
        for region in self.regions:
            if 0 <= host_address - region.host_address < region.size:
                return region.guest_address + host_address - region.host_address
        raise ValueError("the view is not of this memory")


def _resize(fd: int, size: int) -> None:
    os.ftruncate(fd, size)
    if os.fstat(fd).st_size < size:
        # Those of procfs are regular files, too.
        raise OSError(errno.EINVAL, "the file has no size of its own")


def seal_size(fd: int) -> None:
    """Have a memfd keep its size: a process that has it cannot take the memory away (SIGBUS)."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


def _huge_block_size(fd: int) -> int:
    """Return the size of the huge pages that a file on hugetlbfs is made of, 0 for other files."""
    size = os.fstatvfs(fd).f_bsize
    return size if size >= HUGE_PAGE_SIZE else 0


def _open_backing(path: "Path | None", huge_pages: bool, *, reset: bool) -> int:
    if path is None:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | (os.MFD_HUGETLB if huge_pages else 0)
        try:
            return os.memfd_create("virtiopy-guest-memory", flags)
        except OSError as error:
            raise HostError(
                f"The host gives no memfd ({error.strerror}): "
                "leave out the option for huge pages, or load hugetlbfs."
            ) from error
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"The memory file {path} cannot be written ({error.strerror}): "
            "name a file in a folder that you can write to."
        ) from error
    try:
        _claim(path, fd, reset=reset)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _claim(path: "Path", fd: int, *, reset: bool) -> None:
    """Empty the file, unless what it holds may be its user's; raises ConfigError then."""
    from virtiopy.files import is_marked, mark  # noqa: PLC0415 - most guests' memory is in no file

    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"The memory file {path} is no regular file: name one.")
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system may have no locks.
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            raise ConfigError(
                f"The memory file {path} is in use, by another guest or as an image: name another "
                "file, or stop what uses it."
            ) from error
    if status.st_size and not reset and not is_marked(path):
        raise ConfigError(
            f"The memory file {path} holds what no guest of virtiopy's left there: name another "
            "file, or say --memory-reset to lose what is in this one."
        )
    os.ftruncate(fd, 0)
    mark(fd)
