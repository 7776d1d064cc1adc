"""The events of a trace, which of them are wanted, and where they go."""

import enum
import itertools
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

#: A value of an event's details.
Detail = int | str


class Kind(enum.StrEnum):
    """The kinds of events, by which they are filtered."""

    REGISTER = "register"  # the driver reads or writes a register
    LIFE = "life"  # what that comes to: features, queues, resets, refusals
    RING = "ring"  # chains available and used, notifications wanted or not
    KICK = "kick"
    INTERRUPT = "interrupt"
    MESSAGE = "message"  # of vhost-user


class Actor(enum.StrEnum):
    """Whose act an event is."""

    DRIVER = "driver"
    DEVICE = "device"


class Phase(enum.Enum):
    """Whether an event is all there is, or one end of something that lasts."""

    INSTANT = enum.auto()
    BEGIN = enum.auto()
    END = enum.auto()


@dataclass(slots=True, frozen=True)
class Event:
    """One event of a device.

    `what` is its line, which is empty for an end that is not worth one. `details` are what a
    program looks for. Both ends of what lasts have the same `span`, and `flow` is the same for
    events of which one brought the other about. `took`, in seconds, is set where the event is
    told after its end.
    """

    kind: Kind
    actor: Actor
    what: str
    queue: int | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)
    phase: Phase = Phase.INSTANT
    span: str = ""
    flow: int | None = None
    took: float | None = None


@dataclass(slots=True, frozen=True)
class Stamped:
    """An event with its device, and when it began, in seconds since the trace's start."""

    seconds: float
    device: str
    event: Event


@dataclass(slots=True, frozen=True)
class Filter:
    """Which events are wanted: an empty collection wants all.

    An event without a queue passes only where no queues are named.
    """

    devices: Collection[str] = ()
    queues: Collection[int] = ()
    kinds: Collection[Kind] = ()

    def wants(self, device: str, kind: Kind, queue: int | None) -> bool:
        """Say whether such an event is wanted."""
        return (
            (not self.devices or device in self.devices)
            and (not self.kinds or kind in self.kinds)
            and (not self.queues or queue in self.queues)
        )


class Sink(Protocol):
    """Takes the events of a trace, one at a time."""

    def take(self, stamped: Stamped) -> None:
        """Take an event; raises OSError where it cannot be written."""

    def finish(self) -> None:
        """Write what was kept back; raises OSError."""


class LiveTrace:
    """Stamps events, and gives those that are wanted to a sink; any thread may call it.

    A sink that fails ends the trace, and nothing else: `failure` says why.
    """

    def __init__(self, sink: Sink, wanted: Filter | None = None) -> None:
        self.filter = Filter() if wanted is None else wanted
        self.failure: OSError | None = None
        #: Told of it at once.
        self.on_failure: Callable[[OSError], None] = lambda error: None
        self._sink: Sink | None = sink
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._flows = itertools.count(1)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def next_flow(self) -> int:
        """Return a number for events of which one brings the other about."""
        return next(self._flows)

    def add(self, device: str, event: Event) -> None:
        """Add an event of a device's, if it is wanted."""
        if self._sink is None or not self.filter.wants(device, event.kind, event.queue):
            return
        with self._lock:
            if self._sink is None:
                return
            seconds = self.seconds - (event.took or 0.0)
            try:
                self._sink.take(Stamped(seconds, device, event))
            except OSError as error:
                self._fail(error)

    def finish(self) -> None:
        """End the trace."""
        with self._lock:
            if self._sink is None:
                return
            try:
                self._sink.finish()
            except OSError as error:
                self._fail(error)
            self._sink = None

    def _fail(self, error: OSError) -> None:
        self.failure = error
        self._sink = None
        self.on_failure(error)
