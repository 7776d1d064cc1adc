import random
import struct
from collections import Counter, deque
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from virtiopy.memory import GuestMemory
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece, Used
from virtiopy.virtqueue.malformed import CHAINS, TABLES, Ground
from virtiopy.virtqueue.native import NativeQueue
from virtiopy.virtqueue.queue import Chain, QueueError, QueueState
from virtiopy.virtqueue.split import SplitQueue

# The nightly profile takes minutes; a device that never ends is found sooner in the normal one.
pytestmark = pytest.mark.timeout(max(900, settings().max_examples // 5))

NEXT, WRITE, INDIRECT = 1, 2, 4

MEMORY_SIZE = 128 << 10
RINGS = 0x1000

# Each chain between being placed and being taken back has a slot: room for its buffers, then for
# an indirect table.
SLOTS = 0x4000
SLOT_SIZE = 0x1000
TABLE_OFFSET = 0x800
PIECE_MAX = 48
PIECES_MAX = 16

BEYOND = MEMORY_SIZE + 0x1000


@dataclass
class Offer:
    # A chain as the driver knows it.
    head: int
    slot: int
    descriptors: int
    malformed: bool = False
    readable: bytes = b""
    writable: tuple[Piece, ...] = ()
    written: bytes = b""

    @property
    def room(self) -> int:
        return sum(piece.length for piece in self.writable)


def _entries_written(event: int, old: int, new: int) -> bool:
    # The rule of 2.7.7.2 and 2.7.10.1 in its own words: was a descriptor index placed by an idx
    # that was equal to the event field? The indexes here never wrap; the field does.
    return any(idx % 65536 == event for idx in range(old, new))


MALFORMATIONS = {one.name: one for one in (*CHAINS, *TABLES)}

# Lengths of the readable and the writable buffers, the kind of chain or what is wrong with it, and
# where a mixed one is cut.
Spec = tuple[list[int], list[int], str, int]

KINDS = ["direct"] * 20 + ["indirect"] * 15 + ["mixed"] * 15
lengths = st.lists(st.one_of(st.integers(1, PIECE_MAX), st.just(0)), max_size=6)
spec = st.tuples(
    lengths,
    lengths,
    st.sampled_from(KINDS + sorted(MALFORMATIONS)),
    st.integers(0, PIECES_MAX),
)
specs = st.lists(spec, min_size=1, max_size=9)

limits = st.one_of(st.none(), st.integers(0, 6))

# Which of the chains in flight to complete, and what share of its room was written.
choices = st.lists(
    st.tuples(st.integers(0, 15), st.sampled_from([1.0, 0.7, 0.0])), min_size=1, max_size=16
)


class SplitQueueMachine(RuleBasedStateMachine):
    queue_type: ClassVar[type[SplitQueue] | type[NativeQueue]] = SplitQueue

    # The model: what the specification says of the queue, in lists. Indexes count on without end.

    def __init__(self) -> None:
        super().__init__()
        self.memory = GuestMemory.allocate(MEMORY_SIZE)
        self.random = random.Random(0)  # contents only

        self.placed: list[Offer] = []
        self.available: deque[Offer] = deque()
        self.in_flight: list[tuple[Offer, Chain]] = []
        self.used: deque[Offer] = deque()
        self.rejected = 0

        self.ready = False
        self.interrupts_off = self.notifications_off = False
        self.used_event = self.avail_event = 0

    @initialize(
        size=st.sampled_from([16, 8, 4, 2, 1]),
        event_idx=st.booleans(),
        indirect=st.sampled_from([True, True, True, False]),
        start=st.one_of(st.integers(65536 - 8, 65535), st.integers(0, 65535)),
    )
    def set_up(self, size: int, event_idx: bool, indirect: bool, start: int) -> None:
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.driver = DriverQueue(
            self.memory, self.size, Allocator(RINGS, SLOTS), event_idx=event_idx
        )
        self.driver.available.idx = self.driver.next_available = start
        self.driver.used.idx = self.driver.last_used = start
        self.driver.should_kick()
        self.avail_idx = self.popped = self.used_idx = self.taken = start
        self.kicked = self.signalled = start
        self.slots = list(range(self.size))
        self.free = self.size
        self.start_device(QueueState(start))
        self.ready = True

    def start_device(self, state: QueueState) -> None:
        self.device = self.queue_type(
            self.memory,
            self.size,
            self.driver.areas,
            event_idx=self.event_idx,
            indirect=self.indirect,
            state=state,
        )

    def teardown(self) -> None:
        if self.ready:
            self.finish()
            assert self.free == self.driver.free == self.size
        self.memory.close()

    # The driver supplies buffers (2.7.13)

    @rule(specs=specs, limit=limits, choices=choices, takes=st.integers(0, 16))
    def go_round(
        self,
        specs: list[Spec],
        limit: int | None,
        choices: list[tuple[int, float]],
        takes: int,
    ) -> None:
        # A little of each: alone, the rules below seldom meet in the order that carries a chain.
        self.place_chains(specs, True)
        self.pop_many(limit)
        if self.in_flight:
            self.push(choices)
        self.take(takes)

    @rule(specs=specs)
    def go_round_in_full(self, specs: list[Spec]) -> None:
        self.place_chains(specs, True)
        self.finish()

    def finish(self) -> None:
        # What is on its way arrives.
        self.make_available(len(self.placed))
        self.pop_many(None)
        while self.in_flight:
            self.push([(7, 1.0), (-1, 0.7)])
        self.ask_who_is_to_be_notified()
        self.take(self.size + 1)

    @rule(specs=specs, publish=st.sampled_from([True, True, False]))
    def place_chains(self, specs: list[Spec], publish: bool) -> None:
        for readable, writable, kind, cut in specs:
            if not self.free:
                break
            if kind in MALFORMATIONS:
                self._place_malformed_chain(kind)
            else:
                self._place_chain(readable, writable, kind, cut)
        if publish:
            self.make_available(len(self.placed))

    def _place_chain(self, readable: list[int], writable: list[int], kind: str, cut: int) -> None:
        sizes = [(length, False) for length in readable] + [(length, True) for length in writable]
        sizes = (sizes or [(0, False)])[: self.size]
        direct = {"direct": len(sizes), "indirect": 0, "mixed": cut % (len(sizes) + 1)}[kind]
        descriptors = direct + (direct < len(sizes))

        slot = self.slots[-1]
        address = SLOTS + slot * SLOT_SIZE
        pieces = []
        for length, is_writable in sizes:
            pieces.append(Piece(address, length, is_writable))
            address += length + 3
        table = SLOTS + slot * SLOT_SIZE + TABLE_OFFSET

        if descriptors > self.free:
            with pytest.raises(IndexError):
                self.driver.place(pieces, direct=direct, table=table)
            return
        content = b""
        for piece in pieces:
            data = bytes(piece.length) if piece.writable else self.random.randbytes(piece.length)
            self.memory.write(piece.address, data)
            content += b"" if piece.writable else data
        head = self.driver.place(pieces, direct=direct, table=table)
        if direct == 0:
            # Of this descriptor neither WRITE (2.7.5.3.2) nor next (2.7.5) means anything.
            flags = INDIRECT | (WRITE if cut % 2 else 0)
            self.driver.write_descriptor(head, table, 16 * len(pieces), flags, cut)
        refused = direct < len(sizes) and not self.indirect
        room = tuple(piece for piece in pieces if piece.writable)
        self._placed(Offer(head, slot, descriptors, refused, content, room))

    def _place_malformed_chain(self, wrong: str) -> None:
        slot = self.slots[-1]
        base = SLOTS + slot * SLOT_SIZE
        malformed = MALFORMATIONS[wrong]
        indexes = self.driver.free_indexes[::-1][: malformed.descriptors]
        if len(indexes) < malformed.descriptors:
            return
        head = self.driver.place([Piece(base, 1)] * malformed.descriptors)
        assert head == indexes[0]
        ground = Ground(
            indexes, self.size, base, base + TABLE_OFFSET, end=MEMORY_SIZE, hole=MEMORY_SIZE
        )
        chain, table = malformed.write(ground)
        for index, entry in zip(indexes, chain, strict=True):
            self.driver.write_descriptor(index, *entry)
        self.memory.write(ground.table, b"".join(struct.pack("<QIHH", *one) for one in table))
        self._placed(Offer(head, slot, malformed.descriptors, malformed=True))

    def _placed(self, offer: Offer) -> None:
        self.slots.remove(offer.slot)
        self.free -= offer.descriptors
        self.placed.append(offer)

    @precondition(lambda self: self.placed)
    @rule(count=st.integers(1, 16))
    def make_available(self, count: int) -> None:
        # Any chains that are placed, the newest first, with one update of idx.
        offers = [self.placed.pop() for _ in range(min(count, len(self.placed)))]
        self.driver.make_available(*(offer.head for offer in offers))
        self.available += offers
        self.avail_idx += len(offers)

    # The device takes them

    def _expect_popped(self, chain: Chain | None) -> None:
        while self.available and self.available[0].malformed:
            self._used(self.available.popleft())
            self.popped += 1
            self.rejected += 1
        if chain is None:
            assert not self.available
            return
        offer = self.available.popleft()
        self.popped += 1
        assert chain.token == offer.head
        assert b"".join(chain.readable) == offer.readable
        assert sum(len(view) for view in chain.writable) == offer.room
        self.in_flight.append((offer, chain))

    def _used(self, offer: Offer) -> None:
        self.used.append(offer)
        self.used_idx += 1

    @rule(limit=limits)
    def pop_many(self, limit: int | None) -> None:
        before = self._drivers_memory()
        if limit == 1:
            chain = self.device.pop()
            chains = [chain] if chain is not None else []
        else:
            chains = self.device.pop_many(limit)
        assert self._drivers_memory() == before
        for chain in chains:
            self._expect_popped(chain)
        if limit is None or len(chains) < limit:
            self._expect_popped(None)

    @precondition(lambda self: not self.available)
    @rule(excess=st.one_of(st.integers(1, 3), st.integers(1, 32767)))
    def offer_more_than_the_queue_holds(self, excess: int) -> None:
        # Or take back what was offered: modulo 2^16 both look alike.
        room = self.size - len(self.in_flight)
        self.driver.available.idx = (self.avail_idx + room + excess) % 65536
        for attempt in (self.device.pop, self.device.pop_many):
            with pytest.raises(QueueError):
                attempt()
        self.driver.available.idx = self.avail_idx % 65536

    @precondition(lambda self: self.placed and not self.available)
    @rule(beyond=st.one_of(st.just(0), st.integers(0, 65535)))
    def offer_a_head_out_of_range(self, beyond: int) -> None:
        entry = self.driver.areas.driver + 4 + 2 * (self.avail_idx % self.size)
        self.memory.write(entry, struct.pack("<H", min(self.size + beyond, 65535)))
        self.driver.available.idx = (self.avail_idx + 1) % 65536
        for attempt in (self.device.pop, self.device.pop_many):
            with pytest.raises(QueueError):
                attempt()
        self.make_available(1)

    # The device gives them back, in any order

    def _complete(self, position: int, share: float) -> tuple[Offer, Chain, int]:
        offer, chain = self.in_flight.pop(position % len(self.in_flight))
        data = self.random.randbytes(int(offer.room * share))
        offer.written = data
        left = data
        for view in chain.writable:
            view[: len(left)] = left[: len(view)]
            left = left[len(view) :]
        return offer, chain, len(data)

    @precondition(lambda self: self.in_flight)
    @rule(choices=choices)
    def push(self, choices: list[tuple[int, float]]) -> None:
        completions = [self._complete(*choice) for choice in choices[: len(self.in_flight)]]
        before = self._drivers_memory()
        if len(completions) == 1:
            self.device.push(*completions[0][1:])
        else:
            self.device.push_many([(chain, written) for _, chain, written in completions])
        assert self._drivers_memory() == before
        for offer, _, _ in completions:
            self._used(offer)

    @precondition(lambda self: self.in_flight)
    @rule(position=st.integers(0, 15))
    def push_more_than_there_is_room_for(self, position: int) -> None:
        offer, chain = self.in_flight[position % len(self.in_flight)]
        with pytest.raises(ValueError, match="less room"):
            self.device.push(chain, offer.room + 1)

    @precondition(lambda self: not self.in_flight)
    @rule()
    def hand_over(self) -> None:
        self.start_device(self.device.state)
        self.rejected = 0
        self.signalled = self.used_idx

    # The driver takes them back (2.7.14)

    def _take(self) -> None:
        entry = self.driver.take_used()
        if not self.used:
            assert entry is None
            return
        offer = self.used.popleft()
        self.taken += 1
        assert entry == Used(offer.head, len(offer.written))
        content = b"".join(self.memory.read(p.address, p.length) for p in offer.writable)
        assert content == offer.written.ljust(offer.room, b"\0")
        self.free += offer.descriptors
        self.slots.append(offer.slot)

    @rule(count=st.integers(1, 17))
    def take(self, count: int) -> None:
        for _ in range(count):
            self._take()

    # Notifications (2.7.7, 2.7.10)

    @rule()
    def ask_who_is_to_be_notified(self) -> None:
        if self.event_idx:
            interrupt = _entries_written(self.used_event, self.signalled, self.used_idx)
            kick = _entries_written(self.avail_event, self.kicked, self.avail_idx)
        else:
            interrupt = self.signalled != self.used_idx and not self.interrupts_off
            kick = self.kicked != self.avail_idx and not self.notifications_off
        assert self.device.should_interrupt() == interrupt
        assert self.driver.should_kick() == kick
        self.signalled = self.used_idx
        self.kicked = self.avail_idx

    @rule(enable=st.booleans())
    def suppress_interrupts_or_not(self, enable: bool) -> None:
        if enable:
            assert self.driver.enable_interrupts() == bool(self.used)
            if self.event_idx:
                self.used_event = self.taken % 65536
        else:
            self.driver.disable_interrupts()
            if self.event_idx:
                self.used_event = (self.taken - 1) % 65536
        self.interrupts_off = not enable

    @rule(ahead=st.integers(-3, 20), flags=st.sampled_from([0, 1]))
    def set_what_the_device_must_ignore_or_go_by(self, ahead: int, flags: int) -> None:
        # Without VIRTIO_F_EVENT_IDX it ignores used_event, with it the flag (2.7.7.2).
        self.used_event = (self.taken + ahead) % 65536
        self.driver.used_event[0] = self.used_event
        if self.event_idx:
            self.driver.available.flags = flags

    @rule(enable=st.booleans())
    def suppress_notifications_or_not(self, enable: bool) -> None:
        if enable:
            assert self.device.enable_kicks() == bool(self.available)
            if self.event_idx:
                self.avail_event = self.popped % 65536
        else:
            self.device.disable_kicks()
        self.notifications_off = not enable

    # What holds at any moment

    def _drivers_memory(self) -> bytes:
        # The device writes to none of this (2.7.5.1, 2.7.6).
        parts = self.driver.areas
        return self.memory.read(parts.descriptor, 16 * self.size) + self.memory.read(
            parts.driver, 6 + 2 * self.size
        )

    @invariant()
    def chains_are_accounted_for(self) -> None:
        assert self.device.in_flight == len(self.in_flight)
        assert self.device.rejected.total() == self.rejected
        assert self.driver.free == self.free

    @invariant()
    def the_used_ring_says_what_the_model_says(self) -> None:
        used_ring = self.driver.areas.device
        flags, idx = struct.unpack("<HH", self.memory.read(used_ring, 4))
        assert flags == (self.notifications_off and not self.event_idx)
        assert idx == self.used_idx % 65536
        avail_event = self.memory.read(used_ring + 4 + 8 * self.size, 2)
        assert int.from_bytes(avail_event, "little") == self.avail_event

    @invariant()
    def no_two_chains_share_a_head(self) -> None:
        offers = [*self.placed, *self.available, *self.used, *(o for o, _ in self.in_flight)]
        heads = Counter(offer.head for offer in offers)
        assert not heads or max(heads.values()) == 1


SplitQueueMachine.TestCase.settings = settings(stateful_step_count=30)
TestSplitQueueAgainstItsModel = SplitQueueMachine.TestCase


class NativeQueueMachine(SplitQueueMachine):
    queue_type = NativeQueue


NativeQueueMachine.TestCase.settings = settings(stateful_step_count=30)
TestNativeQueueAgainstTheModel = NativeQueueMachine.TestCase
