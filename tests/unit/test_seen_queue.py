"""A ring that others work, looked at from outside: what is certain, and what both sides broke."""

import random
from collections.abc import Iterator, Sequence

import pytest

from virtiopy._native import CData, lib
from virtiopy.check.passing.check import PassingCheck
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId
from virtiopy.vhost.user import seenqueue
from virtiopy.vhost.user.seenqueue import SeenQueue, SureObserver
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece
from virtiopy.virtqueue.layout import VIRTQ_DESC_F_NEXT
from virtiopy.virtqueue.queue import (
    Chain,
    Completion,
    QueueError,
    QueueObserver,
    QueueState,
    Virtqueue,
)

MEMORY = 1 << 20
SIZE = 8


class Seen(SureObserver):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.taken_heads: list[int] = []
        self.bytes: list[bytes] = []
        self.used_heads: list[tuple[int, int]] = []
        self.fresh_heads: list[int] = []
        self.strays: list[int] = []
        self.missed_chains = 0
        self.was_lost = False

    def lost(self, queue: SeenQueue) -> None:
        self.was_lost = True

    def taken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        self.taken_heads += [chain.token for chain in chains]
        self.bytes += [b"".join(chain.readable) for chain in chains]

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        self.used_heads += [(chain.token, length) for chain, length in completions]

    def fresh(self, queue: SeenQueue, completions: Sequence[Completion]) -> None:
        self.fresh_heads += [chain.token for chain, _ in completions]

    def stray(self, queue: SeenQueue, head: int, length: int) -> None:
        self.strays.append(head)

    def missed(self, queue: SeenQueue, count: int) -> None:
        self.missed_chains += count


class All(QueueObserver):
    def __init__(self) -> None:
        self.taken_heads: list[int] = []
        self.used_heads: list[int] = []

    def taken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        self.taken_heads += [chain.token for chain in chains]

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        self.used_heads += [chain.token for chain, _ in completions]


class Ring:
    """A driver's ring, whose device is the test, looked at by a SeenQueue."""

    def __init__(self, memory: GuestMemory, *, event_idx: bool = False) -> None:
        self.memory = memory
        self.allocator = Allocator(0x1000, MEMORY)
        self.driver = DriverQueue(memory, SIZE, self.allocator, event_idx=event_idx)
        self.page = self.allocator.take(0x1000, 0x1000)
        self.sure, self.all = Seen(), All()
        self.check = PassingCheck(DeviceId.BLOCK)
        self.check.began(memory)
        self.queue = SeenQueue(
            memory,
            SIZE,
            self.driver.areas,
            index=0,
            event_idx=event_idx,
            indirect=True,
            state=QueueState(),
            longest_chain=SIZE,
            observers=[self.all],
            sure=[self.sure, *self.check.sure],
        )

    def add(self, data: bytes = b"what is sent", room: int = 64) -> int:
        self.memory.write(self.page, data)
        pieces = [Piece(self.page, len(data)), Piece(self.page + 0x800, room, writable=True)]
        return self.driver.add(pieces)

    def use(self, head: int, length: int = 0) -> None:
        index = self.driver.used.idx
        self.driver.used.ring[index % SIZE] = (head, length)
        self.driver.used.idx = (index + 1) % (1 << 16)

    def found(self) -> set[str]:
        self.queue.close(stopped=True)
        self.check.ended()
        return {finding.statement.id for finding in self.check.finish().errors}


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(MEMORY) as memory:
        yield memory


@pytest.fixture
def ring(memory: GuestMemory) -> Ring:
    return Ring(memory)


def test_a_chain_that_is_seen_before_it_is_used_is_certain(ring: Ring) -> None:
    head = ring.add(b"abc")
    ring.queue.look()
    ring.memory.write(ring.page, b"xyz")
    ring.use(head, 5)
    ring.queue.look()
    assert (ring.sure.taken_heads, ring.sure.used_heads) == ([head], [(head, 5)])
    assert ring.sure.bytes == [b"abc"]
    assert ring.found() == set()


