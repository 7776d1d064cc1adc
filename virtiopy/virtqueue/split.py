"""The device side of a split virtqueue (2.7).

The driver can change guest memory at any moment, so each field of a descriptor or ring is read
once, checked, and trusted no further than the check went.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from virtiopy._native import CData, ffi, lib
from virtiopy.errors import DriverError
from virtiopy.memory import AddressError, GuestMemory
from virtiopy.virtqueue.buffers import total
from virtiopy.virtqueue.layout import (
    AVAILABLE_RING_ALIGNMENT,
    CHAIN_BYTES_MAX,
    DESCRIPTOR_SIZE,
    DESCRIPTOR_TABLE_ALIGNMENT,
    INDEX_MODULUS,
    USED_LEN_MAX,
    USED_RING_ALIGNMENT,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
    available_ring_size,
    descriptor_table_size,
    need_event,
    used_ring_size,
    valid_queue_size,
)

log = logging.getLogger(__name__)


class QueueError(DriverError):
    """The rings themselves are broken: the queue can go on only after a reset (2.1.2)."""


class ChainError(DriverError):
    """One descriptor chain is malformed; the rings are sound."""

    def __init__(self, section: str, reason: str) -> None:
        super().__init__(f"{reason} ({section})")
        self.section = section


@dataclass(slots=True, frozen=True)
class Chain:
    """A buffer that the driver made available: views on guest memory, in the chain's order."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


@dataclass(slots=True, frozen=True)
class QueueAddresses:
    """Guest physical addresses of the three parts (2.7), as the driver set them."""

    descriptor_table: int
    available_ring: int
    used_ring: int


