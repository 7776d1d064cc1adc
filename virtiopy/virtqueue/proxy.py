"""A virtqueue that stands before another, and does what it does: to change one thing of it."""

from collections import Counter
from collections.abc import Iterable, Sequence

from virtiopy.virtqueue.queue import Chain, Completion, QueueAreas, QueueState, Virtqueue


class QueueProxy:
    """A Virtqueue (queue.Virtqueue) that passes everything on to `inner`."""

    def __init__(self, inner: Virtqueue) -> None:
        self.inner = inner
        self.index = inner.index
        self.size = inner.size
        self.areas: QueueAreas = inner.areas
        self.rejected: Counter[str] = inner.rejected

    @property
    def in_flight(self) -> int:
        """How many chains were popped and not pushed back yet."""
        return self.inner.in_flight

    def pop(self) -> Chain | None:
        """Take the next chain."""
        chains = self.pop_many(1)
        return chains[0] if chains else None

    def pop_many(self, limit: int | None = None) -> list[Chain]:
        """Take the next chains."""
        return self.inner.pop_many(limit)

    def push(self, chain: Chain, written: int) -> None:
        """Give one chain back."""
        self.push_many([(chain, written)])

    def push_many(self, completions: Iterable[Completion]) -> None:
        """Give chains back."""
        self.inner.push_many(completions)

    def should_interrupt(self) -> bool:
        """Say whether the driver wants an interrupt."""
        return self.inner.should_interrupt()

    def disable_kicks(self) -> None:
        """Advise the driver that no kick is needed."""
        self.inner.disable_kicks()

    def enable_kicks(self) -> bool:
        """Ask for a kick for the next chain."""
        return self.inner.enable_kicks()

    @property
    def state(self) -> QueueState:
        """Where the next worker of the rings has to go on."""
        return self.inner.state

    def resume(self, state: QueueState) -> None:
        """Go on after another worker."""
        self.inner.resume(state)

    def recover(self, unfinished: Sequence[int] = ()) -> None:
        """Go on after a worker that died."""
        self.inner.recover(unfinished)

    @property
    def can_unpop(self) -> int:
        """How many of the chains popped last can be made available again."""
        return self.inner.can_unpop

    def unpop(self, count: int) -> None:
        """Make the last `count` chains that were popped available again."""
        self.inner.unpop(count)

    def unpop_all(self) -> None:
        """Make all chains in flight available again."""
        self.inner.unpop_all()

    def next_fault(self) -> str | None:
        """Say why the next available chain cannot be served."""
        return self.inner.next_fault()
