"""A proxy between a frontend and a backend of vhost-user: what it passes on, and what it sees."""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.processes import wait_until
from tests.unit.vhost_user import Driver, Served, readable
from virtiopy.check.passing.check import PassingCheck
from virtiopy.closing import Closing
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.rng import Rng
from virtiopy.errors import PeerError
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId
from virtiopy.trace.events import LiveTrace, Stamped
from virtiopy.trace.watch import DeviceTrace
from virtiopy.vhost.user.frontend import connect
from virtiopy.vhost.user.passing import ProxyWatch, Shown
from virtiopy.vhost.user.proxy import Proxy
from virtiopy.vhost.user.server import listen
from virtiopy.virtqueue.driver import Piece, Used


class Lines:
    """A sink that keeps the lines of a trace."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def take(self, stamped: Stamped) -> None:
        self.lines.append(stamped.event.what)

    def finish(self) -> None: ...


class Between(Closing):
    """A proxy on a loop of its own, and a backend behind it."""

    def __init__(
        self, folder: Path, *watches: ProxyWatch, device: VirtioDevice | None = None
    ) -> None:
        self.backend_path = folder / "backend.sock"
        self.path = folder / "proxy.sock"
        self.seen = Lines()
        self.served: Served | None = Served(device or Rng(), self.backend_path)
        self.loop = EventLoop("proxy")
        watch = Shown(DeviceTrace(LiveTrace(self.seen), "proxy"))
        backend = partial(connect, self.backend_path)
        self.proxy = Proxy(listen(self.path), backend, self.loop, [watch, *watches])
        self.loop.start()

    def close(self) -> None:
        self.end_backend()
        failure = self.loop.failure
        if failure is not None:
            raise failure
        self.loop.call(self.proxy.close, "close the proxy")
        self.loop.stop()
        self.loop.close()

    def end_backend(self) -> None:
        if self.served is not None:
            self.served.close()
            self.served = None

    def connect(self) -> socket.socket:
        stream = connect(self.path)
        stream.settimeout(PATIENCE)
        return stream

    @contextlib.contextmanager
    def driver(self, memory: GuestMemory | None = None) -> Iterator[Driver]:
        with Driver(self.connect(), memory=memory) as driver:
            # What the driver says later of notifications is said by choice.
            driver.queues[0].driver.disable_interrupts()
            driver.start()
            yield driver


@pytest.fixture
def between(tmp_path: Path) -> Iterator[Between]:
    with Between(tmp_path) as between:
        yield between


def ask(driver: Driver, *lengths: int) -> list[Used]:
    """Have random bytes in buffers of these lengths."""
    queue = driver.queues[0]
    for length in lengths:
        address = driver.allocator.take(length)
        queue.driver.add([Piece(address, length, writable=True)])
    queue.notify()
    return queue.wait(len(lengths))


def in_order(lines: Sequence[str], *starts: str) -> bool:
    left = iter(list(lines))
    return all(any(line.startswith(start) for line in left) for start in starts)


def gone(stream: socket.socket) -> None:
    """See that the other end closes a connection."""
    readable(stream.fileno())
    with contextlib.suppress(ConnectionResetError):
        assert stream.recv(1) == b""


def test_a_request_passes_and_is_seen(between: Between) -> None:
    with between.driver() as driver:
        # The device is to tell the driver, which may find what is used before it is told.
        driver.queues[0].driver.enable_interrupts()
        [used] = ask(driver, 32)
        assert used.length == 32
        wait_until(lambda: in_order(between.seen.lines, "interrupt: queue 0"))
        driver.frontend.stop_ring(0)
    assert in_order(
        between.seen.lines,
        "-> GET_FEATURES",
        "<- GET_FEATURES 0x",
        "-> SET_MEM_TABLE",
        "-> SET_VRING_KICK",
        "kick 0",
        "queue 0: available: head 0, 0x",
        "queue 0: used: head 0, 32 bytes",
        "interrupt: queue 0",
    ), "\n".join(between.seen.lines)


def test_each_of_many_requests_is_seen_once(between: Between) -> None:
    with between.driver() as driver:
        for _ in range(40):
            assert [used.length for used in ask(driver, 8, 16, 24)] == [8, 16, 24]
        driver.frontend.stop_ring(0)
    lines = between.seen.lines
    assert sum(line.startswith("queue 0: available") for line in lines) == 120
    assert sum(line.startswith("queue 0: used") for line in lines) == 120


def test_a_ring_goes_on_where_it_was_stopped(between: Between) -> None:
    with between.driver() as driver:
        ask(driver, 8, 8)
        base = driver.frontend.stop_ring(0)
        assert base.vring_base == 2
        driver.frontend.start_ring(0, driver.queues[0].ring(base), driver.memory)
        assert [used.length for used in ask(driver, 40)] == [40]
        # All that passed before the answer has been seen.
        driver.frontend.stop_ring(0)
    assert between.seen.lines.count("queue 0: used: head 0, 8 bytes") == 1
    assert any(line.endswith("40 bytes") for line in between.seen.lines)


def test_both_sides_are_judged(tmp_path: Path) -> None:
    check = PassingCheck(DeviceId.ENTROPY)
    with Between(tmp_path, check) as between:
        with between.driver() as driver:
            assert [used.length for used in ask(driver, 8, 16)] == [8, 16]
            driver.frontend.stop_ring(0)
        # The device writes into a buffer that it is to read: the driver's mistake.
        with between.driver() as driver:
            queue = driver.queues[0]
            queue.driver.add([driver.piece(b"not for a device of random bytes")])
            queue.notify()
            queue.wait()
            driver.frontend.stop_ring(0)
    verdict = check.finish()
    assert [str(finding.statement.id) for finding in verdict.errors] == ["5.4.6.1:1"]
    kept = {statement.id for statement, outcome, _ in verdict.outcomes() if outcome == "kept"}
    assert kept >= {"2.7.8:1", "2.7.8.2:2", "6.2:1", "2.7.10.2:3", "2.2.1:1", "6.1:1", "3.3.1:1"}


def test_the_next_frontend_is_served_when_one_has_left(between: Between) -> None:
    for _ in range(3):
        with between.driver() as driver:
            assert len(ask(driver, 8)) == 1


def test_a_second_frontend_is_sent_away(between: Between) -> None:
    with between.driver() as driver, between.connect() as second:
        gone(second)
        assert len(ask(driver, 8)) == 1


def test_a_frontend_hears_that_the_backend_has_left(between: Between) -> None:
    with between.driver() as driver:
        between.end_backend()
        gone(driver.frontend.connection.socket)
    # And one that comes then is sent away.
    with between.connect() as late:
        gone(late)


def test_a_frontend_that_sends_rubbish_is_disconnected_and_the_next_is_served(
    between: Between,
) -> None:
    with between.connect() as stream:
        stream.sendall(b"\xff" * 64)
        gone(stream)
    with between.driver() as driver:
        assert len(ask(driver, 8)) == 1


def test_a_backend_that_sends_rubbish_ends_the_session(tmp_path: Path) -> None:
    loop = EventLoop("proxy")
    with listen(tmp_path / "backend.sock") as backend:
        watch = Shown(DeviceTrace(LiveTrace(Lines()), "proxy"))
        to_backend = partial(connect, tmp_path / "backend.sock")
        proxy = Proxy(listen(tmp_path / "proxy.sock"), to_backend, loop, [watch])
        loop.start()
        try:
            with connect(tmp_path / "proxy.sock") as stream:
                readable(backend.fileno())
                theirs, _ = backend.accept()
                with theirs:
                    theirs.sendall(b"\xff" * 64)
                    gone(stream)
        finally:
            loop.call(proxy.close, "close the proxy")
            loop.close()
    assert loop.failure is None


def test_memory_that_the_frontend_takes_away_ends_nothing_but_its_session(
    between: Between, tmp_path: Path
) -> None:
    ram = tmp_path / "ram"
    with between.driver(GuestMemory.allocate(4 << 20, path=ram)) as driver:
        ask(driver, 8)
        # The rings are in the first pages: what the proxy and the backend look at is no more.
        os.truncate(ram, 0)
        driver.queues[0].notify()
        with contextlib.suppress(PeerError):
            driver.frontend.get_features()
        driver.frontend.close()
    with between.driver() as after:
        assert len(ask(after, 8)) == 1
