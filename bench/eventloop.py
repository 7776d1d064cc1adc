"""What one kick costs from eventfd to callback: our loop, the standard selectors, asyncio.

A thread writes to an eventfd, the loop's callback reads it and answers through another: the
round trip of an ioeventfd kick and its completion. Example: python -m bench.eventloop
"""

import argparse
import asyncio
import os
import select
import selectors
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.common import by_turns, tell, write_json
from virtiopy.eventloop import READABLE, EventLoop

TURNS = 20_000


def ping_pong(kick: int, answer: int) -> float:
    """Return the seconds of one round trip, on average."""
    start = time.perf_counter()
    for _ in range(TURNS):
        os.eventfd_write(kick, 1)
        os.eventfd_read(answer)
    return (time.perf_counter() - start) / TURNS


def with_eventfds(serve: Callable[[int, int], Callable[[], None]]) -> float:
    """Measure a loop: `serve` starts it with (kick, answer) and returns what stops it."""
    kick, answer = os.eventfd(0), os.eventfd(0)
    stop = serve(kick, answer)
    try:
        return ping_pong(kick, answer)
    finally:
        stop()
        os.close(kick)
        os.close(answer)


def ours(kick: int, answer: int) -> Callable[[], None]:
    loop = EventLoop()

    def callback(events: int) -> None:
        os.eventfd_read(kick)
        os.eventfd_write(answer, 1)

    loop.watch(kick, READABLE, callback, "kick")
    loop.start()
    return loop.close


def standard_selectors(kick: int, answer: int) -> Callable[[], None]:
    selector = selectors.EpollSelector()
    running = True

    def callback() -> None:
        os.eventfd_read(kick)
        os.eventfd_write(answer, 1)

    def run() -> None:
        while running:
            for key, _ in selector.select():
                key.data()

    selector.register(kick, selectors.EVENT_READ, callback)
    thread = threading.Thread(target=run)
    thread.start()

    def stop() -> None:
        nonlocal running
        running = False
        os.eventfd_write(kick, 1)
        thread.join()
        selector.close()

    return stop


def standard_asyncio(kick: int, answer: int) -> Callable[[], None]:
    loop = asyncio.new_event_loop()

    def callback() -> None:
        os.eventfd_read(kick)
        os.eventfd_write(answer, 1)

    loop.add_reader(kick, callback)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def stop() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    return stop


def bare_epoll(kick: int, answer: int) -> Callable[[], None]:
    epoll = select.epoll()
    epoll.register(kick, select.EPOLLIN)
    running = True

    def run() -> None:
        while running:
            for _ in epoll.poll():
                os.eventfd_read(kick)
                os.eventfd_write(answer, 1)

    thread = threading.Thread(target=run)
    thread.start()

    def stop() -> None:
        nonlocal running
        running = False
        os.eventfd_write(kick, 1)
        thread.join()
        epoll.close()

    return stop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    contestants: dict[str, Callable[[], float]] = {
        "virtiopy's loop": lambda: with_eventfds(ours),
        "asyncio": lambda: with_eventfds(standard_asyncio),
        "selectors": lambda: with_eventfds(standard_selectors),
        "nothing but epoll": lambda: with_eventfds(bare_epoll),
    }
    results = by_turns(contestants, arguments.rounds)
    tell(results, "microseconds a round trip", 1e6, peer="nothing but epoll")
    write_json(arguments.json, results, "seconds a round trip")


if __name__ == "__main__":
    main()
