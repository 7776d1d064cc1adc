"""A trace as lines: for a person, and as JSON."""

import json
from collections.abc import Callable

from virtiopy.trace.events import Stamped
from virtiopy.trace.words import event_line

Write = Callable[[bytes], object]


class TextSink:
    """One line an event. What comes again and again is written once, and then counted."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._last: tuple[str, str] | None = None
        self._repeats = 0

    def take(self, stamped: Stamped) -> None:
        """Write a line, or count it."""
        if not stamped.event.what:
            return
        this = (stamped.device, stamped.event.what)
        if this == self._last:
            self._repeats += 1
            return
        self.finish()
        self._last = this
        self._line(event_line(stamped.seconds, f"{stamped.device}: {stamped.event.what}"))

    def finish(self) -> None:
        """Say how often the last line came again."""
        if self._repeats:
            more = "once more" if self._repeats == 1 else f"{self._repeats} times more"
            self._line(f"{'':12}  ... {more}")
        self._repeats = 0

    def _line(self, line: str) -> None:
        self._write(f"{line}\n".encode())


class JsonSink:
    """One JSON object a line, for each event that has a line in text."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def take(self, stamped: Stamped) -> None:
        """Write an object."""
        event = stamped.event
        if not event.what:
            return
        document: dict[str, object] = {
            "seconds": round(stamped.seconds, 6),
            "device": stamped.device,
            "kind": event.kind.value,
            "actor": event.actor.value,
            "what": event.what,
        }
        if event.queue is not None:
            document["queue"] = event.queue
        if event.took is not None:
            document["took"] = round(event.took, 6)
        document.update(event.details)
        self._write(json.dumps(document).encode() + b"\n")

    def finish(self) -> None:
        """Keep nothing back."""
