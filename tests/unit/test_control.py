"""Commands to a machine over a Unix socket; the machine executes no guest."""

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.openfiles import open_files
from tests.patience import PATIENCE, timed
from tests.processes import wait_until
from virtiopy.accel.base import Accelerator
from virtiopy.control.client import ask
from virtiopy.control.server import CLIENTS_MAX, IDLE, LINE_MAX, ControlServer
from virtiopy.devices.balloon import Balloon
from virtiopy.devices.rng import Rng
from virtiopy.errors import ConfigError, HostError
from virtiopy.memory import GuestMemory
from virtiopy.sizes import format_size, parse_size
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode

MIB = 1 << 20


class NoCpu:
    """A CPU that is never run."""

    def statistics(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


class NoAccelerator:
    """What a machine is made with when nothing is executed."""

    name = "none"
    has_read_only_memory = False
    translates = False

    def create_cpu(self, number: int = 0, count: int = 1) -> NoCpu:
        return NoCpu()

    def set_irq_line(self, gsi: int, level: bool) -> None:
        pass

    def add_irqfd(self, gsi: int, eventfd: int) -> None:
        pass

    def add_ioeventfd(self, address: int, value: int, eventfd: int) -> Callable[[], None]:
        return lambda: None


@contextmanager
def serving(path: Path, *balloons: Balloon) -> Iterator[Machine]:
    """Serve a machine with an entropy device and these balloons, its loop running."""
    accelerator: Accelerator = NoAccelerator()  # type: ignore[assignment]
    with ExitStack() as stack:
        memory = stack.enter_context(GuestMemory.allocate(16 * MIB))
        machine = stack.enter_context(Machine(memory, accelerator, console=lambda data: None))
        machine.add_device(Rng(), "rng0", IoMode.IOEVENTFD)
        for number, balloon in enumerate(balloons):
            machine.add_device(balloon, f"balloon{number}", IoMode.IOEVENTFD)
        stack.enter_context(ControlServer(machine, path))
        stack.callback(machine.loop.stop)
        machine.loop.start()
        yield machine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vm.sock"


@pytest.fixture
def balloon() -> Balloon:
    return Balloon()


@pytest.fixture
def machine(path: Path, balloon: Balloon) -> Iterator[Machine]:
    with serving(path, balloon) as machine:
        yield machine


class Client:
    """A connection that sends bytes as they are."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.stream = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> dict[str, Any]:
        answer = json.loads(self.stream.readline())
        assert isinstance(answer, dict)
        return answer

    def ends(self) -> bool:
        """Say whether the machine has closed the connection."""
        return self.stream.readline() == b""

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


@pytest.fixture
def client(machine: Machine, path: Path) -> Iterator[Client]:
    client = Client(path)
    yield client
    client.close()


def error_of(path: Path, request: dict[str, Any]) -> str:
    """The sentence that a request is answered with."""
    with pytest.raises(ConfigError) as caught:
        ask(path, request)
    assert str(caught.value).endswith(".")
    return str(caught.value)


# The commands


def test_status_tells_of_memory_and_every_device(machine: Machine, path: Path) -> None:
    answer: Any = ask(path, {"command": "status"})
    assert answer["memory"]["size"] == 16 * MIB
    assert answer["memory"]["allocated"] == machine.memory.allocated
    assert answer["devices"]["rng0"] == {"type": "ENTROPY", "mode": "ioeventfd", "status": []}
    assert answer["devices"]["balloon0"]["type"] == "BALLOON"
    assert answer["devices"]["balloon0"]["target"] == 0


def test_status_names_the_bits_of_the_device_status_field(machine: Machine, path: Path) -> None:
    machine.slots[0].transport.write(0x70, (1).to_bytes(4, "little"))
    machine.slots[0].transport.write(0x70, (3).to_bytes(4, "little"))
    answer: Any = ask(path, {"command": "status"})
    assert answer["devices"]["rng0"]["status"] == ["ACKNOWLEDGE", "DRIVER"]


@pytest.mark.parametrize(("target", "size"), [("8M", 8 * MIB), (4096, 4096), ("0", 0)])
def test_balloon_sets_the_target(
    machine: Machine, path: Path, balloon: Balloon, target: str | int, size: int
) -> None:
    answer = ask(path, {"command": "balloon", "device": "balloon0", "target": target})
    assert answer == {"device": "balloon0", "target": size}
    assert balloon.target == size


def test_the_only_balloon_need_not_be_named(machine: Machine, path: Path) -> None:
    assert ask(path, {"command": "balloon", "target": "1M"})["device"] == "balloon0"


def test_one_of_several_balloons_has_to_be_named(path: Path) -> None:
    first, second = Balloon(), Balloon()
    with serving(path, first, second):
        assert "balloon0, balloon1" in error_of(path, {"command": "balloon", "target": "1M"})
        ask(path, {"command": "balloon", "device": "balloon1", "target": "1M"})
    assert (first.target, second.target) == (0, MIB)


def test_a_machine_without_a_balloon_says_so(path: Path) -> None:
    with serving(path):
        assert "--balloon" in error_of(path, {"command": "balloon", "target": "1M"})


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "null"),
        ({"command": 7}, "status, balloon"),
        ({"command": "fly"}, "fly"),
        ({"command": ["status"]}, "status"),
        ({"command": "status", "device": "rng0"}, "nothing else"),
        ({"command": "balloon"}, "target"),
        ({"command": "balloon", "target": None}, "target"),
        ({"command": "balloon", "target": True}, "target"),
        ({"command": "balloon", "target": 1.5}, "target"),
        ({"command": "balloon", "target": "much"}, "much"),
        ({"command": "balloon", "target": -4096}, "-4096"),
        ({"command": "balloon", "target": 1}, "4096"),
        ({"command": "balloon", "target": "9" * 4299}, "larger than any size"),
        ({"command": "balloon", "target": "9" * 4299 + "K"}, "larger than any size"),
        ({"command": "balloon", "target": 10**4298}, "larger than any size"),
        ({"command": "balloon", "target": -(10**4298)}, "larger than any size"),
        ({"command": "balloon", "target": "17M"}, "16777216"),
        ({"command": "balloon", "target": 0, "device": "balloon1"}, "balloon0"),
        ({"command": "balloon", "target": 0, "device": "rng0"}, "balloon0"),
        ({"command": "balloon", "target": 0, "device": 0}, "string"),
        ({"command": "balloon", "target": 0, "size": 0}, "size"),
    ],
)
def test_a_request_that_cannot_be_met_is_answered_with_a_sentence(
    machine: Machine, path: Path, balloon: Balloon, request_: dict[str, Any], words: str
) -> None:
    assert words in error_of(path, request_)
    assert balloon.target == 0
    assert "memory" in ask(path, {"command": "status"})


# Lines


@pytest.mark.parametrize("line", [b"", b"x", b"{", b"\xff\xfe", b"[" * 10000, b"1", b"[]", b"null"])
def test_what_is_no_json_object_is_answered_with_a_sentence(client: Client, line: bytes) -> None:
    client.send(line + b"\n")
    assert client.receive()["error"].endswith(".")
    client.send(b'{"command": "status"}\n')
    assert "memory" in client.receive()


def test_requests_may_come_in_pieces_and_several_at_once(client: Client) -> None:
    for byte in b'{"command": "balloon", "target": "1M"}\n{"command"':
        client.send(bytes([byte]))
    assert client.receive()["target"] == MIB
    client.send(b': "balloon", "target": "2M"}\n{"command": "balloon", "target": "3M"}\n')
    assert [client.receive()["target"] for _ in range(2)] == [2 * MIB, 3 * MIB]


def test_a_last_line_without_an_end_is_answered(client: Client) -> None:
    client.send(b'{"command": "balloon", "target": "1M"}')
    client.socket.shutdown(socket.SHUT_WR)
    assert client.receive()["target"] == MIB
    assert client.ends()


def test_a_line_that_does_not_end_is_refused_and_the_connection_closed(client: Client) -> None:
    client.send(b" " * (LINE_MAX + 1))
    assert "shorter" in client.receive()["error"]
    assert client.ends()


def test_a_client_that_takes_no_answers_is_not_read_from_and_holds_up_nobody(
    client: Client, path: Path
) -> None:
    client.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.send(b'{"command": "status"}\n' * 1_000_000)
    assert "memory" in ask(path, {"command": "status"})
    client.socket.settimeout(10)
    assert "memory" in client.receive()


def test_a_client_that_leaves_with_answers_due_is_forgotten(
    client: Client, machine: Machine, path: Path
) -> None:
    client.send(b'{"command": "status"}\n' * 500)
    client.close()
    assert "memory" in ask(path, {"command": "status"})


def _busy(client: Client) -> None:
    client.send(b'{"command": "status"}\n')
    client.receive()


@timed
def test_clients_that_ask_nothing_keep_no_other_waiting(machine: Machine, path: Path) -> None:
    clients = [Client(path) for _ in range(CLIENTS_MAX)]
    for client in clients:
        _busy(client)
    # The one that asked last is not idle, and stays.
    for _ in range(3):
        begun = time.monotonic()
        assert "memory" in ask(path, {"command": "status"})
        assert time.monotonic() - begun < 0.5 + IDLE
    assert clients[0].ends()
    for client in clients:
        client.close()


def test_the_client_that_was_idle_the_longest_makes_room(machine: Machine, path: Path) -> None:
    clients = [Client(path) for _ in range(CLIENTS_MAX)]
    for client in [*clients, clients[0]]:
        _busy(client)
    late = Client(path)
    _busy(late)
    assert clients[1].ends()
    _busy(clients[0])
    for client in [*clients, late]:
        client.close()


def test_clients_that_are_at_work_are_not_sent_away(
    machine: Machine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtiopy.control.server.IDLE", 3600.0)
    clients = [Client(path) for _ in range(CLIENTS_MAX)]
    for client in clients:
        _busy(client)
    late = Client(path)
    late.send(b'{"command": "status"}\n')
    for client in clients:
        _busy(client)
    clients.pop().close()
    assert "memory" in late.receive()
    for client in [*clients, late]:
        client.close()


# The socket


def test_the_socket_is_its_owners_alone(machine: Machine, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_socket_and_its_connections_go_with_the_machine(path: Path) -> None:
    files = len(open_files())
    threads = threading.active_count()
    with serving(path):
        client = Client(path)
        client.send(b'{"command": "status"}\n')
        client.receive()
    assert client.ends()
    client.close()
    assert not path.exists()
    assert len(open_files()) == files
    assert threading.active_count() == threads


def test_what_a_killed_machine_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(path):
        assert "memory" in ask(path, {"command": "status"})


def test_a_socket_that_another_machine_has_is_left_to_it(machine: Machine, path: Path) -> None:
    with pytest.raises(ConfigError, match="Another machine"), serving(path):
        pass
    assert "memory" in ask(path, {"command": "status"})


def test_a_path_where_another_socket_is_by_now_is_left_alone(path: Path) -> None:
    with serving(path), socket.socket(socket.AF_UNIX) as other:
        path.unlink()
        other.bind(str(path))
    assert path.exists()


def test_a_socket_that_was_taken_away_is_not_missed(path: Path) -> None:
    with serving(path):
        path.unlink()
    assert not path.exists()


def test_a_file_is_not_replaced(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigError, match="no socket"), serving(path):
        pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/vm.sock", "x" * 200])
def test_a_path_that_cannot_be_used_ends_in_a_sentence(tmp_path: Path, name: str) -> None:
    files = len(open_files())
    with pytest.raises(ConfigError, match="name a short path"), serving(tmp_path / name):
        pass
    assert len(open_files()) == files


# The client


def test_asking_where_nobody_listens_ends_in_a_sentence(path: Path) -> None:
    assert "--control" in error_of(path, {"command": "status"})
    path.write_text("")
    assert "--control" in error_of(path, {"command": "status"})


@contextmanager
def impostor(path: Path, answer: bytes) -> Iterator[None]:
    """Answer one request with these bytes."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_a_machine_that_ends_before_its_answer_ends_in_a_sentence(path: Path) -> None:
    with impostor(path, b""), pytest.raises(HostError, match="ended before it answered"):
        ask(path, {"command": "status"})


@pytest.mark.parametrize("answer", [b"220 mail.example ESMTP\r\n", b"[]\n"])
def test_what_is_no_machine_ends_in_a_sentence(path: Path, answer: bytes) -> None:
    with impostor(path, answer), pytest.raises(ConfigError, match="no machine"):
        ask(path, {"command": "status"})


def test_a_machine_that_does_not_answer_ends_in_a_sentence(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(HostError, match="does not answer"):
            ask(path, {"command": "status"}, timeout=0.01)


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1536, MIB, 64 * MIB, 3 << 30, 5 << 40])
def test_a_size_that_was_written_is_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_files_that_no_command_takes_are_closed(machine: Machine, path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as stream, open(os.devnull, "rb") as file:
            stream.connect(str(path))
            # Some come with no request, or with half of one; and more than a request may have.
            socket.send_fds(stream, [b'{"command": '], [file.fileno()] * 5)
            socket.send_fds(stream, [b'"status"}\n{'], [file.fileno()])
            stream.settimeout(PATIENCE)
            assert stream.recv(1) == b"{"
    wait_until(lambda: len(os.listdir("/proc/self/fd")) == before)
