"""What a frontend has the host fail at, or wait for, ends its own session at most."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from tests.patience import PATIENCE
from tests.unit.net.rig import MAC
from tests.unit.test_vhost_user_protocol import FakeNetLink
from tests.unit.vhost_user import FEATURES, Driver, Served, readable
from virtiopy import eventfds
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.net import Net
from virtiopy.devices.rng import Rng
from virtiopy.eventloop import EventLoop
from virtiopy.spec import DeviceId, DeviceStatus
from virtiopy.vhost.user.connection import Connection, DisconnectedError
from virtiopy.vhost.user.frontend import VhostUserFrontend
from virtiopy.vhost.user.messages import Message, ProtocolFeature, Request, u64
from virtiopy.virtqueue.driver import Used
from virtiopy.virtqueue.queue import Chain, Virtqueue

NEEDS_RESET = DeviceStatus.DEVICE_NEEDS_RESET
FULL = (1 << 64) - 2


class Unwilling(FakeNetLink):
    """A link that takes no offload without checksums, as a tap does (TUNSETOFFLOAD)."""

    def set_offloads(self, **offloads: bool) -> None:
        if (offloads["tso4"] or offloads["tso6"]) and not offloads["checksum"]:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


class Failing(VirtioDevice):
    """A device whose host fails at one thing, as long as it is told to."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    queue_sizes = (16,)

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at: str | None = at

    def _fail(self, at: str) -> None:
        if at == self.at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def negotiated(self, driver_features: int) -> None:
        super().negotiated(driver_features)
        self._fail("features")

    def config_space(self) -> bytes:
        self._fail("configuration")
        return bytes(8)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        self._fail("request")
        if self.at == "timer" and self.loop is not None:
            self.loop.call_later(0, lambda: self._fail("timer"), "timer of the test")
        return 0


def use_buffer(driver: Driver) -> int:
    """Offer one buffer, and return how many bytes of it were written."""
    queue = driver.queues[0]
    queue.driver.add([driver.piece(64)])
    queue.notify()
    return queue.wait()[0].length


def assert_serves(served: Served, length: int = 0) -> None:
    """Assert that the next frontend is served."""
    with Driver(served.connect()) as driver:
        driver.start()
        assert use_buffer(driver) == length


def test_features_that_the_host_would_refuse_are_not_asked_of_it(tmp_path: Path) -> None:
    with Served(Net(Unwilling(), mac=MAC), tmp_path / "net.sock") as served:
        with Driver(served.connect(), queue_count=2) as driver:
            # GUEST_TSO4 without GUEST_CSUM (5.1.3.1)
            driver.frontend.set_features(FEATURES | 1 << 7)
            assert driver.frontend.features
            driver.frontend.set_status(0x0B)
            assert driver.frontend.get_status() == 0x03
        with Driver(served.connect(), queue_count=2) as driver:
            driver.start()


@pytest.mark.parametrize("at", ["features", "configuration", "request", "timer"])
def test_an_error_of_the_hosts_ends_the_session_and_not_the_server(
    tmp_path: Path, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    device = Failing(at)
    with Served(device, tmp_path / "x.sock") as served:
        with Driver(served.connect()) as driver:
            stream = driver.frontend.connection.socket
            if at == "configuration":
                stream.sendall(
                    bytes.fromhex("18000000 01000000 10000000")
                    + bytes(4)
                    + (4).to_bytes(4, "little")
                    + bytes(8)
                )
            else:
                # It ends anywhere in this.
                with contextlib.suppress(DisconnectedError):
                    driver.start()
                driver.queues[0].driver.add([driver.piece(64)])
                driver.queues[0].notify()
            readable(stream.fileno())
            with contextlib.suppress(ConnectionResetError):
                assert stream.recv(1) == b""
        device.at = None
        assert_serves(served)
    assert "Input/output error" in caplog.text


def test_an_error_of_the_hosts_without_a_session_ends_the_server() -> None:
    loop = EventLoop()

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    loop.call_soon(fail, "fail")
    loop.run()
    assert isinstance(loop.failure, OSError)
    loop.close()


# Files that the frontend has too


def test_a_full_eventfd_that_waits_is_signalled_without_waiting() -> None:
    fd = os.eventfd(FULL & 0xFFFF_FFFF, 0)
    os.eventfd_write(fd, FULL - (FULL & 0xFFFF_FFFF))
    for _ in range(300):
        eventfds.signal(fd)
    assert eventfds.take(fd) == FULL + 1
    os.close(fd)


def test_an_empty_eventfd_that_waits_is_read_without_waiting() -> None:
    fd = os.eventfd(0, 0)
    assert eventfds.take(fd) == 0
    eventfds.signal(fd)
    eventfds.signal(fd)
    assert eventfds.take(fd) == 2
    os.close(fd)


def test_a_child_process_signals_too() -> None:
    fd = os.eventfd(0, 0)
    eventfds.signal(fd)
    if os.fork() == 0:
        eventfds.signal(fd)
        os._exit(0)
    os.wait()
    eventfds.signal(fd)
    assert eventfds.take(fd) == 3
    os.close(fd)


def test_a_file_that_is_no_eventfd_is_not_signalled() -> None:
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="Invalid argument"):
        eventfds.signal(writer)
    os.close(writer)
    assert eventfds.take(reader) is None
    os.close(reader)


