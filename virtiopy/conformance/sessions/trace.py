"""What passed between driver and device: the evidence of a test."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from virtiopy.trace.words import event_line

#: How many of the last events are kept.
EVENTS_MAX = 400


@dataclass(slots=True)
class _Event:
    seconds: float
    what: str
    count: int = 1


class Trace:
    """The last register accesses, messages and ring operations, with when they were.

    It may be written by any thread. What comes again and again is one event.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._events: deque[_Event] = deque(maxlen=EVENTS_MAX)
        self._count = 0
        self._quiet: int | None = None

    def note(self, what: str) -> None:
        """Add an event, one line."""
        if self._quiet == threading.get_ident():
            return
        if self._events and (last := self._events[-1]).what == what:
            last.count += 1
            return
        self._count += 1
        self._events.append(_Event(time.monotonic() - self._start, what))

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Leave out what this thread does meanwhile: it only looks whether something came."""
        before, self._quiet = self._quiet, threading.get_ident()
        try:
            yield
        finally:
            self._quiet = before

    def lines(self) -> list[str]:
        """Return the events, the oldest first, each with its time in ms since the start."""
        events = list(self._events)
        left_out = self._count - len(events)
        lines = [f"... {left_out} events before"] if left_out else []
        return lines + [event_line(event.seconds, event.what, event.count) for event in events]
