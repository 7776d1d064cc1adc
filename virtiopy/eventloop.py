"""One epoll loop: file descriptors, timers, bottom halves, and worker threads for what blocks.

Everything but `run_blocking`'s functions runs on the loop's one thread. What may be called from
any thread says so.
"""

import contextlib
import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from virtiopy.closing import Closing

log = logging.getLogger(__name__)

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

#: A callback that runs longer, in seconds, is logged: it keeps every other device waiting.
SLOW_CALLBACK = 0.05

#: Threads for calls that block.
WORKERS = 4


class Watch:
    """A file descriptor that is watched, level-triggered; `callback` is given the events.

    `events` of 0 leaves it registered and silent (but for errors and hang-ups).
    """

    __slots__ = ("_epoll", "_events", "callback", "fd", "name")

    def __init__(
        self, epoll: select.epoll, fd: int, events: int, callback: Callable[[int], None], name: str
    ) -> None:
        self._epoll = epoll
        self._events = events
        self.fd = fd
        self.callback = callback
        self.name = name

    @property
    def events(self) -> int:
        """What is waited for: READABLE, WRITABLE, both or none."""
        return self._events

    @events.setter
    def events(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._epoll.modify(self.fd, events)


class Timer:
    """A callback that is due at a time of the monotonic clock, once or every `period` seconds."""

    __slots__ = ("callback", "cancelled", "due", "name", "period")

    def __init__(
        self, due: float, period: float | None, callback: Callable[[], None], name: str
    ) -> None:
        self.due = due
        self.period = period
        self.callback = callback
        self.name = name
        self.cancelled = False

    def cancel(self) -> None:
        """Do not call back any more; on the loop's thread."""
        self.cancelled = True


class BottomHalf:
    """A callback to be run soon, once, however often it is asked for; it never re-enters itself."""

    __slots__ = ("_callback", "_loop", "_scheduled", "name")

    def __init__(self, loop: "EventLoop", callback: Callable[[], None], name: str) -> None:
        self._loop = loop
        self._callback = callback
        self._scheduled = False
        self.name = name

    def schedule(self) -> None:
        """Ask for a run, from any thread."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run, self.name)

    def _run(self) -> None:
        # Two threads at the same moment may both have asked the loop: the first run is for both.
        if self._scheduled:
            # Cleared first: what is scheduled by the callback itself is another run.
            self._scheduled = False
            self._callback()


class EventLoop(Closing):
    """The loop of a VM. `start` gives it a thread of its own; `stop` ends that, from any thread.

    An exception that leaves a callback ends the loop; `failure` keeps it, and `on_failure` is
    called, on the loop's thread. An OSError is shown to `on_host_error` before, with the callback's
    name: where that returns True the loop goes on.
    """

    def __init__(self, name: str = "loop") -> None:
        self.name = name
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] | None = None
        self.on_host_error: Callable[[OSError, str], bool] = lambda error, name: False
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, READABLE)
        self._watches: dict[int, Watch] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._soon: deque[tuple[Callable[[], None], str]] = deque()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._is_ours = False
        self._ended = threading.Event()
        self._closed = False
        self._workers: ThreadPoolExecutor | None = None

    # Life

    def start(self, *, daemon: bool = False) -> None:
        """Run the loop on a thread of its own; again, after it was stopped.

        A daemon's end is not waited for: not even by the interpreter, when a callback is stuck.
        """
        self._stopping = False
        self._ended.clear()
        self._is_ours = True
        self._thread = threading.Thread(target=self.run, name=self.name, daemon=daemon)
        self._thread.start()

    def stop(self) -> None:
        """End the loop, from any thread, and wait for it unless this is its own."""
        self._stopping = True
        if not self._closed:
            os.eventfd_write(self._wake, 1)
        thread = self._thread
        # A thread without an identity was interrupted in its start, and will find it has to stop.
        if thread is not None and not self.in_thread and thread.ident:
            self._ended.wait()
            if self._is_ours:
                thread.join()

    def close(self) -> None:
        """Stop, wait for the workers, and close the loop's files; watched ones are the owners'."""
        self.stop()
        if self._closed:
            return
        if self._workers is not None:
            self._workers.shutdown()
        # Completions that came too late: what they hold is let go.
        self._soon.clear()
        # What is closed after the loop has nothing to unwatch any more.
        self._watches.clear()
        self._closed = True
        self._epoll.close()
        os.close(self._wake)

    @property
    def in_thread(self) -> bool:
        """Whether the caller is on the loop's thread."""
        return self._thread is threading.current_thread()

    @property
    def running(self) -> bool:
        """Whether callbacks are still being called."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping

    def run(self) -> None:
        """Call back until `stop`; on the calling thread."""
        if self._thread is None:
            self._thread = threading.current_thread()
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:
            self.failure = error
            self._stopping = True
            log.debug("the loop %s failed", self.name, exc_info=True)
            if self.on_failure is not None:
                self.on_failure()
        finally:
            # A thread that waits in call() waits for something that will not come.
            while self._soon:
                callback, _ = self._soon.popleft()
                if isinstance(callback, _Call):
                    callback.abandon()
            self._ended.set()

    def _turn(self) -> None:
        ready = self._epoll.poll(self._seconds_to_next_timer())
        for watch, fd, events in [(self._watches.get(fd), fd, events) for fd, events in ready]:
            if fd == self._wake:
                os.eventfd_read(self._wake)
            # A callback before may have removed it, and its number may be another file's by now.
            elif watch is not None and self._watches.get(fd) is watch:
                self._run(partial(watch.callback, events), watch.name)
        self._run_timers()
        # Only those there now: what they schedule waits for the next turn, after the files.
        for _ in range(len(self._soon)):
            callback, name = self._soon.popleft()
            self._run(callback, name)

    def _run(self, callback: Callable[[], None], name: str) -> None:
        start = time.monotonic()
        try:
            callback()
        except OSError as error:
            log.debug("%s failed", name, exc_info=True)
            if not self.on_host_error(error, name):
                raise
        seconds = time.monotonic() - start
        if seconds > SLOW_CALLBACK:
            log.info("%s kept the event loop for %.0f ms", name, seconds * 1e3)

    # Files

    def watch(self, fd: int, events: int, callback: Callable[[int], None], name: str) -> Watch:
        """Call back, with the events, whenever `fd` is ready for any of `events`; any thread."""
        watch = Watch(self._epoll, fd, events, callback, name)
        # First, for it may fail, as it does for a regular file. What is ready before the next
        # line is so afterwards: it is level-triggered.
        self._epoll.register(fd, events)
        self._watches[fd] = watch
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Watch a file no more, before it is closed; from any thread, and after the loop too."""
        # Where the file was closed first, its number may be another's by now.
        if self._watches.get(watch.fd) is watch:
            del self._watches[watch.fd]
            # The file may be gone already, or the loop, and its registration with it.
            if not self._closed:
                with contextlib.suppress(OSError):
                    self._epoll.unregister(watch.fd)

    # Timers

    def call_later(
        self, seconds: float, callback: Callable[[], None], name: str, *, every: bool = False
    ) -> Timer:
        """Call back in `seconds`, and with `every` again each so many; from any thread."""
        if every and seconds <= 0:
            raise ValueError(f"a timer every {seconds} seconds")
        period = seconds if every else None
        timer = Timer(time.monotonic() + seconds, period, callback, name)
        if self.in_thread or self._thread is None:
            self._push_timer(timer)
        else:
            # The loop may be waiting, for longer than this.
            self.call_soon(lambda: self._push_timer(timer), name)
        return timer

    def _push_timer(self, timer: Timer) -> None:
        heapq.heappush(self._timers, (timer.due, next(self._sequence), timer))

    def _seconds_to_next_timer(self) -> float | None:
        if self._soon:
            return 0
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.cancelled:
                continue
            if timer.period is not None:
                # From when it was due, so that a period does not drift; missed ones are left out.
                missed = (now - timer.due) // timer.period
                timer.due += (missed + 1) * timer.period
                self._push_timer(timer)
            self._run(timer.callback, timer.name)

    # Bottom halves and calls from other threads

    def call_soon(self, callback: Callable[[], None], name: str) -> None:
        """Run `callback` on the loop's thread, soon; from any thread."""
        self._soon.append((callback, name))
        if not self.in_thread and not self._closed:
            os.eventfd_write(self._wake, 1)

    def bottom_half(self, callback: Callable[[], None], name: str) -> BottomHalf:
        """Make a bottom half."""
        return BottomHalf(self, callback, name)

    def call(self, function: Callable[[], None], name: str) -> None:
        """Run `function` once, on the loop's thread, and wait; what it raises is raised here.

        From any thread. On the loop's own, and where the loop does not run, it is just called.
        """
        if self.in_thread or self._thread is None:
            function()
            return
        call = _Call(function)
        self.call_soon(call, name)
        if not self.running:
            # It may have ended before it saw the call.
            self._ended.wait()
            call.abandon()
        call.wait()

    # What blocks

    def run_blocking(
        self, function: Callable[[], None], done: Callable[[], None], name: str
    ) -> None:
        """Run `function` on a worker thread, then `done` on the loop's.

        What `function` raises ends the loop, as if a callback had raised it.
        """
        if self._workers is None:
            self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix=f"{self.name}-worker")

        def finish(future: Future[None]) -> None:
            def complete() -> None:
                future.result()
                done()

            self.call_soon(complete, name)

        self._workers.submit(function).add_done_callback(finish)


class _Call:
    """A function that another thread waits for."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._done = threading.Event()
        self._begun = False
        self._error: BaseException | None = None

    def __call__(self) -> None:
        self._begun = True
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error
        finally:
            self._done.set()

    def abandon(self) -> None:
        """Let the waiting thread go on: there is no loop any more."""
        self._done.set()

    def wait(self) -> None:
        """Wait until it ran; where the loop ended before, run it here."""
        self._done.wait()
        if not self._begun:
            self()
        if self._error is not None:
            raise self._error
