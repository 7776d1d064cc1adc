"""The balloon device (5.5), driven over its registers by the driver side of virtio-mmio."""

import errno
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.patience import PATIENCE
from virtiopy.devices.balloon import (
    BATCH_REQUESTS,
    REQUEST_PFNS,
    Balloon,
    BalloonFeature,
    BalloonQueue,
    Ignored,
    Statistic,
    runs,
)
from virtiopy.errors import ConfigError
from virtiopy.eventloop import EventLoop
from virtiopy.memory import HOLE_END, HOLE_START, HUGE_PAGE_SIZE, GuestMemory
from virtiopy.spec import DeviceId, DeviceStatus, Feature, has_feature
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.driver import Allocator, Piece, Used

PAGE = 4096
MIB = 1 << 20
MEMORY_SIZE = 16 * MIB

#: The driver's own part of memory; what is above goes into the balloon.
DRIVER_END = 8 * MIB
FIRST = DRIVER_END // PAGE

HUGE_PAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB"

NUM_PAGES, ACTUAL, FREE_PAGE_HINT_CMD_ID, POISON_VAL = 0, 4, 8, 12

F_TELL = BalloonFeature.VIRTIO_BALLOON_F_MUST_TELL_HOST
F_STATS = BalloonFeature.VIRTIO_BALLOON_F_STATS_VQ
F_OOM = BalloonFeature.VIRTIO_BALLOON_F_DEFLATE_ON_OOM
F_HINT = BalloonFeature.VIRTIO_BALLOON_F_FREE_PAGE_HINT
F_POISON = BalloonFeature.VIRTIO_BALLOON_F_PAGE_POISON
F_REPORTING = BalloonFeature.VIRTIO_BALLOON_F_PAGE_REPORTING

inflateq, deflateq, statsq, _, reporting_vq = BalloonQueue


class WatchedMemory(GuestMemory):
    """Guest memory that records what is given back, and refuses it when told to."""

    discards: list[tuple[int, int]]
    refuses = False

    def discard(self, address: int, length: int) -> None:
        self.discards.append((address, length))
        if self.refuses:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        super().discard(address, length)


class Bench:
    """A balloon and its driver."""

    def __init__(
        self,
        memory: WatchedMemory,
        device: Balloon,
        loop: EventLoop | None = None,
    ) -> None:
        self.memory = memory
        self.device = device
        self.interrupted = threading.Event()
        self.transport = MmioTransport(
            device, memory, LevelInterrupt(self._set_interrupt), loop=loop, may_block=loop is None
        )
        self.driver = MmioDriver(self.transport, memory, Allocator(PAGE, DRIVER_END))

    def _set_interrupt(self, level: bool) -> None:
        if level:
            self.interrupted.set()

    def place(self, data: bytes) -> Piece:
        address = self.driver.allocator.take(max(1, len(data)))
        self.memory.write(address, data)
        return Piece(address, len(data))

    def send(self, queue: int, *pieces: bytes) -> list[Used]:
        """Offer a buffer of device-readable pieces, kick, and take what is used."""
        self.driver.queues[queue].add([self.place(piece) for piece in pieces])
        return self.driver.collect(queue)

    def inflate(self, *pfns: int) -> None:
        assert [used.length for used in self.send(inflateq, pfn_array(pfns))] == [0]

    def deflate(self, *pfns: int) -> None:
        assert [used.length for used in self.send(deflateq, pfn_array(pfns))] == [0]

    def report(self, *ranges: tuple[int, int]) -> None:
        """Report free memory: address and length of each piece."""
        self.driver.queues[reporting_vq].add([Piece(*piece, writable=True) for piece in ranges])
        assert [used.length for used in self.driver.collect(reporting_vq)] == [0]

    def fill(self, start: int = DRIVER_END, end: int = MEMORY_SIZE) -> None:
        """Give pages content, and so memory of the host's."""
        self.memory.write(start, b"\xab" * (end - start))

    def is_zero(self, pfn: int) -> bool:
        content = self.memory.read(pfn * PAGE, PAGE)
        assert content in {bytes(PAGE), b"\xab" * PAGE}
        return content == bytes(PAGE)

    def works(self) -> bool:
        """Say whether a good page goes into the balloon and back."""
        pfn = MEMORY_SIZE // PAGE - 1
        self.memory.write(pfn * PAGE, b"\xab" * PAGE)
        before = self.device.ballooned
        self.inflate(pfn)
        inflated = self.device.ballooned
        self.deflate(pfn)
        return (
            self.is_zero(pfn)
            and (inflated, self.device.ballooned) == (before + PAGE, before)
            and not self.driver.status & DeviceStatus.DEVICE_NEEDS_RESET
        )


def pfn_array(pfns: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(pfns)}I", *pfns)


