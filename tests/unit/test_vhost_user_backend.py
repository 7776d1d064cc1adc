"""What a backend does for a frontend that keeps to the protocol."""

import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.net.rig import MAC
from tests.unit.vhost_model import WireLink
from tests.unit.vhost_user import FEATURES, Driver, Served, log_writes, readable
from virtiopy.devices.blk import Blk
from virtiopy.devices.net import Net
from virtiopy.devices.net.features import NetFeature
from virtiopy.devices.net.header import HEADER_SIZE
from virtiopy.devices.rng import Rng
from virtiopy.errors import ConfigError, PeerError
from virtiopy.host.disk import DiskImage
from virtiopy.spec import DeviceStatus, Feature, feature_mask
from virtiopy.vhost.user.messages import (
    VHOST_F_LOG_ALL,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    ring_file,
)
from virtiopy.virtqueue.queue import QueueState

SECTOR = 512
FRAME = MAC + bytes(60)
MULTICAST = bytes.fromhex("01005e000001") + bytes(60)
IN, OUT = 0, 1


def header(kind: int, sector: int) -> bytes:
    return kind.to_bytes(4, "little") + bytes(4) + sector.to_bytes(8, "little")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([sector % 251]) * SECTOR for sector in range(256)))
    return path


@pytest.fixture
def served(tmp_path: Path, image: Path) -> Iterator[Served]:
    device = Blk(DiskImage(image), serial="served", num_queues=2, queue_size=16)
    with Served(device, tmp_path / "blk.sock") as served:
        yield served


@pytest.fixture
def driver(served: Served) -> Iterator[Driver]:
    with Driver(served.connect(), queue_count=2) as driver:
        yield driver


def read_sector(driver: Driver, sector: int, queue: int = 0) -> bytes:
    data, status = driver.piece(SECTOR), driver.piece(1)
    driver.queues[queue].driver.add([driver.piece(header(IN, sector)), data, status])
    driver.queues[queue].notify()
    driver.queues[queue].wait()
    assert driver.memory.read(status.address, 1) == b"\0"
    return driver.memory.read(data.address, SECTOR)


def test_a_request_is_served_and_notified(driver: Driver) -> None:
    driver.start()
    assert read_sector(driver, 5) == bytes([5]) * SECTOR
    assert read_sector(driver, 6, queue=1) == bytes([6]) * SECTOR


def write_in_pieces(driver: Driver, count: int) -> bytes:
    """Write as many sectors by one request, its pieces in a table; return its status byte."""
    status = driver.piece(1)
    driver.memory.write(status.address, b"\xff")
    pieces = [driver.piece(header(OUT, 0)), *(driver.piece(b"w" * SECTOR) for _ in range(count))]
    table = driver.allocator.take(16 * (count + 2), 16)
    driver.queues[0].driver.add([*pieces, status], direct=0, table=table)
    driver.queues[0].notify()
    driver.queues[0].wait()
    return driver.memory.read(status.address, 1)


def test_a_request_of_seg_max_segments_is_served_whatever_the_rings_size(
    served: Served, image: Path
) -> None:
    """Linux makes such ones with QEMU's queue-size=4: seg_max was told before."""
    with Driver(served.connect(), queue_count=2, queue_size=4) as driver:
        driver.start()
        seg_max = int.from_bytes(driver.frontend.get_config(16)[12:16], "little")
        assert seg_max == 14
        assert write_in_pieces(driver, seg_max) == b"\0"
        assert image.read_bytes()[: seg_max * SECTOR] == b"w" * seg_max * SECTOR


def test_a_request_of_more_segments_is_given_back_unserved(served: Served, image: Path) -> None:
    before = image.read_bytes()
    with Driver(served.connect(), queue_count=2, queue_size=4) as driver:
        driver.start()
        assert write_in_pieces(driver, 15) == b"\xff"
    assert image.read_bytes() == before


def test_features_are_the_devices_and_the_rings(driver: Driver) -> None:
    device = Rng()
    assert driver.frontend.features & FEATURES == FEATURES
    assert device.features == 0
    assert driver.frontend.queue_count() == 2
    assert driver.frontend.has(ProtocolFeature.INFLIGHT_SHMFD)


def test_configuration_space_is_read_and_written(driver: Driver, served: Served) -> None:
    driver.start()
    config = driver.frontend.get_config(64)
    assert int.from_bytes(config[:8], "little") == 256
    assert driver.frontend.get_config(4, offset=20) == config[20:24]
    # Beyond what there is, a newer frontend finds zeroes.
    assert driver.frontend.get_config(200)[100:] == bytes(100)
    writeback = 32
    wce = feature_mask([11])
    driver.frontend.stop_ring(0)
    driver.frontend.stop_ring(1)
    driver.frontend.set_features(FEATURES | wce | feature_mask([9]))
    driver.frontend.set_config(writeback, b"\0")
    assert driver.frontend.get_config(1, offset=writeback) == b"\0"


