"""The device side of a split virtqueue (2.7) in C: the double of `split.SplitQueue`.

It is several times as fast, and a worker without the interpreter can have it. `SplitQueue` is the
reference: the same tests pass over both, and both do the same with the same rings. Environment
variable VIRTIOPY_NATIVE=off leaves everything to that one.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol, runtime_checkable

from virtiopy._native import CData, ffi, lib
from virtiopy.memory import AddressError, GuestMemory
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.layout import INDEX_MODULUS, USED_LEN_MAX, RingFormat, valid_queue_size
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
from virtiopy.virtqueue.split import area_pointer

log = logging.getLogger(__name__)

#: Chains that one call into C takes, and the pieces that all of these may have at first.
_CHAINS = 256
_PIECES = 2048

#: Words of 64 bits in struct vp_chain and struct iovec.
_CHAIN_WORDS = ffi.sizeof("struct vp_chain") // 8
_PIECE_WORDS = ffi.sizeof("struct iovec") // 8


def is_enabled() -> bool:
    """Say whether C may work rings: VIRTIOPY_NATIVE=off has Python do it."""
    return os.environ.get("VIRTIOPY_NATIVE", "on") != "off"


@runtime_checkable
class NativeAccount(Protocol):
    """An observer whose account C keeps for it, in the same way."""

    def join(self, queue: CData) -> None:
        """Have C keep the account from now on: `queue` is a struct vp_virtq."""


class RingWorker(Protocol):
    """What a queue asks of the ring of a worker without the interpreter that has it."""

    def take(self) -> int | None:
        """Take the next chain that was handed up, by its slot."""

    def give(self, slot: int, written: int) -> None:
        """Give such a chain back."""

    def head_of(self, slot: int) -> int | None:
        """Return the head of a chain that came without its pieces; None for one that has them."""

    def chain_of(self, slot: int) -> CData:
        """Return the struct vp_chain of another."""

    def rejects(self) -> Iterable[CData]:
        """Take what is known of chains that were rejected: struct vp_fault."""

    @property
    def is_broken(self) -> bool:
        """Whether the worker has found the queue broken."""


class NativeChain:
    """A descriptor chain (queue.Chain): its token is the index of its first descriptor.

    `room` is how many bytes are writable. `slot` is where the ring of a worker that handed it up,
    `worker`, keeps it.
    """

    __slots__ = ("readable", "room", "slot", "token", "worker", "writable")

    #: No observer that wants them is served here.
    descriptors: Sequence[Descriptor] = ()

    def __init__(  # noqa: PLR0917 - one a chain: keywords cost
        self,
        token: int,
        readable: Sequence[memoryview],
        writable: Sequence[memoryview],
        room: int,
        worker: RingWorker | None = None,
        slot: int = 0,
    ) -> None:
        self.token = token
        self.readable = readable
        self.writable = writable
        self.room = room
        self.worker = worker
        self.slot = slot


class NativeQueue:
    """A split virtqueue (queue.Virtqueue) of `size` entries, a power of 2 up to 32768.

    `state` and `longest_chain` are as formats.OpenQueue has them. Each observer is a
    `NativeAccount`. Raises QueueError when the areas are misaligned or are not in guest memory.
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
        #: Malformed chains that were given back unserved, by section of the specification.
        self.rejected: Counter[str] = Counter()

        self._regions = [(one.host_address, one.size, one.view) for one in memory.regions]
        self._memory = _native_memory(memory)
        #: struct vp_virtq, for a worker.
        self.native = ffi.new("struct vp_virtq *")
        expected = layout.areas(RingFormat.SPLIT, size)
        queue = self.native
        queue.memory = self._memory
        queue.desc = ffi.cast(
            "struct vring_desc *", area_pointer(memory, areas.descriptor, expected.descriptor)
        )
        queue.avail = ffi.cast(
            "struct vring_avail *", area_pointer(memory, areas.driver, expected.driver)
        )
        queue.used = ffi.cast(
            "struct vring_used *", area_pointer(memory, areas.device, expected.device)
        )
        queue.size = size
        #: The most descriptors of a chain: no more than the queue has (2.7.5.3.1).
        queue.longest = self.longest_chain = max(size, longest_chain)
        queue.event_idx = event_idx
        queue.indirect = indirect
        self._unfinished = ffi.NULL
        # What to walk chains with that a worker has handed up: it changes its own while it works.
        self._probe = ffi.new("struct vp_virtq *")

        # Where C puts what it takes.
        self._chains = ffi.new("struct vp_chain[]", _CHAINS)
        self._rejects = ffi.new("struct vp_fault[]", REJECTS_A_POP)
        #: Whether the budget of a pop ended before what the worker has handed up.
        self._handed_up_more = False
        self._batch = ffi.new("struct vp_batch *")
        self._batch.chains = self._chains
        self._batch.chains_room = _CHAINS
        self._batch.rejects = self._rejects
        self._batch.rejects_room = REJECTS_A_POP
        self._make_room(_PIECES)

        # The chains that the device has, in the order in which they were popped.
        self._in_flight: dict[Chain, None] = {}
        # The ring of a worker that has the queue.
        self._delegated_to: RingWorker | None = None
        self._observers = tuple(observers)
        for observer in self._observers:
            assert isinstance(observer, NativeAccount)
            observer.join(queue)
        if state is not None:
            self.resume(state)
        for observer in self._observers:
            observer.opened(self)

    def _make_room(self, pieces: int) -> None:
        self._pieces = ffi.new("struct iovec[]", pieces)
        self._batch.iov = self._pieces
        self._batch.iov_room = pieces

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

        While a worker has the queue, these are the chains that it does not serve.
        """
        chains: list[Chain] = []
        if self._delegated_to is None:
            self._take_available(chains, limit)
        else:
            chains += self._take_handed_up(self._delegated_to, limit)
            if not chains and self._delegated_to.is_broken:
                raise self._fault()
        for chain in chains:
            self._in_flight[chain] = None
        return chains

    def _take_available(self, chains: list[Chain], limit: int | None) -> None:
        batch = self._batch
        batch.budget = DESCRIPTORS_A_POP
        batch.rejects_count = 0
        while True:
            batch.count = batch.iov_count = 0
            batch.limit = _CHAINS if limit is None else min(_CHAINS, limit - len(chains))
            result = lib.vp_virtq_pop_many(self.native, batch)
            if batch.count:
                chains += self._chains_of(batch.count, batch.iov_count)
            if result == lib.VP_POP_CHAIN and batch.count == _CHAINS and batch.budget > 0:
                continue
            if result != lib.VP_POP_NO_ROOM:
                break
            if batch.count == 0:
                self._make_room(2 * batch.iov_room)
        for index in range(batch.rejects_count):
            self._note_reject(self._rejects[index])
        if result == lib.VP_POP_BROKEN and not chains:
            raise self._fault()

    def _chains_of(self, count: int, pieces: int) -> list[Chain]:
        words = ffi.unpack(ffi.cast("uint64_t *", self._chains), _CHAIN_WORDS * count)
        views = self._views(self._pieces, pieces)
        chains: list[Chain] = []
        first = 0
        for start in range(0, len(words), _CHAIN_WORDS):
            numbers, room, head = words[start + 1], words[start + 3], words[start + 4]
            middle = first + (numbers & 0xFFFF_FFFF)
            end = middle + (numbers >> 32)
            chains.append(
                NativeChain(head & 0xFFFF_FFFF, views[first:middle], views[middle:end], room)
            )
            first = end
        return chains

    def _views(self, pieces: CData, count: int) -> list[memoryview]:
        words = ffi.unpack(ffi.cast("uint64_t *", pieces), _PIECE_WORDS * count)
        base, size, view = self._regions[0] if self._regions else (0, 0, memoryview(b""))
        views = []
        for place in range(0, len(words), _PIECE_WORDS):
            start, length = words[place] - base, words[place + 1]
            if 0 <= start < size:
                views.append(view[start : start + length])
            else:
                views.append(self._view(words[place], length))
        return views

    def _view(self, host_address: int, length: int) -> memoryview:
        for base, size, view in self._regions:
            if 0 <= host_address - base < size:
                return view[host_address - base : host_address - base + length]
        raise ValueError(f"{host_address:#x} is not in guest memory")

    def _note_reject(self, fault: CData) -> None:
        error = _chain_error(fault)
        self.rejected[error.section] += 1
        log.warning("queue %d: chain %d rejected: %s", self.index, fault.head, error)

    def _fault(self) -> QueueError:
        queue, fault = self.native, self.native.fault
        if fault.code == lib.VP_FAULT_INDEX:
            return QueueError(
                f"queue {self.index}: available idx {fault.address} offers {fault.length} "
                f"buffers, {queue.in_flight} are in flight, and the queue has {self.size} (2.7)"
            )
        return QueueError(f"queue {self.index}: head {fault.address} is out of range (2.7.6)")

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
        chains = {chain for chain, _ in completions}
        if len(chains) < len(completions) or not chains <= self._in_flight.keys():
            raise ValueError("a chain was pushed that was not in flight")
        for chain, written in completions:
            assert isinstance(chain, NativeChain)
            if not 0 <= written <= chain.room:
                raise ValueError(f"{written} bytes written to a chain with less room")
        for chain, written in completions:
            assert isinstance(chain, NativeChain)
            # A chain may have room for 2^32 bytes; len holds one less, and may be an underestimate.
            self._put(chain, min(written, USED_LEN_MAX))
            del self._in_flight[chain]
        if self._delegated_to is None:
            lib.vp_virtq_publish(self.native)

    def _put(self, chain: NativeChain, written: int) -> None:
        if chain.worker is not None:
            chain.worker.give(chain.slot, written)
            return
        native = self._chains[0]
        native.head = chain.token
        native.readable = native.writable = 0
        if self.native.dirty.log != ffi.NULL:
            self._describe(native, chain)
        lib.vp_virtq_put(self.native, ffi.addressof(native), written)

    def _describe(self, native: CData, chain: NativeChain) -> None:
        """Say what of a chain was writable, for the log of what was written."""
        if len(chain.writable) > self._batch.iov_room:
            self._make_room(len(chain.writable))
        for piece, view in zip(self._pieces, chain.writable, strict=False):
            piece.iov_base = ffi.from_buffer("char[]", view)
            piece.iov_len = len(view)
        native.iov = self._pieces
        native.writable = len(chain.writable)

    # Another worker of the rings

    @property
    def state(self) -> QueueState:
        """Where the next worker has to go on."""
        queue = self.native
        left = queue.unfinished_count - queue.unfinished_next
        return QueueState((queue.next - left) % INDEX_MODULUS)

    def resume(self, state: QueueState) -> None:
        """Go on after another worker, which came to `state`; nothing is in flight.

        It has sent the interrupts for what it used.
        """
        lib.vp_virtq_resume(self.native, state.vring_base % INDEX_MODULUS)

    def recover(self, unfinished: Sequence[int] = ()) -> None:
        """Go on after a worker that died, with the chains that it had taken and not used.

        `unfinished` are their tokens, in the order in which it took them: they are popped first.
        """
        queue = self.native
        self.resume(QueueState())
        self.resume(QueueState((queue.used_idx + len(unfinished)) % INDEX_MODULUS))
        self._unfinished = ffi.new("uint16_t[]", list(unfinished))
        queue.unfinished = self._unfinished
        queue.unfinished_count = len(unfinished)

    @property
    def can_unpop(self) -> int:
        """How many of the chains popped last can be made available again.

        A rejected chain behind one was used already: no index can say that the one before it is
        available again.
        """
        return int(min(self.in_flight, self.native.since_rejected))

    def unpop(self, count: int) -> None:
        """Make the last `count` chains that were popped available again, unserved.

        They are the last: no chain that was popped after them has been pushed. The caller drops
        them. Raises ValueError for more than `can_unpop`.
        """
        if not 0 <= count <= self.can_unpop:
            raise ValueError(
                f"{count} chains of {self.in_flight} in flight, {self.native.since_rejected} of "
                "them popped since one was rejected"
            )
        chains = list(islice(reversed(self._in_flight), count))
        for chain in chains:
            del self._in_flight[chain]
        lib.vp_virtq_untake(self.native, [chain.token for chain in chains], count)

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
        while True:
            chain, batch = self._chains, self._batch
            result = lib.vp_virtq_peek(self.native, chain, self._pieces, batch.iov_room)
            if result == lib.VP_POP_NO_ROOM:
                self._make_room(2 * batch.iov_room)
            elif result == lib.VP_POP_REJECTED:
                return _reason(self.native.fault)
            elif result == lib.VP_POP_BROKEN:
                return str(self._fault())
            else:
                return None

    # A worker without the interpreter

    def delegate(self, worker: RingWorker) -> None:
        """Leave the queue to a worker: it touches nothing of `native` any more until `reclaim`.

        Raises ValueError while chains are in flight.
        """
        if self.native.in_flight:
            raise ValueError(f"{self.native.in_flight} chains are in flight")
        self._delegated_to = worker
        self._probe[0] = self.native[0]

    def reclaim(self) -> Sequence[Chain]:
        """Have the queue again, once the worker has left it.

        Returns the chains that it has handed up, and that were not popped: they are in flight, for
        the caller to complete.
        """
        worker, self._delegated_to = self._delegated_to, None
        chains: list[Chain] = []
        if worker is not None:
            self._handed_up_more = True
            while self._handed_up_more:
                chains += self._take_handed_up(worker, None)
        for chain in chains:
            self._in_flight[chain] = None
        if self._in_flight:
            # Others have overtaken them.
            self.native.since_rejected = 0
        return chains

    def _take_handed_up(self, worker: RingWorker, limit: int | None) -> list[Chain]:
        for fault in worker.rejects():
            self._note_reject(fault)
        chains: list[Chain] = []
        budget, rejects = DESCRIPTORS_A_POP, REJECTS_A_POP
        while limit is None or len(chains) < limit:
            if budget <= 0 or rejects <= 0:
                self._handed_up_more = True
                return chains
            if (slot := worker.take()) is None:
                break
            head = worker.head_of(slot)
            chain = self._copy(worker, slot) if head is None else self._walk(worker, slot, head)
            if chain is None:
                rejects -= 1
            else:
                chains.append(chain)
                budget -= len(chain.readable) + len(chain.writable)
        self._handed_up_more = False
        return chains

    def _copy(self, worker: RingWorker, slot: int) -> NativeChain:
        native = worker.chain_of(slot)
        views = self._views(native.iov, native.readable + native.writable)
        middle = native.readable
        return NativeChain(
            native.head, views[:middle], views[middle:], native.writable_bytes, worker, slot
        )

    def _walk(self, worker: RingWorker, slot: int, head: int) -> NativeChain | None:
        """Take a chain apart that has more pieces than the worker holds."""
        native, batch = self._chains, self._batch
        while True:
            result = lib.vp_virtq_walk(self._probe, head, native, self._pieces, batch.iov_room)
            if result != lib.VP_POP_NO_ROOM:
                break
            self._make_room(2 * batch.iov_room)
        if result == lib.VP_POP_REJECTED:
            self._note_reject(self._probe.fault)
            worker.give(slot, 0)
            return None
        first = native[0]
        views = self._views(self._pieces, first.readable + first.writable)
        middle = first.readable
        return NativeChain(head, views[:middle], views[middle:], first.writable_bytes, worker, slot)

    # Notifications (2.7.7, 2.7.10)

    def should_interrupt(self) -> bool:
        """Say whether the driver wants an interrupt for what was used since then (2.7.7.2).

        A worker that has the queue sends them itself.
        """
        return self._delegated_to is None and bool(lib.vp_virtq_should_interrupt(self.native))

    def disable_kicks(self) -> None:
        """Advise the driver that no kick is needed (2.7.10)."""
        if self._delegated_to is None:
            lib.vp_virtq_disable_kicks(self.native)

    def enable_kicks(self) -> bool:
        """Ask for a kick for the next chain (2.7.10).

        Returns True when there is one already, for which no kick may come: pop again.
        """
        if self._delegated_to is not None:
            # The worker asks for kicks, and tells of what it hands up: but of each only once.
            return self._handed_up_more
        return bool(lib.vp_virtq_enable_kicks(self.native))


def _native_memory(memory: GuestMemory) -> CData:
    regions = memory.regions
    table = ffi.new("struct vp_memory *", {"regions": len(regions)})
    table.count = len(regions)
    for index, region in enumerate(regions):
        entry = table.regions[index]
        entry.guest = region.guest_address
        entry.size = region.size
        entry.host = ffi.cast("char *", region.host_address)
    return table


def _chain_error(fault: CData) -> ChainError:
    """Say what is wrong with a chain, in the words of split.py."""
    match fault.code:
        case lib.VP_FAULT_NESTED:
            return ChainError("2.7.5.3.1", "an indirect table inside an indirect table")
        case lib.VP_FAULT_NOT_NEGOTIATED:
            return ChainError("2.7.5.3.1", "an indirect table, which was not negotiated")
        case lib.VP_FAULT_INDIRECT_NEXT:
            return ChainError("2.7.5.3.1", "both INDIRECT and NEXT in one descriptor")
        case lib.VP_FAULT_TABLE_SIZE:
            return ChainError("2.7.5.3", f"an indirect table of {fault.length} bytes")
        case lib.VP_FAULT_TOO_LONG:
            return ChainError("2.7.5.3.1", "a chain longer than the queue, or one with a loop")
        case lib.VP_FAULT_TOO_LARGE:
            return ChainError("2.7.5.2", "a chain of more than 2^32 bytes")
        case lib.VP_FAULT_ORDER:
            return ChainError("2.7.4.2", "a device-readable buffer after a device-writable one")
        case lib.VP_FAULT_NEXT:
            return ChainError("2.7.5", f"next {fault.address} is out of range")
        case _:
            return ChainError("2.7.5", _reason(fault))


def _reason(fault: CData) -> str:
    if fault.code == lib.VP_FAULT_ADDRESS:
        return str(AddressError(fault.address, fault.length))
    return str(_chain_error(fault))
