"""The event loop, on its own thread; what is about time runs on a clock of the tests'."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.openfiles import open_files
from tests.patience import PATIENCE
from virtiopy import eventloop
from virtiopy.eventloop import READABLE, WRITABLE, EventLoop, Watch


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop() as loop:
        yield loop


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with suppress(OSError):
            os.close(fd)


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(eventloop, "time", clock)
    return clock


def turn(loop: EventLoop) -> None:
    """Run one turn of a loop that is not started, without waiting."""
    loop.call_soon(lambda: None, "do not wait")
    loop._turn()


def fail() -> None:
    raise ZeroDivisionError


def started(loop: EventLoop) -> EventLoop:
    loop.start()
    return loop


# Files


def test_a_watch_calls_back_with_the_events_until_the_file_is_not_ready(
    loop: EventLoop, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    seen: list[tuple[int, bytes]] = []
    loop.watch(reader, READABLE, lambda events: seen.append((events, os.read(reader, 1))), "pipe")
    os.write(writer, b"ab")
    for _ in range(4):
        turn(loop)
    assert seen == [(READABLE, b"a"), (READABLE, b"b")]


def test_what_a_watch_waits_for_can_be_changed(loop: EventLoop, pipe: tuple[int, int]) -> None:
    _, writer = pipe
    seen: list[int] = []
    watch = loop.watch(writer, 0, seen.append, "pipe")
    turn(loop)
    assert seen == []
    watch.events = WRITABLE
    turn(loop)
    watch.events = 0
    turn(loop)
    assert seen == [WRITABLE]


def test_a_file_is_watched_no_more(loop: EventLoop, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    seen: list[int] = []
    watch = loop.watch(reader, READABLE, seen.append, "pipe")
    os.write(writer, b"a")
    loop.unwatch(watch)
    loop.unwatch(watch)
    turn(loop)
    assert seen == []


def test_a_file_that_cannot_be_watched_leaves_no_trace(loop: EventLoop) -> None:
    with open(__file__, "rb") as file:
        with pytest.raises(PermissionError):
            loop.watch(file.fileno(), READABLE, lambda events: None, "regular file")
        assert file.fileno() not in loop._watches


def test_a_file_that_is_watched_already_stays_so(loop: EventLoop, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    seen: list[str] = []
    loop.watch(reader, READABLE, lambda events: seen.append("first"), "pipe")
    with pytest.raises(FileExistsError):
        loop.watch(reader, READABLE, lambda events: seen.append("second"), "pipe")
    os.write(writer, b"a")
    turn(loop)
    assert seen == ["first"]


def test_events_of_a_closed_file_are_not_taken_for_those_of_its_successor(
    loop: EventLoop,
) -> None:
    pipes = [os.pipe(), os.pipe()]
    seen: list[str] = []
    watches: dict[int | str, Watch] = {}

    def replace_other(mine: int) -> Callable[[int], None]:
        def callback(events: int) -> None:
            seen.append("old")
            other = pipes[1 - mine][0]
            loop.unwatch(watches[1 - mine])
            loop.unwatch(watches[mine])
            # The other's number, of a file that has nothing to read.
            os.dup2(quiet[0], other)
            watches["new"] = loop.watch(other, READABLE, lambda events: seen.append("new"), "new")

        return callback

    quiet = os.pipe()
    for index, (reader, writer) in enumerate(pipes):
        watches[index] = loop.watch(reader, READABLE, replace_other(index), f"pipe {index}")
        os.write(writer, b"a")
    turn(loop)
    assert seen == ["old"]
    for fd in (*pipes[0], *pipes[1], *quiet):
        os.close(fd)


def test_a_file_can_be_unwatched_when_the_loop_is_closed(
    loop: EventLoop, pipe: tuple[int, int]
) -> None:
    watch = loop.watch(pipe[0], READABLE, lambda events: None, "pipe")
    loop.close()
    loop.unwatch(watch)


def test_to_unwatch_a_closed_file_leaves_its_successor_alone(loop: EventLoop) -> None:
    (reader, writer), (other, feeder) = os.pipe(), os.pipe()
    seen: list[str] = []
    old = loop.watch(reader, READABLE, lambda events: seen.append("old"), "old")
    os.dup2(other, reader)
    loop.watch(reader, READABLE, lambda events: seen.append("new"), "new")
    loop.unwatch(old)
    os.write(feeder, b"a")
    turn(loop)
    assert seen == ["new"]
    for fd in (reader, writer, other, feeder):
        os.close(fd)


# Timers


def test_timers_run_when_they_are_due_and_in_that_order(loop: EventLoop, clock: Clock) -> None:
    seen: list[str] = []
    loop.call_later(2, lambda: seen.append("later"), "later")
    loop.call_later(1, lambda: seen.append("sooner"), "sooner")
    turn(loop)
    assert seen == []
    clock.now += 2
    turn(loop)
    turn(loop)
    assert seen == ["sooner", "later"]


def test_a_periodic_timer_does_not_drift_and_leaves_out_what_it_missed(
    loop: EventLoop, clock: Clock
) -> None:
    seen: list[float] = []
    timer = loop.call_later(1, lambda: seen.append(clock.now), "tick", every=True)
    for step in (1.0, 0.7, 0.4, 3.6, 0.2, 0.3):
        clock.now += step
        turn(loop)
    assert [round(moment - 1000, 3) for moment in seen] == [1.0, 2.1, 5.7, 6.2]
    assert round(timer.due - 1000, 3) == 7.0


@pytest.mark.parametrize("every", [False, True])
def test_a_timer_that_is_cancelled_does_not_run(loop: EventLoop, clock: Clock, every: bool) -> None:
    seen: list[None] = []
    loop.call_later(1, lambda: seen.append(None), "cancelled", every=every).cancel()
    clock.now += 5
    turn(loop)
    assert seen == []


def test_a_periodic_timer_can_cancel_itself(loop: EventLoop, clock: Clock) -> None:
    seen: list[None] = []

    def tick() -> None:
        seen.append(None)
        timer.cancel()

    timer = loop.call_later(1, tick, "tick", every=True)
    for _ in range(3):
        clock.now += 1
        turn(loop)
    assert len(seen) == 1


@pytest.mark.parametrize("period", [0.0, -1.0])
def test_a_period_has_to_be_positive(loop: EventLoop, period: float) -> None:
    with pytest.raises(ValueError, match="every"):
        loop.call_later(period, lambda: None, "never", every=True)


# Bottom halves


def test_a_bottom_half_runs_once_however_often_it_is_asked_for(loop: EventLoop) -> None:
    seen: list[None] = []
    half = loop.bottom_half(lambda: seen.append(None), "half")
    for _ in range(3):
        half.schedule()
    turn(loop)
    turn(loop)
    assert len(seen) == 1


def test_a_bottom_half_that_asks_for_itself_runs_again_in_the_next_turn(loop: EventLoop) -> None:
    seen: list[None] = []

    def work() -> None:
        seen.append(None)
        half.schedule()

    half = loop.bottom_half(work, "half")
    half.schedule()
    for count in range(1, 4):
        turn(loop)
        assert len(seen) == count


def test_a_bottom_half_can_be_asked_for_from_any_thread(loop: EventLoop) -> None:
    ran = threading.Event()
    half = loop.bottom_half(ran.set, "half")
    started(loop)
    half.schedule()
    assert ran.wait(PATIENCE)


# Calls from other threads


def test_a_call_runs_on_the_loops_thread_and_is_waited_for(loop: EventLoop) -> None:
    seen: list[bool] = []
    started(loop).call(lambda: seen.append(loop.in_thread), "call")
    assert seen == [True]


def test_what_a_call_raises_is_raised_where_it_is_waited_for(loop: EventLoop) -> None:
    with pytest.raises(ZeroDivisionError):
        started(loop).call(fail, "call")
    assert loop.running


def test_a_call_to_a_loop_that_never_ran_or_has_ended_is_just_made(loop: EventLoop) -> None:
    seen: list[str] = []
    loop.call(lambda: seen.append("before"), "call")
    started(loop).stop()
    loop.call(lambda: seen.append("after"), "call")
    assert seen == ["before", "after"]


def test_a_call_to_a_loop_that_ran_on_another_thread_and_ended_is_just_made(
    loop: EventLoop,
) -> None:
    ended, release = threading.Event(), threading.Event()

    def run() -> None:
        loop.run()
        ended.set()
        release.wait(PATIENCE)

    thread = threading.Thread(target=run)
    thread.start()
    loop.call_soon(loop.stop, "stop")
    assert ended.wait(PATIENCE)
    seen: list[None] = []
    caller = threading.Thread(target=loop.call, args=(lambda: seen.append(None), "call"))
    caller.start()
    caller.join(2)
    seen_while_that_thread_lives = list(seen)
    release.set()
    caller.join()
    thread.join()
    assert seen_while_that_thread_lives == [None]


def test_every_call_is_made_once_while_the_loop_stops(loop: EventLoop) -> None:
    counts = [0] * 8
    started(loop)
    begin = threading.Barrier(9)

    def keep_calling(index: int) -> None:
        def count() -> None:
            counts[index] += 1

        begin.wait()
        for _ in range(200):
            loop.call(count, "count")

    callers = [threading.Thread(target=keep_calling, args=(index,)) for index in range(8)]
    for caller in callers:
        caller.start()
    begin.wait()
    loop.stop()
    for caller in callers:
        caller.join(PATIENCE)
    assert counts == [200] * 8


# What blocks


def test_what_blocks_runs_elsewhere_and_its_completion_on_the_loop(loop: EventLoop) -> None:
    threads: list[str] = []
    done = threading.Event()

    def complete() -> None:
        assert loop.in_thread
        done.set()

    started(loop).run_blocking(
        lambda: threads.append(threading.current_thread().name), complete, "work"
    )
    assert done.wait(PATIENCE)
    assert threads[0].startswith("loop-worker")


def test_what_a_worker_raises_ends_the_loop(loop: EventLoop) -> None:
    failed = threading.Event()
    loop.on_failure = failed.set
    started(loop).run_blocking(fail, lambda: None, "work")
    assert failed.wait(PATIENCE)
    loop.stop()
    assert isinstance(loop.failure, ZeroDivisionError)


# Life


def test_an_exception_ends_the_loop_and_is_kept(loop: EventLoop) -> None:
    failed = threading.Event()
    loop.on_failure = failed.set
    started(loop).call_soon(fail, "wrong")
    assert failed.wait(PATIENCE)
    loop.stop()
    assert isinstance(loop.failure, ZeroDivisionError)
    assert not loop.running


def test_a_loop_can_be_stopped_from_its_own_callback_and_twice(loop: EventLoop) -> None:
    started(loop).call_soon(loop.stop, "stop")
    loop.stop()
    loop.stop()
    assert not loop.running


def test_a_slow_callback_is_logged_with_its_name(
    loop: EventLoop, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def dawdle() -> None:
        clock.now += 0.2

    loop.call_soon(dawdle, "the dawdler")
    loop.call_later(0, dawdle, "the late timer")
    turn(loop)
    assert [record.message for record in caplog.records] == [
        "the late timer kept the event loop for 200 ms",
        "the dawdler kept the event loop for 200 ms",
    ]


def test_no_file_stays_open_and_closing_twice_closes_nothing_of_others() -> None:
    before = len(open_files())
    loop = EventLoop()
    loop.start()
    loop.close()
    assert len(open_files()) == before
    others = [os.dup(0) for _ in range(4)]
    loop.close()
    loop.call_soon(lambda: None, "too late")
    for fd in others:
        os.fstat(fd)
        os.close(fd)


def test_a_file_may_be_unwatched_after_the_loop_was_closed(pipe: tuple[int, int]) -> None:
    reader, _ = pipe
    loop = EventLoop()
    watch = loop.watch(reader, READABLE, lambda events: None, "pipe")
    loop.close()
    loop.unwatch(watch)


def test_a_timer_of_another_thread_wakes_a_loop_that_waits(loop: EventLoop) -> None:
    ran = threading.Event()
    waits = threading.Event()
    loop.start()
    loop.call_soon(waits.set, "the loop has nothing else to do")
    assert waits.wait(PATIENCE)

    loop.call_later(0.01, ran.set, "timer")

    assert ran.wait(PATIENCE)


def test_a_timer_wakes_a_loop_that_waits(loop: EventLoop) -> None:
    ran = threading.Event()
    begin = time.monotonic()
    loop.call_later(0.01, ran.set, "timer")
    started(loop)
    assert ran.wait(PATIENCE)
    assert time.monotonic() - begin >= 0.01


def test_a_loop_that_was_stopped_can_be_started_again(loop: EventLoop) -> None:
    for _ in range(3):
        started(loop)
        seen: list[bool] = []
        loop.call(lambda seen=seen: seen.append(loop.in_thread), "call")  # type: ignore[misc]
        assert seen == [True]
        loop.stop()
        assert not loop.running
