"""Rings of block requests for a thread in C (blk.c)."""

from virtiopy._native import CData, ffi, lib
from virtiopy.devices.diskbacking import DiskBacking, FileDisk
from virtiopy.worker.thread import NativeRing

_SECTOR_SIZE = 512


class NativeDisk:
    """What C knows of a disk: the rings of a device share it."""

    def __init__(self, disk: FileDisk, *, writeback: bool) -> None:
        self.native: CData = ffi.new("struct vp_disk *")
        self.native.fd = disk.fileno()
        self.native.alignment = disk.alignment
        self.native.in_memory = disk.in_memory
        self.native.readonly = disk.readonly
        self.update(disk.size, writeback=writeback)

    @classmethod
    def of(cls, backing: DiskBacking) -> "NativeDisk":
        """Describe the disk of a device."""
        return cls(backing.disk, writeback=backing.writeback)

    def update(self, size: int, *, writeback: bool) -> None:
        """Take what may change while rings are worked: the size, and the cache mode."""
        self.native.sectors = size // _SECTOR_SIZE
        self.native.writeback = writeback

    def serve(self, ring: NativeRing) -> None:
        """Make a ring one of requests to this disk."""
        lib.vp_ring_serve_blk(ring.native, self.native)
        ring.kept.append(self)
