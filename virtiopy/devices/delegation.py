"""How a device delegates its rings to another worker, and reclaims them.

Another worker is the kernel's vhost, a thread of this process without the interpreter, or another
process. While it has a queue, it takes the driver's kicks and sends the interrupts, and the device
does not touch the queue. What moves, both ways, is the queue's QueueState; no chain is in flight
then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

from virtiopy.virtqueue.queue import Chain, Virtqueue


class Notifiers(Protocol):
    """The eventfds that a virtqueue is reached by.

    The driver's kicks write `kick`; a write to `call` is a used buffer notification. Each method
    is called with the device's lock held.
    """

    @property
    def kick(self) -> int:
        """The eventfd of the driver's kicks."""

    @property
    def call(self) -> int | None:
        """The eventfd of interrupts; None where the driver wants none."""

    def delegate(self) -> None:
        """Leave both to another worker: the device gets no more kicks of this queue."""

    def reclaim(self) -> None:
        """Have both again; the device is kicked once, whether or not there is anything to do."""


@dataclass(slots=True, frozen=True)
class DelegatedQueue:
    """A virtqueue to delegate, and the eventfds of its notifiers; nothing of it is in flight.

    `ring` is its place among those that one worker has: of a network device's pair, 0 to receive
    and 1 to transmit.
    """

    ring: int
    queue: Virtqueue
    kick: int
    call: int | None


class Backing:
    """What a worker needs of a device besides its queues: each device type has its own kinds.

    It says what the buffers' content goes to and comes from, as a tap's file. `kind` is what the
    device is, in a sentence.
    """

    kind: ClassVar[str] = "device"


class QueueWorker(Protocol):
    """Another worker of some of a device's virtqueues.

    It has them between `delegate` and `reclaim`, and the queues' notifiers are delegated to it all
    the while.
    """

    name: str

    #: Eventfds, one for each ring: written when the worker finds that ring broken, which it does
    #: not touch from then on.
    errors: Sequence[int]

    def offered(self, features: int) -> int:
        """Return what can be offered of these features where this worker has the queues."""

    def delegate(self, queues: Sequence[DelegatedQueue], driver_features: int) -> None:
        """Take virtqueues: from here on no one else works them, or takes their kicks.

        If the worker refuses one it takes none, and the device can work all: HostError or
        ConfigError, with the reason, or DriverError.
        """

    def reclaim(self) -> None:
        """Give them back: the worker touches them no more, and each goes on where it left it."""

    def close(self) -> None:
        """Let go of all."""


@runtime_checkable
class FrameWorker(QueueWorker, Protocol):
    """Another worker of a network device's pair, which looks at the frames as the device does."""

    def refresh(self) -> None:
        """Take the receive filter as it is now."""

    def collect(self) -> None:
        """Add the frames that were moved since the last call to the device's counters."""


@runtime_checkable
class RingWorker(Protocol):
    """Another worker of virtqueues that are independent of each other, in this process.

    It hands up the chains that it does not serve: they are what `pop_many` of a delegated queue
    returns, and they are pushed as ever.
    """

    name: str

    #: Eventfds, written when the device is to handle its delegated queues: chains were handed up,
    #: or a queue was found broken, which the worker does not touch from then on.
    attention: Sequence[int]

    def look(self) -> None:
        """Take note that `attention` was written, before the device handles the queues."""

    def delegate(self, queue: DelegatedQueue) -> None:
        """Take a virtqueue; raises ConfigError or HostError, and the device has it then."""

    def reclaim(self, queue: Virtqueue) -> Sequence[Chain]:
        """Give a virtqueue back, once the worker has completed what it began.

        Returns the chains that it has handed up and the device has not popped yet: they are the
        device's to complete.
        """

    def refresh(self) -> None:
        """Take what has changed of the backing."""

    def close(self) -> None:
        """End; the worker has no virtqueues any more."""


#: Makes a worker for a device with this backing. Raises ConfigError for one that it cannot work
#: with, HostError where the host has no such worker.
OpenWorker: TypeAlias = Callable[[Backing], QueueWorker | RingWorker]
