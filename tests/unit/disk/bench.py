"""What the tests of disk images share."""

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from virtiopy._native import ffi, lib
from virtiopy.host.disk import CacheMode, DiskImage

SIZE = 1 << 20
cache_modes = pytest.mark.parametrize("cache", list(CacheMode))


def pattern(size: int = SIZE) -> bytes:
    """Bytes that differ from one sector to the next and are never zero."""
    return b"".join(bytes([sector % 251 + 1]) * 512 for sector in range(size // 512))


def zeroed(start: int, length: int) -> bytes:
    content = bytearray(pattern())
    content[start : start + length] = bytes(length)
    return bytes(content)


class PatchedLib:
    """The native library, with some of its functions answering what a test says."""

    def __init__(self, **results: Callable[..., int]) -> None:
        self._results = results

    def __getattr__(self, name: str) -> object:
        return self._results.get(name) or getattr(lib, name)


class StrictKernel:
    """Refuses transfers that are not aligned, as a disk with blocks of `alignment` bytes does."""

    def __init__(self, alignment: int) -> None:
        self._alignment = alignment
        self._preadv, self._pwritev = os.preadv, os.pwritev

    def _check(self, buffers: Sequence[memoryview], offset: int) -> None:
        for piece in buffers:
            address = int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", piece)))
            if (address | len(piece) | offset) % self._alignment:
                raise OSError(errno.EINVAL, "Invalid argument")

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._check(buffers, offset)
        return self._preadv(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int) -> int:
        self._check(buffers, offset)
        return self._pwritev(fd, buffers, offset, flags)


readonly_or_not = pytest.mark.parametrize("readonly", [False, True], ids=["writing", "reading"])


def buffer(size: int, *, misaligned: bool = False) -> memoryview:
    """Make a buffer at the start of a page, or one byte after it."""
    start = int(misaligned)
    return memoryview(mmap.mmap(-1, size + 1))[start : start + size]


@contextlib.contextmanager
def direct(path: Path, alignment: int) -> Iterator[DiskImage]:
    """Open an image for direct I/O on a disk with blocks of `alignment` bytes."""
    kernel = StrictKernel(alignment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", kernel.preadv)
        patch.setattr(os, "pwritev", kernel.pwritev)
        with DiskImage(path, cache=CacheMode.NONE) as disk:
            assert disk.alignment % alignment == 0
            yield disk


def allocated(path: Path) -> int:
    """Bytes that the file takes on its file system."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)
