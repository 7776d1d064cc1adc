"""The network device's pairs of virtqueues, each delegated to a worker of its own."""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from virtiopy.devices.base import DeviceHost
from virtiopy.devices.delegation import FrameWorker, OpenWorker, QueueWorker, RingWorker
from virtiopy.devices.net.backing import FrameRules, LinkBacking
from virtiopy.devices.net.link import FrameLink
from virtiopy.devices.net.pair import Pair
from virtiopy.errors import ConfigError
from virtiopy.eventloop import READABLE, EventLoop


class Delegator(FrameRules, Protocol):
    """What delegates its pairs: the network device."""

    host: DeviceHost
    loop: EventLoop | None
    lock: threading.RLock
    link: FrameLink
    mtu: int
    busy_poll: int | None
    may_block: bool
    driver_features: int

    @property
    def pairs(self) -> Sequence[Pair]:
        """All pairs, in their order."""

    @property
    def may_be_worked(self) -> bool:
        """Whether there is anything to be done with queues and link."""

    def go_on(self, pair: Pair) -> None:
        """Work a pair that was reclaimed; its queues have been kicked."""


class PairWorkers:
    """Delegates each pair to a worker of its own, and reclaims it; there are no workers at first.

    A pair is delegated when the driver has enabled queues of it, and when no frame that was taken
    from the link waits for buffers. The control virtqueue is always the device's.
    """

    def __init__(self, device: Delegator) -> None:
        self._device = device
        #: How often a pair was delegated.
        self.count = 0
        # What closes the workers.
        self._opened = contextlib.ExitStack()

    @property
    def are_open(self) -> bool:
        """Whether there are workers."""
        return self._device.pairs[0].worker is not None

    def open(self, open_worker: OpenWorker) -> None:
        """Open a worker for each pair. Raises ConfigError, and what `open_worker` does."""
        device = self._device
        if device.may_block or device.loop is None:
            raise ConfigError(
                "In trapped mode only the device can take kicks: start it in another mode."
            )
        with contextlib.ExitStack() as opened:
            workers = []
            for pair in device.pairs:
                file = device.link.worker_file(pair.index, device.mtu)
                worker = open_worker(
                    LinkBacking(
                        file,
                        device.busy_poll,
                        device,
                        pair.receiver.gate,
                        pair.receiver.put_back,
                    )
                )
                opened.callback(worker.close)
                assert not isinstance(worker, RingWorker), "a backing of a link is for pairs"
                workers.append(worker)
                for ring, eventfd in enumerate(worker.errors):
                    watch = device.loop.watch(
                        eventfd,
                        READABLE,
                        self._error_reader(worker, pair, ring),
                        f"{worker.name} of {device.link.name}",
                    )
                    opened.callback(device.loop.unwatch, watch)
            self._opened = opened.pop_all()
        for pair, worker in zip(device.pairs, workers, strict=True):
            pair.worker = worker

    def close(self) -> None:
        """Reclaim all pairs, and close the workers."""
        for pair in self._device.pairs:
            self.reclaim(pair)
            pair.worker = None
        self._opened.close()

    def offered(self, features: int) -> int:
        """Leave out what the workers have not."""
        for pair in self._device.pairs:
            if pair.worker is not None:
                features = pair.worker.offered(features)
        return features

    def delegate(self, pair: Pair) -> None:
        """Delegate a pair to its worker, where it has one and that can be done now.

        Raises what the worker does: the device has the pair then.
        """
        device = self._device
        if (
            pair.worker is None
            or pair.delegated
            or not pair.queues
            or not pair.transmitter.enabled
            or not device.may_be_worked
        ):
            return
        notifiers = {
            ring: found
            for ring in pair.queues
            if (found := device.host.notifiers(2 * pair.index + ring)) is not None
        }
        # A frontend may not have said yet by which eventfds it is told.
        if len(notifiers) < len(pair.queues):
            return
        if pair.delegate(notifiers, device.driver_features):
            self.count += 1

    def refresh(self) -> None:
        """Tell the workers that look at frames that the receive filter may have changed."""
        for pair in self._device.pairs:
            if pair.delegated and isinstance(pair.worker, FrameWorker):
                pair.worker.refresh()

    def collect(self) -> None:
        """Bring the device's counters up to what the workers have moved."""
        for pair in self._device.pairs:
            if isinstance(pair.worker, FrameWorker):
                pair.worker.collect()

    def reclaim(self, pair: Pair) -> None:
        """Reclaim a pair, if it was delegated, and have the device go on with it."""
        if pair.delegated:
            pair.reclaim()
            self._device.go_on(pair)

    def _error_reader(self, worker: QueueWorker, pair: Pair, ring: int) -> Callable[[int], None]:
        def on_error(events: int) -> None:
            with self._device.lock:
                if pair.worker is not worker:
                    # Closed since the loop looked, and its eventfds with it.
                    return
                try:
                    os.eventfd_read(worker.errors[ring])
                except BlockingIOError:
                    # The ring that was broken is no more.
                    return
                if pair.delegated:
                    self._complain(worker, pair, ring)

        return on_error

    def _complain(self, worker: QueueWorker, pair: Pair, ring: int) -> None:
        """Set DEVICE_NEEDS_RESET for a ring that the worker has found broken."""
        self.reclaim(pair)
        # It stands before the chain that the worker did not take.
        fault = pair.queues[ring].next_fault() if ring in pair.queues else None
        queue = f"{'transmit' if ring else 'receive'}q{pair.index + 1}"
        if fault is None:
            fault = "its next chain is sound, but not of the kind that belongs there"
        self._device.host.needs_reset(f"{worker.name} finds {queue} broken: {fault}")
