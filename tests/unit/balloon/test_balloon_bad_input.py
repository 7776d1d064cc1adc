"""The balloon (5.5) ignores and counts bad input, and goes on."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.balloon.bench import (
    ACTUAL,
    DRIVER_END,
    FIRST,
    MEMORY_SIZE,
    MIB,
    PAGE,
    Bench,
    deflateq,
    inflateq,
    pfn_array,
    reporting_vq,
    statsq,
    watched_memory,
)
from virtiopy.devices.balloon import (
    REQUEST_PFNS,
    Balloon,
    BalloonQueue,
    Ignored,
    runs,
)
from virtiopy.memory import HOLE_END, HOLE_START
from virtiopy.virtqueue.driver import Piece


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
