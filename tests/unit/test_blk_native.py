"""A block device whose queues a thread in C works, and which serves the unusual itself."""

import contextlib
import itertools
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.blk.bench import FakeDisk
from tests.unit.vhost_user import FEATURES, Driver, Served, readable
from tests.unit.vhost_user_peer import IN, OUT, SECTOR, SECTORS, blk_header, make_image
from virtiopy._native import ffi
from virtiopy.devices.blk import Blk, BlkFeature
from virtiopy.errors import ConfigError, HostError
from virtiopy.host.disk import CacheMode, DiskImage
from virtiopy.spec import feature_mask
from virtiopy.virtqueue.driver import Piece
from virtiopy.virtqueue.queue import QueueState

FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
WCE = ffi.offsetof("struct virtio_blk_config", "wce")

BLK_FEATURES = FEATURES | feature_mask(
    [
        BlkFeature.VIRTIO_BLK_F_FLUSH,
        BlkFeature.VIRTIO_BLK_F_CONFIG_WCE,
        BlkFeature.VIRTIO_BLK_F_DISCARD,
        BlkFeature.VIRTIO_BLK_F_WRITE_ZEROES,
        BlkFeature.VIRTIO_BLK_F_MQ,
    ]
)
MQ = feature_mask([BlkFeature.VIRTIO_BLK_F_MQ])


