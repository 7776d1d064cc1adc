"""Code that a device overwrites: what a translator has to be told, as a CPU sees it by itself."""

from collections.abc import Callable, Sequence

from virtiopy.memory import GuestMemory
from virtiopy.virtqueue.queue import Completion, QueueObserver, Virtqueue


class CodeWatch(QueueObserver):
    """Tells of all memory that a device has written, before the driver is shown that it has.

    `written` is given guest physical address and length of each piece, on the thread that works the
    queue. Rings that another process or the kernel works have no observer.
    """

    def __init__(self, memory: GuestMemory, written: Callable[[int, int], None]) -> None:
        self._memory = memory
        self._written = written

    def using(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """Tell what the chains' writable parts were given."""
        for chain, length in completions:
            left = length
            for view in chain.writable:
                if left <= 0:
                    break
                count = min(left, len(view))
                if count:
                    self._written(self._memory.address_of(view), count)
                left -= count
