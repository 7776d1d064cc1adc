"""A pair of virtqueues of the network device, which the device works, or another worker."""

import random
from collections.abc import Mapping, Sequence

from virtiopy.devices.delegation import DelegatedQueue, Notifiers, QueueWorker
from virtiopy.devices.net.control import ReceiveFilter
from virtiopy.devices.net.features import Terms
from virtiopy.devices.net.link import FrameLink
from virtiopy.devices.net.path import NetCounters, Receiver, Transmitter
from virtiopy.errors import VirtiopyError
from virtiopy.eventloop import READABLE, WRITABLE, Watch
from virtiopy.virtqueue.queue import Virtqueue


class Pair:
    """A receive and a transmit virtqueue, and the link's queue that they share.

    The driver enables the two one by one, ring 0 and ring 1.
    """

    def __init__(self, index: int, link: FrameLink, counts: NetCounters) -> None:
        self.index = index
        self.receiver = Receiver(link, index, counts)
        self.transmitter = Transmitter(link, index, counts)
        self.queues: dict[int, Virtqueue] = {}
        #: Whether the driver has reset the receive queue, and not enabled it again (2.6.1).
        self.being_reset = False
        #: Which pair takes the frames that come for this one: itself, another, or none.
        self.taker: Pair | None = self
        self.watch: Watch | None = None
        #: What is to work the pair in the device's place.
        self.worker: QueueWorker | None = None
        self._delegated: Sequence[Notifiers] = ()

    @property
    def delegated(self) -> bool:
        """Whether the worker has the queues."""
        return bool(self._delegated)

    def wanted_events(self) -> int:
        """Return what there is to wait for: a frame to come, room for one to go."""
        wanted = self.taker is None or self.taker.receiver.wants_frames
        events = READABLE if wanted else 0
        return events | (WRITABLE if self.transmitter.waits else 0)

    def start(self, ring: int, terms: Terms, filter_: ReceiveFilter) -> None:
        """Let the device work a queue."""
        if ring:
            self.transmitter.start(self.queues[ring], terms)
        else:
            self.receiver.start(self.queues[ring], terms, filter_)

    def stop(self, ring: int) -> None:
        """Forget the buffers of a queue; the device does not work it any more."""
        if ring:
            self.transmitter.stop()
        else:
            self.receiver.stop()

    # Another worker

    def delegate(self, notifiers: Mapping[int, Notifiers], driver_features: int) -> bool:
        """Delegate the queues; False where the device is to end first what it has begun.

        `notifiers` are by ring. Raises what the worker does: the device has the queues then.
        """
        worker = self.worker
        assert worker is not None
        if not (self.receiver.can_stop and self.transmitter.can_stop):
            return False
        self.receiver.unpop()
        self.transmitter.unpop()
        queues = [
            DelegatedQueue(ring, queue, notifiers[ring].kick, notifiers[ring].call)
            for ring, queue in self.queues.items()
        ]
        self._delegated = [notifiers[ring] for ring in self.queues]
        for one in self._delegated:
            one.delegate()
        try:
            worker.delegate(queues, driver_features)
        except VirtiopyError:
            self._reclaim_notifiers()
            raise
        for ring in self.queues:
            self.stop(ring)
        return True

    def reclaim(self) -> None:
        """Reclaim the queues; `start` lets the device work them again."""
        if self.worker is not None and self.delegated:
            self.worker.reclaim()
            self._reclaim_notifiers()

    def _reclaim_notifiers(self) -> None:
        for one in self._delegated:
            one.reclaim()
        self._delegated = ()


def redirect(pairs: Sequence[Pair]) -> None:
    """Say who takes the frames for receive queues that are being reset (5.1.9.5.6.2).

    That is any other of the enabled pairs; none while all of those are being reset.
    """
    enabled = [pair for pair in pairs if pair.transmitter.enabled]
    takers = [pair for pair in enabled if pair.receiver.queue is not None]
    drop = all(pair.being_reset for pair in enabled)
    for pair in pairs:
        pair.taker = pair
        pair.receiver.sources = [pair.index]
    for pair in enabled:
        if pair.being_reset and drop:
            pair.taker = None
        elif pair.being_reset and takers:
            pair.taker = random.choice(takers)
            pair.taker.receiver.sources.append(pair.index)
