"""Requests that take a device time: worker threads of the loop serve them, a batch at a time."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from virtiopy.devices.base import VirtioDevice
from virtiopy.eventloop import EventLoop
from virtiopy.virtqueue.queue import BATCH, Chain, Virtqueue, batches_of_a_turn

#: Batches that workers have of one device, and pieces of memory after which they get no more: a
#: request may have tens of thousands, and others wait behind it. What a device does not pop stays
#: in guest memory: a driver cannot have more of it described in the host's.
BATCHES_MAX = 8
PIECES_MAX = 16384


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that one worker serves together, and how much it wrote to each."""

    queue: Virtqueue
    chains: Sequence[Chain]
    pieces: int
    written: list[int] = field(default_factory=list)
    finished: threading.Event = field(default_factory=threading.Event)


class Batches:
    """The batches of `device` that workers have; `serve` serves a request, on a worker's thread.

    The caller holds the device's lock.
    """

    def __init__(self, device: VirtioDevice, serve: Callable[[Virtqueue, Chain], int]) -> None:
        self._device = device
        self._serve = serve
        self._batches: set[Batch] = set()
        # Queues that the device goes on with when there is room for another batch.
        self._waiting: dict[int, Virtqueue] = {}

    @property
    def full(self) -> bool:
        """Whether the workers have as many batches as they may."""
        pieces = sum(batch.pieces for batch in self._batches)
        return len(self._batches) >= BATCHES_MAX or pieces >= PIECES_MAX

    @property
    def in_flight(self) -> Sequence[Batch]:
        """The batches that workers have."""
        return list(self._batches)

    def handle_after(self, queue: Virtqueue) -> None:
        """Have the device handle a queue again when a batch is complete."""
        self._waiting[queue.index] = queue

    def work(
        self,
        queue: Virtqueue,
        serve_at_once: Callable[[Chain], int | None],
        limit: int,
        loop: EventLoop,
    ) -> None:
        """Work a queue for a turn: `limit` requests at once where they can be, the rest by workers.

        `serve_at_once` returns how many bytes it wrote, or None for what would take longer. Raises
        QueueError.
        """
        device = self._device
        for _ in batches_of_a_turn():
            queue.disable_kicks()
            if self.full:
                self.handle_after(queue)
                return
            chains = queue.pop_many(BATCH)
            rest = self._serve_at_once(queue, chains[:limit], serve_at_once) + chains[limit:]
            limit = max(0, limit - len(chains))
            if rest:
                self.start(queue, rest, loop)
            device.notify(queue)
            if not chains and not queue.enable_kicks():
                return
        device.handle_soon(queue)

    def _serve_at_once(
        self,
        queue: Virtqueue,
        chains: Sequence[Chain],
        serve_at_once: Callable[[Chain], int | None],
    ) -> list[Chain]:
        """Serve what can be served at once; returns the others, for a worker."""
        done, rest = [], []
        for chain in chains:
            written = serve_at_once(chain)
            if written is None:
                rest.append(chain)
            else:
                done.append((chain, written))
        if done:
            queue.push_many(done)
            self._device.notify(queue)
        return rest

    def _count(self, queue: Virtqueue) -> int:
        return sum(batch.queue is queue for batch in self._batches)

    def start(self, queue: Virtqueue, chains: Sequence[Chain], loop: EventLoop) -> None:
        """Have a worker serve some requests; one completion for all of them."""
        pieces = sum(len(chain.readable) + len(chain.writable) for chain in chains)
        batch = Batch(queue, chains, pieces)

        def work() -> None:
            try:
                batch.written = [self._serve(queue, chain) for chain in chains]
            finally:
                batch.finished.set()

        def done() -> None:
            with self._device.lock:
                self._complete(batch)

        self._batches.add(batch)
        loop.run_blocking(work, done, f"{self._device.device_id.name.lower()} requests")

    def settle(self, index: int) -> None:
        """Complete what the workers have of a queue."""
        for batch in [batch for batch in self._batches if batch.queue.index == index]:
            self.finish(batch)

    def finish(self, batch: Batch) -> None:
        """Wait until a batch is served, and complete it, if it was not yet."""
        batch.finished.wait()
        self._complete(batch)

    def drain(self) -> None:
        """Wait until no worker touches a buffer any more (2.4.1, 2.6.1.1.1)."""
        for batch in self._batches:
            batch.finished.wait()

    def _complete(self, batch: Batch) -> None:
        """Give a batch's buffers back, once."""
        if batch not in self._batches:
            return
        self._batches.discard(batch)
        waiting, self._waiting = self._waiting, {}
        # Those of which workers have least come first: no queue takes all the room, time and again.
        for queue in sorted(waiting.values(), key=self._count):
            self._device.handle_soon(queue)
        # A queue that was reset meanwhile has no use for its buffers (2.6.1.1.1).
        if self._device.queues.get(batch.queue.index) is batch.queue:
            batch.queue.push_many(zip(batch.chains, batch.written, strict=True))
            self._device.notify(batch.queue)
