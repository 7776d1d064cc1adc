"""A socket device with real Unix sockets at the host's side, behind an event loop."""

import errno
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.openfiles import open_files
from tests.unit.vsock_bench import GUEST_PORT, HOST_PORT
from virtiopy.devices.vsock import SocketType
from virtiopy.devices.vsock.sockets import HostSocket
from virtiopy.errors import ConfigError
from virtiopy.eventloop import EventLoop
from virtiopy.host.vsock import CALLERS_MAX, PATH_MAX, PORT_LENGTH, HybridSockets

SECONDS = 20.0
STREAM, SEQPACKET = SocketType.STREAM, SocketType.SEQPACKET


class Device:
    """What a device is to its sockets: it says all that it hears back, when told to."""

    def __init__(self, sockets: HybridSockets, loop: EventLoop) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.called: list[tuple[int, SocketType, HostSocket]] = []
        self.sockets = sockets
        with self.lock:
            sockets.open(loop, self)

    def connect(self, port: int, kind: SocketType, socket: HostSocket) -> None:
        self.called.append((port, kind, socket))
        self.changed.notify_all()

    def wait_call(self) -> tuple[int, SocketType, "Ear"]:
        with self.changed:
            assert self.changed.wait_for(lambda: self.called, SECONDS)
            port, kind, found = self.called.pop(0)
            return port, kind, Ear(self, found)


class Ear:
    """The user of one socket."""

    def __init__(self, device: Device, socket: HostSocket) -> None:
        self.device, self.socket = device, socket
        self.inputs = self.rooms = 0
        self.is_hung_up = False
        with device.lock:
            socket.watch(self)

    def input_ready(self) -> None:
        self.inputs += 1
        self.socket.want(input=False)
        self.device.changed.notify_all()

    def room_ready(self) -> None:
        self.rooms += 1
        self.socket.want(room=False)
        self.device.changed.notify_all()

    def hung_up(self) -> None:
        self.is_hung_up = True
        self.device.changed.notify_all()

    def receive(self, room: int = 4096) -> bytes:
        """Wait for something to receive."""
        buffer = bytearray(room)
        with self.device.changed:
            before = self.inputs
            if not self.is_hung_up:
                self.socket.want(input=True)
                assert self.device.changed.wait_for(
                    lambda: self.inputs > before or self.is_hung_up, SECONDS
                )
            length = self.socket.receive([memoryview(buffer)])
        assert length is not None
        return bytes(buffer[:length])

    def send(self, data: bytes) -> int | None:
        with self.device.lock:
            return self.socket.send([memoryview(data)])

    def wait_hung_up(self) -> None:
        with self.device.changed:
            assert self.device.changed.wait_for(lambda: self.is_hung_up, SECONDS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vm.sock"


@pytest.fixture
def device(path: Path) -> Iterator[Device]:
    with EventLoop() as loop:
        sockets = HybridSockets(path, seqpacket=path.with_suffix(".seq"))
        device = Device(sockets, loop)
        loop.start()
        yield device
        with device.lock:
            for _, _, left in device.called:
                left.close()
            sockets.close()
        loop.stop()
    assert list(path.parent.iterdir()) == []


def call(path: Path, line: bytes, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """Be a program that connects, and says something."""
    program = socket.socket(socket.AF_UNIX, kind)
    program.settimeout(SECONDS)
    program.connect(str(path))
    program.send(line)
    return program


def test_a_program_says_its_port_and_is_told_its_own(device: Device, path: Path) -> None:
    with call(path, b"CONNECT 1000\nand more") as program:
        port, kind, ear = device.wait_call()
        assert (port, kind) == (GUEST_PORT, STREAM)
        with device.lock:
            ear.socket.established(1 << 30)
        assert program.recv(100) == b"OK 1073741824\n"
        assert ear.receive() == b"and more"
        program.sendall(b"again")
        assert ear.receive() == b"again"
        assert ear.send(b"heard") == 5
        assert program.recv(100) == b"heard"
        ear.socket.close()
        assert program.recv(1) == b""


def test_a_line_may_come_in_pieces(device: Device, path: Path) -> None:
    with call(path, b"conn") as program:
        for piece in (b"ect 7", b"7\nx"):
            program.send(piece)
        port, _, ear = device.wait_call()
        assert port == 77
        assert ear.receive(1) == b"x"
        ear.socket.close()


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"HELLO\n",
        b"\n",
        b"C" * 32,
        b"CONNECT 1\r\n",
        b"\xff\n",
    ],
)
def test_what_is_no_port_is_shown_out(device: Device, path: Path, line: bytes) -> None:
    with call(path, line) as program:
        assert program.recv(1) == b""
    assert device.called == []


