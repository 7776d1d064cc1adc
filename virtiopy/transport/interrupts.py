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


class InterruptSink(Protocol):
    """Takes a device's notifications to the driver."""

    def trigger(self, source: InterruptSource) -> None:
        """Notify the driver."""

    def delegate(self, index: int) -> None:
        """Take note that another worker sends the used buffer notifications of a queue."""

    def reclaim(self, index: int) -> None:
        """Take note that the device sends them again."""

    def clear(self) -> None:
        """Forget what the driver has not acknowledged: the device is reset (2.4)."""


class NoInterrupts:
    """A sink for a device that has no driver to notify."""

    def trigger(self, source: InterruptSource) -> None:
        """Notify no driver."""

    def delegate(self, index: int) -> None:
        """Take no note."""

    def reclaim(self, index: int) -> None:
        """Take no note."""

    def clear(self) -> None:
        """Have nothing to forget."""


class StatusInterrupt(ABC):
    """One interrupt for all sources, and a register that says which (4.2.3.4, 4.1.4.5).

    The device's threads trigger it, and the CPU's thread acknowledges it, at the same time.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        #: The events that the driver has not acknowledged.
        self.events = 0
        #: The queues whose used buffer notifications another worker sends.
        self.delegated: set[int] = set()
        #: Called, with `lock` held, when the register may read otherwise than before.
        self.on_change: Callable[[], None] = lambda: None

    def read_status(self) -> int:
        """Return what the register reads as.

        A worker that sends notifications in the device's place does not set events here: while
        there is one each interrupt may be for used buffers.
        """
        return self.events | (Interrupt.USED_BUFFER if self.delegated else 0)

    def trigger(self, source: InterruptSource) -> None:
        """Set the event's bit, and interrupt the driver."""
        event = Interrupt.CONFIG_CHANGE if source is CONFIG else Interrupt.USED_BUFFER
        with self.lock:
            self.events |= int(event)
            self.on_change()
            self.interrupt()

    def acknowledge(self, events: int) -> None:
        """Clear bits that the driver has seen (4.2.3.4.1)."""
        with self.lock:
            seen = self.events & events
            self.events &= ~events
            self.on_change()
            if seen:
                self.acknowledged()

    def clear(self) -> None:
        """Forget all events."""
        self.acknowledge(self.events)

    def delegate(self, index: int) -> None:
        """Take note that another worker sends the used buffer notifications of a queue."""
        with self.lock:
            self.delegated.add(index)
            self.on_change()

    def reclaim(self, index: int) -> None:
        """Take note that the device sends them again."""
        with self.lock:
            self.delegated.discard(index)
            self.on_change()

    @abstractmethod
    def interrupt(self) -> None:
        """Interrupt the driver; `lock` is held."""

    @abstractmethod
    def acknowledged(self) -> None:
        """Follow an acknowledgement of events that were set; `lock` is held."""


class LevelInterrupt(StatusInterrupt):
    """A line that is high while any event is set; `set_level` is told its level."""

    def __init__(self, set_level: Callable[[bool], None]) -> None:
        super().__init__()
        self._set_level = set_level

    def interrupt(self) -> None:
        """Raise the line."""
        self._set_level(True)

    def acknowledged(self) -> None:
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

    def delegate(self, index: int) -> None:
        """Take note that another worker has the eventfd: it may be another process."""
        self._irqfd.given_away = True
        super().delegate(index)

    def acknowledged(self) -> None:
        """Leave the line alone."""
