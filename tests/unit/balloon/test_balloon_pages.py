"""The balloon (5.5): what it offers, and pages that come and go (5.5.6)."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.balloon.bench import (
    ACTUAL,
    DRIVER_END,
    F_POISON,
    F_REPORTING,
    F_STATS,
    FIRST,
    FREE_PAGE_HINT_CMD_ID,
    MEMORY_SIZE,
    MIB,
    NUM_PAGES,
    PAGE,
    POISON_VAL,
    Bench,
    WatchedMemory,
    inflateq,
    pfn_array,
    watched_memory,
)
from virtiopy.devices.balloon import (
    BATCH_REQUESTS,
    Balloon,
    BalloonFeature,
)
from virtiopy.errors import ConfigError
from virtiopy.memory import HOLE_END, HOLE_START, HUGE_PAGE_SIZE
from virtiopy.spec import DeviceId, has_feature
from virtiopy.transport.registers import Interrupt, Register

HUGE_PAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB"
F_TELL = BalloonFeature.VIRTIO_BALLOON_F_MUST_TELL_HOST
F_OOM = BalloonFeature.VIRTIO_BALLOON_F_DEFLATE_ON_OOM
F_HINT = BalloonFeature.VIRTIO_BALLOON_F_FREE_PAGE_HINT


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
