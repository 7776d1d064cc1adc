"""What a block device and a SCSI disk need of the host: a disk, addressed in bytes."""

from typing import Protocol

from virtiopy.virtqueue.buffers import Buffers


class Disk(Protocol):
    """What the device needs of a disk: offsets and lengths in bytes, multiples of 512.

    All of these raise OSError for what the host cannot do.
    """

    size: int
    readonly: bool
    alignment: int
    physical_block_size: int
    can_punch_holes: bool

    def measure(self) -> None:
        """Take the size that the disk has now."""

    def read(self, offset: int, buffers: Buffers) -> None:
        """Fill `buffers`."""

    def read_cached(self, offset: int, buffers: Buffers) -> bool:
        """Fill `buffers` with what is in the host's memory; False where it would have to wait."""

    def write(self, offset: int, buffers: Buffers, *, stable: bool = False) -> None:
        """Write `buffers`; when `stable`, return only once they are on persistent storage."""

    def flush(self) -> None:
        """Return once every completed write is on persistent storage."""

    def discard(self, offset: int, length: int) -> None:
        """Deallocate a range."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeroes, and deallocate it where asked to and able."""

    def close(self) -> None:
        """Give up the disk."""
