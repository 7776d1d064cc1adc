"""A split virtqueue that another process works: looked at, and never written to."""

from collections.abc import Sequence

from virtiopy._native import lib
from virtiopy.virtqueue.layout import INDEX_MODULUS
from virtiopy.virtqueue.queue import Chain, Completion, QueueError
from virtiopy.virtqueue.split import SplitQueue

#: How often a look begins again where the ring has gone on meanwhile.
_TRIES = 3


class SeenQueue(SplitQueue):
    """Tells its observers of what became available and what was used since the last `look`."""

    def look(self) -> None:
        """See what is new; raises QueueError for a ring that cannot be right."""
        for last in [False] * (_TRIES - 1) + [True]:
            self._see_used()
            try:
                while self.pop_many():
                    pass
            except QueueError:
                # The device may have used buffers, and the driver have made them available again.
                if last:
                    raise
                continue
            break
        self._see_used()

    def _see_used(self) -> None:
        used = lib.vp_load_acquire(self._used_idx)
        count = (used - self._used_index) % INDEX_MODULUS
        if count > self.size:
            raise QueueError(
                f"queue {self.index}: used idx went from {self._used_index} to {used}, and the "
                f"queue has {self.size} (2.7.8)"
            )
        taken: dict[int, Chain] = {chain.token: chain for chain in self._in_flight}
        completions: list[Completion] = []
        for offset in range(count):
            element = self._used.ring[(self._used_index + offset) % self.size]
            # One that is not known was available before the first look.
            if (chain := taken.pop(element.id, None)) is not None:
                completions.append((chain, element.len))
                del self._in_flight[chain]
        self._used_index = used
        for observer in self._observers if completions else ():
            observer.used(self, completions)

    def _use(self, completions: Sequence[Completion]) -> None:
        """Leave it to the device to use a malformed chain."""
