"""A virtqueue of the driver's whose every step is in the trace."""

from collections import Counter
from collections.abc import Sequence

from virtiopy._native import lib
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.memory import GuestMemory
from virtiopy.trace.words import piece
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece, Used
from virtiopy.virtqueue.layout import (
    DESCRIPTOR_SIZE,
    INDEX_MODULUS,
    AreaLayout,
    DescriptorFlag,
    RingFormat,
)

#: The length of a used entry that no device has written, as `corrupt_used_entries` leaves it.
STALE_LENGTH = 0xEEEE_EEEE


class SessionQueue(DriverQueue):
    """Virtqueue `index` of a session. What it does, and what is broken in it, is traced.

    `completed` has the used buffers that a test waited past, by the head of their chain.
    """

    def __init__(
        self,
        index: int,
        memory: GuestMemory,
        size: int,
        allocator: Allocator,
        trace: Trace,
        *,
        event_idx: bool,
    ) -> None:
        super().__init__(memory, size, allocator, event_idx=event_idx)
        self.index = index
        self.completed: dict[int, Used] = {}
        #: Heads that were used and were neither available nor in flight.
        self.strays: list[int] = []
        self._in_flight: Counter[int] = Counter()
        self._writable: list[Piece] = []
        self._trace = trace
        areas = self.areas
        # No entry that is counted before it is there passes for one.
        self._fill_used_entries()
        self._note(
            f"{size} entries: descriptors at {areas.descriptor:#x}, "
            f"available ring at {areas.driver:#x}, used ring at {areas.device:#x}"
        )

    def _note(self, event: str) -> None:
        self._trace.note(f"queue {self.index}: {event}")

    def place(
        self, pieces: Sequence[Piece], *, direct: int | None = None, table: int | None = None
    ) -> int:
        """Put a chain into the descriptor table and return its head; see DriverQueue."""
        head = super().place(pieces, direct=direct, table=table)
        self._writable += [piece for piece in pieces if piece.writable]
        # What another chain with this head came to is not waited for any more.
        self.completed.pop(head, None)
        return head

    def write_descriptor(
        self, index: int, address: int, length: int, flags: int, following: int
    ) -> None:
        """Write one entry of the descriptor table (2.7.5), whatever it says."""
        super().write_descriptor(index, address, length, flags, following)
        self._note(f"descriptor {index} = {_descriptor(address, length, flags, following)}")

    def _write_table(self, table: int, pieces: Sequence[Piece]) -> None:
        super()._write_table(table, pieces)
        what = ", ".join(piece(p.address, p.length, writable=p.writable) for p in pieces)
        self._note(f"indirect table at {table:#x} = {what}")

    def make_available(self, *heads: int) -> None:
        """Offer chains by their heads, with one update of idx (2.7.13.2, 2.7.13.3)."""
        self._in_flight.update(heads)
        super().make_available(*heads)
        self._note(f"available idx = {self.next_available}, heads {list(heads)}")

    def go_on_at(self, index: int) -> None:
        """Be a queue whose device and driver have come to this index, with nothing in flight."""
        self.next_available = self.last_used = self._kicked = index
        self.available.idx = self.used.idx = index
        # What the device before this one has left, and the driver asked it for.
        self.avail_event[0] = self.used_event[0] = index
        self._note(f"available idx = used idx = {index}")

    def use(self, head: int) -> None:
        """Use a buffer with nothing in it, as the device would."""
        self.used.ring[self.used_idx % self.size] = (head, 0)
        self.used.idx = (self.used_idx + 1) % INDEX_MODULUS
        self._note(f"head {head} was used by a device before this one")

    # What no driver may write, in the format of a split virtqueue

    def corrupt_descriptor(
        self, index: int, address: int, length: int, flags: int, following: int = 0
    ) -> None:
        """Write one entry of the descriptor table (2.7.5), whatever it says."""
        self.write_descriptor(index, address, length, flags, following)

    def corrupt_index(self, by: int) -> None:
        """Move idx of the available ring (2.7.6) with no entry written; later chains follow it."""
        self.next_available = (self.next_available + by) % INDEX_MODULUS
        lib.vp_store_release(self._available_idx, self.next_available)
        self._note(f"available idx = {self.next_available}, with no entry written")

    def corrupt_advice(self, flags: int, used_event: int) -> None:
        """Write both fields of the available ring that say when to notify (2.7.7)."""
        self.available.flags = flags
        self.used_event[0] = used_event
        self._note(f"available flags = {flags:#x}, used_event = {used_event:#x}")

    def corrupt_used_ring(self) -> None:
        """Write over the whole used ring (2.7.8), which is the device's."""
        self.memory.write(self.areas.device, b"\xff" * (4 + 8 * self.size))
        self._note("used ring = ff ff ff ...")

    def corrupt_used_entries(self) -> None:
        """Fill the used ring's entries with what no device has written; idx stays (2.7.8)."""
        self._fill_used_entries()
        self._note("used ring entries = ee ee ee ...")

    def _fill_used_entries(self) -> None:
        self.memory.write(self.areas.device + 4, STALE_LENGTH.to_bytes(4, "little") * 2 * self.size)

    # Where a field is that another thread is to change

    def descriptor_address(self, index: int) -> int:
        """Return the guest physical address of an entry of the descriptor table."""
        return self.areas.descriptor + DESCRIPTOR_SIZE * index

    def next_entry_address(self) -> int:
        """Return the guest physical address of the available ring's next entry."""
        return self.areas.driver + 4 + 2 * (self.next_available % self.size)

    def available_idx_address(self) -> int:
        """Return the guest physical address of the available ring's idx."""
        return self.areas.driver + 2

    def take_used(self) -> Used | None:
        """Take the next entry of the used ring and free its descriptors; None without one."""
        used = super().take_used()
        if used is not None:
            if self._in_flight[used.head]:
                self._in_flight[used.head] -= 1
            else:
                self.strays.append(used.head)
            self._note(f"used: head {used.head}, {used.length} bytes, idx {self.last_used}")
        return used

    @property
    def used_idx(self) -> int:
        """The used ring's idx, as the device has it now."""
        return int(lib.vp_load_acquire(self._used_idx))

    @property
    def _layout(self) -> AreaLayout:
        return layout.areas(RingFormat.SPLIT, self.size)

    def used_part(self) -> bytes:
        """Return what is in the part of the queue that the device writes."""
        return self.memory.read(self.areas.device, self._layout.device.size)

    def devices_spans(self) -> list[tuple[int, int]]:
        """Return what the device may write: [start, end), its part and every buffer so far."""
        ring = Piece(self.areas.device, self._layout.device.size, writable=True)
        return [(piece.address, piece.address + piece.length) for piece in [ring, *self._writable]]

    def drivers_spans(self) -> list[tuple[int, int]]:
        """Return where the driver's own parts of the queue are: [start, end)."""
        return [
            (self.areas.descriptor, self.areas.descriptor + self._layout.descriptor.size),
            (self.areas.driver, self.areas.driver + self._layout.driver.size),
        ]

    @property
    def unused(self) -> int:
        """How many buffers are available and were not used yet."""
        return (self.next_available - self.used_idx) % INDEX_MODULUS


def _descriptor(address: int, length: int, flags: int, following: int) -> str:
    known = "|".join(flag.name for flag in DescriptorFlag if flags & flag and flag.name)
    rest = flags & ~int(sum(DescriptorFlag))
    words = "|".join(filter(None, [known, f"{rest:#x}" if rest else ""])) or "0"
    return f"({address:#x}, {length}, {words}, {following})"
