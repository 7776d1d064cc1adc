"""The life of a balloon (5.5), and the worker that gives its pages back."""

import threading
from collections.abc import Callable, Iterator

import pytest

from tests.patience import PATIENCE
from tests.unit.balloon.bench import (
    ACTUAL,
    DRIVER_END,
    F_REPORTING,
    F_STATS,
    FIRST,
    MIB,
    NUM_PAGES,
    PAGE,
    Bench,
    WatchedMemory,
    deflateq,
    inflateq,
    pfn_array,
    reporting_vq,
    statistics_array,
    statsq,
)
from virtiopy.devices.balloon import (
    BATCH_REQUESTS,
    Balloon,
)
from virtiopy.eventloop import EventLoop
from virtiopy.spec import DeviceStatus, Feature
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.driver import Piece, Used

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
