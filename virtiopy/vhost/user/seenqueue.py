"""A split virtqueue that another process works: looked at, and never written to."""

from collections.abc import Sequence

from virtiopy._native import lib
from virtiopy.virtqueue.layout import INDEX_MODULUS
from virtiopy.virtqueue.queue import Chain, Completion, QueueError
from virtiopy.virtqueue.split import SplitQueue


class SeenQueue(SplitQueue):
    """Tells its observers of what became available and what was used since the last `look`."""

    def look(self) -> None:
        """See what is new; raises QueueError for a ring that cannot be right."""
        used = lib.vp_load_acquire(self._used_idx)
        count = (used - self._used_index) % INDEX_MODULUS
        if count > self.size:
            raise QueueError(
                f"queue {self.index}: used idx went from {self._used_index} to {used}, and the "
                f"queue has {self.size} (2.7.8)"
            )
        ring, first = self._used.ring, self._used_index
        places = [(first + offset) % self.size for offset in range(count)]
        entries = [(int(ring[place].id), int(ring[place].len)) for place in places]
        self._used_index = used
        # Those that the driver may have made available again since they were used.
        left = self._see_used(entries)
        # Whatever was used by then was available before.
        while self.pop_many():
            pass
        self._see_used(left)

    def _see_used(self, entries: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """Tell of the chains that were used; return the entries of chains that are not known."""
        known: dict[int, Chain] = {chain.token: chain for chain in self._in_flight}
        completions: list[Completion] = []
        unknown: list[tuple[int, int]] = []
        for token, length in entries:
            if (chain := known.pop(token, None)) is None:
                unknown.append((token, length))
                continue
            completions.append((chain, length))
            del self._in_flight[chain]
        for observer in self._observers if completions else ():
            observer.used(self, completions)
        return unknown

    def _use(self, completions: Sequence[Completion]) -> None:
        """Leave it to the device to use a malformed chain."""
