"""The driver side of a split virtqueue (2.7), for tests and tools.

It works on the same guest memory as the device side, keeps to the specification, and, for those
who want to break it on purpose, lets every field be written directly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from virtiopy._native import CData, ffi, lib
from virtiopy.memory import GuestMemory
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.layout import (
    DESCRIPTOR_SIZE,
    INDEX_MODULUS,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
    Area,
    RingFormat,
    need_event,
)
from virtiopy.virtqueue.queue import QueueAreas


@dataclass(slots=True, frozen=True)
class Piece:
    """One buffer of a chain: `length` bytes at guest physical `address`."""

    address: int
    length: int
    writable: bool = False


@dataclass(slots=True, frozen=True)
class Used:
    """An entry of the used ring: the chain's head, and how many bytes the device wrote."""

    head: int
    length: int


class Allocator:
    """Hands out guest memory from [start, end) and never takes any back."""

    def __init__(self, start: int, end: int) -> None:
        self._next = start
        self._end = end

    def take(self, size: int, alignment: int = 1) -> int:
        """Return the guest physical address of `size` bytes; raises MemoryError."""
        address = -(-self._next // alignment) * alignment
        if address + size > self._end:
            raise MemoryError(f"{size} bytes of guest memory")
        self._next = address + size
        return address


class DriverQueue:
    """A virtqueue as its driver sees it; the three areas are allocated and zeroed here."""

    def __init__(
        self, memory: GuestMemory, size: int, allocator: Allocator, *, event_idx: bool = False
    ) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        wanted = layout.areas(RingFormat.SPLIT, size)
        self.areas = QueueAreas(
            self._allocate(allocator, wanted.descriptor),
            self._allocate(allocator, wanted.driver),
            self._allocate(allocator, wanted.device),
        )
        self.descriptors = self._cast("struct vring_desc *", self.areas.descriptor)
        self.available = self._cast("struct vring_avail *", self.areas.driver)
        self.used = self._cast("struct vring_used *", self.areas.device)
        self.used_event = self.available.ring + size
        self.avail_event = ffi.cast("uint16_t *", self.used.ring + size)
        self._available_idx = ffi.addressof(self.available[0], "idx")
        self._used_idx = ffi.addressof(self.used[0], "idx")
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}
        self.next_available = 0
        self._kicked = 0
        self.last_used = 0

    def _allocate(self, allocator: Allocator, area: Area) -> int:
        address = allocator.take(area.size, area.alignment)
        self.memory.write(address, bytes(area.size))
        return address

    def _cast(self, kind: str, address: int) -> CData:
        return ffi.cast(kind, self.memory.pointer(address, 1))

    @property
    def free(self) -> int:
        """How many descriptors are free."""
        return len(self._free)

    @property
    def free_indexes(self) -> list[int]:
        """The descriptors that are free, the next to be taken last."""
        return list(self._free)

    # Supplying buffers (2.7.13)

    def place(
        self, pieces: Sequence[Piece], *, direct: int | None = None, table: int | None = None
    ) -> int:
        """Put a chain into the descriptor table and return its head.

        The first `direct` pieces (default: all) get a descriptor of the queue each, the rest an
        indirect table at guest physical address `table`. The chain is not available yet. Raises
        IndexError when descriptors are short.
        """
        direct = len(pieces) if direct is None else direct
        count = direct + (direct < len(pieces))
        if count > len(self._free):
            raise IndexError("no free descriptors")
        indexes = [self._free.pop() for _ in range(count)]
        for position, piece in enumerate(pieces[:direct]):
            more = position + 1 < count
            self.write_descriptor(
                indexes[position],
                piece.address,
                piece.length,
                (VIRTQ_DESC_F_WRITE if piece.writable else 0) | (VIRTQ_DESC_F_NEXT if more else 0),
                indexes[position + 1] if more else 0,
            )
        if direct < len(pieces):
            assert table is not None, "an indirect chain needs a table"
            self._write_table(table, pieces[direct:])
            length = DESCRIPTOR_SIZE * (len(pieces) - direct)
            self.write_descriptor(indexes[-1], table, length, VIRTQ_DESC_F_INDIRECT, 0)
        self._chains[indexes[0]] = indexes
        return indexes[0]

    def _write_table(self, table: int, pieces: Sequence[Piece]) -> None:
        entries = ffi.new("struct vring_desc[]", len(pieces))
        for position, piece in enumerate(pieces):
            more = position + 1 < len(pieces)
            entries[position] = (
                piece.address,
                piece.length,
                (VIRTQ_DESC_F_WRITE if piece.writable else 0) | (VIRTQ_DESC_F_NEXT if more else 0),
                position + 1 if more else 0,
            )
        self.memory.write(table, bytes(ffi.buffer(entries)))

    def write_descriptor(
        self, index: int, address: int, length: int, flags: int, following: int
    ) -> None:
        """Write one entry of the descriptor table (2.7.5), whatever it says."""
        self.descriptors[index] = (address, length, flags, following)

    def make_available(self, *heads: int) -> None:
        """Offer chains by their heads, with one update of idx (2.7.13.2, 2.7.13.3)."""
        for head in heads:
            self.available.ring[self.next_available % self.size] = head
            self.next_available = (self.next_available + 1) % INDEX_MODULUS
        lib.vp_store_release(self._available_idx, self.next_available)

    def add(
        self, pieces: Sequence[Piece], *, direct: int | None = None, table: int | None = None
    ) -> int:
        """Place a chain and make it available; returns its head."""
        head = self.place(pieces, direct=direct, table=table)
        self.make_available(head)
        return head

    def should_kick(self) -> bool:
        """Say whether what was made available since the last call asks for a kick (2.7.10.1)."""
        new, old = self.next_available, self._kicked
        if new == old:
            return False
        self._kicked = new
        lib.vp_memory_barrier()
        if self.event_idx:
            return need_event(self.avail_event[0], new, old)
        return not self.used.flags & VIRTQ_USED_F_NO_NOTIFY

    # Receiving used buffers (2.7.14)

    def take_used(self) -> Used | None:
        """Take the next entry of the used ring and free its descriptors; None without one."""
        if lib.vp_load_acquire(self._used_idx) == self.last_used:
            return None
        element = self.used.ring[self.last_used % self.size]
        self.last_used = (self.last_used + 1) % INDEX_MODULUS
        head = element.id
        self._free += reversed(self._chains.pop(head, []))
        return Used(head, element.len)

    def take_all_used(self) -> list[Used]:
        """Take every entry of the used ring that is there."""
        return list(iter(self.take_used, None))

    def disable_interrupts(self) -> None:
        """Advise the device that no used buffer notification is needed (2.7.7)."""
        if self.event_idx:
            # The entry that it names was used already: the next of that index is a wrap away.
            self.used_event[0] = (self.last_used - 1) % INDEX_MODULUS
        else:
            self.available.flags = VIRTQ_AVAIL_F_NO_INTERRUPT

    def enable_interrupts(self) -> bool:
        """Ask for the next used buffer notification; True when used buffers came meanwhile."""
        if self.event_idx:
            self.used_event[0] = self.last_used
        else:
            self.available.flags = 0
        lib.vp_memory_barrier()
        return lib.vp_load_acquire(self._used_idx) != self.last_used
