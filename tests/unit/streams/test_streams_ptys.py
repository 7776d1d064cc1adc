"""A console's stream is a pseudoterminal, or standard input and output."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.descriptors import read_exactly, write_all
from tests.openfiles import open_files
from tests.unit.streams.bench import MIB, Guest, guest_of
from virtiopy.errors import ConfigError
from virtiopy.host.stream import PtyStream
from virtiopy.host.terminal import StdioStream

# A pseudoterminal


@contextmanager
def terminal_of(stream: PtyStream) -> Iterator[int]:
    fd = os.open(stream.path, os.O_RDWR | os.O_NOCTTY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_whoever_opens_the_pseudoterminal_talks_to_the_guest() -> None:
    stream = PtyStream()
    with guest_of(stream) as guest, terminal_of(stream) as terminal:
        guest.wait_connections(True)
        os.write(terminal, b"in\r\x03\n")
        guest.wait_for_input(b"in\r\x03\n")
        guest.write(b"out\n")
        assert read_exactly(terminal, 4) == b"out\n"


def test_the_pseudoterminal_can_be_opened_again() -> None:
    stream = PtyStream()
    with guest_of(stream) as guest:
        for number in range(3):
            with terminal_of(stream) as terminal:
                guest.wait_connections(*[True, False] * number, True)
                os.write(terminal, b"%d" % number)
            guest.wait_connections(*[True, False] * (number + 1))
            guest.wait_for_input(b"012"[: number + 1])


def test_output_with_nobody_at_the_pseudoterminal_is_dropped_and_counted() -> None:
    stream = PtyStream()
    with guest_of(stream) as guest:
        guest.write(b"nobody")
        guest.wait_written()
        assert stream.dropped == 6


def test_output_waits_for_the_first_who_opens_where_that_is_asked_for() -> None:
    stream = PtyStream(wait=True)
    with guest_of(stream) as guest:
        guest.write(b"held")
        with terminal_of(stream) as terminal:
            assert read_exactly(terminal, 4) == b"held"


def test_a_slow_pseudoterminal_gets_every_byte_and_a_slow_guest_too() -> None:
    stream = PtyStream()
    with guest_of(stream) as guest, terminal_of(stream) as terminal:
        guest.wait_connections(True)
        guest.read_from_now_on(False)
        sender = threading.Thread(target=write_all, args=(terminal, MIB))
        sender.start()
        guest.write(MIB)
        assert read_exactly(terminal, len(MIB)) == MIB
        guest.read_from_now_on(True)
        guest.wait_for_input(MIB)
        sender.join()


def test_what_was_written_last_can_still_be_read_while_the_device_closes() -> None:
    stream = PtyStream()
    tail = MIB[:3000]
    with guest_of(stream) as guest, terminal_of(stream) as terminal:
        guest.wait_connections(True)
        guest.write(tail)
        guest.wait_written()
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(read_exactly(terminal, len(tail))))
        stream_closer = threading.Thread(target=stream.close)
        stream_closer.start()
        reader.start()
        reader.join()
        stream_closer.join()
    assert found == [tail]


def test_a_link_names_the_pseudoterminal_and_goes_with_it(tmp_path: Path) -> None:
    link = tmp_path / "console"
    before = open_files()
    with guest_of(PtyStream(link)) as guest:
        assert isinstance(guest.stream, PtyStream)
        assert os.readlink(link) == guest.stream.path
    assert not link.is_symlink()
    assert open_files() == before


def test_a_link_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "console"
    link.symlink_to("/dev/pts/99999")
    stream = PtyStream(link)
    with closing(stream):
        assert os.readlink(link) == stream.path


def test_a_file_in_the_place_of_the_link_is_refused_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "console"
    link.write_text("precious")
    before = open_files()
    with pytest.raises(ConfigError, match=r"No link can be made at .*console \(File exists\)"):
        PtyStream(link)
    assert link.read_text() == "precious"
    assert open_files() == before


# Standard input and output that are no terminal


@contextmanager
def stdio(input_fd: int, output_fd: int) -> Iterator[Guest]:
    with guest_of(StdioStream(input_fd, output_fd)) as guest:
        yield guest


def test_pipes_are_passed_through_to_the_byte() -> None:
    (input_end, feeder), (reader, output_end) = os.pipe(), os.pipe()
    data = bytes(range(256)) + b"\x01x\x01\x01"
    with stdio(input_end, output_end) as guest:
        os.write(feeder, data)
        guest.wait_for_input(data)
        guest.write(data)
        assert read_exactly(reader, len(data)) == data
    for fd in (input_end, feeder, reader, output_end):
        assert os.get_blocking(fd)
        os.close(fd)


def test_the_end_of_the_input_leaves_the_output_as_it_is() -> None:
    (input_end, feeder), (reader, output_end) = os.pipe(), os.pipe()
    with stdio(input_end, output_end) as guest:
        os.write(feeder, b"last")
        os.close(feeder)
        guest.wait_for_input(b"last")
        guest.write(b"still here")
        assert read_exactly(reader, 10) == b"still here"
        assert guest.stream.connected
    for fd in (input_end, reader, output_end):
        os.close(fd)


def test_input_may_come_from_a_file_and_output_go_to_one(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(MIB)
    with (
        (tmp_path / "in").open("rb") as source,
        (tmp_path / "out").open("wb") as sink,
        stdio(source.fileno(), sink.fileno()) as guest,
    ):
        guest.wait_for_input(MIB)
        guest.write(MIB)
        guest.wait_written()
    assert (tmp_path / "out").read_bytes() == MIB


def test_dev_null_is_an_input_that_has_ended() -> None:
    with (
        open("/dev/null", "r+b", buffering=0) as null,
        stdio(null.fileno(), null.fileno()) as guest,
    ):
        guest.write(b"gone")
        guest.wait_written()
        assert guest.received == b""


def test_sockets_are_made_to_block_again() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with stdio(ours.fileno(), ours.fileno()) as guest:
            theirs.sendall(b"in")
            guest.wait_for_input(b"in")
            guest.write(b"out")
            assert theirs.recv(10) == b"out"
        assert os.get_blocking(ours.fileno())


def test_output_whose_reader_is_gone_is_dropped() -> None:
    (input_end, feeder), (reader, output_end) = os.pipe(), os.pipe()
    with stdio(input_end, output_end) as guest:
        os.close(reader)
        guest.write(MIB)
        guest.wait_written()
    for fd in (input_end, feeder, output_end):
        os.close(fd)


def test_standard_input_can_be_had_once_at_a_time() -> None:
    with open("/dev/null", "r+b", buffering=0) as null:
        fds = null.fileno(), null.fileno()
        with closing(StdioStream(*fds)), pytest.raises(ConfigError, match="one port only"):
            StdioStream(*fds)
        StdioStream(*fds).close()
