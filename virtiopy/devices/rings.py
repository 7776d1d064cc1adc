"""The virtqueues of a device that it delegates one by one, to a worker in this process."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.delegation import (
    Backing,
    DelegatedQueue,
    Notifiers,
    OpenWorker,
    RingWorker,
)
from virtiopy.errors import ConfigError, VirtiopyError
from virtiopy.eventloop import READABLE
from virtiopy.virtqueue.queue import Chain, Virtqueue

log = logging.getLogger(__name__)


class DelegatedRings:
    """Delegates the queues of `device`, and reclaims them; there is no worker at first.

    `complete` serves chains that a worker has handed up, at once. The caller holds the device's
    lock.
    """

    def __init__(
        self, device: VirtioDevice, complete: Callable[[Virtqueue, Sequence[Chain]], None]
    ) -> None:
        self._device = device
        self._complete = complete
        self._worker: RingWorker | None = None
        self._delegated: dict[int, tuple[Virtqueue, Notifiers]] = {}
        #: How often a queue was delegated.
        self.count = 0
        # What closes the worker.
        self._opened = contextlib.ExitStack()

    @property
    def is_open(self) -> bool:
        """Whether there is a worker."""
        return self._worker is not None

    @property
    def delegated(self) -> int:
        """How many queues the worker has."""
        return len(self._delegated)

    def open(self, open_worker: OpenWorker, backing: Backing) -> None:
        """Open a worker. Raises ConfigError, and what `open_worker` does."""
        loop = self._device.loop
        if self._device.may_block or loop is None:
            raise ConfigError(
                "In trapped mode only the device can take kicks: start it in another mode."
            )
        with contextlib.ExitStack() as opened:
            worker = open_worker(backing)
            opened.callback(worker.close)
            if not isinstance(worker, RingWorker):
                raise ConfigError(f"{worker.name} does not work rings of this kind.")
            for eventfd in worker.attention:
                watch = loop.watch(eventfd, READABLE, self._attend, f"{worker.name} attention")
                opened.callback(loop.unwatch, watch)
            self._opened = opened.pop_all()
        self._worker = worker

    def close(self) -> None:
        """Reclaim all queues, and end the worker."""
        self.reclaim_all()
        self._worker = None
        self._opened.close()

    def refresh(self) -> None:
        """Tell the worker that the backing has changed."""
        if self._worker is not None:
            self._worker.refresh()

    def delegate(self, index: int) -> None:
        """Delegate a queue, where there is a worker and that can be done now.

        Where it cannot be done at all the device works all its queues, and `refusal` says why.
        """
        device, worker = self._device, self._worker
        queue = device.queues.get(index)
        if (
            worker is None
            or queue is None
            or index in self._delegated
            or device.halted
            or device.refusal is not None
            or (notifiers := device.host.notifiers(index)) is None
        ):
            return
        notifiers.delegate()
        try:
            worker.delegate(DelegatedQueue(index, queue, notifiers.kick, notifiers.call))
        except VirtiopyError as error:
            notifiers.reclaim()
            device.refusal = str(error)
            log.warning("the device itself works its rings: %s", error)
            self.reclaim_all()
            return
        self._delegated[index] = queue, notifiers
        self.count += 1

    def delegate_all(self) -> None:
        """Delegate every queue of the device that can be."""
        for index in list(self._device.queues):
            self.delegate(index)

    def reclaim(self, index: int) -> None:
        """Reclaim a queue, if it is delegated, with all that was begun of it complete."""
        for queue, chains in self._reclaim(index):
            self._complete(queue, chains)

    def reclaim_all(self) -> None:
        """Reclaim all queues."""
        for index in list(self._delegated):
            self.reclaim(index)

    def abandon(self, index: int) -> None:
        """Reclaim a queue that is no more: what the worker handed up is forgotten."""
        list(self._reclaim(index))

    def abandon_all(self) -> None:
        """Reclaim all queues, which are no more."""
        for index in list(self._delegated):
            self.abandon(index)

    def _reclaim(self, index: int) -> Iterator[tuple[Virtqueue, Sequence[Chain]]]:
        if index not in self._delegated or self._worker is None:
            return
        queue, notifiers = self._delegated.pop(index)
        chains = self._worker.reclaim(queue)
        notifiers.reclaim()
        if chains:
            yield queue, chains

    @contextlib.contextmanager
    def undelegated(self, index: int) -> Iterator[None]:
        """Have the device itself have a queue meanwhile."""
        was_delegated = index in self._delegated
        self.reclaim(index)
        yield
        if was_delegated:
            self.delegate(index)

    def _attend(self, events: int) -> None:
        """Have the device handle what the worker leaves to it."""
        with self._device.lock:
            if self._worker is None:
                return
            self._worker.look()
            for queue, _ in self._delegated.values():
                self._device.handle_soon(queue)