def test_a_change_of_configuration_is_told(driver: Driver, served: Served) -> None:
    driver.start()
    assert driver.frontend.channel is not None

    def change() -> None:
        served.server.backend.lifecycle.config_changed()

    served.loop.call(change, "change")
    readable(driver.frontend.channel.socket.fileno())
    assert driver.frontend.config_has_changed()


def test_status_is_followed_and_zero_resets(driver: Driver) -> None:
    driver.start()
    driver.frontend.set_status(0x0F)
    assert driver.frontend.get_status() == 0x0F
    driver.frontend.set_status(0)
    assert driver.frontend.get_status() == 0


def test_stopping_gives_the_base_and_completes_what_is_in_flight(driver: Driver) -> None:
    driver.start()
    queue = driver.queues[0]
    wanted = 4
    statuses = []
    for sector in range(wanted):
        status = driver.piece(1)
        driver.memory.write(status.address, b"\xff")
        statuses.append(status.address)
        queue.driver.add([driver.piece(header(IN, sector)), driver.piece(SECTOR), status])
    queue.notify()
    readable(queue.call)
    base = driver.frontend.stop_ring(0)
    # Whatever was taken is complete, and nothing else was touched.
    done = [driver.memory.read(status, 1) == b"\0" for status in statuses]
    assert done == [index < base.vring_base for index in range(wanted)]
    assert queue.driver.used.idx == base.vring_base
    driver.frontend.start_ring(0, queue.ring(base), driver.memory)
    assert len(queue.wait(wanted)) == wanted


def test_a_ring_that_is_disabled_is_not_worked(driver: Driver) -> None:
    driver.start()
    driver.frontend.enable_ring(0, enable=False)
    driver.queues[0].driver.add(
        [driver.piece(header(IN, 1)), driver.piece(SECTOR), driver.piece(1)]
    )
    driver.queues[0].notify()
    assert read_sector(driver, 2, queue=1) == bytes([2]) * SECTOR
    assert driver.queues[0].driver.take_used() is None
    driver.frontend.enable_ring(0)
    assert len(driver.queues[0].wait()) == 1


def test_a_ring_without_a_kick_is_polled(driver: Driver) -> None:
    driver.start()
    base = driver.frontend.stop_ring(0)
    driver.frontend.start_ring(0, driver.queues[0].ring(base), driver.memory)
    driver.frontend._tell(Request.SET_VRING_KICK, ring_file(0, has_fd=False))
    driver.queues[0].driver.add(
        [driver.piece(header(IN, 1)), driver.piece(SECTOR), driver.piece(1)]
    )
    assert len(driver.queues[0].wait()) == 1


def test_eventfds_change_while_the_ring_is_worked(driver: Driver) -> None:
    driver.start()
    assert read_sector(driver, 1) == bytes([1]) * SECTOR
    queue = driver.queues[0]
    other = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    os.close(queue.call)
    queue.call = other
    driver.frontend.set_call(0, other)
    assert read_sector(driver, 2) == bytes([2]) * SECTOR


def test_a_notification_that_went_to_the_file_before_is_sent_again(driver: Driver) -> None:
    # QEMU says where to notify after the ring has started, and drops what came before that.
    driver.start()
    read_sector(driver, 9)
    for index, is_told in ((0, True), (1, False)):
        call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        driver.frontend.set_call(index, call)
        # An answer: the message before has been handled.
        driver.frontend.get_features()
        assert bool(select.select([call], [], [], 0)[0]) is is_told
        os.close(call)


def test_a_broken_ring_is_told_and_another_life_is_good(driver: Driver) -> None:
    driver.start()
    queue = driver.queues[0]
    queue.driver.available.ring[0] = 1000
    queue.driver.available.idx = 1
    queue.notify()
    readable(queue.error)
    status = driver.frontend.get_status()
    assert status is not None
    assert status & DeviceStatus.DEVICE_NEEDS_RESET
    driver.frontend.reset_device()
    assert driver.frontend.get_status() == 0
    with Driver(driver.frontend.connection.socket.dup()) as again:
        again.start()
        assert read_sector(again, 3) == bytes([3]) * SECTOR


def test_the_next_frontend_finds_a_working_device(served: Served) -> None:
    for _ in range(3):
        with Driver(served.connect(), queue_count=2) as driver:
            driver.start()
            assert read_sector(driver, 7) == bytes([7]) * SECTOR


