"""How much random work a run does: a little, the same each time, or as long as it is told."""

import time
from collections.abc import Iterator
from itertools import count
from random import Random

from virtiopy.conformance.sessions.trace import Trace


class Effort:
    """What a test with random work is to do: a round, or rounds for `seconds`, each traced."""

    def __init__(self, trace: Trace, seconds: float = 0) -> None:
        self._trace = trace
        self._seconds = seconds

    def rounds(self) -> Iterator[Random]:
        """Yield a source of chance for each round: at least one, and the same in each run."""
        end = time.monotonic() + self._seconds
        for seed in count():
            self._trace.note(f"random work, round {seed}")
            yield Random(seed)
            if time.monotonic() >= end:
                return
