"""Standard output that is not read, is full, or is closed."""

import contextlib
import errno
import fcntl
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.patience import PATIENCE
from virtiopy.cli.guestoutput import LINE_MAX, TEXT_MAX, GuestOutput
from virtiopy.cli.output import ROOM, OutputError, PatientOutput


class Pipe:
    """A pipe with 4 KiB of room, and a PatientOutput at its end."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        self.stream = os.fdopen(writer, "w", encoding="utf-8")
        self.output = PatientOutput(self.stream)

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := os.read(self.reader, size - len(data))):
            data += more
        return data

    def close(self) -> None:
        # A reader lets the thread that is stuck go on.
        os.close(self.reader)
        self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def fill(output: PatientOutput) -> threading.Thread:
    """Write without end, on a thread, until there is an error or no room and no patience."""

    def write() -> None:
        for _ in range(2 * ROOM // 100):
            try:
                output.write("x" * 99 + "\n")
            except BrokenPipeError:
                return

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_what_is_written_arrives_in_order(pipe: Pipe) -> None:
    for number in range(100):
        pipe.output.write(f"{number}\n")
    pipe.output.buffer.write(b"\xff")
    pipe.output.finish()
    expected = "".join(f"{number}\n" for number in range(100)).encode() + b"\xff"
    assert pipe.read(len(expected)) == expected


def test_text_that_is_none_is_written_nevertheless(pipe: Pipe) -> None:
    pipe.output.write("a\udcff\n")
    pipe.output.finish()
    assert pipe.read(8) == b"a\\udcff\n"


def test_a_writer_waits_for_room_and_goes_on_when_the_reader_makes_some(pipe: Pipe) -> None:
    thread = fill(pipe.output)
    thread.join(0.2)
    assert thread.is_alive()
    assert len(pipe.read(2 * ROOM // 100 * 100)) == 2 * ROOM // 100 * 100
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_in_a_hurry_no_writer_waits_for_a_reader(pipe: Pipe) -> None:
    thread = fill(pipe.output)
    pipe.output.hurry()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    pipe.output.finish(patience=0.05)
    assert pipe.read(100) == b"x" * 99 + b"\n"


def test_a_reader_that_leaves_is_told_to_every_writer() -> None:
    pipe = Pipe()
    thread = fill(pipe.output)
    os.close(pipe.reader)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    with pytest.raises(BrokenPipeError):
        pipe.output.finish()
    with pytest.raises(BrokenPipeError):
        pipe.output.write("more")
    pipe.stream.close()


def test_a_disk_without_room_is_told_in_a_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        output = PatientOutput(full)
        output.write("a line\n")
        with pytest.raises(OutputError, match=r"^Standard output cannot be written \(No space"):
            output.finish()


def test_click_writes_text_to_it(pipe: Pipe) -> None:
    with contextlib.redirect_stdout(pipe.output):
        click.secho("a line", fg="red")
    pipe.output.finish()
    assert pipe.read(7) == b"a line\n"


def test_an_output_error_says_what_the_host_said() -> None:
    assert "Input/output error" in str(OutputError(OSError(errno.EIO, os.strerror(errno.EIO))))


# What a guest says


def test_lines_are_shown_when_they_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    output = GuestOutput()
    for data in (b"one", b" line\nand ", b"another\n\nlast"):
        output.write(data)
    assert capsys.readouterr().out == "one line\nand another\n\n"
    output.finish()
    assert capsys.readouterr().out == "last\n"
    assert output.text == "one line\nand another\n\nlast\n"


def test_a_line_without_an_end_is_shown_in_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    output = GuestOutput()
    for _ in range(5):
        output.write(b"x" * (LINE_MAX // 2))
    assert capsys.readouterr().out == "x" * (LINE_MAX // 2 * 3) + "\n"


def test_a_flood_is_kept_no_longer_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    output = GuestOutput()
    line = b"x" * 1023 + b"\n"
    for _ in range(TEXT_MAX // 1024 - 1):
        output.write(line)
    assert output.is_whole
    for _ in range(100):
        output.write(line)
    assert not output.is_whole
    assert len(output.text) == TEXT_MAX