def test_a_second_frontend_waits_for_the_first_to_leave(served: Served) -> None:
    first = Driver(served.connect())
    first.start()
    waiting = served.connect()
    waiting.sendall(Message(Request.GET_FEATURES).encode())
    assert read_sector(first, 1) == bytes([1]) * SECTOR
    waiting.settimeout(0.05)
    with pytest.raises(TimeoutError):
        waiting.recv(1)
    first.close()
    waiting.settimeout(10)
    assert len(waiting.recv(64)) == 20
    waiting.close()


def test_memory_may_change_under_a_ring_that_is_worked(driver: Driver) -> None:
    driver.start()
    assert read_sector(driver, 1) == bytes([1]) * SECTOR
    driver.frontend.set_memory(driver.memory)
    assert read_sector(driver, 2) == bytes([2]) * SECTOR


def use_memory_slots(driver: Driver) -> MemoryRegion:
    """Negotiate that memory is given by regions, and describe the driver's."""
    frontend = driver.frontend
    frontend._protocol_features |= 1 << ProtocolFeature.CONFIGURE_MEM_SLOTS
    frontend._tell(
        Request.SET_PROTOCOL_FEATURES,
        frontend._protocol_features.to_bytes(8, "little"),
    )
    (region,) = driver.memory.regions
    return MemoryRegion(0, region.size, region.host_address, 0)


def test_memory_comes_and_goes_by_regions(served: Served) -> None:
    with Driver(served.connect()) as driver:
        frontend = driver.frontend
        described = use_memory_slots(driver)
        assert frontend._ask_u64(Request.GET_MAX_MEM_SLOTS) == 64
        frontend.set_features(FEATURES)
        (region,) = driver.memory.regions
        frontend._tell(Request.ADD_MEM_REG, described.encode(), [region.fd])
        frontend.start_ring(0, driver.queues[0].ring(), driver.memory)
        assert read_sector(driver, 9) == bytes([9]) * SECTOR
        assert frontend.stop_ring(0) == QueueState(1)
        frontend._tell(Request.REM_MEM_REG, described.encode())
        assert served.server.backend.memory.regions == []


def test_memory_that_was_given_twice_is_there_until_it_was_taken_twice(served: Served) -> None:
    """QEMU 7.2 gives each region once for every pair of a network device's virtqueues."""
    with Driver(served.connect()) as driver:
        frontend = driver.frontend
        described = use_memory_slots(driver)
        frontend.set_features(FEATURES)
        (region,) = driver.memory.regions
        frontend._tell(Request.ADD_MEM_REG, described.encode(), [region.fd])
        frontend.start_ring(0, driver.queues[0].ring(), driver.memory)
        frontend._tell(Request.ADD_MEM_REG, described.encode(), [region.fd])
        assert read_sector(driver, 9) == bytes([9]) * SECTOR
        frontend._tell(Request.REM_MEM_REG, described.encode())
        assert read_sector(driver, 10) == bytes([10]) * SECTOR
        assert frontend.stop_ring(0) == QueueState(2)
        frontend._tell(Request.REM_MEM_REG, described.encode())
        assert served.server.backend.memory.regions == []


def test_pages_that_are_written_are_logged(driver: Driver) -> None:
    driver.wanted = FEATURES | 1 << VHOST_F_LOG_ALL
    used_log = 0x7000_000  # Any address will do for the used ring (Migration).
    with log_writes(driver, 0, used_log) as dirty:
        queue = driver.queues[0]
        driver.allocator.take(1, 4096)
        request = driver.piece(header(IN, 1))
        driver.allocator.take(1, 4096)
        data = driver.piece(3 * SECTOR)
        driver.allocator.take(1, 4096)
        status = driver.piece(1)
        queue.driver.add([request, data, status])
        queue.notify()
        queue.wait()
        driver.frontend.stop_ring(0)
        assert dirty() == {data.address >> 12, status.address >> 12, used_log >> 12}


def test_it_listens_where_nobody_listens_any_more(tmp_path: Path) -> None:
    path = tmp_path / "rng.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with Served(Rng(), path) as served, Driver(served.connect()) as driver:
        driver.start()
        driver.queues[0].driver.add([driver.piece(32)])
        driver.queues[0].notify()
        assert driver.queues[0].wait()[0].length == 32
    assert not path.exists()


def test_without_version_1_no_ring_starts_of_a_device_that_serves_no_legacy_driver(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Blk, "serves_legacy_drivers", False)
    driver.wanted = feature_mask([Feature.VIRTIO_F_EVENT_IDX])
    driver.start()
    driver.queues[0].driver.add([driver.piece(header(IN, 1)), driver.piece(SECTOR)])
    driver.queues[0].notify()
    assert driver.frontend.stop_ring(0) == QueueState(0)
    assert driver.queues[0].driver.take_used() is None


