"""The rx and tx queues of a socket device, delegated to another worker that has its own sockets."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.delegation import (
    Backing,
    DelegatedQueue,
    Notifiers,
    OpenWorker,
    QueueWorker,
)
from virtiopy.errors import ConfigError, VirtiopyError
from virtiopy.eventloop import READABLE

#: The queues that a worker has, by its rings: rx and tx. The device keeps the events.
RINGS = (0, 1)


@dataclass(slots=True, frozen=True)
class GuestBacking(Backing):
    """The guest whose packets a worker takes."""

    kind: ClassVar[str] = "socket device"

    guest_cid: int


@runtime_checkable
class PacketWorker(QueueWorker, Protocol):
    """Another worker of a socket device's queues, which knows its guest by a context ID."""

    def set_guest_cid(self, cid: int) -> None:
        """Take another one; raises ConfigError for one that another guest has."""


class DelegatedPackets:
    """Delegates the two queues of `device`, and reclaims them; there is no worker at first.

    The caller holds the device's lock.
    """

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device
        self.worker: PacketWorker | None = None
        self._notifiers: Sequence[Notifiers] = ()
        #: How often they were delegated.
        self.count = 0
        # What closes the worker.
        self._opened = contextlib.ExitStack()

    @property
    def delegated(self) -> bool:
        """Whether the worker has the queues."""
        return bool(self._notifiers)

    def open(self, open_worker: OpenWorker, guest_cid: int) -> None:
        """Open a worker. Raises ConfigError, and what `open_worker` does."""
        device = self._device
        if device.may_block or device.loop is None:
            raise ConfigError(
                "In trapped mode only the device can take kicks: start it in another mode."
            )
        with contextlib.ExitStack() as opened:
            worker = open_worker(GuestBacking(guest_cid))
            opened.callback(worker.close)
            if not isinstance(worker, PacketWorker):
                raise ConfigError(f"{worker.name} does not work the queues of socket devices.")
            for ring, eventfd in enumerate(worker.errors):
                watch = device.loop.watch(
                    eventfd, READABLE, self._error_reader(worker, ring), f"{worker.name} errors"
                )
                opened.callback(device.loop.unwatch, watch)
            self._opened = opened.pop_all()
        self.worker = worker

    def close(self) -> None:
        """Reclaim the queues, and close the worker."""
        self.reclaim()
        self.worker = None
        self._opened.close()

    def offered(self, features: int) -> int:
        """Leave out what the worker has not."""
        return features if self.worker is None else self.worker.offered(features)

    def delegate(self) -> None:
        """Delegate the queues, where there is a worker, and that can be done now.

        Where it cannot be done at all the device works them, and `refusal` says why.
        """
        device, worker = self._device, self.worker
        if worker is None or self.delegated or device.halted or device.refusal is not None:
            return
        queues, notifiers = [], []
        for ring in RINGS:
            queue, found = device.queues.get(ring), device.host.notifiers(ring)
            if queue is None or found is None:
                return
            queues.append(DelegatedQueue(ring, queue, found.kick, found.call))
            notifiers.append(found)
        for one in notifiers:
            one.delegate()
        try:
            worker.delegate(queues, device.driver_features)
        except VirtiopyError as error:
            for one in notifiers:
                one.reclaim()
            device.refusal = str(error)
            raise
        self._notifiers = notifiers
        self.count += 1

    def reclaim(self) -> None:
        """Reclaim the queues, if they are delegated."""
        if self.worker is not None and self.delegated:
            self.worker.reclaim()
            notifiers, self._notifiers = self._notifiers, ()
            for one in notifiers:
                one.reclaim()

    def _error_reader(self, worker: PacketWorker, ring: int) -> Callable[[int], None]:
        def on_error(events: int) -> None:
            with self._device.lock:
                if self.worker is not worker:
                    # Closed since the loop looked, and its eventfds with it.
                    return
                try:
                    os.eventfd_read(worker.errors[ring])
                except BlockingIOError:
                    return
                if self.delegated:
                    self._complain(worker, ring)

        return on_error

    def _complain(self, worker: PacketWorker, ring: int) -> None:
        """Set DEVICE_NEEDS_RESET for a ring that the worker has found broken."""
        self.reclaim()
        queue = self._device.queues.get(ring)
        fault = queue.next_fault() if queue is not None else None
        if fault is None:
            fault = "its next chain is sound, but not of the kind that belongs there"
        name = "tx" if ring else "rx"
        self._device.host.needs_reset(f"{worker.name} finds the {name} queue broken: {fault}")
