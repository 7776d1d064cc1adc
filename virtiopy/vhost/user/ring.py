"""A virtqueue of a backend: what its frontend has said of it, and its life (Ring states)."""

import contextlib
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from virtiopy import eventfds
from virtiopy.closing import Closing
from virtiopy.errors import PeerError
from virtiopy.eventloop import READABLE, EventLoop, Timer, Watch
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.vhost.user.inflight import QueueInflight
from virtiopy.vhost.user.memory import DirtyLog, FrontendMemory, WriteLog
from virtiopy.vhost.user.messages import VHOST_VRING_F_LOG, RingAddresses
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.formats import open_queue, ring_format
from virtiopy.virtqueue.layout import valid_queue_size
from virtiopy.virtqueue.queue import QueueAreas, QueueState, Virtqueue

log = logging.getLogger(__name__)

#: Seconds between two looks at a ring whose frontend does not kick.
POLL_INTERVAL = 0.001


class Ring(Closing):
    """Virtqueue `index` of a device: stopped, or started with a `queue` that the device works.

    `work` is called on the loop's thread for each kick, and `fail` with the reason when there can
    be none any more. The eventfds that are set are the ring's to close.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        loop: EventLoop,
        index: int,
        work: Callable[["Ring"], None],
        fail: Callable[[str], None],
    ) -> None:
        self.index = index
        self.size = 0
        self.base = QueueState()
        self.addresses: RingAddresses | None = None
        self.enabled = False
        self.queue: Virtqueue | None = None
        #: Chains that a backend before this one had taken, and that are served again.
        self.inherited = 0
        #: Whether the driver was given a buffer back before the ring started here.
        self.was_used = False
        #: Whether the frontend wants it started: it has said how it kicks, or that it does not.
        self.kick_is_set = False
        self._lifecycle = lifecycle
        self._device = lifecycle.device
        self._loop = loop
        self._work = work
        self._fail = fail
        self._kick: int | None = None
        self._call: int | None = None
        self._error: int | None = None
        self._writes: WriteLog | None = None
        self._watch: Watch | None = None
        self._poll: Timer | None = None

    def close(self) -> None:
        """Forget everything that the frontend said."""
        self.forget_kick()
        self.set_call(None)
        self.set_error(None)
        self.size = 0
        self.base = QueueState()
        self.addresses = None
        self.enabled = False

    # Eventfds

    def set_kick(self, fd: int | None) -> None:
        """Take kicks from this file from now on; None for a ring that is to be polled.

        Raises PeerError for a file of another kind; so do the two below.
        """
        _check(fd)
        with self._device.undelegated(self.index):
            self._unwatch()
            if self._kick is not None:
                os.close(self._kick)
            self._kick = fd
            self.kick_is_set = True
            if self.queue is not None:
                self._watch_kick()

    def forget_kick(self) -> None:
        """Be as before any kick was set: the ring does not start until another is."""
        self.set_kick(None)
        self.kick_is_set = False

    def set_call(self, fd: int | None) -> None:
        """Notify the driver by this file from now on; None: it does not want to be told.

        A notification for what was used already may have gone to the file before, which QEMU
        watches no more once it has sent the message, and does not wait for an answer to it: the
        driver is told once more.
        """
        _check(fd)
        with self._device.undelegated(self.index):
            if self._call is not None:
                os.close(self._call)
            self._call = fd
            if self.queue is not None and self.queue.state != QueueState():
                self.notify()

    def set_error(self, fd: int | None) -> None:
        """Tell by this file that the ring is broken."""
        _check(fd)
        if self._error is not None:
            os.close(self._error)
        self._error = fd

    def notify(self) -> None:
        """Send a used buffer notification."""
        _signal(self._call)

    def signal_error(self) -> None:
        """Say that the ring is broken."""
        _signal(self._error)

    # Started and stopped

    def start(
        self, memory: FrontendMemory, inflight: QueueInflight | None, *, features: int
    ) -> Virtqueue:
        """Make the queue, and take its kicks; raises PeerError or QueueError.

        It goes on behind the last buffer that was used, with those that `inflight` says a backend
        before had taken. That is the base, but from a frontend that counts what was made available.
        """
        addresses = self.addresses
        if addresses is None or not valid_queue_size(self.size):
            raise PeerError(f"ring {self.index} is to start, and has no size or no addresses yet")
        areas = layout.areas(ring_format(features), self.size)
        self._writes = WriteLog(memory)
        observers = [self._writes] if inflight is None else [self._writes, inflight]
        queue = open_queue(
            memory,
            self.size,
            QueueAreas(
                memory.translate(addresses.descriptor_table, areas.descriptor.size),
                memory.translate(addresses.available_ring, areas.driver.size),
                memory.translate(addresses.used_ring, areas.device.size),
            ),
            features=features,
            index=self.index,
            # The driver counts on what the configuration space has said, as seg_max, before the
            # frontend chose a size for the ring.
            longest_chain=self._device.queue_sizes[self.index],
            observers=[*self._lifecycle.queue_observers, *observers],
        )
        queue.recover()
        self.was_used = queue.state != QueueState()
        used = queue.state
        if inflight is not None:
            unfinished = inflight.begin(used.vring_base, self.size)
            queue.recover(unfinished)
            self.inherited = len(unfinished)
        else:
            self.inherited = 0
            if used != self.base:
                log.warning(
                    "ring %d goes on from the used ring's idx, %d, and not from the base, %d: "
                    "no buffer is skipped, and some may be served twice",
                    self.index,
                    used.vring_base,
                    self.base.vring_base,
                )
        self.queue = queue
        self._watch_kick()
        return queue

    def stop(self) -> None:
        """Complete what is being done, leave the rest available, and keep the base.

        The device is to forget the queue before any memory goes.
        """
        queue = self.queue
        if queue is None:
            return
        self._device.settle(self.index)
        self._unwatch()
        queue.unpop_all()
        self._lifecycle.stop_queue(self.index)
        self.base = queue.state
        self.queue = None
        self._writes = None

    def log_writes(self, log: DirtyLog | None, used_log: int | None) -> None:
        """Mark what is written from now on in this log, if any: see WriteLog."""
        if self._writes is not None:
            with self._device.undelegated(self.index):
                self._writes.mark_in(log, used_log)

    @property
    def used_log(self) -> int | None:
        """The guest physical address by which writes to the used ring are logged, if they are."""
        addresses = self.addresses
        if addresses is None or not addresses.flags >> VHOST_VRING_F_LOG & 1:
            return None
        return addresses.log

    # Notifiers, for another worker

    @property
    def notifiers(self) -> "RingNotifiers | None":
        """The ring's eventfds; None where the driver does not kick by one."""
        if self._kick is None or stat.S_IFMT(os.fstat(self._kick).st_mode):
            return None
        return RingNotifiers(self, self._kick, self._call)

    def leave_kicks(self) -> None:
        """Take no kicks: another worker does."""
        self._unwatch()

    def take_kicks(self) -> None:
        """Take the kicks again, and look at the ring: the worker may have taken one before."""
        self._watch_kick()
        self._loop.call_soon(lambda: self._work(self), f"queue {self.index}")

    # Kicks

    def _watch_kick(self) -> None:
        if self._watch is not None or self._poll is not None:
            return
        if self._kick is not None:
            try:
                self._watch = self._loop.watch(
                    self._kick, READABLE, self._kicked, f"queue {self.index}"
                )
            except OSError as error:
                raise PeerError(f"ring {self.index} has a kick that is no eventfd") from error
        else:
            self._poll = self._loop.call_later(
                POLL_INTERVAL, lambda: self._work(self), f"queue {self.index}", every=True
            )

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._loop.unwatch(self._watch)
            self._watch = None
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None

    def _kicked(self, events: int) -> None:
        if self._kick is None:
            return
        try:
            kicks = eventfds.take(self._kick)
        except OSError as error:
            self._fail(f"ring {self.index} cannot be kicked: {error.strerror}")
            return
        if kicks is None:
            self._fail(f"ring {self.index} has a kick that was closed at its other end")
        elif kicks:
            self._work(self)


@dataclass(slots=True, frozen=True)
class RingNotifiers:
    """The eventfds of a ring that the frontend has set (devices.delegation.Notifiers)."""

    ring: Ring
    kick: int
    call: int | None

    def delegate(self) -> None:
        """Leave both to another worker."""
        self.ring.leave_kicks()

    def reclaim(self) -> None:
        """Have both again."""
        self.ring.take_kicks()

    def forget_kicks(self) -> None:
        """Drop no kick: the eventfd is the frontend's."""


def _check(fd: int | None) -> None:
    """Close a file that is neither an eventfd nor a pipe or a socket in its place.

    A file system of the peer's could keep us waiting for it, whatever we do with its file.
    """
    if fd is None:
        return
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    # An eventfd has no type.
    if kind not in {0, stat.S_IFIFO, stat.S_IFSOCK}:
        os.close(fd)
        raise PeerError("an eventfd is to come, and another kind of file is there")


def _signal(fd: int | None) -> None:
    if fd is not None:
        # The frontend that gave a file which is no eventfd has no notifications.
        with contextlib.suppress(OSError):
            eventfds.signal(fd)
