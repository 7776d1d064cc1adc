"""Warnings that a guest can cause as often as it likes: told, and kept from filling the log."""

import logging
import time
from collections.abc import Callable

#: Complaints that may come at once, and how many more a second after them.
BURST = 32
A_SECOND = 1.0


class Complaints:
    """Logs complaints as warnings: BURST at once, then A_SECOND, and how many were left out."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._left = float(BURST)
        self._last = clock()
        self._left_out = 0

    def say(self, text: str) -> None:
        """Log a sentence, or count it where there were too many."""
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._last) * A_SECOND)
        self._last = now
        if self._left < 1:
            self._left_out += 1
            return
        self._left -= 1
        if self._left_out:
            self._log.warning("%d complaints like the next one were left out", self._left_out)
            self._left_out = 0
        self._log.warning("%s", text)
