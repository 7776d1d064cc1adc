"""What another worker needs of a block device besides its queues: a disk that is one file."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from virtiopy.devices.delegation import Backing

#: How long another worker of the queues polls before it sleeps, microseconds.
POLL_US = 50


@runtime_checkable
class FileDisk(Protocol):
    """A disk that is one file, for another worker to use; sizes in bytes."""

    size: int
    readonly: bool
    #: What offsets, lengths and memory have to be multiples of: 1, or direct I/O's.
    alignment: int
    #: Whether the file is in memory, so that reading it never waits (tmpfs).
    in_memory: bool

    def fileno(self) -> int:
        """Return the open file."""


class Cached(Protocol):
    """A device whose cache mode the driver can change."""

    @property
    def writeback(self) -> bool:
        """Whether completed writes may be volatile until a flush."""


@dataclass(slots=True, frozen=True)
class DiskBacking(Backing):
    """The disk and the cache mode of `device`: the worker may look at both at any time.

    It is to have `threads` threads that poll for `poll_us` microseconds at most before they sleep.
    """

    kind: ClassVar[str] = "block device"

    device: Cached
    disk: FileDisk
    threads: int
    poll_us: int

    @property
    def writeback(self) -> bool:
        """Whether completed writes may be volatile until a flush, now."""
        return self.device.writeback
