"""How a device's notifications reach its driver: an `InterruptSink` for each kind of wire."""

import enum
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from virtiopy import eventfds
from virtiopy.transport.registers import Interrupt


class Source(enum.Enum):
    """What a notification can be about besides a queue."""

    CONFIG = "configuration change"


#: A configuration change notification, also for DEVICE_NEEDS_RESET (2.3).
CONFIG: Final = Source.CONFIG

#: A queue by its index, for a used buffer notification; or CONFIG.
InterruptSource: TypeAlias = int | Literal[Source.CONFIG]


#: Says how far a worker of a queue has come: a number that changes when it uses buffers.
Progress: TypeAlias = Callable[[], int]


class InterruptSink(Protocol):
    """Takes a device's notifications to the driver."""

    def trigger(self, source: InterruptSource) -> None:
        """Notify the driver."""

    def delegate(self, index: int, progress: Progress | None) -> None:
        """Take note that another worker sends the used buffer notifications of a queue.

        `progress` says how far it has come, where that can be told.
        """

    def reclaim(self, index: int) -> None:
        """Take note that the device sends them again."""

    def clear(self) -> None:
        """Forget what the driver has not acknowledged: the device is reset (2.4)."""


class NoInterrupts:
    """A sink for a device that has no driver to notify."""

    def trigger(self, source: InterruptSource) -> None:
        """Notify no driver."""

    def delegate(self, index: int, progress: Progress | None) -> None:
        """Take no note."""

    def reclaim(self, index: int) -> None:
        """Take no note."""

    def clear(self) -> None:
        """Have nothing to forget."""


class InterruptWatcher:
    """Looks on at an interrupt; each method does nothing here, and is called with its lock held."""

    def before_event(self) -> None:
        """Do what is to be done before events are set or cleared."""

    def triggered(self) -> None:
        """See the driver be interrupted."""

    def read(self) -> None:
        """See the driver read the register."""

    def acknowledged(self, events: int) -> None:
        """See the driver write an acknowledgement."""


class StatusInterrupt(ABC):
    """One interrupt for all sources, and a register that says which (4.2.3.4, 4.1.4.5).

    The device's threads trigger it, and the CPU's thread acknowledges it, at the same time.
    """

    def __init__(self) -> None:
        # Reentrant: what the driver has done unseen is looked up when events change.
        self.lock = threading.RLock()
        #: The events that the driver has not acknowledged.
        self.events = 0
        #: Called, with `lock` held, when the register may read otherwise than before.
        self.on_change: Callable[[], None] = lambda: None
        self.watcher = InterruptWatcher()
        #: Whether the register is shown, not read, so that what workers do is not asked for then.
        self.is_shown = False
        # How far the workers of queues have come that send their notifications themselves, and how
        # far they had come when the driver last acknowledged used buffers.
        self._workers: dict[int, Progress | None] = {}
        self._acknowledged: dict[int, int] = {}

    def read(self) -> int:
        """Return what the driver reads."""
        with self.lock:
            status = self.read_status()
            self.watcher.read()
            return status

    def read_status(self) -> int:
        """Return what the register reads as.

        A worker that sends notifications in the device's place sets no event here. It has had
        reason to when it has used buffers since the last acknowledgement; where that cannot be
        told, each interrupt may be for used buffers.
        """
        used = bool(self._workers) and (self.is_shown or self.workers_went_on())
        return self.events | (Interrupt.USED_BUFFER if used else 0)

    def workers_went_on(self) -> bool:
        """Whether workers have used buffers since the driver acknowledged some, or may have."""
        return any(
            progress is None or progress() != self._acknowledged.get(index)
            for index, progress in self._workers.items()
        )

    def progress(self) -> dict[int, int]:
        """Return how far workers have come, by queue, where that can be told."""
        return {
            index: progress() for index, progress in self._workers.items() if progress is not None
        }

    @property
    def delegated(self) -> bool:
        """Whether there are queues whose used buffer notifications another worker sends."""
        return bool(self._workers)

    def trigger(self, source: InterruptSource) -> None:
        """Set the event's bit, and interrupt the driver."""
        event = Interrupt.CONFIG_CHANGE if source is CONFIG else Interrupt.USED_BUFFER
        with self.lock:
            self.watcher.before_event()
            self.events |= int(event)
            self.on_change()
            self.watcher.triggered()
            self.interrupt()

    def acknowledge(self, events: int) -> None:
        """Clear bits that the driver has seen (4.2.3.4.1)."""
        with self.lock:
            self.watcher.before_event()
            self._clear(events)
            self.watcher.acknowledged(events)

    def _clear(self, events: int) -> None:
        if events & Interrupt.USED_BUFFER:
            self._acknowledged = self.progress()
        seen = self.events & events
        self.events &= ~events
        self.on_change()
        if seen:
            self.follow_acknowledgement()

    def clear(self) -> None:
        """Forget all events."""
        with self.lock:
            self._clear(Interrupt.USED_BUFFER | Interrupt.CONFIG_CHANGE)

    def delegate(self, index: int, progress: Progress | None) -> None:
        """Take note that another worker sends the used buffer notifications of a queue."""
        with self.lock:
            self._workers[index] = progress
            if progress is not None:
                self._acknowledged[index] = progress()
            self.on_change()

    def reclaim(self, index: int) -> None:
        """Take note that the device sends them again."""
        with self.lock:
            self._workers.pop(index, None)
            self.on_change()

    @abstractmethod
    def interrupt(self) -> None:
        """Interrupt the driver; `lock` is held."""

    @abstractmethod
    def follow_acknowledgement(self) -> None:
        """Follow an acknowledgement of events that were set; `lock` is held."""


class LevelInterrupt(StatusInterrupt):
    """A line that is high while any event is set; `set_level` is told its level."""

    def __init__(self, set_level: Callable[[bool], None]) -> None:
        super().__init__()
        self._set_level = set_level

    def interrupt(self) -> None:
        """Raise the line."""
        self._set_level(True)

    def follow_acknowledgement(self) -> None:
        """Lower the line, and raise it again for events that came meanwhile."""
        self._set_level(False)
        if self.events:
            # The driver read the register before these events were set. A driver that takes the
            # line by its edges has had none for them, as the line was high.
            self._set_level(True)


@dataclass(slots=True)
class Irqfd:
    """An eventfd whose writes pulse an interrupt line; several devices may have it.

    `given_away` says that another process may have it, too.
    """

    fd: int
    given_away: bool = False


class PulseInterrupt(StatusInterrupt):
    """An irqfd: each event is a pulse, which no acknowledgement takes back."""

    def __init__(self, irqfd: Irqfd) -> None:
        super().__init__()
        self._irqfd = irqfd

    def interrupt(self) -> None:
        """Pulse the line."""
        if self._irqfd.given_away:
            eventfds.signal(self._irqfd.fd)
        else:
            os.eventfd_write(self._irqfd.fd, 1)

    def delegate(self, index: int, progress: Progress | None) -> None:
        """Take note that another worker has the eventfd: it may be another process."""
        self._irqfd.given_away = True
        super().delegate(index, progress)

    def follow_acknowledgement(self) -> None:
        """Leave the line alone."""
