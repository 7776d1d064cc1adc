"""split.py and virtq.c do the same with the same rings: the one is held to the other."""

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import EFD_NONBLOCK, close, eventfd, ftruncate, memfd_create

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtiopy._native import ffi
from virtiopy.errors import DriverError
from virtiopy.memory import GuestMemory, Region
from virtiopy.vhost.user.inflight import Inflight
from virtiopy.vhost.user.memory import DirtyLog, WriteLog
from virtiopy.vhost.user.messages import LogArea
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.formats import split_queue_type
from virtiopy.virtqueue.layout import RingFormat
from virtiopy.virtqueue.native import NativeQueue
from virtiopy.virtqueue.queue import Chain, QueueAreas, QueueObserver, QueueState
from virtiopy.virtqueue.split import SplitQueue

pytestmark = pytest.mark.timeout(max(900, settings().max_examples // 5))

PAGE = 4096

#: Three regions: the first two are neighbours for the guest alone, and then there is a gap.
LAYOUT = ((0, 2 * PAGE), (2 * PAGE, 2 * PAGE), (8 * PAGE, 4 * PAGE))
GUEST_SIZE = 8 * PAGE
DESCRIPTORS, AVAILABLE, USED = 0, PAGE, PAGE + 0x800
AREAS = QueueAreas(DESCRIPTORS, AVAILABLE, USED)


QUEUES: list[type[SplitQueue] | type[NativeQueue]] = [SplitQueue, NativeQueue]


def _memory() -> GuestMemory:
    fd = memfd_create("three-regions")
    ftruncate(fd, GUEST_SIZE)
    # In another order in the file, and so in host memory.
    places = (6 * PAGE, 0, 2 * PAGE)
    regions = [
        Region.map(address, size, fd, place)
        for (address, size), place in zip(LAYOUT, places, strict=True)
    ]
    close(fd)
    return GuestMemory(regions)


class Accounts:
    """What is kept account of for a frontend: requests in flight, and pages written."""

    def __init__(self, memory: GuestMemory, size: int, used_log: int | None, pages: int) -> None:
        self.lost = eventfd(0, EFD_NONBLOCK)
        self.inflight = Inflight.create(1, size, self.lost)
        log = memfd_create("dirty-log")
        ftruncate(log, pages // 8)
        self.log = DirtyLog(LogArea(pages // 8, 0), log, self.lost)
        self.writes = WriteLog(memory)
        self.writes.mark_in(self.log, used_log)
        region = self.inflight.queue(0, size)
        assert region is not None
        region.begin(0, size)
        self.observers = [self.writes, region]

    def content(self) -> list[object]:
        return [
            bytes(self.inflight.file.view),
            bytes(self.log.file.view),
            self.log.is_too_small,
        ]

    def close(self) -> None:
        self.inflight.close()
        self.log.close()
        close(self.lost)


@dataclass
class Side:
    queue_type: type[SplitQueue] | type[NativeQueue]
    memory: GuestMemory
    size: int
    event_idx: bool
    indirect: bool
    accounts: Accounts | None
    chains: list[Chain] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = self.open(QueueState())

    def open(self, state: QueueState) -> SplitQueue | NativeQueue:
        return self.queue_type(
            self.memory,
            self.size,
            AREAS,
            event_idx=self.event_idx,
            indirect=self.indirect,
            state=state,
            observers=[] if self.accounts is None else self.accounts.observers,
        )

    def content(self) -> list[object]:
        content: list[object] = [self.memory.read(address, size) for address, size in LAYOUT]
        return content if self.accounts is None else content + self.accounts.content()


def _pieces(memory: GuestMemory, views: Sequence[memoryview]) -> list[tuple[int, int]]:
    return [(memory.address_of(view), len(view)) for view in views]


def _outcome(side: Side, act: Callable[[Side], object]) -> object:
    """What an act came to, in words that do not depend on who did it."""
    try:
        return act(side)
    except (DriverError, ValueError) as error:
        return type(error), str(error)


def _pop_many(limit: int | None) -> Callable[[Side], object]:
    def act(side: Side) -> object:
        chains = side.queue.pop_many(limit)
        side.chains += chains
        return [
            (
                chain.token,
                _pieces(side.memory, chain.readable),
                _pieces(side.memory, chain.writable),
            )
            for chain in chains
        ]

    return act


def _push(choices: list[tuple[int, int]]) -> Callable[[Side], object]:
    def act(side: Side) -> object:
        completions = []
        for choice, written in choices:
            if side.chains:
                chain = side.chains.pop(choice % len(side.chains))
                room = sum(map(len, chain.writable))
                completions.append((chain, min(written, room)))
        side.queue.push_many(completions)
        return len(completions)

    return act


def _unpop(count: int) -> Callable[[Side], object]:
    def act(side: Side) -> object:
        side.queue.unpop(count)
        if count:
            del side.chains[-count:]
        return side.queue.state

    return act


def _unpop_all(side: Side) -> object:
    side.queue.unpop_all()
    side.chains.clear()
    return side.queue.state


def _recover(unfinished: list[int]) -> Callable[[Side], object]:
    def act(side: Side) -> object:
        side.queue.unpop_all()
        side.chains.clear()
        side.queue.recover([head % side.size for head in unfinished])
        return side.queue.state

    return act


def _move(side: Side) -> object:
    side.queue.unpop_all()
    side.chains.clear()
    state, rejected = side.queue.state, side.queue.rejected
    side.queue = side.open(state)
    side.queue.rejected = rejected
    return state


ACTS = st.one_of(
    st.builds(_pop_many, st.one_of(st.none(), st.integers(0, 5))),
    st.builds(_push, st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1 << 32)), max_size=6)),
    st.builds(_unpop, st.integers(-1, 5)),
    st.just(_unpop_all),
    st.builds(_recover, st.lists(st.integers(0, 63), max_size=3, unique=True)),
    st.just(_move),
    st.just(lambda side: side.queue.next_fault()),
    st.just(lambda side: side.queue.should_interrupt()),
    st.just(lambda side: side.queue.enable_kicks()),
    st.just(lambda side: side.queue.disable_kicks()),
    st.just(lambda side: side.queue.can_unpop),
)

# Addresses at and around every border, and some lengths that reach over one.
BORDERS = sorted({edge for start, size in LAYOUT for edge in (start, start + size)})
ADDRESS = st.one_of(
    st.integers(0, 12 * PAGE),
    st.builds(
        lambda border, by: (border + by) % (1 << 64),
        st.sampled_from([*BORDERS, 1 << 63, 1 << 64]),
        st.integers(-64, 16),
    ),
)
LENGTH = st.one_of(
    st.integers(0, 96),
    st.sampled_from([16, 32, 48, PAGE, 3 * PAGE, 0xFFFF_FFFF, 0x8000_0000]),
)
FLAGS = st.sampled_from([0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 7, 0xFFF8, 0xFFFF])


@st.composite
def descriptors(draw: st.DrawFn, size: int) -> bytes:
    entry = st.tuples(ADDRESS, LENGTH, FLAGS, st.integers(0, size))
    entries = draw(st.lists(entry, min_size=1, max_size=size))
    return b"".join(struct.pack("<QIHH", *one) for one in entries)


@st.composite
def driver_acts(draw: st.DrawFn, size: int) -> tuple[str, int, bytes]:
    """A write of the driver's: where, and what."""
    match draw(st.sampled_from(["table", "indirect", "offer", "offer", "offer", "idx", "event"])):
        case "table":
            return "write", DESCRIPTORS, draw(descriptors(size))
        case "indirect":
            address = draw(st.sampled_from([2 * PAGE - 24, 3 * PAGE, 8 * PAGE + 16]))
            return "write", address, draw(descriptors(6))[: 4 * PAGE]
        case "idx":
            return "write", AVAILABLE + 2, draw(st.integers(0, 65535)).to_bytes(2, "little")
        case "event":
            flags_or_event = draw(st.sampled_from([AVAILABLE, AVAILABLE + 4 + 2 * size]))
            return "write", flags_or_event, draw(st.integers(0, 65535)).to_bytes(2, "little")
        case _:
            heads = draw(st.lists(st.integers(0, size + size // 4), min_size=1, max_size=4))
            return "offer", 0, struct.pack(f"<{len(heads)}H", *heads)


def _drive(side: Side, act: tuple[str, int, bytes]) -> None:
    kind, address, data = act
    if kind == "write":
        side.memory.write(address, data)
        return
    idx = int.from_bytes(side.memory.read(AVAILABLE + 2, 2), "little")
    for head in struct.unpack(f"<{len(data) // 2}H", data):
        side.memory.write(AVAILABLE + 4 + 2 * (idx % side.size), head.to_bytes(2, "little"))
        idx = (idx + 1) % 65536
    side.memory.write(AVAILABLE + 2, idx.to_bytes(2, "little"))


@settings(deadline=None)
@given(data=st.data())
def test_both_do_the_same_with_the_same_rings(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([8, 4, 16, 64, 1]), label="size")
    event_idx = data.draw(st.booleans(), label="event_idx")
    indirect = data.draw(st.sampled_from([True, True, False]), label="indirect")
    tracked = data.draw(st.booleans(), label="tracked")
    used_log = data.draw(
        st.sampled_from([None, 0, USED, 5 * PAGE - 3, (1 << 64) - 8, (1 << 64) - 1]), label="log"
    )
    pages = data.draw(st.sampled_from([64, 8]), label="pages")
    memories = [_memory(), _memory()]
    accounts = [Accounts(memory, size, used_log, pages) if tracked else None for memory in memories]
    try:
        filling = random.Random(size).randbytes(16 * size)
        for memory in memories:
            memory.write(DESCRIPTORS, filling)
        sides = [
            Side(queue_type, memory, size, event_idx, indirect, kept)
            for queue_type, memory, kept in zip(QUEUES, memories, accounts, strict=True)
        ]
        steps = st.lists(st.one_of(driver_acts(size), driver_acts(size), ACTS), max_size=30)
        for step in [*data.draw(steps, label="steps"), _pop_many(None), _unpop_all]:
            if isinstance(step, tuple):
                for side in sides:
                    _drive(side, step)
                continue
            python, native = [_outcome(side, step) for side in sides]
            assert native == python
            reference, double = sides
            assert double.content() == reference.content()
            assert double.queue.rejected == reference.queue.rejected
            assert double.queue.in_flight == reference.queue.in_flight
            assert double.queue.state == reference.queue.state
    finally:
        for kept in accounts:
            if kept is not None:
                kept.close()
        for memory in memories:
            memory.close()


class _Looker(QueueObserver):
    pass


def test_what_was_taken_first_is_known_where_a_queue_is_opened_anew() -> None:
    for queue_type in QUEUES:
        memory = _memory()
        accounts = Accounts(memory, 8, None, 64)
        side = Side(queue_type, memory, 8, False, True, accounts)
        memory.write(DESCRIPTORS, bytes(16 * 8))
        for turn in range(3):
            _drive(side, ("offer", 0, struct.pack("<2H", 2 * turn, 2 * turn + 1)))
            side.chains += side.queue.pop_many()
            _push([(0, 0)])(side)
            _move(side)
        _drive(side, ("offer", 0, struct.pack("<2H", 6, 7)))
        side.chains += side.queue.pop_many()
        region = ffi.cast("struct vhost_user_queue_region *", accounts.inflight.file.address)
        taken = [head for head in range(8) if region.desc[head].inflight]
        counted = [region.desc[head].counter for head in taken]
        assert len(taken) > 1
        assert sorted(set(counted)) == sorted(counted)
        assert max(counted) > 7, queue_type
        accounts.close()
        memory.close()


def test_a_queue_is_worked_by_c_unless_that_is_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIRTIOPY_NATIVE", raising=False)
    assert split_queue_type() is NativeQueue
    monkeypatch.setenv("VIRTIOPY_NATIVE", "off")
    assert split_queue_type() is SplitQueue


def test_a_queue_with_an_observer_that_c_cannot_tell_is_worked_by_python() -> None:
    assert split_queue_type([_Looker()]) is SplitQueue


def test_chains_with_more_pieces_than_there_was_room_for_are_taken_whole() -> None:
    # 32768 descriptors of a byte, in a table.
    count = 1 << 15
    with GuestMemory.allocate(1 << 20) as memory:
        areas = layout.areas(RingFormat.SPLIT, 1)
        queue = NativeQueue(
            memory, 1, QueueAreas(0, PAGE, 2 * PAGE), indirect=True, longest_chain=count
        )
        assert areas.descriptor.size <= PAGE
        table = b"".join(
            struct.pack("<QIHH", 4 * PAGE + index, 1, 3 if index + 1 < count else 2, index + 1)
            for index in range(count)
        )
        memory.write(64 * PAGE, table)
        memory.write(0, struct.pack("<QIHH", 64 * PAGE, len(table), 4, 0))
        memory.write(PAGE, struct.pack("<HHH", 0, 1, 0))
        [chain] = queue.pop_many()
        assert [len(view) for view in chain.writable] == [1] * count
        assert memory.address_of(chain.writable[-1]) == 4 * PAGE + count - 1


def test_structs_that_python_unpacks_are_made_of_words() -> None:
    assert ffi.sizeof("struct vp_chain") == 40
    assert ffi.sizeof("struct iovec") == 16
