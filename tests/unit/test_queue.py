"""The door to virtqueues: its example, its budgets, and what observers see."""

import doctest
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from virtiopy.memory import GuestMemory
from virtiopy.spec import Feature, feature_mask
from virtiopy.virtqueue import queue as module
from virtiopy.virtqueue.buffers import scatter
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece
from virtiopy.virtqueue.formats import open_queue
from virtiopy.virtqueue.layout import VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE
from virtiopy.virtqueue.queue import (
    BATCH,
    DESCRIPTORS_A_POP,
    REJECTS_A_POP,
    RING_FEATURES,
    Chain,
    ChainError,
    Completion,
    Descriptor,
    QueueError,
    QueueObserver,
    QueueState,
    Virtqueue,
    batches_of_a_turn,
)

NEXT, WRITE = VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE
EVENT_IDX = feature_mask([Feature.VIRTIO_F_EVENT_IDX])
MEMORY_SIZE = 4 << 20
BUFFER = 0x100000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        yield memory


@dataclass
class Witness(QueueObserver):
    """Writes down what it is told, tokens in place of chains."""

    said: list[tuple[object, ...]] = field(default_factory=list)

    def _say(self, *words: object) -> None:
        self.said.append(words)

    def opened(self, queue: Virtqueue) -> None:
        self._say("opened", queue.index)

    def taken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        self._say("taken", *(chain.token for chain in chains))

    def untaken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        self._say("untaken", *(chain.token for chain in chains))

    def rejected(self, queue: Virtqueue, chain: Chain, error: ChainError) -> None:
        self._say("rejected", chain.token, error.section)

    def broken(self, queue: Virtqueue, error: QueueError) -> None:
        self._say("broken", str(error))

    def using(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        self._say("using", *((chain.token, written) for chain, written in completions))

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        self._say("used", *((chain.token, written) for chain, written in completions))

    def area_written(self, queue: Virtqueue, offset: int, length: int) -> None:
        self._say("written", offset, length)

    def kicks_wanted(self, queue: Virtqueue, wanted: bool) -> None:
        self._say("kicks", wanted)

    def interrupt_decided(self, queue: Virtqueue, wanted: bool) -> None:
        self._say("interrupt", wanted)


@dataclass
class Rig:
    driver: DriverQueue
    device: Virtqueue
    witness: Witness

    def offer(self, *addresses: int) -> list[int]:
        return [self.driver.add([Piece(at, 16, writable=True)]) for at in addresses]


def build(memory: GuestMemory, size: int = 8, *, features: int = RING_FEATURES) -> Rig:
    driver = DriverQueue(
        memory, size, Allocator(0x1000, MEMORY_SIZE), event_idx=bool(features & EVENT_IDX)
    )
    witness = Witness()
    device = open_queue(memory, size, driver.areas, features=features, index=3, observers=[witness])
    return Rig(driver, device, witness)


def test_the_example_of_a_devices_loop_works(memory: GuestMemory) -> None:
    driver = DriverQueue(memory, 8, Allocator(0x1000, MEMORY_SIZE))
    for _ in range(3):
        driver.add([Piece(BUFFER, 16, writable=True)])
    interrupts: list[Virtqueue] = []
    names = {
        "BATCH": BATCH,
        "batches_of_a_turn": batches_of_a_turn,
        "driver": driver,
        "queue": open_queue(memory, 8, driver.areas, features=RING_FEATURES & ~EVENT_IDX),
        "serve": lambda chain: scatter(chain.writable, b"hello"),
        "interrupt": interrupts.append,
        "handle_soon": pytest.fail,
    }
    [example] = [
        test
        for test in doctest.DocTestFinder().find(module.Virtqueue, "Virtqueue", globs=names)
        if test.examples
    ]
    result = doctest.DocTestRunner().run(example)
    assert (result.attempted, result.failed) == (3, 0)
    assert interrupts == [names["queue"]]


# Budgets


def test_a_pop_ends_after_so_many_malformed_chains(memory: GuestMemory) -> None:
    rig = build(memory, 256)
    rig.offer(*[1 << 40] * (REJECTS_A_POP + 1), BUFFER)
    assert rig.device.pop_many() == []
    assert rig.device.rejected.total() == REJECTS_A_POP
    assert rig.device.enable_kicks()
    assert len(rig.device.pop_many()) == 1
    assert rig.device.rejected.total() == REJECTS_A_POP + 1


def test_a_pop_of_one_chain_ends_after_so_many_malformed_ones(memory: GuestMemory) -> None:
    rig = build(memory, 256)
    rig.offer(*[1 << 40] * REJECTS_A_POP, BUFFER)
    assert rig.device.pop() is None
    assert rig.device.pop() is not None


def test_a_pop_ends_with_the_chain_that_takes_it_past_its_descriptors(memory: GuestMemory) -> None:
    """Else a ring of 32768 entries, each with 32768 descriptors behind it, were 2^30 views."""
    size = 1024
    rig = build(memory, size)
    # A table of as many entries as the queue has, which every chain refers to.
    table = BUFFER
    for index in range(size):
        more = index + 1 < size
        memory.write(
            table + 16 * index,
            (0x200000).to_bytes(8, "little")
            + (1).to_bytes(4, "little")
            + (WRITE | NEXT * more).to_bytes(2, "little")
            + (index + 1 if more else 0).to_bytes(2, "little"),
        )
    for head in range(16):
        rig.driver.write_descriptor(head, table, 16 * size, 4, 0)
    rig.driver.make_available(*range(16))
    batches = [len(rig.device.pop_many()) for _ in range(4)]
    assert batches == [DESCRIPTORS_A_POP // size] * 4
    assert rig.device.pop_many() == []


def test_a_ring_full_of_loops_is_looked_at_a_piece_at_a_time(memory: GuestMemory) -> None:
    size = 2048
    rig = build(memory, size)
    rig.driver.write_descriptor(0, BUFFER, 1, NEXT, 0)
    rig.driver.make_available(*[0] * size)
    assert rig.device.pop_many() == []
    assert 0 < rig.device.rejected.total() <= DESCRIPTORS_A_POP // size + 1
    assert rig.device.enable_kicks()


def test_chains_before_a_broken_entry_are_popped_before_the_queue_says_so(
    memory: GuestMemory,
) -> None:
    rig = build(memory)
    [good] = rig.offer(BUFFER)
    rig.driver.make_available(99)
    [chain] = rig.device.pop_many()
    assert chain.token == good
    with pytest.raises(QueueError, match="out of range"):
        rig.device.pop_many()
    assert rig.witness.said[-1][0] == "broken"


# Observers


def test_observers_are_told_in_batches_in_the_order_of_events(memory: GuestMemory) -> None:
    rig = build(memory, features=RING_FEATURES & ~EVENT_IDX)
    first, bad, last = rig.offer(BUFFER, 1 << 40, BUFFER)
    rig.device.disable_kicks()
    chains = rig.device.pop_many()
    rig.device.push_many((chain, 4) for chain in reversed(chains))
    rig.device.should_interrupt()
    rig.device.enable_kicks()
    assert rig.witness.said == [
        ("opened", 3),
        ("written", 0, 2),
        ("kicks", False),
        ("taken", first),
        ("rejected", bad, "2.7.5"),
        ("using", (bad, 0)),
        ("written", 0, 4),
        ("written", 4, 8),
        ("used", (bad, 0)),
        ("taken", last),
        ("using", (last, 4), (first, 4)),
        ("written", 0, 4),
        ("written", 12, 16),
        ("used", (last, 4), (first, 4)),
        ("interrupt", True),
        ("written", 0, 2),
        ("kicks", True),
    ]


def test_with_event_idx_avail_event_is_what_is_written_for_kicks(memory: GuestMemory) -> None:
    rig = build(memory)
    rig.device.disable_kicks()
    rig.device.enable_kicks()
    assert rig.witness.said == [
        ("opened", 3),
        ("kicks", False),
        ("written", 4 + 8 * 8, 2),
        ("kicks", True),
    ]


def test_entries_that_wrap_are_written_in_two_pieces(memory: GuestMemory) -> None:
    rig = build(memory)
    rig.driver.available.idx = rig.driver.next_available = 6
    rig.driver.used.idx = rig.driver.last_used = 6
    rig.device.resume(QueueState(6))
    rig.offer(*[BUFFER] * 4)
    chains = rig.device.pop_many()
    rig.witness.said.clear()
    rig.device.push_many((chain, 0) for chain in chains)
    written = [said[1:] for said in rig.witness.said if said[0] == "written"]
    assert written == [(0, 4), (4 + 8 * 6, 16), (4, 16)]


def test_chains_that_are_put_back_are_untaken_the_last_first(memory: GuestMemory) -> None:
    rig = build(memory)
    first, second = rig.offer(BUFFER, BUFFER)
    rig.device.pop_many()
    rig.device.unpop_all()
    assert rig.witness.said[-1] == ("untaken", second, first)
    assert [chain.token for chain in rig.device.pop_many()] == [first, second]


def test_what_a_malformed_chain_overtook_is_used_when_all_is_put_back(memory: GuestMemory) -> None:
    rig = build(memory)
    held, bad, later = rig.offer(BUFFER, 1 << 40, BUFFER)
    rig.device.pop_many()
    assert rig.device.can_unpop == 1
    rig.device.unpop_all()
    assert [used.head for used in rig.driver.take_all_used()] == [bad, held]
    assert [chain.token for chain in rig.device.pop_many()] == [later]


class Reader(QueueObserver):
    """Keeps the descriptors of chains."""

    wants_descriptors: ClassVar[bool] = True

    def __init__(self) -> None:
        self.read: list[Sequence[Descriptor]] = []

    def taken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        self.read += [chain.descriptors for chain in chains]

    def rejected(self, queue: Virtqueue, chain: Chain, error: ChainError) -> None:
        self.read.append(chain.descriptors)


def test_an_observer_that_wants_them_sees_the_descriptors_of_all_chains(
    memory: GuestMemory,
) -> None:
    driver = DriverQueue(memory, 8, Allocator(0x1000, MEMORY_SIZE))
    reader = Reader()
    queue = open_queue(memory, 8, driver.areas, features=RING_FEATURES, observers=[reader])
    table = 0x200000
    pieces = [Piece(BUFFER, 5), Piece(BUFFER + 64, 7, writable=True)]
    good = driver.add(pieces, direct=1, table=table)
    bad = driver.add([Piece(1 << 40, 1)])
    queue.pop_many()
    own, second = driver.areas.descriptor, driver.descriptors[good].next
    assert [list(one) for one in reader.read] == [
        [
            Descriptor(own, good, BUFFER, 5, NEXT, second),
            Descriptor(own, second, table, 16, 4, 0),
            Descriptor(table, 0, BUFFER + 64, 7, WRITE, 0),
        ],
        [Descriptor(own, bad, 1 << 40, 1, 0, 0)],
    ]


def test_without_such_an_observer_chains_carry_no_descriptors(memory: GuestMemory) -> None:
    rig = build(memory)
    rig.offer(BUFFER)
    [chain] = rig.device.pop_many()
    assert chain.descriptors == []


# Another worker


def test_what_a_dead_worker_left_unfinished_is_popped_first(memory: GuestMemory) -> None:
    rig = build(memory)
    heads = rig.offer(*[BUFFER] * 4)
    rig.device.push(rig.device.pop_many(3)[1], 0)
    heir = open_queue(memory, 8, rig.driver.areas, features=RING_FEATURES)
    heir.recover([heads[2], heads[0]])
    assert heir.state == QueueState(1)
    assert heir.enable_kicks()
    assert [chain.token for chain in heir.pop_many()] == [heads[2], heads[0], heads[3]]


def test_the_next_fault_of_an_unfinished_chain_leaves_it_there(memory: GuestMemory) -> None:
    rig = build(memory)
    [bad] = rig.offer(1 << 40)
    rig.device.recover([bad])
    assert rig.device.next_fault() is not None
    assert rig.device.pop() is None
    assert rig.device.rejected == {"2.7.5": 1}
