"""Rings of block requests for a thread in C (blk.c)."""

from typing import Protocol

from virtiopy._native import CData, ffi, lib
from virtiopy.worker.thread import NativeRing

_SECTOR_SIZE = 512


class FileDisk(Protocol):
    """A disk that is one file, as far as C has to know it; sizes in bytes."""

    size: int
    readonly: bool
    #: What offsets, lengths and memory have to be multiples of: 1, or direct I/O's.
    alignment: int
    #: Whether the file is in memory, so that reading it never waits (tmpfs).
    in_memory: bool

    def fileno(self) -> int:
        """Return the open file."""


class NativeDisk:
    """What C knows of a disk: the rings of a device share it."""

    def __init__(self, disk: FileDisk, *, writeback: bool) -> None:
        self.native: CData = ffi.new("struct vp_disk *")
        self.native.fd = disk.fileno()
        self.native.alignment = disk.alignment
        self.native.in_memory = disk.in_memory
        self.native.readonly = disk.readonly
        self.update(disk.size, writeback=writeback)

    def update(self, size: int, *, writeback: bool) -> None:
        """Take what may change while rings are worked: the size, and the cache mode."""
        self.native.sectors = size // _SECTOR_SIZE
        self.native.writeback = writeback

    def serve(self, ring: NativeRing) -> None:
        """Make a ring one of requests to this disk."""
        lib.vp_ring_serve_blk(ring.native, self.native)
        ring.kept.append(self)
