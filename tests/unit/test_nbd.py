"""Disks that an NBD server has: qemu-storage-daemon, and servers that break the protocol."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.vhost_user import needs_storage_daemon
from tests.patience import PATIENCE
from virtiopy.errors import ConfigError, PeerError
from virtiopy.host.disk import CacheMode
from virtiopy.host.nbd import NbdDisk
from virtiopy.host.storage import NBD_NAME, NbdImage, StorageDaemon

MIB = 1 << 20
SIZE = 4 * MIB
GREETING = b"NBDMAGICIHAVEOPT" + (3).to_bytes(2)
SOUND_INFO = SIZE.to_bytes(8) + (1 | 4 | 8 | 32 | 64).to_bytes(2)


def option_reply(kind: int, content: bytes = b"") -> bytes:
    head = (0x3E889045565A9).to_bytes(8) + (7).to_bytes(4) + kind.to_bytes(4)
    return head + len(content).to_bytes(4) + content


NEGOTIATION = GREETING + option_reply(3, bytes(2) + SOUND_INFO) + option_reply(1)


def saying(data: bytes) -> Callable[[], socket.socket]:
    """Return what connects to a server that says `data`, whatever it is asked, and hangs up."""

    def connect() -> socket.socket:
        ours, theirs = socket.socketpair()

        def serve() -> None:
            # The client may hang up at any time.
            with theirs, contextlib.suppress(ConnectionError):
                theirs.sendall(data)
                theirs.shutdown(socket.SHUT_WR)
                while theirs.recv(1 << 16):
                    pass

        threading.Thread(target=serve, daemon=True).start()
        return ours

    return connect


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n", "no NBD server"),
        (GREETING[:16] + bytes(2), "no fixed newstyle"),
        (GREETING + bytes(20), "to an option is none"),
        (GREETING + option_reply((1 << 31) + 6, b"no such export"), "refuses .*no such export"),
        (GREETING + option_reply(1), "how large"),
        (GREETING + option_reply(3, bytes(2) + SOUND_INFO[:9]) + option_reply(1), "how large"),
        (GREETING + option_reply(3, bytes(2) + SOUND_INFO) * 40, "does not end"),
        (GREETING + option_reply(3, bytes(5000)), "to an option is none"),
        (
            GREETING
            + option_reply(3, bytes(2) + SOUND_INFO)
            + option_reply(3, b"\0\3" + (3).to_bytes(4) + bytes(8))
            + option_reply(1),
            "smallest block of 3 bytes",
        ),
    ],
)
def test_a_server_that_is_none_is_refused(said: bytes, words: str) -> None:
    with pytest.raises(PeerError, match=words):
        NbdDisk(saying(said), "disk")


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        bytes(16),
        (0x67446698).to_bytes(4) + bytes(4) + (99).to_bytes(8),
        (0x67446698).to_bytes(4) + bytes(4) + (1).to_bytes(8) + b"short",
    ],
    ids=["none", "magic", "handle", "short"],
)
def test_a_reply_that_is_none_is_an_error(reply: bytes) -> None:
    with NbdDisk(saying(NEGOTIATION + reply), "disk") as disk:
        with pytest.raises(OSError, match="NBD server") as raised:
            disk.read(0, [memoryview(bytearray(512))])
        assert raised.value.errno == errno.EIO


def test_the_servers_error_is_the_disks() -> None:
    reply = (0x67446698).to_bytes(4) + errno.ENOSPC.to_bytes(4) + (1).to_bytes(8)
    with NbdDisk(saying(NEGOTIATION + reply), "disk") as disk:
        with pytest.raises(OSError, match="space") as raised:
            disk.write(0, [memoryview(bytes(512))])
        assert raised.value.errno == errno.ENOSPC


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    return path


@pytest.fixture
def daemon(image: Path) -> Iterator[StorageDaemon]:
    with StorageDaemon(NbdImage(str(image), "qcow2", cache=CacheMode.WRITEBACK)) as daemon:
        yield daemon


def read(disk: NbdDisk, offset: int, length: int) -> bytes:
    data = bytearray(length)
    view = memoryview(data)
    disk.read(offset, [view[: length // 3], view[length // 3 :]])
    return bytes(data)


@needs_storage_daemon
def test_what_is_written_is_read(daemon: StorageDaemon) -> None:
    with NbdDisk(daemon.connect, NBD_NAME) as disk:
        assert (disk.size, disk.readonly, disk.can_punch_holes) == (SIZE, False, True)
        data = os.urandom(MIB)
        view = memoryview(data)
        disk.write(512, [view[:1000], view[1000:]], stable=True)
        disk.flush()
        assert read(disk, 512, MIB) == data
        assert read(disk, 0, 512) == bytes(512)
        disk.write_zeroes(1024, 2048, unmap=False)
        assert read(disk, 1024, 2048) == bytes(2048)
        disk.discard(0, SIZE)
        assert read(disk, 512, MIB) == bytes(MIB)
        assert not disk.read_cached(0, [memoryview(bytearray(512))])
        disk.measure()
        assert disk.size == SIZE


@needs_storage_daemon
def test_threads_have_connections_of_their_own(daemon: StorageDaemon) -> None:
    with NbdDisk(daemon.connect, NBD_NAME) as disk:
        failures: list[BaseException] = []

        def work(number: int) -> None:
            data = bytes([number]) * 4096
            try:
                for turn in range(20):
                    at = (turn * 4 + number) * 4096
                    disk.write(at, [memoryview(data)])
                    assert read(disk, at, 4096) == data
            except BaseException as error:  # noqa: BLE001 - shown by the test
                failures.append(error)

        threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


@needs_storage_daemon
def test_a_daemon_that_was_killed_is_an_error_and_comes_back(daemon: StorageDaemon) -> None:
    with NbdDisk(daemon.connect, NBD_NAME) as disk:
        disk.write(0, [memoryview(b"x" * 512)], stable=True)
        os.kill(daemon.pid, signal.SIGKILL)
        with pytest.raises(OSError, match=r"."):
            read(disk, 0, 512)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                assert read(disk, 0, 512) == b"x" * 512
            except OSError:
                # It is being started again.
                assert time.monotonic() < end
            else:
                break


@needs_storage_daemon
def test_a_disk_for_reading_alone_says_so(image: Path) -> None:
    with (
        StorageDaemon(NbdImage(str(image), "qcow2", readonly=True)) as daemon,
        NbdDisk(daemon.connect, NBD_NAME) as disk,
    ):
        assert (disk.readonly, disk.can_punch_holes) == (True, False)
        with pytest.raises(OSError, match=r"."):
            disk.write(0, [memoryview(bytes(512))])


@needs_storage_daemon
def test_an_export_that_is_none_is_said(daemon: StorageDaemon) -> None:
    with pytest.raises(PeerError, match="refuses the export"):
        NbdDisk(daemon.connect, "another")


def test_a_server_that_is_gone_has_no_size() -> None:
    connections = iter([saying(NEGOTIATION)(), saying(b"")()])
    with (
        NbdDisk(connections.__next__, "disk") as disk,
        pytest.raises(ConfigError, match="does not answer"),
    ):
        disk.measure()
