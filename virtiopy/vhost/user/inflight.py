"""What is in flight, written where the frontend keeps it: a backend that was killed can go on.

QEMU's docs/interop/vhost-user, "Inflight I/O tracking", for split virtqueues. The area is a file of
the backend's that the frontend holds (GET_INFLIGHT_FD), and gives to the next backend
(SET_INFLIGHT_FD): each virtqueue has a region in it, with one entry a descriptor.
"""

import os
from collections.abc import Sequence

from virtiopy._native import CData, ffi
from virtiopy.closing import Closing
from virtiopy.errors import PeerError
from virtiopy.memory import seal_size
from virtiopy.vhost.user.memory import SharedFile
from virtiopy.vhost.user.messages import InflightArea
from virtiopy.virtqueue.layout import INDEX_MODULUS, QUEUE_SIZE_MAX
from virtiopy.virtqueue.queue import Chain, Completion, QueueObserver, Virtqueue

_VERSION = 1

#: Virtqueues that a message can name (SET_VRING_KICK has 8 bits for the index).
QUEUES_MAX = 256

#: Regions begin at multiples of this: no two virtqueues share a line of cache.
_ALIGNMENT = 64

#: The counters that say what was taken first have 64 bits.
_COUNTERS = 1 << 64


def _region_size(queue_size: int) -> int:
    head = ffi.sizeof("struct vhost_user_queue_region")
    size = head + queue_size * ffi.sizeof("struct vhost_user_desc_state")
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class QueueInflight(QueueObserver):
    """The region of one virtqueue. What is stored here outlives this process, in that order.

    It has `queue_size` entries, which is the area's; a driver's ring may have fewer. A malformed
    chain is never in flight: a backend that was killed before it was used takes it again.
    """

    def __init__(self, file: SharedFile, offset: int, queue_size: int) -> None:
        # The file is kept: the region is a pointer into it.
        self._file = file
        self._region = ffi.cast("struct vhost_user_queue_region *", file.address + offset)
        self.queue_size = queue_size
        self._counter = 0
        self._used_index = 0
        self._native: CData | None = None

    def join(self, queue: CData) -> None:
        """Have C keep the account (virtqueue.native.NativeAccount)."""
        if self._native is not None:
            # What goes on with another queue goes on counting.
            self._counter = self._native.inflight_counter
        queue.inflight = self._region
        queue.inflight_counter = self._counter
        self._native = queue

    def begin(self, used_index: int, ring_size: int) -> list[int]:
        """Take what was in flight, oldest first; `used_index` is the used ring's idx as it is.

        Raises PeerError for an area that no backend can have written.
        """
        region = self._region
        self._used_index = used_index
        if region.version == 0:
            region.features = 0
            region.desc_num = self.queue_size
            region.last_batch_head = 0
            region.used_idx = used_index
            for index in range(self.queue_size):
                region.desc[index].inflight = 0
            region.version = _VERSION
            return []
        if region.version != _VERSION or region.desc_num != self.queue_size:
            raise PeerError(
                f"an area of requests in flight of version {region.version} "
                f"for {region.desc_num} descriptors, not {self.queue_size}"
            )
        # Killed between the update of the ring and of this: the last batch is done.
        head = region.last_batch_head
        for _ in range(min((used_index - region.used_idx) % INDEX_MODULUS, self.queue_size)):
            if head >= self.queue_size:
                raise PeerError(f"descriptor {head} of {self.queue_size} was the last in flight")
            region.desc[head].inflight = 0
            head = region.desc[head].next
        region.used_idx = used_index
        pending = [head for head in range(self.queue_size) if region.desc[head].inflight]
        if pending and pending[-1] >= ring_size:
            raise PeerError(f"descriptor {pending[-1]} in flight, of a ring of {ring_size}")
        pending.sort(key=lambda head: int(region.desc[head].counter))
        if pending:
            self._counter = (region.desc[pending[-1]].counter + 1) % _COUNTERS
        if self._native is not None:
            self._native.inflight_counter = self._counter
        return pending

    def taken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        """Note that these chains were taken from the available ring."""
        for chain in chains:
            entry = self._region.desc[chain.token]
            entry.counter = self._counter
            self._counter = (self._counter + 1) % _COUNTERS
            entry.inflight = 1

    def untaken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        """Note that they were put back unserved."""
        for chain in chains:
            self._region.desc[chain.token].inflight = 0

    def using(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """Note which chains the next update of the used ring's idx completes."""
        region = self._region
        for chain, _ in completions:
            region.desc[chain.token].next = region.last_batch_head
            region.last_batch_head = chain.token

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """Note that the idx was updated."""
        region = self._region
        for chain, _ in completions:
            region.desc[chain.token].inflight = 0
        self._used_index = (self._used_index + len(completions)) % INDEX_MODULUS
        region.used_idx = self._used_index


class Inflight(Closing):
    """The area for `num_queues` virtqueues of `queue_size` descriptors each."""

    def __init__(self, file: SharedFile, area: InflightArea) -> None:
        self.file = file
        self.area = area

    @classmethod
    def create(cls, num_queues: int, queue_size: int, eventfd: int) -> "Inflight":
        """Make an area in which nothing is in flight; raises PeerError."""
        size = num_queues * _region_size(queue_size)
        _check(num_queues, queue_size, size)
        fd = os.memfd_create("virtiopy-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        seal_size(fd)
        area = InflightArea(size, 0, num_queues, queue_size)
        return cls(SharedFile(fd, size, 0, eventfd), area)

    @classmethod
    def attach(cls, area: InflightArea, fd: int, eventfd: int) -> "Inflight":
        """Go on with a frontend's, whose `fd` is closed with it; raises PeerError."""
        try:
            _check(area.num_queues, area.queue_size, area.mmap_size)
        except PeerError:
            os.close(fd)
            raise
        return cls(SharedFile(fd, area.mmap_size, area.mmap_offset, eventfd), area)

    def close(self) -> None:
        """Unmap the area; what is in it stays."""
        self.file.close()

    def queue(self, index: int, size: int) -> QueueInflight | None:
        """Return the region of virtqueue `index`; None where it has none or is larger."""
        queue_size = self.area.queue_size
        if index >= self.area.num_queues or size > queue_size:
            return None
        return QueueInflight(self.file, index * _region_size(queue_size), queue_size)


def _check(num_queues: int, queue_size: int, size: int) -> None:
    if not 1 <= queue_size <= QUEUE_SIZE_MAX or not 1 <= num_queues <= QUEUES_MAX:
        raise PeerError(f"requests in flight of {num_queues} queues of {queue_size} descriptors")
    if size < num_queues * _region_size(queue_size):
        raise PeerError(f"{size} bytes for what is in flight are too few")
