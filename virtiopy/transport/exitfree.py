"""Registers without exits: which of them, and when, so that each reads as it should.

The guest reads a page of memory in place of registers, and the kernel may take what the driver
writes to InterruptACK for used buffers. Nothing in the kernel clears the bit of InterruptStatus
then: that is done when the eventfd that the kernel writes is read, a little later. No driver sees
this which reads InterruptStatus once for an interrupt and acknowledges what it read, as Linux's
does (4.2.3.4.1). A driver that polls, or reads on until the register is 0, would.

So each driver is on trial first, with exits: those of its first interrupts. A driver that handles
CLEAN of them one after the other in that way is trusted. A driver that then acknowledges more than
there was has its exits back, until it resets the device.
"""

import contextlib
import enum
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack

from virtiopy.closing import Closing
from virtiopy.eventloop import READABLE, EventLoop, Watch
from virtiopy.transport.interrupts import InterruptWatcher, StatusInterrupt
from virtiopy.transport.observer import LifecycleObserver
from virtiopy.transport.registers import Interrupt
from virtiopy.virtqueue.layout import INDEX_MODULUS

log = logging.getLogger(__name__)

#: Interrupts in a row that a driver on trial has to handle as 4.2.3.4.1 describes.
CLEAN = 4

#: Seconds until the driver's acknowledgements are looked at again, after they were looked at.
PAUSE = 0.02

#: Acknowledgements in such a time that may be for interrupts from before it: one that is being
#: handled, and one that the interrupt controller holds.
OUTSTANDING = 2


class Trust(enum.Enum):
    """What becomes of a driver's reads and acknowledgements."""

    #: There is no interrupt yet: reads are without exits.
    IDLE = enum.auto()
    #: Both are exits, and the driver is watched.
    TRIAL = enum.auto()
    #: Neither is.
    TRUSTED = enum.auto()
    #: Both are exits until a reset.
    REFUSED = enum.auto()


class ExitFree(InterruptWatcher, LifecycleObserver, Closing):
    """Lets the driver of one device do without exits, as far as it is trusted.

    `map_page` has the guest read the page, and `take_acks` has the kernel write an eventfd for
    acknowledgements of used buffers; both return what ends that. With `always` the driver is
    trusted unseen, and stays so.
    """

    def __init__(
        self,
        interrupt: StatusInterrupt,
        loop: EventLoop,
        name: str,
        *,
        map_page: Callable[[], Callable[[], None]],
        take_acks: Callable[[int], Callable[[], None]],
        always: bool = False,
    ) -> None:
        self.trust = Trust.IDLE
        self._interrupt = interrupt
        self._loop = loop
        self._name = name
        self._map_page = map_page
        self._take_acks = take_acks
        self._always = always
        self._acks = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watch: Watch | None = None
        self._unmap: Callable[[], None] | None = None
        # What ends that the kernel takes acknowledgements.
        self._trusting = ExitStack()
        self._forget()
        interrupt.watcher = self
        self._show_page()

    def _forget(self) -> None:
        # On trial: whether there was an interrupt since the last read, how often the register was
        # read since the last acknowledgement, and how many interrupts were handled well.
        self._fresh = False
        self._reads = 0
        self._clean = 0
        # Trusted: interrupts and acknowledgements since they were last compared.
        self._raised = 0
        self._acknowledged = 0
        self._progress: dict[int, int] = {}

    def close(self) -> None:
        """Have the guest's accesses be exits again."""
        with self._interrupt.lock:
            self._interrupt.watcher = InterruptWatcher()
            self._end_trust()
            self._hide_page()
        os.close(self._acks)

    def _show_page(self) -> None:
        if self._unmap is None:
            self._unmap = self._map_page()

    def _hide_page(self) -> None:
        if self._unmap is not None:
            self._unmap()
            self._unmap = None

    # The device's life

    def activated(self) -> None:
        """Put the driver on trial, now that there are interrupts."""
        with self._interrupt.lock:
            if self._always:
                self._begin_trust()
            else:
                self.trust = Trust.TRIAL
                self._hide_page()

    def was_reset(self) -> None:
        """Begin anew, with the next driver."""
        with self._interrupt.lock:
            self._end_trust()
            self._forget()
            self.trust = Trust.IDLE
            self._show_page()

    # On trial

    def triggered(self) -> None:
        """See an interrupt."""
        self._fresh = True
        self._raised += 1

    def read(self) -> None:
        """See InterruptStatus read."""
        progress = self._interrupt.progress()
        if not self._fresh and progress == self._progress:
            # No interrupt is behind that; or one whose event was acknowledged with another's.
            self._clean = self._reads = 0
        else:
            self._reads += 1
        self._fresh, self._progress = False, progress

    def acknowledged(self, events: int) -> None:
        """See an acknowledgement that was an exit."""
        if self.trust is not Trust.TRIAL or not events & Interrupt.USED_BUFFER:
            return
        self._clean = self._clean + 1 if self._reads == 1 else 0
        self._reads = 0
        if self._clean >= CLEAN:
            self._begin_trust()

    # Trusted

    def _begin_trust(self) -> None:
        self._forget()
        self._progress = self._interrupt.progress()
        self.trust = Trust.TRUSTED
        self._trusting.callback(self._take_acks(self._acks))
        self._interrupt.is_shown = True
        self._interrupt.on_change()
        self._show_page()
        self._look_again()

    def _end_trust(self) -> None:
        self._trusting.close()
        self._interrupt.is_shown = False
        if self._watch is not None:
            self._loop.unwatch(self._watch)
            self._watch = None
        self._take()

    def _take(self) -> int:
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self._acks)
        return 0

    def before_event(self) -> None:
        """Clear what the driver has acknowledged meanwhile."""
        if self.trust is Trust.TRUSTED and (count := self._take()):
            self._acknowledged += count
            self._interrupt.events &= ~Interrupt.USED_BUFFER

    def _look_again(self) -> None:
        """Look at acknowledgements as they come."""
        with self._interrupt.lock:
            if self.trust is Trust.TRUSTED and self._watch is None:
                self._watch = self._loop.watch(
                    self._acks, READABLE, self._acks_came, f"{self._name} acknowledgements"
                )

    def _acks_came(self, events: int) -> None:
        with self._interrupt.lock:
            if self.trust is not Trust.TRUSTED or self._watch is None:
                return
            self.before_event()
            self._interrupt.on_change()
            # Not for each one: they come as often as interrupts.
            self._loop.unwatch(self._watch)
            self._watch = None
            if self._always or not self._is_too_many():
                self._loop.call_later(PAUSE, self._look_again, f"{self._name} acknowledgements")
                return
            log.info("%s: the driver reads InterruptStatus on, and has its exits", self._name)
            self._end_trust()
            self.trust = Trust.REFUSED
            self._hide_page()
            self._interrupt.on_change()

    def _is_too_many(self) -> bool:
        """Say whether there were more acknowledgements than interrupts, and count anew."""
        before, self._progress = self._progress, self._interrupt.progress()
        used = sum(
            (now - before.get(index, now)) % INDEX_MODULUS for index, now in self._progress.items()
        )
        too_many = self._acknowledged > self._raised + used + OUTSTANDING
        self._raised = self._acknowledged = 0
        return too_many
