"""The balloon (5.5): free page reporting (5.5.6.7)."""

import pytest

from tests.unit.balloon.bench import (
    DRIVER_END,
    F_POISON,
    F_REPORTING,
    F_STATS,
    FIRST,
    MEMORY_SIZE,
    MIB,
    PAGE,
    POISON_VAL,
    Bench,
    deflateq,
    inflateq,
    reporting_vq,
    statsq,
)
from virtiopy.devices.balloon import (
    BalloonQueue,
)
from virtiopy.spec import DeviceStatus
from virtiopy.virtqueue.driver import Piece


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