def test_a_notification_that_the_last_backend_owed_is_sent(driver: Driver) -> None:
    driver.start()
    read_sector(driver, 1)
    queue = driver.queues[0]
    base = driver.frontend.stop_ring(0)
    # Killed after idx was updated, and before the eventfd was written.
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(queue.call)
    driver.frontend.start_ring(0, queue.ring(base), driver.memory)
    readable(queue.call)


@pytest.fixture
def link() -> WireLink:
    return WireLink(pairs=2)


@pytest.fixture
def net(tmp_path: Path, link: WireLink) -> Iterator[Served]:
    with Served(Net(link, mac=MAC, queue_size=16), tmp_path / "net.sock") as served:
        yield served


def test_a_frontend_may_keep_controlq_to_itself(net: Served, link: WireLink) -> None:
    """As QEMU does: what requires CTRL_VQ is negotiated here without it."""
    features = FEATURES | feature_mask(
        [NetFeature.VIRTIO_NET_F_MQ, NetFeature.VIRTIO_NET_F_GUEST_ANNOUNCE]
    )
    with Driver(net.connect(), queue_count=4, features=features) as driver:
        driver.start()
        for pair in range(2):
            link.arrive(FRAME, pair=pair)
            room = driver.piece(2048)
            receiveq = driver.queues[2 * pair]
            receiveq.driver.add([room])
            receiveq.notify()
            (used,) = receiveq.wait()
            assert driver.memory.read(room.address, used.length)[HEADER_SIZE:] == FRAME


def test_without_controlq_every_frame_is_received(net: Served, link: WireLink) -> None:
    """Nobody could ask for a multicast address."""
    features = FEATURES | feature_mask([NetFeature.VIRTIO_NET_F_CTRL_RX])
    with Driver(net.connect(), queue_count=4, features=features) as driver:
        driver.start()
        room = driver.piece(2048)
        driver.queues[0].driver.add([room])
        driver.queues[0].notify()
        link.arrive(MULTICAST)
        (used,) = driver.queues[0].wait()
        assert driver.memory.read(room.address, used.length)[HEADER_SIZE:] == MULTICAST


# An image that two backends serve, for a guest that migrates from one to the other


@contextlib.contextmanager
def disk_served(image: Path, path: Path) -> Iterator[Served]:
    disk = DiskImage(image, claimed=False)
    with Served(Blk(disk, num_queues=2, queue_size=16), path, disk) as served:
        yield served


def test_two_backends_work_on_an_image_one_after_the_other(image: Path, tmp_path: Path) -> None:
    with (
        disk_served(image, tmp_path / "one.sock") as one,
        disk_served(image, tmp_path / "other.sock") as other,
        Driver(one.connect(), queue_count=2) as source,
        Driver(other.connect(), queue_count=2) as destination,
    ):
        source.start()
        assert read_sector(source, 1) == bytes([1]) * SECTOR
        for index in range(2):
            source.frontend.stop_ring(index)
        destination.start()
        assert read_sector(destination, 2) == bytes([2]) * SECTOR


def test_an_image_is_in_use_until_the_last_ring_stops(
    image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        disk_served(image, tmp_path / "one.sock") as one,
        disk_served(image, tmp_path / "other.sock") as other,
        Driver(one.connect(), queue_count=2) as source,
    ):
        source.start()
        source.frontend.stop_ring(0)
        with Driver(other.connect()) as refused, pytest.raises(PeerError):
            refused.start()
        assert "no ring can start: The image" in caplog.text
        assert "in use by another program" in caplog.text
        source.frontend.stop_ring(1)
        with Driver(other.connect()) as destination:
            destination.start()
            assert read_sector(destination, 2) == bytes([2]) * SECTOR


@pytest.mark.parametrize(
    "leave",
    [
        lambda driver: driver.frontend.close(),
        lambda driver: driver.frontend.set_status(0),
        lambda driver: driver.frontend.reset_device(),
    ],
)
def test_an_image_is_free_when_the_frontend_leaves_or_resets(
    image: Path, tmp_path: Path, leave: Callable[[Driver], None]
) -> None:
    with (
        disk_served(image, tmp_path / "one.sock") as one,
        Driver(one.connect(), queue_count=2) as driver,
    ):
        driver.start()
        assert read_sector(driver, 1) == bytes([1]) * SECTOR
        with pytest.raises(ConfigError, match="in use by another program"):
            DiskImage(image)
        leave(driver)
        one.loop.call(lambda: None, "a turn")
        one.loop.call(lambda: None, "another")
        DiskImage(image).close()
