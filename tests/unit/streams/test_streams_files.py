"""A console's stream is a file."""

import os
from pathlib import Path

import pytest

from tests.descriptors import read_exactly
from tests.unit.streams.bench import MIB, guest_of
from virtiopy.errors import ConfigError
from virtiopy.host.stream import FileStream


def test_output_goes_to_the_file_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for text in (b"old and long", b"new"):
        with guest_of(FileStream(path)) as guest:
            guest.write(text)
    assert path.read_bytes() == b"new"


def test_output_is_appended_to_the_file_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old, ")
    with guest_of(FileStream(path, append=True)) as guest:
        guest.write(b"new")
    assert path.read_bytes() == b"old, new"


def test_a_file_that_cannot_be_written_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent/log cannot be written \(No such file"):
        FileStream(tmp_path / "absent" / "log")


def test_a_full_disk_drops_output_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with guest_of(FileStream(Path("/dev/full"))) as guest:
        guest.write(b"lost")
        guest.write(b"lost")
    assert [record.message for record in caplog.records] == [
        "/dev/full: No space left on device: output is dropped"
    ]


def test_a_file_grows_up_to_its_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log"
    with guest_of(FileStream(path, limit=6)) as guest:
        for text in (b"first ", b"lost", b"lost"):
            guest.write(text)
    assert path.read_bytes() == b"first "
    assert len(caplog.records) == 1
    assert "limit= gives it more" in caplog.text


def test_a_fifo_whose_reader_is_slow_gets_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    with guest_of(FileStream(path)) as guest:
        guest.write(MIB)
        assert read_exactly(reader, len(MIB)) == MIB
    os.close(reader)
