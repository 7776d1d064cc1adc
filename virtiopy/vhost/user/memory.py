"""The frontend's memory as a backend sees it: files that were sent, mapped, and kept watch over."""

import contextlib
import dataclasses
import itertools
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from virtiopy._native import CData, ffi, lib
from virtiopy.closing import Closing
from virtiopy.errors import HostError, PeerError
from virtiopy.guard import Guard
from virtiopy.memory import PAGE_SIZE, GuestMemory, Region
from virtiopy.vhost.user.messages import VHOST_LOG_PAGE, LogArea, MemoryRegion
from virtiopy.virtqueue.queue import Completion, QueueObserver, Virtqueue

#: Regions in all, however they come: what GET_MAX_MEM_SLOTS answers.
SLOTS_MAX = 64

_ADDRESSES = 1 << 64


class SharedFile(Closing):
    """A part of a peer's file, mapped and guarded: `size` bytes from `offset` on.

    `fd` is from here on this object's to close. Raises PeerError for a file that has not so many
    bytes, or cannot be mapped.
    """

    def __init__(self, fd: int, size: int, offset: int, eventfd: int) -> None:
        self.fd = fd
        try:
            _check_size(fd, offset, size)
            # Bytes of the pages behind it: huge ones where the file is on hugetlbfs. A mapping of
            # those has to be whole pages.
            page = max(PAGE_SIZE, os.fstatvfs(fd).f_bsize)
            start = offset - offset % page
            length = offset - start + size
            if page > PAGE_SIZE:
                length = -(-length // page) * page
            self._mapping = mmap.mmap(fd, length, mmap.MAP_SHARED, offset=start)
        except (OSError, OverflowError, ValueError) as error:
            os.close(fd)
            raise PeerError(f"memory that cannot be mapped: {error}") from error
        except PeerError:
            os.close(fd)
            raise
        mapped = memoryview(self._mapping)
        self.view = mapped[offset - start : offset - start + size]
        mapped.release()
        base = int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", self._mapping)))
        self.address = base + offset - start
        try:
            self._guard = Guard(base, -(-length // page) * page, page, eventfd)
        except HostError as error:
            self._unmap()
            raise PeerError(
                "there are too many memory regions of frontends in this process"
            ) from error

    @property
    def lost(self) -> bool:
        """Whether the peer took any of it away while it was used."""
        return self._guard.hit

    @property
    def mapping(self) -> mmap.mmap:
        """The mapping, from the page on that the part begins in."""
        return self._mapping

    def close(self) -> None:
        """Unmap, and close the file."""
        self._unmap()
        self._guard.close()

    def _unmap(self) -> None:
        self.view.release()
        # Views that were handed out and are still alive keep the mapping until they go.
        with contextlib.suppress(BufferError):
            self._mapping.close()
        os.close(self.fd)


def _check_size(fd: int, offset: int, size: int) -> None:
    there = os.fstat(fd).st_size
    if offset + size > there:
        raise PeerError(f"{size} bytes of memory at offset {offset} of a file of {there} bytes")


@dataclass(slots=True, frozen=True)
class _Mapped:
    """A region, as the frontend described it and as it is here."""

    described: MemoryRegion
    identity: tuple[int, int]
    file: SharedFile
    region: Region
    #: How often it was given, beyond the first time.
    again: int = 0


class FrontendMemory(GuestMemory):
    """Guest memory that comes from a frontend, and changes while virtqueues are worked.

    `lost` is an eventfd, written when the frontend has taken a piece away that it gave.
    """

    def __init__(self) -> None:
        super().__init__([])
        self.lost = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._mapped: list[_Mapped] = []

    def close(self) -> None:
        """Unmap everything."""
        self.clear()
        os.close(self.lost)

    def clear(self) -> None:
        """Forget every region, and that any of it was lost."""
        self._set([])
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.lost)

    def replace(self, regions: Iterable[tuple[MemoryRegion, int]]) -> None:
        """Take a whole table, each region with its file, which is closed: SET_MEM_TABLE.

        What was mapped before and is described again stays where it is. Raises PeerError for
        regions that overlap or lie, and then there is no memory.
        """
        before = {(mapped.described, mapped.identity): mapped for mapped in self._mapped}
        mapped: list[_Mapped] = []
        pending = list(regions)
        try:
            while pending:
                described, fd = pending.pop(0)
                kept = before.pop((described, _identity(fd)), None)
                if kept is not None:
                    os.close(fd)
                    mapped.append(dataclasses.replace(kept, again=0))
                else:
                    mapped.append(self._map(described, fd))
                self._check(mapped)
        except PeerError:
            for _, fd in pending:
                os.close(fd)
            self._set([], others=mapped)
            raise
        self._set(mapped)

    def add(self, described: MemoryRegion, fd: int) -> None:
        """Take one more region: ADD_MEM_REG. Raises PeerError, and is as before then.

        QEMU before 8.0 adds each once for every pair of virtqueues, and removes it as often.
        """
        identity = _identity(fd)
        for index, it in enumerate(self._mapped):
            if (it.described, it.identity) == (described, identity):
                os.close(fd)
                self._mapped[index] = dataclasses.replace(it, again=it.again + 1)
                return
        if len(self._mapped) == SLOTS_MAX:
            os.close(fd)
            raise PeerError(f"more than {SLOTS_MAX} memory regions")
        mapped = self._map(described, fd)
        try:
            self._check([*self._mapped, mapped])
        except PeerError:
            _unmap(mapped)
            raise
        self._set([*self._mapped, mapped])

    def remove(self, described: MemoryRegion) -> None:
        """Forget the region with these addresses and this size: REM_MEM_REG. Raises PeerError."""
        key = _key(described)
        for index, it in enumerate(self._mapped):
            if _key(it.described) == key and it.again:
                self._mapped[index] = dataclasses.replace(it, again=it.again - 1)
                return
        left = [mapped for mapped in self._mapped if _key(mapped.described) != key]
        if len(left) == len(self._mapped):
            raise PeerError("REM_MEM_REG of a region that was never added")
        self._set(left)

    def translate(self, user_address: int, length: int) -> int:
        """Return the guest physical address of `length` bytes at the frontend's own address.

        Raises PeerError unless they are in one region.
        """
        for mapped in self._mapped:
            described = mapped.described
            offset = user_address - described.user_address
            if offset >= 0 and offset + length <= described.size:
                return described.guest_address + offset
        raise PeerError(f"{length} bytes at its address {user_address:#x} are not memory")

    @property
    def was_shrunk(self) -> bool:
        """Whether a file has become too short: the kernel says EFAULT then, with no signal."""
        return any(
            os.fstat(it.file.fd).st_size < it.described.mmap_offset + it.described.size
            for it in self._mapped
        )

    def _map(self, described: MemoryRegion, fd: int) -> _Mapped:
        identity = _identity(fd)
        if described.size == 0 or any(
            address + described.size > _ADDRESSES
            for address in (described.guest_address, described.user_address, described.mmap_offset)
        ):
            os.close(fd)
            raise PeerError(f"a memory region of {described.size} bytes that cannot be")
        file = SharedFile(fd, described.size, described.mmap_offset, self.lost)
        region = Region(
            described.guest_address,
            described.size,
            file.fd,
            described.mmap_offset,
            file.mapping,
            file.view,
            file.address,
        )
        return _Mapped(described, identity, file, region)

    @staticmethod
    def _check(mapped: list[_Mapped]) -> None:
        """Raise PeerError where the driver's addresses, or the frontend's own, overlap."""
        for address in ("guest_address", "user_address"):
            places = sorted((getattr(it.described, address), it.described.size) for it in mapped)
            for (start, size), (following, _) in itertools.pairwise(places):
                if start + size > following:
                    raise PeerError(f"memory regions that overlap at {following:#x}")

    def _set(self, mapped: list[_Mapped], others: Iterable[_Mapped] = ()) -> None:
        # Each file once: one that was known may be in the others too.
        gone = {id(it.file): it for it in [*self._mapped, *others]}
        self._mapped = mapped
        self.set_regions(it.region for it in mapped)
        for kept in mapped:
            gone.pop(id(kept.file), None)
        for it in gone.values():
            _unmap(it)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _key(described: MemoryRegion) -> tuple[int, int, int]:
    return described.guest_address, described.user_address, described.size


def _unmap(mapped: _Mapped) -> None:
    mapped.file.close()


class DirtyLog(Closing):
    """The frontend's log of the pages of guest memory that were written: SET_LOG_BASE.

    `fd` is from here on this object's to close; raises PeerError. `eventfd` is written when the log
    is lost, or has no bit for what is to be marked: the connection is to be ended, as the
    frontend that migrates the guest would miss the page.
    """

    def __init__(self, area: LogArea, fd: int, eventfd: int) -> None:
        if area.size == 0:
            os.close(fd)
            raise PeerError("a dirty log of no bytes")
        self.file = SharedFile(fd, area.size, area.offset, eventfd)
        self._log = ffi.cast("uint8_t *", self.file.address)
        self._pages = area.size * 8
        self._eventfd = eventfd
        self._too_small = ffi.new("uint32_t *")

    def close(self) -> None:
        """Unmap the log."""
        self.file.close()

    @property
    def is_too_small(self) -> bool:
        """Whether anything was to be marked that it has no bit for."""
        return bool(self._too_small[0])

    def mark(self, address: int, length: int) -> None:
        """Mark `length` bytes at a guest physical address as written, 1 or more."""
        first, last = address // VHOST_LOG_PAGE, (address + length - 1) // VHOST_LOG_PAGE
        if last < self._pages:
            lib.vp_log_pages(self._log, first, last)
        elif not self.is_too_small:
            self._too_small[0] = 1
            os.eventfd_write(self._eventfd, 1)

    def join(self, dirty: CData) -> None:
        """Have C mark pages too: `dirty` is a struct vp_dirty."""
        dirty.pages = self._pages
        dirty.eventfd = self._eventfd
        dirty.too_small = self._too_small
        dirty.log = self._log


class WriteLog(QueueObserver):
    """Marks in the dirty log what a virtqueue's device writes: buffers, and the used ring."""

    def __init__(self, memory: GuestMemory) -> None:
        self._log: DirtyLog | None = None
        self._used_log: int | None = None
        self._memory = memory
        self._native: CData | None = None

    def mark_in(self, log: DirtyLog | None, used_log: int | None) -> None:
        """Mark in this log from now on; None marks nothing.

        The used ring is logged by the guest physical address `used_log`, which the frontend
        chooses; None for not at all.
        """
        self._log, self._used_log = log, used_log
        if self._native is None:
            return
        dirty = self._native.dirty
        dirty.logs_used = used_log is not None
        dirty.used = used_log or 0
        if log is None:
            dirty.log = ffi.NULL
        else:
            log.join(dirty)

    def join(self, queue: CData) -> None:
        """Have C mark in the log (virtqueue.native.NativeAccount)."""
        self._native = queue
        self.mark_in(self._log, self._used_log)

    def using(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """Mark all that was writable: a used length may be less than what was written (2.7.8.2)."""
        if self._log is None:
            return
        for chain, _ in completions:
            for view in chain.writable:
                self._log.mark(self._memory.address_of(view), len(view))

    def area_written(self, queue: Virtqueue, offset: int, length: int) -> None:
        """Mark what was written of the used ring."""
        if self._log is not None and self._used_log is not None:
            self._log.mark(self._used_log + offset, length)