def test_a_chain_that_was_used_before_it_was_seen_is_told_and_not_certain(ring: Ring) -> None:
    head = ring.add()
    ring.use(head)
    ring.queue.look()
    assert (ring.all.taken_heads, ring.all.used_heads) == ([head], [head])
    assert (ring.sure.taken_heads, ring.sure.missed_chains) == ([], 1)
    assert ring.found() == set()


def test_a_head_may_come_again_between_two_looks(ring: Ring) -> None:
    head = ring.add()
    ring.queue.look()
    ring.use(head, 3)
    assert [used.head for used in ring.driver.take_all_used()] == [head]
    assert ring.add() == head
    ring.queue.look()
    assert ring.sure.taken_heads == [head, head]
    assert ring.sure.used_heads == [(head, 3)]
    assert ring.found() == set()


def test_a_head_that_comes_again_while_the_device_has_it_is_the_drivers_fault(ring: Ring) -> None:
    head = ring.add()
    ring.driver.make_available(head)
    ring.queue.look()
    ring.use(head)
    ring.use(head)
    ring.queue.look()
    assert ring.sure.strays == []
    assert ring.found() == {"3.3.1:1"}


def test_a_used_element_of_no_chain_is_the_devices_fault(ring: Ring) -> None:
    ring.queue.look()
    ring.use(SIZE + 70000)
    ring.queue.look()
    assert ring.sure.strays == [SIZE + 70000]
    assert ring.found() == {"2.7.8:1"}


def test_a_chain_that_is_used_twice_is_the_devices_fault(ring: Ring) -> None:
    head = ring.add()
    ring.queue.look()
    ring.use(head)
    ring.use(head)
    ring.queue.look()
    assert ring.found() == {"2.7.8:1"}


def test_more_bytes_than_a_chain_has_room_for_are_the_devices_fault(ring: Ring) -> None:
    head = ring.add(room=16)
    ring.queue.look()
    ring.use(head, 17)
    ring.queue.look()
    assert ring.found() == {"2.7.8.2:2"}


def test_flags_of_the_used_ring_that_are_none_are_the_devices_fault(ring: Ring) -> None:
    ring.driver.used.flags = 2
    ring.queue.look()
    assert ring.found() == {"2.7.10.2:1"}


def test_a_descriptor_that_changes_while_the_device_has_it_is_the_drivers_fault(
    ring: Ring,
) -> None:
    head = ring.add()
    ring.queue.look()
    ring.driver.write_descriptor(head, ring.page, 1, VIRTQ_DESC_F_NEXT, 0)
    ring.add()
    ring.queue.look()
    assert ring.found() == {"3.3.1:1"}


def test_a_descriptor_may_change_once_it_was_used(ring: Ring) -> None:
    head = ring.add()
    ring.queue.look()
    ring.use(head)
    ring.driver.write_descriptor(head, ring.page, 1, VIRTQ_DESC_F_NEXT, 0)
    ring.add()
    ring.queue.look()
    assert ring.found() == set()


def test_a_malformed_chain_is_the_drivers_fault_and_has_no_room_to_be_held_against(
    ring: Ring,
) -> None:
    head = ring.driver.place([Piece(ring.page, 16), Piece(ring.page, 16)])
    ring.driver.write_descriptor(head, ring.page, 16, VIRTQ_DESC_F_NEXT, head)
    ring.driver.make_available(head)
    ring.queue.look()
    ring.use(head, 1)
    ring.queue.look()
    assert ring.found() == {"2.7.5.2:1"}


def test_what_passes_beyond_the_rings_size_is_missed_and_the_rest_is_seen(ring: Ring) -> None:
    held = ring.add()
    ring.queue.look()
    for _ in range(3 * SIZE):
        ring.use(ring.add())
        ring.driver.take_all_used()
    ring.queue.look()
    assert ring.sure.missed_chains == 3 * SIZE
    # The chain of before is still the device's: it is no stray when it is used.
    ring.use(held)
    head = ring.add()
    ring.queue.look()
    assert ring.sure.strays == []
    assert ring.sure.taken_heads[-1] == head
    assert ring.found() == set()


