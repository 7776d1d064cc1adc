"""A split virtqueue that another process works: looked at, and never written to.

Driver and device go on while it is looked at. What is read of a chain is sure only where the device
still had the chain afterwards: the driver may not touch it before the device has used it (2.7.13).
So a look reads the available index, then the used index, copies the chains, and then reads both
indexes again: a chain that is among the used ones by then may have been another while it was read.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import ClassVar

from virtiopy._native import lib
from virtiopy.memory import AddressError, GuestMemory
from virtiopy.virtqueue.buffers import total
from virtiopy.virtqueue.layout import INDEX_MODULUS
from virtiopy.virtqueue.queue import (
    Chain,
    ChainError,
    Completion,
    QueueAreas,
    QueueError,
    QueueObserver,
    QueueState,
)
from virtiopy.virtqueue.split import SplitChain, SplitQueue

#: How often one look begins anew, for a driver and a device that go on meanwhile.
_TURNS = 4

#: How many descriptors, and bytes that the device reads, one look copies: what lies beyond is
#: missed.
_DESCRIPTORS_A_LOOK = 1 << 17
_BYTES_A_LOOK = 64 << 20


class SureObserver(QueueObserver):
    """Looks on at a SeenQueue, and is told of no chain that may have been read too late.

    `taken`, `rejected` and `used` are told of sure chains alone, whose readable buffers are copies;
    `untaken` and what a worker of the queue decides are never told.
    """

    wants_descriptors: ClassVar[bool] = True

    def fresh(self, queue: "SeenQueue", completions: Sequence[Completion]) -> None:
        """See those used chains that the driver has not taken back yet, before `used`.

        So what the device has written is still there. Told at used buffer notifications alone.
        """

    def stray(self, queue: "SeenQueue", head: int, length: int) -> None:
        """See a used element whose head is no chain that the device had."""

    def closed(self, queue: "SeenQueue", *, stopped: bool) -> None:
        """See the end of a queue's looks; `stopped` says that the frontend has stopped the ring.

        Else it may have left, and the driver may do with its memory what it wants.
        """

    def missed(self, queue: "SeenQueue", count: int) -> None:
        """See that `count` chains were not seen, or too late to be sure of them."""

    def lost(self, queue: "SeenQueue") -> None:
        """See that it is not known any more which chains the device has."""

    def looked(self, queue: "SeenQueue") -> None:
        """See the end of a look: the areas are as they are now."""


class SeenQueue(SplitQueue):
    """Tells what became available and what was used since the last `look`.

    `observers` are told of all that is seen, `sure` of what is certain.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        areas: QueueAreas,
        *,
        index: int,
        event_idx: bool,
        indirect: bool,
        state: QueueState,
        longest_chain: int,
        in_order: bool = False,
        observers: Sequence[QueueObserver] = (),
        sure: Sequence[SureObserver] = (),
    ) -> None:
        self._in_order = in_order
        self._sure = tuple(sure)
        # Of the chains that were read: what is wrong with them, and which are certain.
        self._errors: dict[SplitChain, ChainError] = {}
        self._certain: set[SplitChain] = set()
        # The chains that the device has, by head: one of each, where the driver is right.
        self._held: dict[int, deque[SplitChain]] = {}
        # Used elements that are still to be told, and how many there are of each head.
        self._elements: deque[tuple[int, int]] = deque()
        self._waiting: Counter[int] = Counter()
        # How many chains the device has that were never seen.
        self._unseen = 0
        self._bytes = 0
        super().__init__(
            memory,
            size,
            areas,
            index=index,
            event_idx=event_idx,
            indirect=indirect,
            state=state,
            longest_chain=longest_chain,
            observers=observers,
        )
        self._keeps_descriptors |= bool(sure)
        # used_event as it was before the driver waited for anything.
        self._asked_first = int(self._used_event[0]) if event_idx else 0
        # All before the state was used, unless the device had chains when it got the ring.
        self._unseen = max(0, _distance(self._used_index, self._next))
        if not self._unseen:
            self._used_index = self._next
        for observer in self._sure:
            observer.opened(self)

    def holds(self, head: int) -> bool:
        """Say whether the device has not used the chain with this head, as the ring is now."""
        if self._waiting[head]:
            return False
        elements = self._read_elements(self._used_index, lib.vp_load_acquire(self._used_idx))
        # Elements that were written again while they were read say nothing of this one.
        return not self._has_turned(self._used_index, lib.vp_load_acquire(self._used_idx)) and all(
            head != other for other, _ in elements
        )

    def look(self, *, notified: bool = False) -> None:
        """See what is new; `notified` says that the driver is about to hear of used buffers.

        Raises QueueError for a ring that cannot be right.
        """
        for _ in range(_TURNS):
            available = lib.vp_load_acquire(self._available_idx)
            used = lib.vp_load_acquire(self._used_idx)
            # Read later than the other, so that a right driver is never further before it.
            if _distance(used, available) > self.size:
                raise self._broken(available, used)
            if not self._turn(available, used, notified=notified):
                break
        for observer in self._sure:
            observer.looked(self)

    def _broken(self, available: int, used: int) -> QueueError:
        error = QueueError(
            f"queue {self.index}: available idx {available} is more than {self.size} before used "
            f"idx {used} (2.7)"
        )
        for observer in (*self._observers, *self._sure):
            observer.broken(self, error)
        return error

    def _turn(self, available: int, used: int, *, notified: bool) -> bool:
        """See what there is up to these indexes; says whether there may be more."""
        if self._has_turned(self._next, available) or self._has_turned(self._used_index, used):
            self._resynchronise(self._next)
            return False
        first = self._next
        chains = self._read_chains(available)
        after = lib.vp_load_acquire(self._used_idx)
        first_fresh = self._first_fresh(after) if notified else after
        elements = self._read_elements(self._used_index, after)
        now, used = lib.vp_load_acquire(self._available_idx), lib.vp_load_acquire(self._used_idx)
        if self._has_turned(self._used_index, used) or self._has_turned(first, now):
            # Entries were written again while they were read.
            self._resynchronise(first)
            return False
        self._used_index = after
        self._elements.extend(elements)
        self._waiting.update(head for head, _ in elements)
        self._tell(chains, (after - first_fresh) % INDEX_MODULUS)
        return bool(chains or self._elements)

    def _has_turned(self, begin: int, end: int) -> bool:
        return (end - begin) % INDEX_MODULUS > self.size

    def _resynchronise(self, first: int) -> None:
        """Go on where the ring is: more has passed than it has room for, from `first` on."""
        # In this order, so that what was used is among what was available.
        self._used_index = used = lib.vp_load_acquire(self._used_idx)
        self._next = available = lib.vp_load_acquire(self._available_idx)
        missed = (available - first) % INDEX_MODULUS
        self._forget()
        self._unseen = max(0, _distance(used, available))
        for observer in self._sure:
            observer.missed(self, missed)
            observer.lost(self)

    def _forget(self) -> None:
        self._held.clear()
        self._in_flight.clear()
        self._certain.clear()
        self._errors.clear()
        self._elements.clear()
        self._waiting.clear()

    # Reading

    def _read_chains(self, available: int) -> list[SplitChain]:
        chains: list[SplitChain] = []
        self._budget, self._bytes = _DESCRIPTORS_A_LOOK, _BYTES_A_LOOK
        while self._next != available:
            head: int = self._available.ring[self._next % self.size]
            self._next = (self._next + 1) % INDEX_MODULUS
            chains.append(self._read_chain(head))
        return chains

    def _read_chain(self, head: int) -> SplitChain:
        self._read = []
        if self._budget <= 0 or self._bytes <= 0:
            return SplitChain(head, (), ())
        if head >= self.size:
            return self._malformed(head, ChainError("2.7.6", f"head {head} is out of range"))
        try:
            walked = self._walk(head)
        except ChainError as error:
            return self._malformed(head, error)
        except AddressError as error:
            return self._malformed(head, ChainError("2.7.5", str(error)))
        self._bytes -= total(walked.readable)
        readable = walked.readable
        if self._sure and self._bytes >= 0:
            readable = [memoryview(bytes(piece)) for piece in readable]
        chain = SplitChain(head, readable, walked.writable, walked.descriptors)
        if self._bytes >= 0:
            self._certain.add(chain)
        return chain

    def _malformed(self, head: int, error: ChainError) -> SplitChain:
        chain = SplitChain(head, (), (), self._read)
        self._errors[chain] = error
        self._certain.add(chain)
        return chain

    def _read_elements(self, begin: int, end: int) -> list[tuple[int, int]]:
        ring, count = self._used.ring, (end - begin) % INDEX_MODULUS
        places = [(begin + offset) % self.size for offset in range(min(count, self.size))]
        return [(int(ring[place].id), int(ring[place].len)) for place in places]

    def _first_fresh(self, used: int) -> int:
        """Return the first used element that the driver has not taken back (2.7.7).

        With EVENT_IDX a driver that waits for a notification says which element it waits for: that
        is sure of one that has said so of late, since what was seen used before. Of another
        driver, which may poll, nothing is.
        """
        waited: int = self._used_event[0] if self.event_idx else self._asked_first
        if waited == self._asked_first:
            return used
        begin = self._used_index
        return waited if 0 < _distance(waited, used) <= _distance(begin, used) else used

    # Telling, in the order in which it was

    def _tell(self, chains: Sequence[SplitChain], fresh: int) -> None:
        """Tell of chains that became available, and of used elements.

        The last `fresh` elements are chains that the driver has not taken back yet.
        """
        for chain in chains:
            while chain.token in self._held and self._waiting[chain.token]:
                # The driver had it back before it made it available again.
                self._tell_element(is_fresh=False)
            if self._in_order and chain.token in self._held:
                # One used element stands for those before it (2.7.9).
                self._tell_used(chain.token, 0, is_fresh=False)
            self._tell_chain(chain)
        while self._elements:
            if self._elements[0][0] not in self._held and self._there_is_more():
                return
            self._tell_element(is_fresh=len(self._elements) <= fresh)

    def _there_is_more(self) -> bool:
        return bool(lib.vp_load_acquire(self._available_idx) != self._next)

    def _tell_chain(self, chain: SplitChain) -> None:
        self._held.setdefault(chain.token, deque()).append(chain)
        self._in_flight[chain] = None
        sure = self._sure
        if self._waiting[chain.token] or chain not in self._certain:
            self._certain.discard(chain)
            for one in self._sure:
                one.missed(self, 1)
            sure = ()
        error = self._errors.pop(chain, None)
        for observer in (*self._observers, *sure):
            if error is None:
                observer.taken(self, [chain])
            else:
                observer.rejected(self, chain, error)

    def _tell_element(self, *, is_fresh: bool) -> None:
        head, length = self._elements.popleft()
        self._waiting[head] -= 1
        # A head may be any of 2^32.
        if not self._waiting[head]:
            del self._waiting[head]
        if head in self._held:
            self._tell_used(head, length, is_fresh=is_fresh)
        elif self._unseen:
            self._unseen -= 1
        else:
            for one in self._sure:
                one.stray(self, head, length)

    def _tell_used(self, head: int, length: int, *, is_fresh: bool) -> None:
        chains = self._held[head]
        chain = chains.popleft()
        if not chains:
            del self._held[head]
        del self._in_flight[chain]
        completions: list[tuple[Chain, int]] = [(chain, length)]
        for observer in self._observers:
            observer.used(self, completions)
        if chain in self._certain:
            self._certain.discard(chain)
            for one in self._sure:
                if is_fresh:
                    one.fresh(self, completions)
                one.used(self, completions)

    def close(self, *, stopped: bool) -> None:
        """End the looks at this queue."""
        for observer in self._sure:
            observer.closed(self, stopped=stopped)

    def _use(self, completions: Sequence[Completion]) -> None:
        """Leave it to the device to use a malformed chain."""


def _distance(begin: int, end: int) -> int:
    """Return how far an index is behind another, negative where it is before it."""
    half = INDEX_MODULUS // 2
    return (end - begin + half) % INDEX_MODULUS - half
