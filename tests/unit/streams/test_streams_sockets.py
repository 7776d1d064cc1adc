"""A console's stream is a Unix socket."""

import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.descriptors import read_exactly
from tests.openfiles import open_files
from tests.patience import PATIENCE
from tests.unit.streams.bench import MIB, guest_of
from virtiopy.errors import ConfigError
from virtiopy.host.stream import SocketStream


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


def test_a_client_of_the_socket_talks_to_the_guest(path: Path) -> None:
    with guest_of(SocketStream(path)) as guest, connect(path) as client:
        guest.wait_connections(True)
        client.sendall(b"in")
        guest.wait_for_input(b"in")
        guest.write(b"out")
        assert client.recv(10) == b"out"


def test_clients_may_come_and_go(path: Path) -> None:
    with guest_of(SocketStream(path)) as guest:
        for number in range(3):
            with connect(path) as client:
                guest.wait_connections(*[True, False] * number, True)
                client.sendall(b"%d" % number)
                guest.wait_for_input(b"012"[: number + 1])
            guest.wait_connections(*[True, False] * (number + 1))


def test_what_a_client_wrote_before_it_left_is_read_and_then_the_next_is_served(
    path: Path,
) -> None:
    with guest_of(SocketStream(path)) as guest:
        guest.read_from_now_on(False)
        for data in (b"first", b"second"):
            with connect(path) as client:
                client.sendall(data)
        guest.wait_connections(True, False)
        guest.read_from_now_on(True)
        guest.wait_for_input(b"firstsecond")


def test_a_second_client_waits_until_the_first_leaves(path: Path) -> None:
    with guest_of(SocketStream(path)) as guest, connect(path) as first:
        guest.wait_connections(True)
        with connect(path) as second:
            second.sendall(b"second")
            first.sendall(b"first")
            guest.wait_for_input(b"first")
            first.close()
            guest.wait_for_input(b"firstsecond")


def test_a_client_that_has_shut_down_its_writing_still_reads(path: Path) -> None:
    with guest_of(SocketStream(path)) as guest, connect(path) as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        guest.wait_for_input(b"last words")
        guest.write(b"answer")
        assert client.recv(10) == b"answer"
        assert guest.connections == [True]


def test_output_without_a_client_is_dropped_and_counted(path: Path) -> None:
    stream = SocketStream(path)
    with guest_of(stream) as guest:
        guest.write(b"nobody")
        guest.wait_written()
        assert stream.dropped == 6
        with connect(path) as client:
            guest.wait_connections(True)
            guest.write(b"somebody")
            assert client.recv(20) == b"somebody"


def test_output_waits_for_the_first_client_where_that_is_asked_for(path: Path) -> None:
    with guest_of(SocketStream(path, wait=True)) as guest:
        guest.write(b"held, ")
        with connect(path) as client:
            assert client.recv(6) == b"held, "


def test_output_that_waits_for_a_client_that_leaves_is_dropped(path: Path) -> None:
    with guest_of(SocketStream(path)) as guest, connect(path) as client:
        guest.wait_connections(True)
        guest.write(MIB * 4)
        client.close()
        guest.wait_written()
        guest.wait_connections(True, False)


def test_a_slow_client_gets_every_byte_and_a_slow_guest_too(path: Path) -> None:
    with guest_of(SocketStream(path)) as guest, connect(path) as client:
        guest.read_from_now_on(False)
        client.setblocking(True)
        guest.wait_connections(True)
        sender = threading.Thread(target=client.sendall, args=(MIB,))
        sender.start()
        guest.write(MIB)
        assert read_exactly(client.fileno(), len(MIB)) == MIB
        guest.read_from_now_on(True)
        guest.wait_for_input(MIB)
        sender.join()


def test_the_socket_is_removed_at_the_end_and_no_file_stays_open(path: Path) -> None:
    before = open_files()
    with guest_of(SocketStream(path)) as guest, connect(path):
        guest.wait_connections(True)
    assert not path.exists()
    assert open_files() == before


def test_a_socket_that_was_left_behind_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with guest_of(SocketStream(path)) as guest, connect(path):
        guest.wait_connections(True)


def test_a_socket_that_somebody_listens_at_is_refused(path: Path) -> None:
    with closing(SocketStream(path)), pytest.raises(ConfigError, match="Another process listens"):
        SocketStream(path)


def test_a_file_in_the_place_of_a_socket_is_refused_and_stays(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is no socket: name another path"):
        SocketStream(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["absent/console.sock", "x" * 120])
def test_a_path_where_no_socket_can_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="No socket can be made at"):
        SocketStream(tmp_path / name)