@pytest.fixture(autouse=True)
def natively(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Served, "native", True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.img")


@pytest.fixture
def served(tmp_path: Path, image: Path) -> Iterator[Served]:
    device = Blk(DiskImage(image), serial="natively", num_queues=2, queue_size=64)
    with Served(device, tmp_path / "blk.sock") as served:
        yield served


@pytest.fixture
def driver(served: Served) -> Iterator[Driver]:
    with Driver(served.connect(), queue_count=2, queue_size=64, features=BLK_FEATURES) as driver:
        driver.start()
        yield driver


def submit(driver: Driver, kind: int, sector: int, *data: Piece, queue: int = 0) -> int:
    """Make a request available; returns where its status will be."""
    status = driver.piece(1)
    driver.memory.write(status.address, b"\xee")
    driver.queues[queue].driver.add([driver.piece(blk_header(kind, sector)), *data, status])
    driver.queues[queue].notify()
    return status.address


def request(driver: Driver, kind: int, sector: int, *data: Piece, queue: int = 0) -> int:
    """Do a request; returns its status."""
    status = submit(driver, kind, sector, *data, queue=queue)
    driver.queues[queue].wait()
    return driver.memory.read(status, 1)[0]


def segment(sector: int, count: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, count, flags)


def test_both_queues_are_delegated(served: Served, driver: Driver) -> None:
    assert served.device.facts()["queues_delegated"] == 2
    for queue in range(2):
        room = driver.piece(SECTOR)
        assert request(driver, IN, 9 + queue, room, queue=queue) == OK
        assert driver.memory.read(room.address, SECTOR) == bytes([9 + queue]) * SECTOR


def test_the_unusual_is_served_by_the_device(driver: Driver, image: Path) -> None:
    room = driver.piece(20)
    assert request(driver, GET_ID, 0, room) == OK
    assert driver.memory.read(room.address, 20) == b"natively".ljust(20, b"\0")
    assert request(driver, WRITE_ZEROES, 0, driver.piece(segment(3, 2))) == OK
    assert image.read_bytes()[3 * SECTOR : 5 * SECTOR] == bytes(2 * SECTOR)
    assert request(driver, DISCARD, 0, driver.piece(segment(8, 8))) == OK
    assert request(driver, 77, 0) == UNSUPP
    assert request(driver, IN, SECTORS, driver.piece(SECTOR)) == IOERR
    assert request(driver, IN, 0, driver.piece(100)) == IOERR


def test_usual_and_unusual_requests_are_served_side_by_side(driver: Driver) -> None:
    expected = []
    for turn in range(8):
        room = driver.piece(SECTOR)
        statuses = submit(driver, IN, turn, room), submit(driver, 77, 0)
        expected.append((turn, room.address, *statuses))
    driver.queues[0].wait(16)
    for turn, address, read, odd in expected:
        assert driver.memory.read(address, SECTOR) == bytes([turn]) * SECTOR
        assert driver.memory.read(read, 1)[0] == OK
        assert driver.memory.read(odd, 1)[0] == UNSUPP


def test_a_request_without_a_status_byte_comes_back_empty(driver: Driver) -> None:
    driver.queues[0].driver.add([driver.piece(blk_header(IN, 0))])
    driver.queues[0].notify()
    [used] = driver.queues[0].wait()
    assert used.length == 0


def test_a_read_that_the_host_cannot_do_is_an_error(driver: Driver, image: Path) -> None:
    os.truncate(image, SECTOR)
    room = driver.piece(b"\x5a" * SECTOR)
    writable = Piece(room.address, room.length, writable=True)
    assert request(driver, IN, 20, writable) == IOERR
    assert driver.memory.read(room.address, SECTOR) == bytes(SECTOR)
    assert request(driver, IN, 0, writable) == OK


def test_a_malformed_chain_is_logged_and_the_queue_goes_on(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.queues[0].driver.add([Piece(1 << 50, 512)])
    driver.queues[0].notify()
    driver.queues[0].wait()
    assert request(driver, IN, 0, driver.piece(SECTOR)) == OK
    # The device has told of it when it has served another that goes up.
    assert request(driver, 77, 0) == UNSUPP
    assert "rejected: 512 bytes at guest physical address 0x4000000000000" in caplog.text


def test_a_broken_ring_needs_a_reset_with_its_reason(
    driver: Driver, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    driver.queues[0].driver.available.idx = 20000
    driver.queues[0].notify()
    readable(driver.queues[0].error)
    assert "needs a reset: queue 0: available idx 20000 offers 20000 buffers" in caplog.text
    assert served.device.facts()["queues_delegated"] == 0


def test_a_ring_that_stops_and_starts_goes_on(driver: Driver) -> None:
    for turn in range(5):
        assert request(driver, IN, turn, driver.piece(SECTOR)) == OK
        state = driver.frontend.stop_ring(0)
        assert state == QueueState(turn + 1)
        driver.frontend.start_ring(0, driver.queues[0].ring(state), driver.memory)


def test_what_is_unusual_is_complete_when_a_ring_stops(driver: Driver) -> None:
    statuses = [submit(driver, 77, 0) for _ in range(10)]
    state = driver.frontend.stop_ring(0)
    used = driver.queues[0].driver.take_all_used()
    assert state == QueueState(len(used))
    assert [driver.memory.read(at, 1)[0] for at in statuses[: len(used)]] == [UNSUPP] * len(used)
    driver.frontend.start_ring(0, driver.queues[0].ring(state), driver.memory)
    driver.queues[0].wait(10 - len(used))
    assert {driver.memory.read(at, 1)[0] for at in statuses} == {UNSUPP}


def test_interrupts_go_to_the_file_that_was_set_last(driver: Driver) -> None:
    other = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    queue = driver.queues[0]
    assert request(driver, IN, 0, driver.piece(SECTOR)) == OK
    driver.frontend.set_call(0, other)
    # An answer comes when all before it is done.
    driver.frontend.get_config(8)
    before, queue.call = queue.call, other
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(before)
    assert request(driver, IN, 1, driver.piece(SECTOR)) == OK
    with pytest.raises(BlockingIOError):
        os.eventfd_read(before)
    os.close(before)


def test_a_cache_mode_that_the_driver_writes_counts(served: Served, driver: Driver) -> None:
    device = served.device
    assert isinstance(device, Blk)
    disk = device._rings._worker._disk.native  # type: ignore[union-attr]
    assert disk.writeback == 1
    assert driver.frontend.set_config(WCE, b"\0")
    assert disk.writeback == 0
    assert request(driver, OUT, 0, driver.piece(bytes(SECTOR))) == OK


def test_a_disk_that_grows_is_read_to_its_end(served: Served, driver: Driver, image: Path) -> None:
    room = driver.piece(SECTOR)
    assert request(driver, IN, SECTORS, room) == IOERR
    os.truncate(image, (SECTORS + 8) * SECTOR)
    assert isinstance(served.device, Blk)
    served.device.capacity_changed()
    assert request(driver, IN, SECTORS, room) == OK


def test_the_mode_changes_under_load_and_nothing_is_lost(served: Served, driver: Driver) -> None:
    from virtiopy.worker.native import open_native

    enough = threading.Event()
    failures: list[str] = []

    def load() -> None:
        room, status = driver.piece(SECTOR), driver.piece(1)
        headers = [driver.piece(blk_header(IN, sector)) for sector in range(16)]
        queue = driver.queues[0]
        for turn in itertools.count():
            if enough.is_set():
                return
            sector = turn % 16
            queue.driver.add([headers[sector], room, status])
            queue.notify()
            used = queue.wait()
            content = driver.memory.read(room.address, SECTOR)
            if len(used) != 1 or content != bytes([sector]) * SECTOR:
                failures.append(f"turn {turn}: {used}")

    thread = threading.Thread(target=load)
    thread.start()
    for _ in range(30):
        served.device.reclaim()
        assert served.device.facts()["queues_delegated"] == 0
        served.device.delegate(open_native)
        assert served.device.facts()["queues_delegated"] == 2
    enough.set()
    thread.join()
    assert failures == []


def test_write_through_waits_for_the_disk(tmp_path: Path, image: Path) -> None:
    device = Blk(DiskImage(image, cache=CacheMode.WRITETHROUGH), writeback=False)
    with (
        Served(device, tmp_path / "blk.sock") as served,
        Driver(served.connect(), features=BLK_FEATURES & ~MQ) as driver,
    ):
        driver.start()
        assert request(driver, OUT, 7, driver.piece(b"\x44" * SECTOR)) == OK
        assert request(driver, FLUSH, 0) == OK
    assert image.read_bytes()[7 * SECTOR : 8 * SECTOR] == b"\x44" * SECTOR


def test_threads_share_the_queues(tmp_path: Path, image: Path) -> None:
    device = Blk(DiskImage(image), num_queues=4, queue_size=16, threads=2)
    with (
        Served(device, tmp_path / "blk.sock") as served,
        Driver(served.connect(), queue_count=4, features=BLK_FEATURES) as driver,
    ):
        driver.start()
        threads = [
            path.joinpath("comm").read_text().strip() for path in Path("/proc/self/task").iterdir()
        ]
        assert threads.count("virtio-worker") == 2
        for queue in range(4):
            assert request(driver, IN, queue, driver.piece(SECTOR), queue=queue) == OK


def test_a_disk_that_is_no_file_is_worked_by_the_device(tmp_path: Path) -> None:
    from virtiopy.worker.native import open_native

    with (
        Served(Blk(FakeDisk()), tmp_path / "blk.sock") as served,
        Driver(served.connect()) as driver,
    ):
        driver.start()
        assert served.device.facts()["queues_delegated"] == 0
        with pytest.raises(ConfigError, match="not one file"):
            served.device.delegate(open_native)
        assert request(driver, IN, 0, driver.piece(SECTOR)) == OK


def test_nothing_is_native_where_that_is_turned_off(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from virtiopy.worker.native import open_native

    monkeypatch.setenv("VIRTIOPY_NATIVE", "off")
    monkeypatch.setattr(Served, "native", False)
    with Served(Blk(DiskImage(image)), tmp_path / "blk.sock") as served:
        with pytest.raises(HostError, match="VIRTIOPY_NATIVE=off"):
            served.device.delegate(open_native)
        with Driver(served.connect()) as driver:
            driver.start()
            assert request(driver, IN, 0, driver.piece(SECTOR)) == OK


def test_requests_in_flight_are_tracked_by_the_thread(served: Served) -> None:
    with Driver(served.connect(), queue_size=64, features=BLK_FEATURES) as driver:
        driver.track_inflight()
        driver.start()
        assert served.device.facts()["queues_delegated"] == 1
        for sector in range(100):
            assert request(driver, IN, sector, driver.piece(SECTOR)) == OK
        # The next backend finds nothing in flight, and goes on.
        driver.reconnect(served.connect())
        assert request(driver, IN, 5, driver.piece(SECTOR)) == OK


def test_files_and_memory_are_given_back(tmp_path: Path, image: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with (
            Served(Blk(DiskImage(image)), tmp_path / "blk.sock") as served,
            Driver(served.connect()) as driver,
        ):
            driver.start()
            assert request(driver, IN, 0, driver.piece(SECTOR)) == OK
    assert len(os.listdir("/proc/self/fd")) == before