@pytest.mark.parametrize("name", ["call", "error"])
def test_an_eventfd_that_is_full_and_waits_keeps_nobody_waiting(tmp_path: Path, name: str) -> None:
    with Served(Rng(), tmp_path / "rng.sock") as served:
        with Driver(served.connect()) as driver:
            driver.start()
            queue = driver.queues[0]
            driver.frontend.get_status()
            fd = getattr(queue, name)
            os.set_blocking(fd, True)
            os.eventfd_write(fd, FULL)
            if name == "error":
                queue.driver.available.idx = 1000
                queue.notify()
            else:
                queue.driver.add([driver.piece(64)])
                queue.notify()
            # What it answers says that it did not wait; and the buffer is used, or the ring broken.
            used: list[Used] = []
            while not used and not (driver.frontend.get_status() or 0) & NEEDS_RESET:
                used = queue.driver.take_all_used()
            assert [each.length for each in used] == ([64] if name == "call" else [])
            driver.frontend.get_status()
        assert_serves(served, 64)


def test_a_kick_that_is_taken_back_and_waits_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Served(Rng(), tmp_path / "rng.sock") as served, Driver(served.connect()) as driver:
        driver.start()
        driver.frontend.get_status()
        queue, stolen = driver.queues[0], 0
        os.set_blocking(queue.kick, True)
        take = eventfds.take

        def steal(fd: int) -> int | None:
            # The frontend reads its own kick between the loop's look and the backend's read.
            nonlocal stolen
            stolen += os.eventfd_read(queue.kick)
            return take(fd)

        monkeypatch.setattr("virtiopy.vhost.user.ring.eventfds.take", steal)
        queue.notify()
        while not stolen:
            # Its answer says that the loop did not wait.
            driver.frontend.get_status()
        assert stolen == 1
        driver.frontend.get_status()


def test_a_channel_that_is_full_and_waits_keeps_nobody_waiting(tmp_path: Path) -> None:
    device = Rng()
    with Served(device, tmp_path / "rng.sock") as served:
        ours, theirs = socket.socketpair()
        theirs.settimeout(PATIENCE)
        with Connection(served.connect()) as raw:
            raw.send(
                Message(
                    Request.SET_PROTOCOL_FEATURES,
                    u64(1 << ProtocolFeature.BACKEND_REQ | 1 << ProtocolFeature.CONFIG),
                )
            )
            raw.send(Message(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()]))
            raw.send(Message(Request.GET_FEATURES))
            assert raw.receive() is not None
            theirs.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    theirs.send(bytes(4096))
            theirs.setblocking(True)
            change: Callable[[], None] = served.server.backend.lifecycle.config_changed
            served.loop.call(change, "a change")
            raw.send(Message(Request.GET_FEATURES))
            assert raw.receive() is not None
        ours.close()
        theirs.close()
        assert_serves(served, 64)


@pytest.mark.parametrize("request_", [12, 13, 14], ids=["kick", "call", "err"])
def test_a_file_of_a_file_system_is_no_eventfd(tmp_path: Path, request_: int) -> None:
    path = tmp_path / "file"
    path.touch()
    with Served(Rng(), tmp_path / "rng.sock") as served:
        with Driver(served.connect()) as driver, path.open() as file:
            driver.start()
            frontend: VhostUserFrontend = driver.frontend
            frontend.connection.send(Message(request_, u64(0), fds=[file.fileno()]))
            readable(frontend.connection.socket.fileno())
            assert frontend.connection.socket.recv(1) == b""
        assert_serves(served, 64)