def statistics_array(*entries: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<HQ", *entry) for entry in entries)


@contextmanager
def watched_memory(size: int = MEMORY_SIZE, **options: object) -> Iterator[WatchedMemory]:
    with WatchedMemory.allocate(size, **options) as memory:  # type: ignore[arg-type]
        assert isinstance(memory, WatchedMemory)
        memory.discards = []
        # What the driver works with has the host's memory from the start.
        memory.write(0, b"\xab" * DRIVER_END)
        yield memory


@pytest.fixture
def memory() -> Iterator[WatchedMemory]:
    with watched_memory() as memory:
        yield memory


@pytest.fixture
def bench(memory: WatchedMemory) -> Bench:
    bench = Bench(memory, Balloon())
    bench.driver.start()
    return bench


def resident() -> int:
    """Bytes of shared memory that this process has resident."""
    [kib] = re.findall(r"RssShmem:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) * 1024


# What it is (5.5.1 to 5.5.4)


def test_the_device_is_a_traditional_balloon(bench: Bench) -> None:
    assert bench.driver.read(Register.DeviceID) == DeviceId.BALLOON


@pytest.mark.parametrize(
    ("feature", "offered"),
    [
        (F_TELL, True),
        (F_STATS, True),
        (F_OOM, False),
        (F_HINT, False),
        (F_POISON, True),
        (F_REPORTING, True),
    ],
)
def test_what_is_offered(bench: Bench, feature: int, offered: bool) -> None:
    assert has_feature(bench.driver.offered_features(), feature) is offered


def test_deflate_on_oom_is_offered_when_the_host_allows_it(memory: WatchedMemory) -> None:
    bench = Bench(memory, Balloon(deflate_on_oom=True))
    bench.driver.start([F_OOM])
    assert bench.works()


@pytest.mark.parametrize(
    "features", [[], [F_TELL], [F_STATS], [F_POISON], [F_REPORTING], [F_TELL, F_REPORTING]]
)
def test_each_feature_is_the_drivers_choice(bench: Bench, features: list[int]) -> None:
    bench.driver.start(features)
    assert bench.works()


def test_the_configuration_space_has_the_target_and_what_the_driver_says(
    memory: WatchedMemory,
) -> None:
    driver = Bench(memory, Balloon(target=3 * MIB)).driver
    driver.start()
    driver.write_config(ACTUAL, 4, 17)
    assert driver.read_config(NUM_PAGES, 4) == 3 * MIB // PAGE
    assert driver.read_config(ACTUAL, 4) == 17
    assert driver.read_config(FREE_PAGE_HINT_CMD_ID, 4) == 0
    assert driver.read_config(POISON_VAL, 4) == 0


@pytest.mark.parametrize(("offset", "size"), [(NUM_PAGES, 4), (ACTUAL, 2), (ACTUAL + 1, 1)])
def test_no_other_write_changes_the_configuration_space(
    bench: Bench, offset: int, size: int
) -> None:
    bench.driver.write_config(offset, size, 1)
    assert bench.device.config_space() == bytes(16)


# Inflating and deflating (5.5.6)


def test_an_inflated_page_is_given_back_and_returns_zeroed(bench: Bench) -> None:
    bench.fill()
    bench.inflate(FIRST + 3)
    assert [pfn for pfn in range(FIRST, FIRST + 8) if bench.is_zero(pfn)] == [FIRST + 3]


def test_inflating_lowers_the_allocated_blocks_by_as_much(bench: Bench) -> None:
    bench.fill()
    before = bench.memory.allocated
    bench.inflate(*range(FIRST, FIRST + 1024))
    assert before - bench.memory.allocated == 4 * MIB


def test_inflating_lowers_the_resident_memory_of_the_process_by_as_much(bench: Bench) -> None:
    bench.fill()
    before = resident()
    bench.inflate(*range(FIRST, FIRST + 1024))
    assert before - resident() == 4 * MIB


def test_a_deflated_page_can_be_written_and_inflated_again(bench: Bench) -> None:
    for _ in range(3):
        bench.fill(DRIVER_END, DRIVER_END + PAGE)
        bench.inflate(FIRST)
        assert bench.is_zero(FIRST)
        bench.deflate(FIRST)
    assert bench.device.ballooned == 0


def test_a_deflated_page_is_not_touched_by_the_device(bench: Bench) -> None:
    bench.inflate(FIRST)
    # Without MUST_TELL_HOST the driver may use it before it says so.
    bench.fill(DRIVER_END, DRIVER_END + PAGE)
    bench.deflate(FIRST)
    assert not bench.is_zero(FIRST)


def test_neighbours_are_given_back_in_one_call_whatever_their_order(bench: Bench) -> None:
    pfns = [*range(FIRST + 100, FIRST, -1), FIRST + 200]
    bench.inflate(*pfns)
    assert bench.memory.discards == [
        ((FIRST + 1) * PAGE, 100 * PAGE),
        ((FIRST + 200) * PAGE, PAGE),
    ]


def test_neighbours_of_several_requests_are_given_back_in_one_call(bench: Bench) -> None:
    queue = bench.driver.queues[inflateq]
    for number in range(BATCH_REQUESTS):
        first = FIRST + 256 * number
        queue.add([bench.place(pfn_array(range(first, first + 256)))])
    assert len(bench.driver.collect(inflateq)) == BATCH_REQUESTS
    assert bench.memory.discards == [(DRIVER_END, BATCH_REQUESTS * MIB)]


def test_a_page_number_may_be_cut_anywhere(bench: Bench) -> None:
    data = pfn_array([FIRST, FIRST + 1, FIRST + 2])
    [used] = bench.send(inflateq, data[:1], data[1:6], data[6:7], data[7:])
    assert used.length == 0
    assert bench.memory.discards == [(DRIVER_END, 3 * PAGE)]


def test_used_requests_are_told_by_an_interrupt(bench: Bench) -> None:
    bench.inflate(FIRST)
    assert bench.driver.interrupts() is Interrupt.USED_BUFFER


def test_memory_above_the_hole_goes_into_the_balloon_too() -> None:
    with watched_memory(HOLE_START + 4 * MIB) as memory:
        bench = Bench(memory, Balloon())
        bench.driver.start()
        memory.write(HOLE_END, b"\xab" * PAGE)
        memory.write(HOLE_START - PAGE, b"\xab" * PAGE)
        bench.inflate(HOLE_END // PAGE, HOLE_START // PAGE - 1)
        assert memory.read(HOLE_END, PAGE) == bytes(PAGE)
        assert memory.read(HOLE_START - PAGE, PAGE) == bytes(PAGE)
        assert bench.device.ballooned == 2 * PAGE
        assert bench.device.ignored == {}


def test_memory_in_a_file_is_given_back_to_its_file_system(tmp_path: Path) -> None:
    with watched_memory(path=tmp_path / "ram") as memory:
        bench = Bench(memory, Balloon())
        bench.driver.start()
        bench.fill()
        os.sync()
        before = (tmp_path / "ram").stat().st_blocks
        bench.inflate(*range(FIRST, FIRST + 1024))
        assert (before - (tmp_path / "ram").stat().st_blocks) * 512 == 4 * MIB
        assert (tmp_path / "ram").stat().st_size == MEMORY_SIZE
        assert bench.is_zero(FIRST)


# Bad input: ignored, counted, and the device goes on


@pytest.mark.parametrize(
    "pfn", [MEMORY_SIZE // PAGE, 0xFFFF_FFFF, HOLE_START // PAGE, 0xD_0000, 0xFEE00]
)
@pytest.mark.parametrize("queue", [inflateq, deflateq])
def test_a_page_that_is_no_memory_is_ignored(bench: Bench, pfn: int, queue: int) -> None:
    bench.send(queue, pfn_array([pfn]))
    assert bench.memory.discards == []
    assert bench.device.ignored == {Ignored.NOT_MEMORY: 1}
    assert bench.works()


def test_a_page_in_the_hole_below_4_gib_is_ignored() -> None:
    with watched_memory(HOLE_START + 4 * MIB) as memory:
        bench = Bench(memory, Balloon())
        bench.driver.start()
        bench.inflate(HOLE_START // PAGE, HOLE_END // PAGE - 1, (HOLE_END + 4 * MIB) // PAGE)
        assert memory.discards == []
        assert bench.device.ignored == {Ignored.NOT_MEMORY: 3}
        assert bench.works()


def test_good_pages_among_bad_ones_are_taken(bench: Bench) -> None:
    bench.inflate(0xFFFF_FFFF, FIRST, 0xD_0000, FIRST + 1, FIRST)
    assert bench.memory.discards == [(DRIVER_END, 2 * PAGE)]
    assert bench.device.ignored == {Ignored.NOT_MEMORY: 2, Ignored.REPEATED: 1}


def test_a_page_repeated_in_a_request_is_taken_once(bench: Bench) -> None:
    bench.inflate(*[FIRST] * 8)
    assert bench.memory.discards == [(DRIVER_END, PAGE)]
    assert bench.device.ballooned == PAGE
    assert bench.device.ignored == {Ignored.REPEATED: 7}
    assert bench.works()


def test_a_page_that_is_in_the_balloon_is_not_taken_again(bench: Bench) -> None:
    bench.inflate(FIRST)
    bench.fill(DRIVER_END, DRIVER_END + PAGE)
    bench.inflate(FIRST)
    assert not bench.is_zero(FIRST)
    assert bench.device.ignored == {Ignored.REPEATED: 1}
    assert bench.works()


def test_a_page_that_is_not_in_the_balloon_is_not_deflated(bench: Bench) -> None:
    bench.inflate(FIRST)
    bench.deflate(FIRST + 1, FIRST, FIRST)
    bench.deflate(FIRST)
    assert bench.device.ballooned == 0
    assert bench.device.ignored == {Ignored.NOT_IN_BALLOON: 2, Ignored.REPEATED: 1}


@pytest.mark.parametrize("size", [0, 1, 2, 3])
@pytest.mark.parametrize("queue", [inflateq, deflateq])
def test_an_array_that_ends_within_a_page_number_has_that_left_out(
    bench: Bench, queue: int, size: int
) -> None:
    bench.send(queue, pfn_array([FIRST]) + b"\xff" * size)
    assert bench.device.ignored[Ignored.MALFORMED] == bool(size)
    assert bench.device.ignored[Ignored.NOT_MEMORY] == 0
    assert bench.works()


def test_an_array_that_the_device_should_write_is_no_request(bench: Bench) -> None:
    bench.memory.write(DRIVER_END, pfn_array([FIRST]))
    bench.driver.queues[inflateq].add([Piece(DRIVER_END, 4, writable=True)])
    assert [used.length for used in bench.driver.collect(inflateq)] == [0]
    assert bench.memory.read(DRIVER_END, 4) == pfn_array([FIRST])
    assert bench.device.ignored == {Ignored.MALFORMED: 1}
    assert bench.works()


def test_of_an_array_that_is_too_long_the_first_page_numbers_count(bench: Bench) -> None:
    bench.inflate(*[FIRST] * REQUEST_PFNS, FIRST + 1)
    assert bench.device.ballooned == PAGE
    assert bench.device.ignored[Ignored.MALFORMED] == 1


def test_an_array_outside_memory_is_given_back_and_the_device_goes_on(bench: Bench) -> None:
    bench.driver.queues[inflateq].add([Piece(MEMORY_SIZE - 4, 8)])
    assert [used.length for used in bench.driver.collect(inflateq)] == [0]
    assert bench.works()


def test_a_driver_that_balloons_its_own_rings_needs_no_more_than_a_reset(bench: Bench) -> None:
    bench.driver.queues[inflateq].add([bench.place(pfn_array(range(1, FIRST)))])
    bench.driver.kick(inflateq)
    bench.driver.kick(deflateq)
    bench.driver.reset()
    bench.driver.start()
    assert bench.works()


def test_more_pages_in_actual_than_there_are_harm_nobody(bench: Bench) -> None:
    bench.driver.write_config(ACTUAL, 4, 0xFFFF_FFFF)
    assert bench.device.actual == 0xFFFF_FFFF * PAGE
    assert bench.works()


def test_memory_that_the_host_does_not_take_is_kept_and_counted(bench: Bench) -> None:
    bench.memory.refuses = True
    bench.fill()
    bench.inflate(FIRST, FIRST + 1, FIRST + 8)
    assert not bench.is_zero(FIRST)
    assert (bench.device.kept, bench.device.discarded) == (3, 0)
    bench.memory.refuses = False
    assert bench.works()


def test_a_kick_of_a_queue_that_was_not_negotiated_does_nothing(bench: Bench) -> None:
    bench.driver.start([])
    for queue in (statsq, BalloonQueue.free_page_vq, reporting_vq):
        bench.driver.queues[queue].add([Piece(DRIVER_END, PAGE, writable=True)])
        assert bench.driver.collect(queue) == []
    assert bench.memory.discards == []
    assert bench.works()


PAGE_NUMBERS = st.integers(FIRST, FIRST + 40) | st.integers(MEMORY_SIZE // PAGE, 0xFFFF_FFFF)


@given(st.lists(st.tuples(st.sampled_from([inflateq, deflateq]), st.lists(PAGE_NUMBERS))))
def test_the_balloon_holds_what_a_set_of_pages_would(
    requests: list[tuple[BalloonQueue, list[int]]],
) -> None:
    with watched_memory() as memory:
        bench = Bench(memory, Balloon())
        bench.driver.start()
        inside: set[int] = set()
        asked = taken = 0
        for queue, pfns in requests:
            before = set(inside)
            pages = {pfn for pfn in pfns if pfn < MEMORY_SIZE // PAGE}
            inside = inside | pages if queue is inflateq else inside - pages
            bench.send(queue, pfn_array(pfns))
            asked += len(pfns)
            taken += len(inside ^ before)
            assert bench.device.ballooned == len(inside) * PAGE
        assert bench.device.ignored.total() == asked - taken


@given(st.sets(st.integers(0, 200)))
def test_runs_put_together_are_the_numbers(numbers: set[int]) -> None:
    found = list(runs(sorted(numbers)))
    assert [first + n for first, length in found for n in range(length)] == sorted(numbers)
    assert all(below[0] + below[1] < above[0] for below, above in pairwise(found))


# Huge pages: given back whole or not at all


@contextmanager
def huge_bench(features: list[int], granule: int = 4 * PAGE) -> Iterator[Bench]:
    """A balloon on memory whose blocks are of 4 pages."""
    with watched_memory() as memory:
        memory.granule = granule
        bench = Bench(memory, Balloon())
        bench.driver.start(features)
        yield bench


def test_a_block_is_given_back_when_all_of_its_pages_are_in_one_batch() -> None:
    with huge_bench([]) as bench:
        bench.inflate(*range(FIRST + 1, FIRST + 13))
        assert bench.memory.discards == [(DRIVER_END + 4 * PAGE, 8 * PAGE)]


def test_a_block_in_parts_is_given_back_with_its_last_page_when_the_host_must_be_told() -> None:
    with huge_bench([F_TELL]) as bench:
        bench.inflate(FIRST, FIRST + 1, FIRST + 2)
        assert bench.memory.discards == []
        bench.inflate(FIRST + 3)
        assert bench.memory.discards == [(DRIVER_END, 4 * PAGE)]


def test_a_block_in_parts_is_never_given_back_when_the_host_need_not_be_told() -> None:
    """Pages that were acknowledged may be in use again (5.5.6.2)."""
    with huge_bench([]) as bench:
        bench.inflate(FIRST, FIRST + 1, FIRST + 2)
        bench.inflate(FIRST + 3)
        assert bench.memory.discards == []


def test_a_block_with_a_deflated_page_is_not_given_back() -> None:
    with huge_bench([F_TELL]) as bench:
        bench.inflate(FIRST, FIRST + 1, FIRST + 2)
        bench.deflate(FIRST + 1)
        bench.inflate(FIRST + 3)
        assert bench.memory.discards == []


def test_of_reported_memory_the_whole_blocks_are_given_back() -> None:
    with huge_bench([F_REPORTING]) as bench:
        bench.report((DRIVER_END + PAGE, 12 * PAGE))
        assert bench.memory.discards == [(DRIVER_END + 4 * PAGE, 8 * PAGE)]


def test_a_huge_page_is_given_back_with_the_last_of_its_pages() -> None:
    pages = HUGE_PAGE_SIZE // PAGE
    try:
        # A mapping can be had without the pages behind it: touching them would be fatal.
        free = int(Path(HUGE_PAGES, "free_hugepages").read_text())
    except FileNotFoundError:
        free = 0
    if free < MEMORY_SIZE // HUGE_PAGE_SIZE:
        pytest.skip(f"{MEMORY_SIZE // HUGE_PAGE_SIZE} free huge pages are needed: {HUGE_PAGES}")
    with watched_memory(huge_pages=True) as memory:
        bench = Bench(memory, Balloon())
        bench.driver.start([F_TELL])
        bench.fill()
        before = memory.allocated
        bench.inflate(*range(FIRST, FIRST + pages - 1))
        assert memory.allocated == before
        bench.inflate(FIRST + pages - 1, FIRST + pages)
        assert memory.allocated == before - HUGE_PAGE_SIZE
        assert bench.is_zero(FIRST)
        assert not bench.is_zero(FIRST + pages)


# The target: at run time, from any thread


def test_a_target_set_at_run_time_is_told_as_a_configuration_change(bench: Bench) -> None:
    bench.device.set_target(2 * MIB)
    assert bench.driver.interrupts() is Interrupt.CONFIG_CHANGE
    assert bench.driver.read_config(NUM_PAGES, 4) == 2 * MIB // PAGE


def test_a_target_is_set_by_another_thread(bench: Bench) -> None:
    thread = threading.Thread(target=bench.device.set_target, args=(PAGE,))
    with bench.device.lock:
        thread.start()
        assert bench.driver.read_config(NUM_PAGES, 4) == 0
    thread.join()
    assert bench.driver.read_config(NUM_PAGES, 4) == 1


def test_a_target_may_be_all_of_memory_and_nothing(bench: Bench) -> None:
    bench.device.set_target(MEMORY_SIZE)
    bench.device.set_target(0)
    assert bench.driver.read_config(NUM_PAGES, 4) == 0


@pytest.mark.parametrize("target", [-PAGE, 1, PAGE + 1, MEMORY_SIZE + PAGE, 1 << 64])
def test_a_target_that_cannot_be_met_is_refused_with_a_remedy(bench: Bench, target: int) -> None:
    with pytest.raises(ConfigError, match="give"):
        bench.device.set_target(target)
    assert bench.driver.read_config(NUM_PAGES, 4) == 0
    assert bench.driver.interrupts() == 0


def test_a_target_that_cannot_be_met_is_refused_at_the_start(memory: WatchedMemory) -> None:
    with pytest.raises(ConfigError, match="more than the guest's memory"):
        Bench(memory, Balloon(target=MEMORY_SIZE + PAGE))


# Statistics (5.5.6.3)


def test_statistics_are_known_by_name_in_any_order(bench: Bench) -> None:
    used = bench.send(statsq, statistics_array((5, 1 << 40), (0, 0), (4, 77), (9, 3)))
    assert used == []
    assert bench.device.statistics == {
        "MEMTOT": 1 << 40,
        "SWAP_IN": 0,
        "MEMFREE": 77,
        "HTLB_PGFAIL": 3,
    }


def test_every_tag_of_the_specification_is_known(bench: Bench) -> None:
    bench.send(statsq, statistics_array(*((tag, tag) for tag in range(10))))
    assert bench.device.statistics == {s.name: s.value for s in Statistic}
    assert len(Statistic) == 10


def test_unknown_tags_are_ignored(bench: Bench) -> None:
    bench.send(statsq, statistics_array((10, 1), (4, 2), (0xFFFF, 3)))
    assert bench.device.statistics == {"MEMFREE": 2}


def test_the_buffer_comes_back_when_new_statistics_are_asked_for(bench: Bench) -> None:
    bench.send(statsq, statistics_array((4, 1)))
    bench.device.request_statistics()
    assert bench.driver.interrupts() is Interrupt.USED_BUFFER
    assert [used.length for used in bench.driver.queues[statsq].take_all_used()] == [0]
    bench.send(statsq, statistics_array((4, 2)))
    assert bench.device.statistics == {"MEMFREE": 2}


def test_asking_again_before_the_answer_does_nothing(bench: Bench) -> None:
    bench.device.request_statistics()
    bench.send(statsq, b"")
    bench.device.request_statistics()
    bench.device.request_statistics()
    assert len(bench.driver.queues[statsq].take_all_used()) == 1


def test_of_several_buffers_the_latest_counts_and_the_others_come_back(bench: Bench) -> None:
    for value in range(3):
        bench.driver.queues[statsq].add([bench.place(statistics_array((4, value)))])
    assert len(bench.driver.collect(statsq)) == 2
    assert bench.device.statistics == {"MEMFREE": 2}


@pytest.mark.parametrize("size", [1, 6, 9])
def test_a_part_of_an_entry_is_left_out(bench: Bench, size: int) -> None:
    bench.send(statsq, statistics_array((4, 1)) + bytes(size))
    assert bench.device.statistics == {"MEMFREE": 1}
    assert bench.device.ignored == {Ignored.MALFORMED: 1}


def test_an_empty_buffer_has_no_statistics(bench: Bench) -> None:
    bench.driver.queues[statsq].add([Piece(DRIVER_END, 0)])
    assert bench.driver.collect(statsq) == []
    assert bench.device.statistics == {}
    assert bench.device.ignored == {}


def test_entries_may_be_cut_anywhere(bench: Bench) -> None:
    data = statistics_array((4, 0x0102030405060708), (5, 9))
    bench.send(statsq, data[:1], data[1:7], data[7:11], data[11:])
    assert bench.device.statistics == {"MEMFREE": 0x0102030405060708, "MEMTOT": 9}


def test_statistics_are_asked_for_again_and_again(memory: WatchedMemory) -> None:
    with EventLoop() as loop:
        bench = Bench(memory, Balloon(statistics_interval=0.001), loop)
        bench.driver.start([F_STATS])
        loop.start()
        for _ in range(3):
            bench.interrupted.clear()
            bench.send(statsq, statistics_array((4, 1)))
            assert bench.interrupted.wait(PATIENCE)
            bench.driver.interrupts()


# Free page reporting (5.5.6.7)


def test_reported_pages_are_given_back(bench: Bench) -> None:
    bench.fill()
    before = bench.memory.allocated
    bench.report((DRIVER_END, 2 * MIB), (DRIVER_END + 4 * MIB, MIB))
    assert before - bench.memory.allocated == 3 * MIB
    assert bench.is_zero(FIRST)
    assert not bench.is_zero(FIRST + 512)
    assert bench.device.ballooned == 0


def test_reported_neighbours_are_given_back_in_one_call(bench: Bench) -> None:
    bench.report((DRIVER_END + PAGE, PAGE), (DRIVER_END + 2 * PAGE, PAGE), (DRIVER_END, PAGE))
    assert bench.memory.discards == [(DRIVER_END, 3 * PAGE)]


def test_reports_that_overlap_are_given_back_once(bench: Bench) -> None:
    bench.report((DRIVER_END, 3 * PAGE), (DRIVER_END + PAGE, PAGE), (DRIVER_END, 2 * PAGE))
    assert bench.memory.discards == [(DRIVER_END, 3 * PAGE)]


def test_page_0_may_be_reported(bench: Bench) -> None:
    bench.report((0, PAGE))
    assert bench.memory.discards == [(0, PAGE)]


@pytest.mark.parametrize(("offset", "length"), [(16, 32), (16, PAGE), (0, PAGE - 1), (0, 0)])
def test_less_than_a_page_is_not_given_back(bench: Bench, offset: int, length: int) -> None:
    bench.report((DRIVER_END + offset, length))
    assert bench.memory.discards == []
    assert bench.works()


def test_only_what_the_device_may_write_is_reported(bench: Bench) -> None:
    bench.driver.queues[reporting_vq].add(
        [Piece(DRIVER_END, PAGE), Piece(DRIVER_END + PAGE, PAGE, writable=True)]
    )
    bench.driver.collect(reporting_vq)
    assert bench.memory.discards == [(DRIVER_END + PAGE, PAGE)]


@pytest.mark.parametrize("address", [MEMORY_SIZE - PAGE, 0xD000_0000, (1 << 64) - PAGE])
def test_a_report_outside_memory_is_given_back_and_the_device_goes_on(
    bench: Bench, address: int
) -> None:
    bench.report((address, 2 * PAGE))
    assert bench.memory.discards == []
    assert bench.works()


@pytest.mark.parametrize(("value", "given"), [(0, True), (0xAA, False)])
def test_reported_pages_keep_their_poison(bench: Bench, value: int, given: bool) -> None:
    """They may not read as anything else (5.5.6.7.2)."""
    start_poisoned(bench, value)
    bench.report((DRIVER_END, PAGE))
    assert bool(bench.memory.discards) is given
    assert bench.device.kept == (0 if given else 1)
    assert bench.works()


def test_poison_without_its_feature_is_no_matter(bench: Bench) -> None:
    start_poisoned(bench, 0xAA, [F_REPORTING])
    bench.report((DRIVER_END, PAGE))
    assert bench.memory.discards == [(DRIVER_END, PAGE)]


def test_the_poison_is_settled_at_driver_ok(bench: Bench) -> None:
    start_poisoned(bench, 0xAA)
    bench.driver.write_config(POISON_VAL, 4, 0)
    assert bench.driver.read_config(POISON_VAL, 4) == 0xAA


def start_poisoned(bench: Bench, value: int, features: list[int] | None = None) -> None:
    bench.driver.negotiate(features or [F_REPORTING, F_POISON])
    for queue in BalloonQueue:
        bench.driver.set_up_queue(queue, 16)
    bench.driver.write_config(POISON_VAL, 4, value)
    bench.driver.set_status(DeviceStatus.DRIVER_OK)


@pytest.mark.parametrize(
    ("features", "compact_index"), [([F_STATS, F_REPORTING], 3), ([F_REPORTING], 2)]
)
@pytest.mark.parametrize("compact", [False, True])
def test_reports_come_on_queue_4_or_on_the_next_that_there_is(
    bench: Bench, features: list[int], compact_index: int, compact: bool
) -> None:
    """The specification numbers it 4 (5.5.2); Linux and QEMU count only queues that exist."""
    index = compact_index if compact else reporting_vq
    stats = [statsq] if F_STATS in features else []
    bench.driver.negotiate(features)
    for queue in (inflateq, deflateq, *stats, index):
        bench.driver.set_up_queue(queue, 16)
    bench.driver.set_status(DeviceStatus.DRIVER_OK)
    bench.driver.queues[index].add([Piece(DRIVER_END, PAGE, writable=True)])
    assert len(bench.driver.collect(index)) == 1
    assert bench.memory.discards == [(DRIVER_END, PAGE)]


# Life


def test_a_reset_gives_every_page_to_the_next_driver_and_keeps_the_target(bench: Bench) -> None:
    bench.device.set_target(MIB)
    bench.driver.write_config(ACTUAL, 4, 1)
    bench.inflate(FIRST)
    bench.send(statsq, statistics_array((4, 1)))
    bench.driver.reset()
    assert bench.device.statistics == {}
    bench.device.request_statistics()
    bench.driver.start()
    assert bench.driver.read_config(ACTUAL, 4) == 0
    assert bench.driver.read_config(NUM_PAGES, 4) == MIB // PAGE
    bench.inflate(FIRST)
    assert bench.device.ballooned == PAGE
    assert bench.device.ignored == {}


def test_a_reset_statsq_has_no_buffer_to_give_back(bench: Bench) -> None:
    bench.driver.start([F_STATS, Feature.VIRTIO_F_RING_RESET])
    bench.send(statsq, b"")
    bench.driver.write(Register.QueueSel, statsq)
    bench.driver.write(Register.QueueReset, 1)
    bench.device.request_statistics()
    bench.driver.set_up_queue(statsq, 16)
    bench.send(statsq, statistics_array((4, 1)))
    assert bench.device.statistics == {"MEMFREE": 1}


def test_its_facts_are_sizes_in_bytes_and_what_was_ignored(bench: Bench) -> None:
    bench.device.set_target(MIB)
    bench.driver.write_config(ACTUAL, 4, 2)
    bench.inflate(FIRST, FIRST + 1, 0xFFFF_FFFF)
    bench.send(statsq, statistics_array((4, 1)))
    assert bench.device.facts() == {
        "target": MIB,
        "actual": 2 * PAGE,
        "ballooned": 2 * PAGE,
        "discarded": 2 * PAGE,
        "kept": 0,
        "ignored": {"not memory": 1},
        "statistics": {"MEMFREE": 1},
    }


# In an event loop: a worker gives pages back


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop() as loop:
        loop.start()
        yield loop


@pytest.fixture
def served(memory: WatchedMemory, loop: EventLoop) -> Iterator[Bench]:
    """A balloon that is worked by a loop, and is not reset before its worker is done."""
    bench = Bench(memory, Balloon(), loop)
    bench.driver.start([F_REPORTING, F_STATS, Feature.VIRTIO_F_RING_RESET])
    yield bench
    bench.driver.reset()


def collect_all(bench: Bench, queue: int, number: int) -> list[Used]:
    """Take what is used, by the interrupts that tell of it, until there are `number` of them."""
    used: list[Used] = []
    while True:
        bench.interrupted.clear()
        bench.driver.interrupts()
        used += bench.driver.queues[queue].take_all_used()
        if len(used) == number:
            return used
        assert bench.interrupted.wait(PATIENCE), f"{len(used)} of {number} are used"


class Gate:
    """Holds a worker up in `discard`, until it is opened."""

    def __init__(self, memory: WatchedMemory, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        discard: Callable[[int, int], None] = memory.discard

        def wait_and_discard(address: int, length: int) -> None:
            self.entered.set()
            assert self.open.wait(PATIENCE)
            discard(address, length)

        monkeypatch.setattr(memory, "discard", wait_and_discard)


def test_a_worker_serves_requests_and_the_loop_completes_them(
    served: Bench, loop: EventLoop
) -> None:
    queue = served.driver.queues[inflateq]
    for number in range(3 * BATCH_REQUESTS):
        queue.add([served.place(pfn_array([FIRST + number]))])
    loop.call(lambda: served.transport.lifecycle.kick(inflateq), "kick")
    used = collect_all(served, inflateq, 3 * BATCH_REQUESTS)
    assert {item.length for item in used} == {0}
    assert served.device.ballooned == 3 * BATCH_REQUESTS * PAGE


def test_the_loop_goes_on_while_a_worker_waits(
    served: Bench, loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(served.memory, monkeypatch)
    served.driver.queues[inflateq].add([served.place(pfn_array([FIRST]))])
    loop.call(lambda: served.transport.lifecycle.kick(inflateq), "kick")
    assert gate.entered.wait(PATIENCE)
    served.driver.queues[statsq].add([served.place(statistics_array((4, 1)))])
    loop.call(lambda: served.transport.lifecycle.kick(statsq), "kick")
    assert served.device.statistics == {"MEMFREE": 1}
    assert served.driver.queues[inflateq].take_used() is None
    gate.open.set()
    collect_all(served, inflateq, 1)


def test_requests_of_other_queues_wait_their_turn_and_get_it(
    served: Bench, loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(served.memory, monkeypatch)
    served.driver.queues[inflateq].add([served.place(pfn_array([FIRST]))])
    loop.call(lambda: served.transport.lifecycle.kick(inflateq), "kick")
    assert gate.entered.wait(PATIENCE)
    served.driver.queues[deflateq].add([served.place(pfn_array([FIRST]))])
    served.driver.queues[reporting_vq].add([Piece(DRIVER_END + MIB, PAGE, writable=True)])
    loop.call(lambda: served.transport.lifecycle.kick(deflateq), "kick")
    loop.call(lambda: served.transport.lifecycle.kick(reporting_vq), "kick")
    gate.open.set()
    collect_all(served, deflateq, 1)
    collect_all(served, reporting_vq, 1)
    assert served.device.ballooned == 0
    assert served.memory.discards == [(DRIVER_END, PAGE), (DRIVER_END + MIB, PAGE)]


@pytest.mark.parametrize("whole_device", [True, False])
def test_a_reset_waits_for_the_worker_and_its_buffers_are_forgotten(
    served: Bench, loop: EventLoop, monkeypatch: pytest.MonkeyPatch, whole_device: bool
) -> None:
    gate = Gate(served.memory, monkeypatch)
    served.driver.queues[inflateq].add([served.place(pfn_array([FIRST]))])
    loop.call(lambda: served.transport.lifecycle.kick(inflateq), "kick")
    assert gate.entered.wait(PATIENCE)

    def reset() -> None:
        if whole_device:
            served.driver.reset()
        else:
            served.driver.write(Register.QueueSel, inflateq)
            served.driver.write(Register.QueueReset, 1)

    old = served.driver.queues[inflateq]
    thread = threading.Thread(target=reset)
    thread.start()
    thread.join(0.01)
    assert thread.is_alive()
    gate.open.set()
    thread.join()
    loop.call(lambda: None, "after the completion")
    assert old.take_used() is None
    assert loop.running


def test_rings_that_break_while_a_worker_serves_need_a_reset_and_the_loop_goes_on(
    served: Bench, loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(served.memory, monkeypatch)
    queue = served.driver.queues[inflateq]
    queue.add([served.place(pfn_array([FIRST]))])
    loop.call(lambda: served.transport.lifecycle.kick(inflateq), "kick")
    assert gate.entered.wait(PATIENCE)
    served.interrupted.clear()
    queue.available.idx = 5000
    gate.open.set()
    while not served.driver.status & DeviceStatus.DEVICE_NEEDS_RESET:
        assert served.interrupted.wait(PATIENCE)
        served.interrupted.clear()
    served.driver.start()
    served.driver.queues[inflateq].add([served.place(pfn_array([FIRST]))])
    loop.call(lambda: served.transport.lifecycle.kick(inflateq), "kick")
    collect_all(served, inflateq, 1)