class SplitQueue:
    """One virtqueue as its device sees it: chains are popped, and pushed back in any order.

    `size` is the queue size, a power of 2 up to 32768. `last_available` and `used_index` are the
    16-bit ring indexes to go on from: 0 for a queue that the driver has just set up.

    Raises QueueError when the parts are misaligned or are not in guest memory.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        addresses: QueueAddresses,
        *,
        index: int = 0,
        event_idx: bool = False,
        indirect: bool = False,
        last_available: int = 0,
        used_index: int = 0,
    ) -> None:
        if not valid_queue_size(size):
            raise QueueError(f"queue size {size} is no power of 2 up to 32768 (2.7)")
        self.memory = memory
        self.size = size
        self.addresses = addresses
        self.index = index
        self.event_idx = event_idx
        self.indirect = indirect
        #: The most descriptors of a chain: no more than the queue has (2.7.5.3.1).
        self.longest_chain = size

        self._descriptors = ffi.cast(
            "struct vring_desc *",
            self._part(
                addresses.descriptor_table, descriptor_table_size(size), DESCRIPTOR_TABLE_ALIGNMENT
            ),
        )
        self._available = ffi.cast(
            "struct vring_avail *",
            self._part(
                addresses.available_ring, available_ring_size(size), AVAILABLE_RING_ALIGNMENT
            ),
        )
        self._used = ffi.cast(
            "struct vring_used *",
            self._part(addresses.used_ring, used_ring_size(size), USED_RING_ALIGNMENT),
        )
        self._available_idx = ffi.addressof(self._available[0], "idx")
        self._used_idx = ffi.addressof(self._used[0], "idx")
        # used_event follows the available ring's entries, avail_event the used ring's.
        self._used_event = self._available.ring + size
        self._avail_event = ffi.cast("uint16_t *", self._used.ring + size)

        self.last_available = last_available
        self._seen_available = last_available
        self.used_index = used_index
        self._signalled_used = used_index
        #: Chains popped and not pushed back yet.
        self.in_flight = 0
        #: Malformed chains that were given back unserved, by section of the specification.
        self.rejected: Counter[str] = Counter()
        #: Chains popped since the last one that was given back unserved: see `unpop`.
        self.since_rejected = 0

    def _part(self, address: int, length: int, alignment: int) -> int:
        if address % alignment:
            raise QueueError(f"{address:#x} is not aligned to {alignment} bytes (2.7.1)")
        try:
            pointer = self.memory.pointer(address, length)
        except AddressError as error:
            raise QueueError(f"{error} (2.7)") from error
        if pointer is None:
            raise QueueError(f"{length} bytes at {address:#x} are not contiguous memory (2.7)")
        return pointer

    # Taking available buffers (2.7.6)

    def pop(self) -> Chain | None:
        """Take the next well-formed chain; None when the available ring has no more.

        A malformed chain goes straight back to the driver, with nothing written. Raises
        QueueError when the available ring itself cannot be right.
        """
        while (head := self._next_head()) is not None:
            try:
                chain = self._walk(head)
            except (ChainError, AddressError) as error:
                section = error.section if isinstance(error, ChainError) else "2.7.5"
                self.rejected[section] += 1
                log.warning("queue %d: chain %d rejected: %s", self.index, head, error)
                self._return([(head, 0)])
                self.since_rejected = 0
                continue
            self.since_rejected += 1
            return chain
        return None

    def pop_many(self, limit: int | None = None) -> list[Chain]:
        """Take up to `limit` chains (default: all that are available). Raises QueueError."""
        chains: list[Chain] = []
        while limit is None or len(chains) < limit:
            chain = self.pop()
            if chain is None:
                break
            chains.append(chain)
        return chains

    def _next_head(self) -> int | None:
        if self.last_available == self._seen_available:
            seen = lib.vp_load_acquire(self._available_idx)
            pending = (seen - self.last_available) % INDEX_MODULUS
            if pending + self.in_flight > self.size:
                raise QueueError(
                    f"queue {self.index}: available idx {seen} offers {pending} "
                    f"buffers, {self.in_flight} are in flight, and the queue has {self.size} (2.7)"
                )
            if pending == 0:
                return None
            self._seen_available = seen
        head: int = self._available.ring[self.last_available % self.size]
        if head >= self.size:
            raise QueueError(f"queue {self.index}: head {head} is out of range (2.7.6)")
        self.last_available = (self.last_available + 1) % INDEX_MODULUS
        self.in_flight += 1
        return head

    def _walk(self, head: int) -> Chain:
        """Follow a descriptor chain (2.7.5), into an indirect table where it has one (2.7.5.3)."""
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        table, table_size, in_indirect = self._descriptors, self.size, False
        index, count, length = head, 0, 0
        while True:
            descriptor = table[index]
            address, size = descriptor.addr, descriptor.len
            flags, following = descriptor.flags, descriptor.next

            if flags & VIRTQ_DESC_F_INDIRECT:
                if in_indirect:
                    raise ChainError("2.7.5.3.1", "an indirect table inside an indirect table")
                table, table_size = self._indirect_table(address, size, flags)
                index, in_indirect = 0, True
                continue

            count += 1
            if count > self.longest_chain:
                raise ChainError("2.7.5.3.1", "a chain longer than the queue, or one with a loop")
            length += size
            if length > CHAIN_BYTES_MAX:
                raise ChainError("2.7.5.2", "a chain of more than 2^32 bytes")
            if flags & VIRTQ_DESC_F_WRITE:
                writable += self.memory.views(address, size)
            elif writable:
                raise ChainError("2.7.4.2", "a device-readable buffer after a device-writable one")
            else:
                readable += self.memory.views(address, size)

            if not flags & VIRTQ_DESC_F_NEXT:
                return Chain(head, readable, writable)
            if following >= table_size:
                raise ChainError("2.7.5", f"next {following} is out of range")
            index = following

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

    # Giving used buffers back (2.7.8)

    def push(self, chain: Chain, written: int) -> None:
        """Give one chain back; `written` bytes were written, from its first writable byte on."""
        self.push_many([(chain, written)])

    def push_many(self, completions: Iterable[tuple[Chain, int]]) -> None:
        """Give chains back, in any order, and expose them all with one update of idx.

        Raises ValueError for more than were popped, or more bytes written than a chain has room
        for: a fault of the device.
        """
        entries = []
        for chain, written in completions:
            if not 0 <= written <= total(chain.writable):
                raise ValueError(f"{written} bytes written to a chain with less room")
            # A chain may have room for 2^32 bytes; len holds one less, and may be an underestimate.
            entries.append((chain.head, min(written, USED_LEN_MAX)))
        self._return(entries)

    def _return(self, entries: list[tuple[int, int]]) -> None:
        if len(entries) > self.in_flight:
            raise ValueError("a chain was pushed that was not in flight")
        ring, used_index = self._used.ring, self.used_index
        for head, written in entries:
            element = ring[used_index % self.size]
            element.id = head
            element.len = written
            used_index = (used_index + 1) % INDEX_MODULUS
        self.in_flight -= len(entries)
        self.used_index = used_index
        lib.vp_store_release(self._used_idx, used_index)

    # Handing the rings to another, and taking them back

    def unpop(self, count: int) -> None:
        """Make the last `count` chains that were popped available again, unserved.

        They are the last: no chain that was popped after them has been pushed. The caller drops
        them. Raises ValueError for more than are in flight, or than `since_rejected`: a rejected
        chain behind them was used already.
        """
        if not 0 <= count <= min(self.in_flight, self.since_rejected):
            raise ValueError(
                f"{count} chains of {self.in_flight} in flight, {self.since_rejected} of them "
                "popped since one was rejected"
            )
        self.in_flight -= count
        self.since_rejected -= count
        self.last_available = (self.last_available - count) % INDEX_MODULUS

    def resume(self, last_available: int) -> None:
        """Go on after another worked the rings, which came to `last_available`.

        Nothing was in flight when it began, and nothing is now; it has sent the notifications for
        what it used.
        """
        self.last_available = self._seen_available = last_available
        self.since_rejected = 0
        self.used_index = self._signalled_used = lib.vp_load_acquire(self._used_idx)

    def next_fault(self) -> str | None:
        """Say why the next available chain cannot be served, and leave it there; None if it can."""
        try:
            head = self._next_head()
            if head is None:
                return None
            self.in_flight -= 1
            self.last_available = (self.last_available - 1) % INDEX_MODULUS
            self._walk(head)
        except DriverError as error:
            return str(error)
        return None

    # Notifications (2.7.7, 2.7.10)

    def should_interrupt(self) -> bool:
        """Say whether the buffers used since the last call ask for a notification (2.7.7.2)."""
        new, old = self.used_index, self._signalled_used
        if new == old:
            return False
        self._signalled_used = new
        # idx must be visible before used_event is read: the driver writes the one and reads the
        # other, in the opposite order.
        lib.vp_memory_barrier()
        if self.event_idx:
            return need_event(self._used_event[0], new, old)
        return not self._available.flags & VIRTQ_AVAIL_F_NO_INTERRUPT

    def disable_notifications(self) -> None:
        """Advise the driver that no available buffer notification is needed (2.7.10)."""
        if not self.event_idx:
            self._used.flags = VIRTQ_USED_F_NO_NOTIFY
        # With EVENT_IDX an avail_event that lies behind is advice enough.

    def enable_notifications(self) -> bool:
        """Ask for the next available buffer notification (2.7.10).

        Returns True when buffers became available meanwhile, for which no notification may come:
        pop again.
        """
        if self.event_idx:
            self._avail_event[0] = self.last_available
        else:
            self._used.flags = 0
        lib.vp_memory_barrier()
        return lib.vp_load_acquire(self._available_idx) != self.last_available
