"""The device side of a split virtqueue (2.7).

The driver can change guest memory at any moment, so each field of a descriptor or ring is read
once, checked, and trusted no further than the check went.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from virtiopy._native import CData, ffi, lib
from virtiopy.errors import DriverError
from virtiopy.memory import AddressError, GuestMemory
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.buffers import total
from virtiopy.virtqueue.layout import (
    CHAIN_BYTES_MAX,
    DESCRIPTOR_SIZE,
    EVENT_SIZE,
    INDEX_MODULUS,
    USED_ELEMENT_SIZE,
    USED_HEADER_SIZE,
    USED_LEN_MAX,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
    Area,
    RingFormat,
    need_event,
    valid_queue_size,
)
from virtiopy.virtqueue.queue import (
    DESCRIPTORS_A_POP,
    REJECTS_A_POP,
    Chain,
    ChainError,
    Completion,
    Descriptor,
    QueueAreas,
    QueueError,
    QueueObserver,
    QueueState,
)

log = logging.getLogger(__name__)


# Not frozen: that would double what it costs to make one.
@dataclass(slots=True, eq=False)
class SplitChain:
    """A descriptor chain (queue.Chain): its token is the index of its first descriptor."""

    token: int
    readable: Sequence[memoryview]
    writable: Sequence[memoryview]
    descriptors: Sequence[Descriptor] = ()


def area_pointer(memory: GuestMemory, address: int, area: Area) -> int:
    """Return the host address of an area of a queue; raises QueueError where it cannot be there."""
    if address % area.alignment:
        raise QueueError(f"{address:#x} is not aligned to {area.alignment} bytes (2.7.1)")
    try:
        pointer = memory.pointer(address, area.size)
    except AddressError as error:
        raise QueueError(f"{error} (2.7)") from error
    if pointer is None:
        raise QueueError(f"{area.size} bytes at {address:#x} are not contiguous memory (2.7)")
    return pointer


class SplitQueue:
    """A split virtqueue (queue.Virtqueue) of `size` entries, a power of 2 up to 32768.

    `state` and `longest_chain` are as formats.OpenQueue has them. Raises QueueError when the areas
    are misaligned or are not in guest memory.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        areas: QueueAreas,
        *,
        index: int = 0,
        event_idx: bool = False,
        indirect: bool = False,
        state: QueueState | None = None,
        longest_chain: int = 0,
        observers: Sequence[QueueObserver] = (),
    ) -> None:
        if not valid_queue_size(size):
            raise QueueError(f"queue size {size} is no power of 2 up to 32768 (2.7)")
        self.memory = memory
        self.size = size
        self.areas = areas
        self.index = index
        self.event_idx = event_idx
        self.indirect = indirect
        #: The most descriptors of a chain: no more than the queue has (2.7.5.3.1).
        self.longest_chain = max(size, longest_chain)
        #: Malformed chains that were given back unserved, by section of the specification.
        self.rejected: Counter[str] = Counter()

        expected = layout.areas(RingFormat.SPLIT, size)
        self._descriptors = ffi.cast(
            "struct vring_desc *", area_pointer(memory, areas.descriptor, expected.descriptor)
        )
        self._available = ffi.cast(
            "struct vring_avail *", area_pointer(memory, areas.driver, expected.driver)
        )
        self._used = ffi.cast(
            "struct vring_used *", area_pointer(memory, areas.device, expected.device)
        )
        self._available_idx = ffi.addressof(self._available[0], "idx")
        self._used_idx = ffi.addressof(self._used[0], "idx")
        # used_event follows the available ring's entries, avail_event the used ring's.
        self._used_event = self._available.ring + size
        self._avail_event = ffi.cast("uint16_t *", self._used.ring + size)

        # The next entry of the available ring to look at, and its idx as it was last read.
        self._next = self._seen_available = 0
        # The used ring's idx, and where it was when the driver was last asked about interrupts.
        self._used_index = self._signalled_used = 0
        # Heads of chains to pop before those of the available ring: see `recover`.
        self._unfinished: deque[int] = deque()
        # The chains that the device has, in the order in which they were popped.
        self._in_flight: dict[Chain, None] = {}
        self._since_rejected = 0
        # How many descriptors the call of pop that runs may still look at.
        self._budget = 0

        self._observers = tuple(observers)
        self._keeps_descriptors = any(one.wants_descriptors for one in observers)
        # What was read of the chain that is walked, where an observer wants it.
        self._read: list[Descriptor] = []
        if state is not None:
            self.resume(state)
        for observer in self._observers:
            observer.opened(self)

    @property
    def in_flight(self) -> int:
        """How many chains were popped and not pushed back yet."""
        return len(self._in_flight)

    # Taking available buffers (2.7.6)

    def pop(self) -> Chain | None:
        """Take the next chain; None without one, or where REJECTS_A_POP before it are malformed."""
        chains = self.pop_many(1)
        return chains[0] if chains else None

    def pop_many(self, limit: int | None = None) -> list[Chain]:
        """Take the next chains: up to `limit`, and no more than the budgets allow.

        Malformed chains go straight back to the driver, with nothing written. Raises QueueError
        when the available ring cannot be right, unless there are chains to return before that.
        """
        chains: list[Chain] = []
        told = 0
        rejects = REJECTS_A_POP
        self._budget = DESCRIPTORS_A_POP
        while (limit is None or len(chains) < limit) and rejects > 0 and self._budget > 0:
            try:
                head = self._next_head()
            except QueueError as error:
                if chains:
                    break
                for observer in self._observers:
                    observer.broken(self, error)
                raise
            if head is None:
                break
            try:
                chain = self._walk(head)
            except (ChainError, AddressError) as error:
                # An observer hears of chains in their order: of those before this one first.
                self._tell_taken(chains[told:])
                told = len(chains)
                self._reject(head, error)
                rejects -= 1
                continue
            self._in_flight[chain] = None
            self._since_rejected += 1
            chains.append(chain)
        self._tell_taken(chains[told:])
        return chains

    def _tell_taken(self, chains: Sequence[Chain]) -> None:
        for observer in self._observers if chains else ():
            observer.taken(self, chains)

    def _next_head(self) -> int | None:
        if self._unfinished:
            return self._unfinished.popleft()
        if self._next == self._seen_available:
            seen = lib.vp_load_acquire(self._available_idx)
            pending = (seen - self._next) % INDEX_MODULUS
            if pending + self.in_flight > self.size:
                raise QueueError(
                    f"queue {self.index}: available idx {seen} offers {pending} "
                    f"buffers, {self.in_flight} are in flight, and the queue has {self.size} (2.7)"
                )
            if pending == 0:
                return None
            self._seen_available = seen
        head: int = self._available.ring[self._next % self.size]
        if head >= self.size:
            raise QueueError(f"queue {self.index}: head {head} is out of range (2.7.6)")
        self._next = (self._next + 1) % INDEX_MODULUS
        return head

    def _walk(self, head: int) -> Chain:
        """Follow a descriptor chain (2.7.5), into an indirect table where it has one (2.7.5.3)."""
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        table, table_size, in_indirect = self._descriptors, self.size, False
        table_address = self.areas.descriptor
        index, count, length = head, 0, 0
        self._read = []
        try:
            while True:
                descriptor = table[index]
                address, size = descriptor.addr, descriptor.len
                flags, following = descriptor.flags, descriptor.next
                if self._keeps_descriptors:
                    self._read.append(
                        Descriptor(table_address, index, address, size, flags, following)
                    )

                if flags & VIRTQ_DESC_F_INDIRECT:
                    if in_indirect:
                        raise ChainError("2.7.5.3.1", "an indirect table inside an indirect table")
                    table, table_size = self._indirect_table(address, size, flags)
                    table_address, index, in_indirect = address, 0, True
                    continue

                count += 1
                if count > self.longest_chain:
                    raise ChainError(
                        "2.7.5.3.1", "a chain longer than the queue, or one with a loop"
                    )
                length += size
                if length > CHAIN_BYTES_MAX:
                    raise ChainError("2.7.5.2", "a chain of more than 2^32 bytes")
                if flags & VIRTQ_DESC_F_WRITE:
                    writable += self.memory.views(address, size)
                elif writable:
                    raise ChainError(
                        "2.7.4.2", "a device-readable buffer after a device-writable one"
                    )
                else:
                    readable += self.memory.views(address, size)

                if not flags & VIRTQ_DESC_F_NEXT:
                    return SplitChain(head, readable, writable, self._read)
                if following >= table_size:
                    raise ChainError("2.7.5", f"next {following} is out of range")
                index = following
        finally:
            self._budget -= count

    def _indirect_table(self, address: int, size: int, flags: int) -> tuple[CData, int]:
        # The write-only flag of this descriptor is ignored (2.7.5.3.2).
        if not self.indirect:
            raise ChainError("2.7.5.3.1", "an indirect table, which was not negotiated")
        if flags & VIRTQ_DESC_F_NEXT:
            raise ChainError("2.7.5.3.1", "both INDIRECT and NEXT in one descriptor")
        if size == 0 or size % DESCRIPTOR_SIZE:
            raise ChainError("2.7.5.3", f"an indirect table of {size} bytes")
        pointer = self.memory.pointer(address, size)
        if pointer is None:
            # It spans regions. `next` has 16 bits: what lies further cannot be reached.
            table = self.memory.read(address, min(size, DESCRIPTOR_SIZE * INDEX_MODULUS))
            return ffi.from_buffer("struct vring_desc[]", table), size // DESCRIPTOR_SIZE
        return ffi.cast("struct vring_desc *", pointer), size // DESCRIPTOR_SIZE

    def _reject(self, head: int, error: ChainError | AddressError) -> None:
        """Give a malformed chain back, with nothing written."""
        if isinstance(error, AddressError):
            error = ChainError("2.7.5", str(error))
        self.rejected[error.section] += 1
        log.warning("queue %d: chain %d rejected: %s", self.index, head, error)
        chain = SplitChain(head, (), (), self._read)
        for observer in self._observers:
            observer.rejected(self, chain, error)
        self._use([(chain, 0)])
        self._since_rejected = 0

    # Giving used buffers back (2.7.8)

    def push(self, chain: Chain, written: int) -> None:
        """Give one chain back; `written` bytes were written, from its first writable byte on."""
        self.push_many([(chain, written)])

    def push_many(self, completions: Iterable[Completion]) -> None:
        """Give chains back, in any order, and expose them all with one update of idx.

        Raises ValueError for a chain that is not in flight, or has less room than was written: a
        fault of the device.
        """
        completions = list(completions)
        for chain, written in completions:
            if not 0 <= written <= total(chain.writable):
                raise ValueError(f"{written} bytes written to a chain with less room")
        chains = {chain for chain, _ in completions}
        if len(chains) < len(completions) or not chains <= self._in_flight.keys():
            raise ValueError("a chain was pushed that was not in flight")
        if completions:
            self._use(completions)
        for chain, _ in completions:
            del self._in_flight[chain]

    def _use(self, completions: Sequence[Completion]) -> None:
        for observer in self._observers:
            observer.using(self, completions)
        ring, first, used_index = self._used.ring, self._used_index, self._used_index
        for chain, written in completions:
            element = ring[used_index % self.size]
            element.id = chain.token
            # A chain may have room for 2^32 bytes; len holds one less, and may be an underestimate.
            element.len = min(written, USED_LEN_MAX)
            used_index = (used_index + 1) % INDEX_MODULUS
        self._used_index = used_index
        lib.vp_store_release(self._used_idx, used_index)
        for observer in self._observers:
            self._tell_of_entries(observer, first, len(completions))
            observer.used(self, completions)

    def _tell_of_entries(self, observer: QueueObserver, first: int, count: int) -> None:
        # flags and idx are written, then the entries: in two pieces where they wrap.
        observer.area_written(self, 0, USED_HEADER_SIZE)
        while count > 0:
            entry = first % self.size
            piece = min(count, self.size - entry)
            offset = USED_HEADER_SIZE + USED_ELEMENT_SIZE * entry
            observer.area_written(self, offset, USED_ELEMENT_SIZE * piece)
            first, count = first + piece, count - piece

    # Another worker of the rings

    @property
    def state(self) -> QueueState:
        """Where the next worker has to go on."""
        return QueueState((self._next - len(self._unfinished)) % INDEX_MODULUS)

    def resume(self, state: QueueState) -> None:
        """Go on after another worker, which came to `state`; nothing is in flight.

        It has sent the interrupts for what it used.
        """
        self._next = self._seen_available = state.vring_base % INDEX_MODULUS
        self._unfinished.clear()
        self._since_rejected = 0
        self._used_index = self._signalled_used = lib.vp_load_acquire(self._used_idx)

    def recover(self, unfinished: Sequence[int] = ()) -> None:
        """Go on after a worker that died, with the chains that it had taken and not used.

        `unfinished` are their tokens, in the order in which it took them: they are popped first.
        """
        used = lib.vp_load_acquire(self._used_idx)
        self.resume(QueueState((used + len(unfinished)) % INDEX_MODULUS))
        self._unfinished.extend(unfinished)

    @property
    def can_unpop(self) -> int:
        """How many of the chains popped last can be made available again.

        A rejected chain behind one was used already: no index can say that the one before it is
        available again.
        """
        return min(self.in_flight, self._since_rejected)

    def unpop(self, count: int) -> None:
        """Make the last `count` chains that were popped available again, unserved.

        They are the last: no chain that was popped after them has been pushed. The caller drops
        them. Raises ValueError for more than `can_unpop`.
        """
        if not 0 <= count <= self.can_unpop:
            raise ValueError(
                f"{count} chains of {self.in_flight} in flight, {self._since_rejected} of them "
                "popped since one was rejected"
            )
        chains = list(islice(reversed(self._in_flight), count))
        for chain in chains:
            del self._in_flight[chain]
        self._since_rejected -= count
        self._next = (self._next - count) % INDEX_MODULUS
        for observer in self._observers if chains else ():
            observer.untaken(self, chains)

    def unpop_all(self) -> None:
        """Make all chains in flight available again, unserved.

        Those that a rejected chain overtook are used, with nothing written.
        """
        overtaken = list(islice(self._in_flight, self.in_flight - self.can_unpop))
        if overtaken:
            self.push_many((chain, 0) for chain in overtaken)
        self.unpop(self.in_flight)

    def next_fault(self) -> str | None:
        """Say why the next available chain cannot be served, and leave it there; None if it can."""
        was_taken = bool(self._unfinished)
        try:
            head = self._next_head()
            if head is None:
                return None
            if was_taken:
                self._unfinished.appendleft(head)
            else:
                self._next = (self._next - 1) % INDEX_MODULUS
            self._walk(head)
        except DriverError as error:
            return str(error)
        return None

    # Notifications (2.7.7, 2.7.10)

    def should_interrupt(self) -> bool:
        """Say whether the driver wants an interrupt for what was used since then (2.7.7.2)."""
        new, old = self._used_index, self._signalled_used
        if new == old:
            return False
        self._signalled_used = new
        # idx must be visible before used_event is read: the driver writes the one and reads the
        # other, in the opposite order.
        lib.vp_memory_barrier()
        if self.event_idx:
            wanted = need_event(self._used_event[0], new, old)
        else:
            wanted = not self._available.flags & VIRTQ_AVAIL_F_NO_INTERRUPT
        for observer in self._observers:
            observer.interrupt_decided(self, wanted)
        return wanted

    def disable_kicks(self) -> None:
        """Advise the driver that no kick is needed (2.7.10)."""
        if not self.event_idx:
            self._used.flags = VIRTQ_USED_F_NO_NOTIFY
        # With EVENT_IDX an avail_event that lies behind is advice enough.
        self._tell_of_kicks(wanted=False)

    def enable_kicks(self) -> bool:
        """Ask for a kick for the next chain (2.7.10).

        Returns True when there is one already, for which no kick may come: pop again.
        """
        if self.event_idx:
            self._avail_event[0] = self._next
        else:
            self._used.flags = 0
        lib.vp_memory_barrier()
        self._tell_of_kicks(wanted=True)
        return bool(self._unfinished) or lib.vp_load_acquire(self._available_idx) != self._next

    def _tell_of_kicks(self, *, wanted: bool) -> None:
        for observer in self._observers:
            if not self.event_idx:
                observer.area_written(self, 0, EVENT_SIZE)
            elif wanted:
                observer.area_written(
                    self, USED_HEADER_SIZE + USED_ELEMENT_SIZE * self.size, EVENT_SIZE
                )
            observer.kicks_wanted(self, wanted)
