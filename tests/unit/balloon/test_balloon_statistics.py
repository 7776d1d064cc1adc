"""The balloon (5.5): statistics (5.5.6.3)."""

import pytest

from tests.patience import PATIENCE
from tests.unit.balloon.bench import (
    DRIVER_END,
    F_STATS,
    Bench,
    WatchedMemory,
    statistics_array,
    statsq,
)
from virtiopy.devices.balloon import (
    Balloon,
    Ignored,
    Statistic,
)
from virtiopy.eventloop import EventLoop
from virtiopy.transport.registers import Interrupt
from virtiopy.virtqueue.driver import Piece


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