def test_an_available_index_that_no_ring_can_have_is_the_drivers_fault(ring: Ring) -> None:
    ring.driver.available.idx = SIZE + 1
    with pytest.raises(QueueError, match="more than 8 before"):
        ring.queue.look()
    assert ring.found() & {"3.3.1:1", "2.7.6.1:1"}


def test_what_the_device_wrote_is_looked_at_while_the_driver_waits_for_it(
    memory: GuestMemory,
) -> None:
    ring = Ring(memory, event_idx=True)
    heads = [ring.add(bytes(16), room=1) for _ in range(3)]
    ring.queue.look()
    # The driver has taken none, and waits for the second.
    ring.driver.used_event[0] = 1
    for head in heads:
        ring.use(head, 1)
    ring.memory.write(ring.page + 0x800, b"\x09")
    ring.queue.look(notified=True)
    assert ring.sure.fresh_heads == heads[1:]
    assert ring.found() == {"5.2.6:4"}


@pytest.mark.parametrize("event_idx", [False, True])
def test_what_a_driver_that_polls_was_given_is_not_looked_at(
    memory: GuestMemory, *, event_idx: bool
) -> None:
    ring = Ring(memory, event_idx=event_idx)
    for _ in range(3):
        head = ring.add(bytes(16), room=1)
        ring.queue.look()
        ring.use(head, 1)
        ring.driver.take_all_used()
        # The driver has it back, and does with its memory what it wants.
        ring.memory.write(ring.page + 0x800, b"\xff")
        ring.queue.look(notified=True)
    assert ring.sure.fresh_heads == []
    assert ring.found() == set()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("event_idx", [False, True])
def test_a_right_driver_and_a_right_device_have_no_finding_whenever_they_are_looked_at(
    memory: GuestMemory, seed: int, *, event_idx: bool
) -> None:
    chance = random.Random(seed)
    ring = Ring(memory, event_idx=event_idx)
    with_device: list[int] = []
    added = 0
    for _ in range(400):
        match chance.choice(["add", "use", "take", "look"]):
            case "add" if ring.driver.free >= 2:
                with_device.append(ring.add(chance.randbytes(20)))
                added += 1
            case "use" if with_device:
                ring.use(with_device.pop(chance.randrange(len(with_device))))
            case "take":
                ring.driver.take_all_used()
            case "look" if chance.random() < 0.5:
                ring.queue.look(notified=chance.random() < 0.5)
    while with_device:
        ring.use(with_device.pop())
    ring.queue.look()
    assert ring.sure.strays == []
    assert len(ring.sure.taken_heads) + ring.sure.missed_chains == added
    assert ring.sure.was_lost or sorted(ring.sure.taken_heads) == sorted(
        head for head, _ in ring.sure.used_heads
    )
    assert [str(one) for one in ring.check.finish().errors] == []


def test_a_driver_and_a_device_that_race_with_the_looks_have_no_finding(
    memory: GuestMemory,
) -> None:
    ring = Ring(memory)
    acquire = lib.vp_load_acquire
    added = 0

    class Racing:
        """Has driver and device go on at each read of an index."""

        def vp_load_acquire(self, place: CData) -> int:
            nonlocal added
            read = int(acquire(place))
            for _ in range(chance.randrange(3)):
                ring.use(ring.add(chance.randbytes(20)))
                ring.driver.take_all_used()
                added += 1
            return read

    chance = random.Random(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seenqueue, "lib", Racing())
        for _ in range(200):
            ring.queue.look(notified=True)
    ring.queue.look()
    assert ring.sure.strays == []
    assert len(ring.sure.taken_heads) + ring.sure.missed_chains == added
    assert [str(one) for one in ring.check.finish().errors] == []
