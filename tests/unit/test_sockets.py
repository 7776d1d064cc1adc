"""Unix sockets that virtiopy makes: whose they are, and what they take the place of."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtiopy.errors import ConfigError
from virtiopy.host.stream import SocketStream
from virtiopy.sockets import SocketFile, bind_listener
from virtiopy.vhost.user.server import listen

TAKEN = "It is taken: name another path."


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.sock"


@pytest.fixture(params=[0o000, 0o022, 0o077], ids="{:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_socket_is_its_owners_alone_whatever_the_umask(path: Path, umask: int) -> None:
    with bind_listener(path, taken=TAKEN):
        assert mode_of(path) == 0o600


@pytest.mark.parametrize("mode", [0o660, 0o666, 0o600, 0o400])
def test_a_socket_has_the_mode_that_is_asked_for_whatever_the_umask(
    path: Path, umask: int, mode: int
) -> None:
    with bind_listener(path, taken=TAKEN, mode=mode):
        assert mode_of(path) == mode


def test_the_sockets_of_backends_and_consoles_are_their_owners_alone(
    tmp_path: Path, umask: int
) -> None:
    backend, console = tmp_path / "backend", tmp_path / "console"
    stream = SocketStream(console)
    with listen(backend):
        assert mode_of(backend) == mode_of(console) == 0o600
    stream.close()
    stream = SocketStream(console, mode=0o660)
    assert mode_of(console) == 0o660
    stream.close()


def test_a_socket_that_no_process_listens_at_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with bind_listener(path, taken=TAKEN) as listener:
        listener.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_socket_that_another_process_has_is_left_to_it(path: Path, waiting: int) -> None:
    with bind_listener(path, taken=TAKEN) as first:
        first.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(waiting)]
        for client in clients:
            client.connect(str(path))
        with pytest.raises(ConfigError, match=TAKEN):
            bind_listener(path, taken=TAKEN)
        for client in clients:
            client.close()
    assert path.is_socket()


def test_what_is_no_socket_stays(path: Path, tmp_path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is no socket"):
        bind_listener(path, taken=TAKEN)
    assert path.read_text() == "mine"
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(ConfigError, match="is no socket"):
        bind_listener(link, taken=TAKEN)
    assert link.is_symlink()


def test_the_end_of_a_socket_leaves_a_file_that_came_in_its_place(path: Path) -> None:
    with bind_listener(path, taken=TAKEN):
        file = SocketFile.at(path)
        path.unlink()
        path.write_text("another's")
        file.close()
        assert path.read_text() == "another's"
