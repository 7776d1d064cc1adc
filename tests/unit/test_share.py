"""A folder that diod serves, asked as a driver that keeps to no rule asks."""

import errno
import os
import queue
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from virtiopy.devices.ninep import HEADER_SIZE, RLERROR, make_error, make_message
from virtiopy.errors import ConfigError
from virtiopy.eventloop import EventLoop
from virtiopy.host.launcher import find_tool
from virtiopy.host.share import Share

pytestmark = [
    pytest.mark.skipif(find_tool("diod") is None, reason="apt-get install diod"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="apt-get install bubblewrap"),
]

TLOPEN, TATTACH, TVERSION, TWALK, TREAD, TWRITE = 12, 104, 100, 110, 116, 118
#: Linux's driver asks for as much at most, and diod takes an eighth.
MSIZE = 512_000
#: The most data that Linux's driver has in one message then, bytes.
MOST = MSIZE - 24
NO_FID = 0xFFFFFFFF
SECRET = b"not for the guest"


def text(value: bytes) -> bytes:
    return struct.pack("<H", len(value)) + value


class Client:
    """A client of 9P2000.L that waits for each answer."""

    def __init__(self, share: Share, loop: EventLoop) -> None:
        self.lock = threading.RLock()
        self.answers: queue.Queue[bytes | None] = queue.Queue()
        self.share = share
        with self.lock:
            assert share.start(loop, self)
        version = self.ask(TVERSION, struct.pack("<I", MSIZE) + text(b"9P2000.L"), 0xFFFF)
        assert struct.unpack_from("<I", version, HEADER_SIZE) == (MSIZE,)
        attach = struct.pack("<II", 1, NO_FID) + text(b"nobody") + text(b"/etc")
        assert self.ask(TATTACH, attach + struct.pack("<I", NO_FID))[4] == TATTACH + 1

    def answered(self, message: bytes | memoryview) -> None:
        self.answers.put(bytes(message))

    def server_gone(self) -> None:
        self.answers.put(None)

    def ask(self, kind: int, body: bytes, tag: int = 1) -> bytes:
        with self.lock:
            self.share.send(make_message(kind, tag, body))
        answer = self.answers.get(timeout=PATIENCE)
        assert answer is not None
        return answer

    def open(self, name: bytes, flags: int) -> None:
        """Open a file as fid 2."""
        assert self.ask(TWALK, struct.pack("<IIH", 1, 2, 1) + text(name))[4] == TWALK + 1
        assert self.ask(TLOPEN, struct.pack("<II", 2, flags))[4] == TLOPEN + 1

    def read(self, *names: bytes) -> bytes | None:
        """Walk there, open and read; None where any of it is refused."""
        walk = struct.pack("<IIH", 1, 2, len(names)) + b"".join(map(text, names))
        answer = self.ask(TWALK, walk)
        if answer[4] == RLERROR or struct.unpack_from("<H", answer, HEADER_SIZE)[0] < len(names):
            return None
        if self.ask(TLOPEN, struct.pack("<II", 2, 0))[4] == RLERROR:
            return None
        answer = self.ask(TREAD, struct.pack("<IQI", 2, 0, 4096))
        return None if answer[4] == RLERROR else answer[HEADER_SIZE + 4 :]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"for the guest")
    (tmp_path / "outside").write_bytes(SECRET)
    return folder


@pytest.fixture
def client(folder: Path) -> Iterator[Client]:
    share = Share(folder)
    with EventLoop() as loop:
        loop.start()
        client = Client(share, loop)
        yield client
        with client.lock:
            share.close()


def test_a_file_is_read_whatever_the_driver_calls_the_folder(client: Client) -> None:
    assert client.read(b"file") == b"for the guest"


def test_answers_are_the_callers_own_while_it_waits_and_the_loops_again_after(
    client: Client,
) -> None:
    with client.lock:
        client.share.hold(held=True)
        client.share.send(make_message(TREAD, 1, struct.pack("<IQI", 99, 0, 16)))
        while client.answers.empty():
            client.share.wait(PATIENCE)
        # The loop would have wanted the lock.
        assert client.answers.get_nowait() is not None
        client.share.send(make_message(TREAD, 2, struct.pack("<IQI", 99, 0, 16)))
        client.share.hold(held=False)
    assert client.answers.get(timeout=PATIENCE) is not None


def test_a_large_message_is_several_of_diods(client: Client, folder: Path) -> None:
    data = os.urandom(MOST + 1000)
    (folder / "large").write_bytes(data)
    client.open(b"large", os.O_RDWR)
    for offset, read in ((0, MOST), (10, MOST), (2000, MOST - 1000), (len(data), 0)):
        answer = client.ask(TREAD, struct.pack("<IQI", 2, offset, MOST))
        assert len(answer) == HEADER_SIZE + 4 + read
        assert answer[HEADER_SIZE + 4 :] == data[offset : offset + read]

    other = os.urandom(MOST)
    answer = client.ask(TWRITE, struct.pack("<IQI", 2, 500, MOST) + other)
    assert struct.unpack_from("<I", answer, HEADER_SIZE) == (MOST,)
    assert (folder / "large").read_bytes() == data[:500] + other + data[500 + MOST :]


def test_a_large_message_to_append_is_one_piece_of_the_file(client: Client, folder: Path) -> None:
    data = os.urandom(MOST)
    client.open(b"file", os.O_WRONLY | os.O_APPEND)
    client.ask(TWRITE, struct.pack("<IQI", 2, 0, MOST) + data)
    assert (folder / "file").read_bytes() == b"for the guest" + data


def test_a_folder_that_is_removed_is_an_error_to_the_driver(client: Client, folder: Path) -> None:
    assert client.read(b"file") is not None
    shutil.rmtree(folder)
    walk = struct.pack("<IIH", 1, 3, 1) + text(b"file")
    assert client.ask(TWALK, walk) == make_error(1, errno.ENOENT)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can mount")
def test_a_folder_that_is_unmounted_is_there_for_the_driver(folder: Path) -> None:
    """diod has a mount of its own, which the host's is none of."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "share", folder], check=True)
    try:
        (folder / "file").write_bytes(b"of the mount")
        share = Share(folder)
    finally:
        subprocess.run(["umount", folder], check=True)
    with EventLoop() as loop:
        loop.start()
        client = Client(share, loop)
        assert client.read(b"file") == b"of the mount"
        with client.lock:
            share.close()


@pytest.mark.parametrize("target", ["..", "{outside}"], ids=["relative", "absolute"])
def test_a_link_does_not_lead_out(client: Client, folder: Path, target: str) -> None:
    (folder / "way").symlink_to(target.format(outside=folder.parent))
    assert (folder / "way" / "outside").read_bytes() == SECRET
    assert client.read(b"way", b"outside") is None


@pytest.mark.parametrize(
    "names", [[b"..", b"outside"], [b"../outside"], [b"file/../../outside"]], ids=str
)
def test_two_dots_do_not_lead_out(client: Client, names: list[bytes]) -> None:
    assert client.read(*names) is None


def test_a_folder_that_is_none_is_the_users_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        Share(tmp_path / "missing")


@pytest.mark.parametrize(
    ("tool", "package"), [("diod", "diod"), ("bwrap", "bubblewrap")], ids=["diod", "bwrap"]
)
def test_a_missing_program_is_named_with_its_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tool: str, package: str
) -> None:
    monkeypatch.setattr(
        "virtiopy.host.share.find_tool", lambda name: None if name == tool else f"/usr/bin/{name}"
    )
    with pytest.raises(ConfigError, match=f"needs {tool}, .* apt-get install {package}"):
        Share(folder)
