"""The eventfds of a virtqueue: who takes its kicks, and who raises its interrupts."""

from virtiopy import eventfds
from virtiopy.closing import Closing
from virtiopy.eventloop import READABLE, EventLoop, Watch
from virtiopy.transport.lifecycle import Lifecycle


class EventfdNotifiers(Closing):
    """The notifiers of queue `index` (devices.delegation.Notifiers): an ioeventfd and an irqfd.

    While they are not delegated, `loop` takes the kicks to `lifecycle`. The eventfds stay the
    caller's. A worker may be another process, which keeps them: no call waits.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        loop: EventLoop,
        index: int,
        *,
        kick: int,
        call: int,
        name: str,
    ) -> None:
        self.kick = kick
        self.call = call
        self._lifecycle = lifecycle
        self._loop = loop
        self._index = index
        self._name = name
        self._watch: Watch | None = None
        self._take_kicks()

    def close(self) -> None:
        """Take no more kicks."""
        if self._watch is not None:
            self._loop.unwatch(self._watch)
            self._watch = None

    @property
    def delegated(self) -> bool:
        """Whether another worker has them."""
        return self._watch is None

    def delegate(self) -> None:
        """Leave both to another worker; the caller holds the device's lock."""
        self.close()
        self._lifecycle.delegate_interrupt(self._index)

    def reclaim(self) -> None:
        """Have both again; the caller holds the device's lock.

        The queue is kicked, for the worker may have taken a kick and not served it.
        """
        self._lifecycle.reclaim_interrupt(self._index)
        self._take_kicks()
        eventfds.signal(self.kick)

    def forget_kicks(self) -> None:
        """Drop the kicks that no side has taken: the queue that they were for is no more."""
        if not self.delegated:
            eventfds.take(self.kick)

    def look(self) -> None:
        """Have the queue looked at soon: by the worker that has it, or on the loop."""
        if self.delegated:
            eventfds.signal(self.kick)
        else:
            self._loop.call_soon(self._look, self._name)

    def _look(self) -> None:
        with self._lifecycle.device.lock:
            # It may have been delegated meanwhile, and the worker has looked.
            if not self.delegated:
                self._lifecycle.work(self._index)

    def _take_kicks(self) -> None:
        self._watch = self._loop.watch(self.kick, READABLE, self._on_kick, self._name)

    def _on_kick(self, events: int) -> None:
        with self._lifecycle.device.lock:
            # They may have been delegated since the loop looked: the kick is the worker's then.
            if self.delegated:
                return
            # Kicks that came together are one: the ring says how much there is to do. Of a queue
            # that is worked, another worker that had the eventfd may have read the kick meanwhile.
            kicked = eventfds.take(self.kick)
            if kicked or self._index in self._lifecycle.queues:
                self._lifecycle.kick(self._index)
