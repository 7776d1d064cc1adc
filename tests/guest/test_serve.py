"""virtiopy serve, each device for real: a process, and a driver at the other end of its socket."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guest.support import VIRTIOPY
from tests.guest.vhost_user import Backend, serve
from tests.namespace import Namespace, needs_taps
from tests.patience import PATIENCE
from tests.unit.vhost_user import FEATURES, Driver
from tests.unit.vhost_user_peer import SECTOR, make_image, read_sector, shrinkable_memory
from virtiopy.vhost.user.frontend import VhostUserFrontend, connect
from virtiopy.vhost.user.messages import Message, Request
from virtiopy.virtqueue.driver import Piece, Used

MQ = 1 << 22
ETH_P_TEST = 0x88B5  # For experiments (IEEE 802).
MAC = bytes.fromhex("020000000002")


def driver_of(backend: Backend, queues: int, features: int = FEATURES) -> Driver:
    stream = connect(backend.path)
    stream.settimeout(PATIENCE)
    return Driver(stream, queue_count=queues, features=features)


@contextmanager
def served(device: str, options: str, folder: Path) -> Iterator[Backend]:
    """Serve a device, and end it as its user would, which leaves no traceback behind."""
    with serve(device, options, folder / f"{device}.sock") as backend:
        # It listens before the device is there: whoever is answered has waited for that.
        VhostUserFrontend(connect(backend.path)).close()
        yield backend
    assert backend.process.returncode == 0
    assert "Traceback" not in backend.output


def test_an_entropy_device_is_served_reset_and_served_to_the_next(tmp_path: Path) -> None:
    def fill(driver: Driver) -> bytes:
        room = driver.piece(64)
        driver.queues[0].driver.add([room])
        driver.queues[0].notify()
        assert driver.queues[0].wait()[0].length == 64
        return driver.memory.read(room.address, 64)

    answers = set()
    with served("rng", "", tmp_path) as backend:
        for _ in range(2):
            with driver_of(backend, 1) as driver:
                driver.start()
                answers.add(fill(driver))
                driver.frontend.reset_device()
                driver.start([driver.queues[0].driver.used.idx])
                answers.add(fill(driver))
    assert len(answers) == 4


@pytest.fixture
def console(tmp_path: Path) -> Iterator[tuple[Backend, socket.socket]]:
    host = tmp_path / "host.sock"
    with (
        served("console", f"socket:{host}", tmp_path) as backend,
        socket.socket(socket.AF_UNIX) as terminal,
    ):
        terminal.settimeout(PATIENCE)
        terminal.connect(str(host))
        yield backend, terminal


def test_a_console_is_served_reset_and_served_to_the_next(
    console: tuple[Backend, socket.socket],
) -> None:
    backend, terminal = console

    def say(driver: Driver, words: bytes) -> None:
        driver.queues[1].driver.add([driver.piece(words)])
        driver.queues[1].notify()
        driver.queues[1].wait()
        assert terminal.recv(100) == words

    def hear(driver: Driver, words: bytes) -> None:
        room = driver.piece(100)
        driver.queues[0].driver.add([room])
        driver.queues[0].notify()
        terminal.sendall(words)
        assert driver.queues[0].wait()[0].length == len(words)
        assert driver.memory.read(room.address, len(words)) == words

    for turn in (b"first", b"second"):
        with driver_of(backend, 2) as driver:
            driver.start()
            say(driver, b"out of the " + turn)
            hear(driver, b"into the " + turn)
            driver.frontend.reset_device()
            driver.start([queue.driver.used.idx for queue in driver.queues])
            hear(driver, b"into the reset " + turn)
            say(driver, b"out of the reset " + turn)


@needs_taps
def test_a_network_device_with_two_pairs_is_served_reset_and_served_to_the_next(
    tmp_path: Path,
) -> None:
    with Namespace() as namespace:
        options = f"tap=t0,create=on,netns={namespace.name},queues=2,mac={MAC.hex(':')}"
        with served("net", options, tmp_path) as backend, packets(namespace) as host:
            for _ in range(2):
                with driver_of(backend, 4, FEATURES | MQ) as driver:
                    assert driver.frontend.queue_count() == 2
                    driver.start()
                    exchange(driver, host)
                    driver.frontend.reset_device()
                    driver.start([queue.driver.used.idx for queue in driver.queues])
                    exchange(driver, host)
        assert namespace.links() == set()


@needs_taps
@pytest.mark.parametrize("mode", ["native", "ioeventfd"])
def test_a_network_device_that_is_killed_goes_on_with_every_buffer(
    tmp_path: Path, mode: str
) -> None:
    with Namespace() as namespace:
        # It stays when its user is killed.
        namespace.ip("tuntap", "add", "t0", "mode", "tap")
        namespace.ip("link", "set", "t0", "up")
        options = f"tap=t0,netns={namespace.name},mac={MAC.hex(':')},mode={mode}"
        path = tmp_path / "net.sock"
        with (
            serve("net", options, path) as backend,
            packets(namespace) as host,
            driver_of(backend, 2) as driver,
        ):
            driver.track_inflight()
            driver.start()
            rooms: dict[int, Piece] = {}
            _supply(driver, rooms, [driver.piece(2048) for _ in range(8)])
            answer = MAC + _numbered(0xAA)[6:]
            for turn in range(2):
                frames = {_numbered(8 * turn + number) for number in range(8)}
                for frame in frames:
                    driver.queues[1].driver.add([driver.piece(bytes(12) + frame)])
                driver.queues[1].notify()
                backend.kill()
                backend.restart()
                # What a network device finds in a disabled transmit ring, it discards.
                driver.reconnect(connect(path), enable_first=True)
                late = driver.queues[0].driver.take_all_used()
                _supply(driver, rooms, [rooms.pop(one.head) for one in late])
                # All come back, and each was sent, if not twice.
                assert len(driver.queues[1].wait(8)) == 8
                while frames:
                    frames.discard(host.recv(2048))
                used: list[Used] = []
                while not used:
                    # The host drops what comes before it has seen that the tap has a user again.
                    host.send(answer)
                    threading.Event().wait(0.01)
                    used += driver.queues[0].driver.take_all_used()
                taken = [rooms.pop(one.head) for one in used]
                for room in taken:
                    assert driver.memory.read(room.address + 12, len(answer)) == answer
                _supply(driver, rooms, taken)


def _supply(driver: Driver, rooms: dict[int, Piece], pieces: list[Piece]) -> None:
    for piece in pieces:
        rooms[driver.queues[0].driver.add([piece])] = piece
    driver.queues[0].notify()


def _numbered(number: int) -> bytes:
    return b"\xff" * 6 + MAC + ETH_P_TEST.to_bytes(2, "big") + bytes([number]) * 50


@needs_taps
def test_a_frontend_is_told_that_a_network_devices_link_went_down(tmp_path: Path) -> None:
    status = 6  # of struct virtio_net_config (5.1.4)
    with Namespace() as namespace:
        options = f"tap=t0,create=on,netns={namespace.name}"
        with served("net", options, tmp_path) as backend, driver_of(backend, 2) as driver:
            driver.start()
            assert driver.frontend.get_config(2, status) == b"\1\0"
            namespace.ip("link", "set", "t0", "down")
            assert driver.frontend.channel is not None
            assert driver.frontend.config_has_changed()
            assert driver.frontend.get_config(2, status) == b"\0\0"


@needs_taps
def test_what_a_library_says_of_netlink_is_in_no_log(tmp_path: Path) -> None:
    path, log = tmp_path / "net.sock", tmp_path / "net.log"
    with Namespace() as namespace:
        options = f"tap=t0,create=on,netns={namespace.name},address=192.0.2.1/24"
        command = [*VIRTIOPY, "-v", "-v", "serve", "net", options, "--socket", str(path)]
        with Backend(command, path, log) as backend:
            VhostUserFrontend(connect(path)).close()
    assert "a frontend is here" in backend.output
    details = [line for line in backend.output.splitlines() if line.startswith("DEBUG")]
    assert [line for line in details if not line.startswith("DEBUG virtiopy.")] == []


def packets(namespace: Namespace) -> socket.socket:
    """Open a socket for the frames of this test on the tap."""
    kind = socket.htons(ETH_P_TEST)
    host = namespace.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, kind))
    host.settimeout(PATIENCE)
    host.bind(("t0", ETH_P_TEST))
    return host


def exchange(driver: Driver, host: socket.socket) -> None:
    """Send a frame by each pair, and receive what the host sends, by whichever it comes."""
    ethernet = b"\xff" * 6 + MAC + ETH_P_TEST.to_bytes(2, "big")
    for pair in range(2):
        frame = ethernet + bytes([pair]) * 50
        queue = driver.queues[2 * pair + 1]
        queue.driver.add([driver.piece(bytes(12) + frame)])
        queue.notify()
        queue.wait()
        assert host.recv(2048) == frame
    rooms = []
    for pair in range(2):
        room = driver.piece(2048)
        driver.queues[2 * pair].driver.add([room])
        driver.queues[2 * pair].driver.enable_interrupts()
        driver.queues[2 * pair].notify()
        rooms.append(room.address + 12)
    frame = MAC + ethernet[6:] + b"from the host".ljust(50, b"\0")
    host.send(frame)
    # Which pair it comes by, the tap chooses by the flow.
    calls = [driver.queues[0].call, driver.queues[2].call]
    received: list[bytes] = []
    while not received:
        assert select.select(calls, [], [], PATIENCE)[0], "no frame came"
        for pair in range(2):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(calls[pair])
            used = driver.queues[2 * pair].driver.take_all_used()
            received += [driver.memory.read(rooms[pair], len(frame)) for _ in used]
    assert received == [frame]


def test_a_frontend_that_takes_its_memory_away_does_not_end_the_process(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    with served("blk", str(image), tmp_path) as backend:
        with (
            shrinkable_memory() as memory,
            Driver(connect(backend.path), memory=memory) as driver,
        ):
            driver.start()
            assert read_sector(driver, 3) == bytes([3]) * SECTOR
            os.ftruncate(driver.memory.regions[0].fd, 0)
            driver.queues[0].notify()
            assert driver.frontend.connection.socket.recv(1) == b""
        with driver_of(backend, 1) as driver:
            driver.start()
            assert read_sector(driver, 4) == bytes([4]) * SECTOR
    assert backend.output.count("the frontend was disconnected") == 1


def test_who_connects_does_not_say_that_it_can_be_had(tmp_path: Path) -> None:
    path = tmp_path / "rng.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(PATIENCE)
        backend = subprocess.Popen(
            [*VIRTIOPY, "serve", "rng", "--connect", "--socket", str(path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        with backend, listener.accept()[0]:
            backend.terminate()
            assert backend.stdout is not None
            assert backend.stdout.read() == f"virtiopy: rng connects to {path}\n"


def test_a_frontend_that_talks_without_end_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    wire = Message(Request.SET_OWNER).encode() * 1000

    def talk(stream: socket.socket) -> None:
        while True:
            stream.sendall(wire)

    with serve("rng", "", tmp_path / "rng.sock") as backend, connect(backend.path) as stream:
        stream.settimeout(PATIENCE)
        stream.sendall(wire)
        backend.process.send_signal(signal.SIGTERM)
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            talk(stream)
        assert backend.process.wait(PATIENCE) == 0
