"""Another worker of a device's virtqueues: threads in C, without the interpreter."""

import contextlib
from collections.abc import Sequence

from virtiopy.closing import Closing
from virtiopy.devices.delegation import Backing, DelegatedQueue, RingWorker
from virtiopy.devices.diskbacking import DiskBacking
from virtiopy.devices.net.backing import LinkBacking
from virtiopy.errors import ConfigError, HostError
from virtiopy.virtqueue.native import NativeQueue, is_enabled
from virtiopy.virtqueue.queue import Chain, Virtqueue
from virtiopy.worker.blk import NativeDisk
from virtiopy.worker.net import NativePair
from virtiopy.worker.thread import NativeRing, RingCounts, WorkerThread


class NativeWorker(Closing):
    """Works rings of requests to a disk, on `threads` threads in turn: a RingWorker.

    Raises HostError where there can be no thread.
    """

    name = "native"

    def __init__(self, backing: DiskBacking) -> None:
        self._backing = backing
        self._disk = NativeDisk.of(backing)
        self._rings: dict[Virtqueue, NativeRing] = {}
        self._opened = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            self.threads = [
                opened.enter_context(WorkerThread(backing.poll_us)) for _ in range(backing.threads)
            ]
            self._opened = opened.pop_all()
        self.attention: Sequence[int] = [thread.attention for thread in self.threads]

    def close(self) -> None:
        """End the threads, which have no virtqueues any more."""
        self._opened.close()

    def look(self) -> None:
        """Take note that `attention` was written."""
        for thread in self.threads:
            thread.look()

    def delegate(self, queue: DelegatedQueue) -> None:
        """Have a thread work a virtqueue from here on; raises HostError for one that it cannot."""
        if not isinstance(queue.queue, NativeQueue):
            raise HostError(
                "A queue that is watched is worked by Python: leave the watching out, or use "
                "another mode."
            )
        ring = NativeRing(queue.queue, queue.kick, queue.call)
        self._disk.serve(ring)
        ring.start(self.threads[queue.ring % len(self.threads)])
        self._rings[queue.queue] = ring

    def reclaim(self, queue: Virtqueue) -> Sequence[Chain]:
        """Take a virtqueue back; returns what was handed up of it and not popped."""
        return self._rings.pop(queue).stop()

    def refresh(self) -> None:
        """Take the disk's size and cache mode as they are now."""
        self._disk.update(self._backing.disk.size, writeback=self._backing.writeback)

    def counts(self, queue: Virtqueue) -> RingCounts:
        """Return what a virtqueue has done and cost since the worker has it."""
        return self._rings[queue].counts


def open_native(backing: Backing) -> RingWorker | NativePair:
    """Open a worker without the interpreter for a device: an OpenWorker.

    Raises ConfigError for a device that it cannot work, HostError where there can be none.
    """
    if not is_enabled():
        raise HostError(
            "VIRTIOPY_NATIVE=off has Python work all rings: unset it, or leave mode=native out."
        )
    if isinstance(backing, DiskBacking):
        return NativeWorker(backing)
    if isinstance(backing, LinkBacking) and backing.rules is not None:
        return NativePair(backing)
    raise ConfigError(f"No {backing.kind} is worked natively: use another mode.")
