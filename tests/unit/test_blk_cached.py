"""Reads of what the host has in memory: served by the loop at once, where others have a worker."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.blk.bench import FakeDisk
from tests.unit.vhost_user import Driver, Served
from tests.unit.vhost_user_peer import IN, OUT, SECTOR, blk_header, make_image
from virtiopy.devices.blk import CACHED_READ_BYTES, CACHED_READS, Blk
from virtiopy.host.disk import CacheMode, DiskImage
from virtiopy.virtqueue.buffers import Buffers, scatter, total

OK, IOERR = 0, 1


class CachedDisk(FakeDisk):
    """A disk that is in memory, and knows which threads have asked for what."""

    def __init__(self) -> None:
        super().__init__()
        self.cached = True
        self.threads: list[tuple[str, str]] = []

    def _ask(self, what: str) -> None:
        self.threads.append((what, threading.current_thread().name))

    def read_cached(self, offset: int, buffers: Buffers) -> bool:
        self._ask("read_cached")
        if self.cached:
            scatter(buffers, bytes(self.content[offset : offset + total(buffers)]))
        return self.cached

    def read(self, offset: int, buffers: Buffers) -> None:
        self._ask("read")
        super().read(offset, buffers)

    def write(self, offset: int, buffers: Buffers, *, stable: bool = False) -> None:
        self._ask("write")
        super().write(offset, buffers, stable=stable)


@pytest.fixture
def disk() -> CachedDisk:
    return CachedDisk()


@pytest.fixture
def driver(tmp_path: Path, disk: CachedDisk) -> Iterator[Driver]:
    with (
        Served(Blk(disk, queue_size=1024), tmp_path / "blk.sock") as served,
        Driver(served.connect(), queue_size=1024) as driver,
    ):
        driver.start()
        yield driver


def request(driver: Driver, kind: int, sector: int, length: int = SECTOR) -> tuple[int, bytes]:
    """Do one request; returns its status, and the data as it is then."""
    data = driver.piece(length) if kind == IN else driver.piece(bytes(length))
    status = driver.piece(1)
    driver.queues[0].driver.add([driver.piece(blk_header(kind, sector)), data, status])
    driver.queues[0].notify()
    driver.queues[0].wait()
    return driver.memory.read(status.address, 1)[0], driver.memory.read(data.address, length)


def test_a_read_of_what_is_in_memory_is_served_by_the_loop(
    driver: Driver, disk: CachedDisk
) -> None:
    assert request(driver, IN, 2) == (OK, bytes(disk.content[1024:1536]))
    assert disk.threads == [("read_cached", "backend")]


def test_a_read_of_what_is_not_is_served_by_a_worker(driver: Driver, disk: CachedDisk) -> None:
    disk.cached = False
    assert request(driver, IN, 2) == (OK, bytes(disk.content[1024:1536]))
    assert disk.threads == [("read_cached", "backend"), ("read", "backend-worker_0")]


def test_a_write_is_served_by_a_worker(driver: Driver, disk: CachedDisk) -> None:
    assert request(driver, OUT, 2)[0] == OK
    assert [what for what, _ in disk.threads] == ["write"]


def test_a_long_read_is_served_by_a_worker(driver: Driver, disk: CachedDisk) -> None:
    disk.content = bytearray(CACHED_READ_BYTES + SECTOR)
    disk.size = len(disk.content)
    request(driver, IN, 0, CACHED_READ_BYTES + SECTOR)
    assert [what for what, _ in disk.threads] == ["read"]


@pytest.mark.parametrize("sector", [1 << 40, (1 << 64) - 1])
def test_a_read_beyond_the_end_fails_as_ever(driver: Driver, disk: CachedDisk, sector: int) -> None:
    assert request(driver, IN, sector) == (IOERR, bytes(SECTOR))
    assert disk.threads == []


def test_a_queue_that_has_much_to_read_leaves_the_rest_to_workers(
    driver: Driver, disk: CachedDisk
) -> None:
    header, data, status = driver.piece(blk_header(IN, 0)), driver.piece(SECTOR), driver.piece(1)
    queue = driver.queues[0].driver
    count = CACHED_READS + 10
    queue.make_available(*[queue.place([header, data, status]) for _ in range(count)])
    driver.queues[0].notify()
    driver.queues[0].wait(count)
    asked = [what for what, _ in disk.threads]
    assert asked.count("read_cached") == CACHED_READS
    assert asked.count("read") == 10


# The image


@pytest.fixture
def image(tmp_path: Path) -> Iterator[DiskImage]:
    with DiskImage(make_image(tmp_path / "disk.img")) as image:
        yield image


def test_what_is_in_the_page_cache_fills_the_buffers(image: DiskImage) -> None:
    pieces = [bytearray(100), bytearray(SECTOR - 100)]
    if not image.read_cached(3 * SECTOR, [memoryview(piece) for piece in pieces]):
        pytest.skip("the file system of the temporary folder has no RWF_NOWAIT")
    assert b"".join(pieces) == bytes([3]) * SECTOR


def test_without_the_page_cache_nothing_is_in_it(tmp_path: Path) -> None:
    path = make_image(tmp_path / "disk.img")
    with DiskImage(path, cache=CacheMode.NONE) as image:
        assert not image.read_cached(0, [memoryview(bytearray(SECTOR))])


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EOPNOTSUPP, errno.EIO])
def test_what_cannot_be_read_at_once_is_left_to_a_read(
    image: DiskImage, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "preadv", fail)
    assert not image.read_cached(0, [memoryview(bytearray(SECTOR))])


def test_what_is_there_in_part_is_left_to_a_read(
    image: DiskImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", lambda *arguments: SECTOR // 2)
    assert not image.read_cached(0, [memoryview(bytearray(SECTOR))])
