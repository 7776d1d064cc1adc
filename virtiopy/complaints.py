"""Warnings that a guest or a peer can cause as often as it likes: told, and never a flood."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

#: Lines that may come at once, and how many more a second after them.
BURST = 32
A_SECOND = 1.0


class Allowance:
    """Allows BURST lines at once, then A_SECOND, and counts those that it does not allow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = float(BURST)
        self._last = clock()
        self._left_out = 0

    def ask(self) -> int | None:
        """Return how many lines were left out since the last that was allowed; None for not now."""
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._last) * A_SECOND)
        self._last = now
        if self._left < 1:
            self._left_out += 1
            return None
        self._left -= 1
        left_out, self._left_out = self._left_out, 0
        return left_out


class Complaints:
    """Logs complaints about one driver as warnings, as its allowance goes."""

    def __init__(self, log: "logging.Logger", clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._allowance = Allowance(clock)

    def say(self, text: str) -> None:
        """Log a sentence, or count it where there were too many."""
        left_out = self._allowance.ask()
        if left_out is None:
            return
        more = f" ({left_out} more like this were left out)" if left_out else ""
        self._log.warning("%s%s", text, more)
