"""What a network device needs of the host's side: a link that frames come from and go to."""

from collections.abc import Sequence
from typing import Protocol

from virtiopy.virtqueue.buffers import Buffers


class FrameLink(Protocol):
    """The host's side: a link with one queue of frames for each pair of virtqueues.

    Every frame has a struct virtio_net_hdr before it, 12 bytes, little-endian. `read` and `write`
    do not wait: they raise BlockingIOError instead, and OSError for what else goes wrong.
    """

    name: str
    #: Bytes of an Ethernet payload, and how many queues the link has.
    mtu: int
    pairs: int

    def fileno(self, pair: int) -> int:
        """Return the file that is readable, writable when a queue is."""

    def read(self, pair: int, buffers: Buffers) -> int:
        """Read the next frame over `buffers`; returns its bytes, with what found no room lost."""

    def write(self, pair: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Send one frame."""

    def set_offloads(self, *, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
        """Say what may be in the frames that are read: partial checksums, unsegmented TCP."""

    def set_pairs(self, count: int) -> None:
        """Let frames come by the first `count` queues only."""

    def worker_file(self, pair: int, mtu: int) -> int:
        """Return the file of a queue, for a worker to move the frames by.

        Raises ConfigError where that cannot be, or frames may come that are longer than `mtu`.
        """

    def state_fileno(self) -> int:
        """Return a file that is readable when `is_up` should be asked again."""

    def is_up(self) -> bool:
        """Say whether the link is up, and take what made `state_fileno` readable."""

    def dropped(self) -> int:
        """Count the frames that the link dropped itself, because they were not read."""

    def close(self) -> None:
        """Give up the link."""
