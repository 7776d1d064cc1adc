"""A split virtqueue that keeps account of itself for its frontend: in flight, and pages written."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from virtiopy.memory import GuestMemory
from virtiopy.vhost.user.inflight import QueueInflight
from virtiopy.vhost.user.memory import DirtyLog
from virtiopy.virtqueue.layout import INDEX_MODULUS
from virtiopy.virtqueue.split import Chain, QueueAddresses, SplitQueue


@dataclass(slots=True)
class Accounts:
    """Where a virtqueue's account is kept, each None for not at all.

    `used_log` is the guest physical address to log writes to the used ring by.
    """

    inflight: QueueInflight | None = None
    log: DirtyLog | None = None
    used_log: int | None = None


class UserQueue(SplitQueue):
    """A SplitQueue that goes on from `last_available`, or from what a killed backend left.

    A chain may have `longest_chain` descriptors, in a table where the queue is smaller.

    Raises QueueError as SplitQueue does, PeerError for an account of things in flight that lies.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        addresses: QueueAddresses,
        accounts: Accounts,
        *,
        index: int,
        event_idx: bool,
        indirect: bool,
        last_available: int,
        longest_chain: int,
    ) -> None:
        super().__init__(
            memory, size, addresses, index=index, event_idx=event_idx, indirect=indirect
        )
        self.accounts = accounts
        self.longest_chain = max(size, longest_chain)
        # The heads that are in flight, in the order in which they were taken. A driver that lies
        # makes one available twice.
        self._taken: list[int] = []
        self.resume(last_available)
        self._again: deque[int] = deque()
        if accounts.inflight is not None:
            self._again.extend(accounts.inflight.begin(self.used_index, size))
            if self._again:
                # The frontend could not ask the one that was killed how far it had come.
                self.resume((self.used_index + len(self._again)) % INDEX_MODULUS)
        #: Chains that a killed backend had taken, and that are to be served again.
        self.inherited = len(self._again)

    def _next_head(self) -> int | None:
        if self._again:
            head: int | None = self._again.popleft()
            self.in_flight += 1
        else:
            head = super()._next_head()
        if head is not None:
            self._taken.append(head)
            if self.accounts.inflight is not None:
                self.accounts.inflight.taken(head)
        return head

    def push_many(self, completions: Iterable[tuple[Chain, int]]) -> None:
        """Give chains back; what the device may have written to is marked first."""
        completions = list(completions)
        if self.accounts.log is not None:
            for chain, _ in completions:
                self._mark_written(chain, self.accounts.log)
        super().push_many(completions)

    def _mark_written(self, chain: Chain, log: DirtyLog) -> None:
        # All that is writable: `len` in the used ring may be less than what was written (2.7.8.2).
        for view in chain.writable:
            if len(view):
                log.mark(self.memory.address_of(view), len(view))

    def _return(self, entries: list[tuple[int, int]]) -> None:
        heads = [head for head, _ in entries]
        inflight = self.accounts.inflight
        if inflight is not None:
            inflight.using(heads)
        first = self.used_index
        super()._return(entries)
        if inflight is not None:
            inflight.used(heads, self.used_index)
        for head in heads:
            self._taken.remove(head)
        if self.accounts.log is not None and self.accounts.used_log is not None:
            self._mark_used(first, len(entries), self.accounts.log, self.accounts.used_log)

    def _mark_used(self, first: int, count: int, log: DirtyLog, base: int) -> None:
        # flags and idx, then the entries: 4 bytes, and 8 each (2.7.8).
        log.mark(base, 4)
        for index in range(first, first + count):
            log.mark(base + 4 + 8 * (index % self.size), 8)

    def unpop(self, count: int) -> None:
        """Make the last chains that were taken available again, unserved."""
        super().unpop(count)
        for _ in range(count):
            head = self._taken.pop()
            if self.accounts.inflight is not None:
                self.accounts.inflight.untaken(head)

    def give_back(self) -> None:
        """Make all that the device still holds available again, unserved.

        What was overtaken by a malformed chain, which was used at once, cannot be: an index cannot
        say that it is available, and not the other. It is used, with nothing written.
        """
        overtaken = self._taken[: max(0, self.in_flight - self.since_rejected)]
        if overtaken:
            self._return([(head, 0) for head in overtaken])
        self.unpop(self.in_flight)

    def enable_notifications(self) -> bool:
        """Ask for the next available buffer notification; avail_event is in the used ring."""
        more = super().enable_notifications()
        if self.event_idx and self.accounts.log is not None and self.accounts.used_log is not None:
            self.accounts.log.mark(self.accounts.used_log + 4 + 8 * self.size, 2)
        return more
