"""What can be watched of a device's life, whatever transport its driver uses.

A trace or a judge of drivers is a `LifecycleObserver`: it is told of each act of the driver and of
each answer, and changes nothing.
"""

import enum
from dataclasses import dataclass

from virtiopy.transport.interrupts import InterruptSource
from virtiopy.transport.queueconfig import QueueConfig


class Act(enum.StrEnum):
    """The kinds of what a driver does."""

    STATUS = "status"
    FEATURES = "features"
    QUEUE = "queue"
    KICK = "kick"
    ACCESS = "access"
    CONFIG = "config"


@dataclass(slots=True, frozen=True)
class Refusal:
    """Something that a driver did and that the device does not go along with.

    `fact` says in one clause what the driver did, `section` is the specification's, and `answer`
    what the device does about it, where that is not clear from the fact.
    """

    act: Act
    fact: str
    section: str
    answer: str = ""

    def __str__(self) -> str:
        answer = f"; {self.answer}" if self.answer else ""
        return f"{self.fact} ({self.section}){answer}"


class LifecycleObserver:
    """Watches one device and its driver; each method does nothing unless it is overridden.

    Every call holds the device's lock, but `interrupt_acknowledged` and `interrupt_raised`, which
    come from the thread that acknowledges or raises it. Kicks and interrupts of a queue that is
    delegated to another worker are not seen here.
    """

    def status_written(self, before: int, written: int) -> None:
        """See the driver write its device status field, which read as `before` (2.1)."""

    def features_accepted(self, offered: int, accepted: int) -> None:
        """See the device go along with the features that the driver accepted (3.1.1)."""

    def refused(self, refusal: Refusal) -> None:
        """See something that the driver did and that the device does not go along with."""

    def queue_configured(self, index: int, config: QueueConfig) -> None:
        """See the driver make a queue ready."""

    def queue_disabled(self, index: int) -> None:
        """See a queue be not ready any more."""

    def queue_was_reset(self, index: int) -> None:
        """See the driver reset a queue (2.6.1)."""

    def kicked(self, index: int) -> None:
        """See an available buffer notification of a queue that the device works (2.3)."""

    def activated(self) -> None:
        """See the device go live: the driver set DRIVER_OK, or what its transport has for it."""

    def config_changed(self, *, notify: bool) -> None:
        """See the configuration change; `notify` says whether the driver hears it (3.2.1)."""

    def interrupt_raised(self, source: InterruptSource) -> None:
        """See the device send a notification to the driver (2.3)."""

    def interrupt_acknowledged(self, events: int) -> None:
        """See the driver acknowledge these bits, on a transport where it does (4.2.3.4.1)."""

    def needs_reset(self, reason: str) -> None:
        """See the device set DEVICE_NEEDS_RESET (2.1.2)."""

    def was_reset(self) -> None:
        """See the device be reset: it has forgotten its driver (2.4)."""