def test_programs_that_say_nothing_keep_no_other_out_for_good(device: Device, path: Path) -> None:
    silent = [call(path, b"") for _ in range(CALLERS_MAX)]
    with call(path, b"CONNECT 5\n"):
        # It is let in where there is room for it.
        silent.pop().close()
        port, _, ear = device.wait_call()
        assert port == 5
        ear.socket.close()
    for program in silent:
        program.close()


def test_a_seqpacket_program_says_its_port_in_a_message(device: Device, path: Path) -> None:
    with call(path.with_suffix(".seq"), b"CONNECT 9", socket.SOCK_SEQPACKET) as program:
        port, kind, ear = device.wait_call()
        assert (port, kind) == (9, SEQPACKET)
        program.send(b"one")
        program.send(b"two")
        assert [ear.receive(), ear.receive()] == [b"one", b"two"]
        assert ear.send(b"x" * (1 << 18)) == 1 << 18
        assert len(program.recv(1 << 20)) == 1 << 18
        ear.socket.close()


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET])
def test_a_guest_reaches_the_program_at_its_port(
    device: Device, path: Path, kind: SocketType
) -> None:
    number = socket.SOCK_STREAM if kind is STREAM else socket.SOCK_SEQPACKET
    other = SEQPACKET if kind is STREAM else STREAM
    with socket.socket(socket.AF_UNIX, number) as listener:
        listener.bind(f"{path}_{HOST_PORT}")
        with device.lock:
            assert device.sockets.connect(HOST_PORT, kind) is None
        listener.listen(1)
        with device.lock:
            assert device.sockets.connect(HOST_PORT, other) is None
            assert device.sockets.connect(HOST_PORT + 1, kind) is None
            found = device.sockets.connect(HOST_PORT, kind)
        assert found is not None
        program, _ = listener.accept()
        with program:
            ear = Ear(device, found)
            assert ear.send(b"hello") == 5
            assert program.recv(100) == b"hello"
            with device.lock:
                found.end_output()
            assert program.recv(100) == b""
            program.send(b"answer")
            assert ear.receive() == b"answer"
        ear.wait_hung_up()
        assert found.gone
        with device.lock:
            assert found.send([memoryview(b"in vain")]) == 7
            assert found.receive([memoryview(bytearray(8))]) == 0
            found.close()
    os.unlink(f"{path}_{HOST_PORT}")


def test_a_program_that_is_slow_is_waited_for(device: Device, path: Path) -> None:
    with call(path, b"CONNECT 1\n") as program:
        _, _, ear = device.wait_call()
        sent = 0
        while (taken := ear.send(bytes(1 << 16))) is not None:
            sent += taken
        with device.lock:
            ear.socket.want(room=True)
        received = 0
        while received < sent:
            received += len(program.recv(1 << 20))
        with device.changed:
            assert device.changed.wait_for(lambda: ear.rooms, SECONDS)
        ear.socket.close()


def test_what_a_program_said_before_it_left_is_received(device: Device, path: Path) -> None:
    with call(path, b"CONNECT 1\n") as program:
        _, _, ear = device.wait_call()
        program.send(b"last words")
    ear.wait_hung_up()
    assert [ear.receive(), ear.receive()] == [b"last words", b""]
    ear.socket.close()


def test_sockets_are_their_owners_alone_or_whose_the_user_says(tmp_path: Path) -> None:
    for number, mode in enumerate((0o600, 0o660)):
        path = tmp_path / f"{number}.sock"
        with closing(HybridSockets(path, mode=mode)):
            assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_socket_in_use_is_not_taken(device: Device, path: Path) -> None:
    for taken in (path, path.with_suffix(".seq")):
        with pytest.raises(ConfigError, match="listens at the socket"):
            HybridSockets(taken)


def test_a_socket_that_was_left_behind_is_replaced(path: Path) -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as left:
            left.bind(str(path))
        HybridSockets(path).close()
        assert not path.exists()


def test_a_path_that_has_no_room_for_a_port_is_refused(tmp_path: Path) -> None:
    name = "x" * (PATH_MAX - PORT_LENGTH - len(os.fsencode(tmp_path)))
    with pytest.raises(ConfigError, match=f"up to {PATH_MAX - PORT_LENGTH} bytes"):
        HybridSockets(tmp_path / name)
    HybridSockets(tmp_path / name[1:]).close()


def test_a_second_socket_that_cannot_be_made_takes_the_first_away(tmp_path: Path) -> None:
    before = open_files()
    with pytest.raises(ConfigError, match="No socket can be made"):
        HybridSockets(tmp_path / "a", seqpacket=tmp_path / "no" / "b")
    assert list(tmp_path.iterdir()) == []
    assert open_files() == before


def test_a_host_without_files_left_refuses(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("virtiopy.host.vsock.socket.socket", fail)
    with device.lock:
        assert device.sockets.connect(HOST_PORT, STREAM) is None


def test_without_a_loop_there_is_no_program(path: Path) -> None:
    with closing(HybridSockets(path)) as sockets:
        assert sockets.connect(HOST_PORT, STREAM) is None
