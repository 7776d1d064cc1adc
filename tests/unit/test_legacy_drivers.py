"""Legacy drivers, which accept no VIRTIO_F_VERSION_1, over vhost-user (2.2.3, 5.1.9).

QEMU's devices for vhost-user are transitional unless disable-legacy=on: firmware takes them so.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.unit.net.rig import MAC
from tests.unit.test_vhost_user_protocol import FakeNetLink
from tests.unit.vhost_user import FEATURES, Driver, Served
from tests.unit.vhost_user_peer import IN, SECTOR, blk_header, make_image, read_sector
from virtiopy.devices.balloon import Balloon
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.blk import Blk
from virtiopy.devices.net import Net
from virtiopy.devices.rng import Rng
from virtiopy.host.disk import DiskImage
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId, DeviceStatus, Feature, feature_mask
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.virtqueue.driver import Allocator

LEGACY = FEATURES & ~feature_mask([Feature.VIRTIO_F_VERSION_1])
MRG_RXBUF = feature_mask([15])
FRAME = bytes.fromhex("ffffffffffff 020000000001 0800") + bytes(range(46))
RX, TX = 0, 1


@pytest.fixture
def link() -> FakeNetLink:
    return FakeNetLink()


@pytest.fixture
def net(tmp_path: Path, link: FakeNetLink) -> Iterator[Served]:
    with Served(Net(link, mac=MAC), tmp_path / "net.sock") as served:
        yield served


def receive(served: Served, driver: Driver, link: FakeNetLink, room: list[int]) -> list[bytes]:
    """Have a frame come, into a buffer in pieces; returns them, as far as they were written."""
    pieces = [driver.piece(size) for size in room]
    queue = driver.queues[RX]
    queue.driver.add(pieces)
    queue.notify()
    link.incoming[0].append(bytes(12) + FRAME)
    os.eventfd_write(link.fileno(0), 1)
    left = queue.wait()[0].length
    found = []
    for piece in pieces:
        found.append(driver.memory.read(piece.address, min(left, piece.length)))
        left -= len(found[-1])
    return found


@pytest.mark.parametrize("room", [[2000], [10, 1990], [5, 5, 30, 1960], [11, 1989]])
def test_a_frame_is_received_behind_a_header_of_10_bytes(
    net: Served, link: FakeNetLink, room: list[int]
) -> None:
    with Driver(net.connect(), queue_count=2, features=LEGACY) as driver:
        driver.start()
        assert b"".join(receive(net, driver, link, room)) == bytes(10) + FRAME


def test_with_mergeable_buffers_the_header_has_12_bytes(net: Served, link: FakeNetLink) -> None:
    with Driver(net.connect(), queue_count=2, features=LEGACY | MRG_RXBUF) as driver:
        driver.start()
        assert receive(net, driver, link, [2000]) == [bytes(10) + b"\x01\x00" + FRAME]


@pytest.mark.parametrize("cut", [0, 4, 10, 20])
def test_a_frame_is_sent_from_behind_a_header_of_10_bytes(
    net: Served, link: FakeNetLink, cut: int
) -> None:
    data = bytes(10) + FRAME
    with Driver(net.connect(), queue_count=2, features=LEGACY) as driver:
        driver.start()
        queue = driver.queues[TX]
        queue.driver.add([driver.piece(part) for part in (data[:cut], data[cut:]) if part])
        queue.notify()
        queue.wait()
    assert link.sent[0] == [bytes(12) + FRAME]


def test_a_frame_that_the_buffer_of_a_legacy_driver_is_too_small_for_is_dropped(
    net: Served, link: FakeNetLink
) -> None:
    with Driver(net.connect(), queue_count=2, features=LEGACY) as driver:
        driver.start()
        driver.queues[RX].driver.add([driver.piece(10 + len(FRAME) - 1)])
        driver.queues[RX].notify()
        link.incoming[0] += [bytes(12) + FRAME, bytes(12) + FRAME[:-1]]
        os.eventfd_write(link.fileno(0), 1)
        assert [used.length for used in driver.queues[RX].wait()] == [10 + len(FRAME) - 1]
    assert net.device.facts()["rx_dropped_too_long"] == 1


def test_a_driver_of_either_kind_may_follow_the_other(net: Served, link: FakeNetLink) -> None:
    for features, header in ((LEGACY, 10), (FEATURES, 12), (LEGACY, 10)):
        with Driver(net.connect(), queue_count=2, features=features) as driver:
            driver.start()
            (data,) = receive(net, driver, link, [2000])
            assert data[header:] == FRAME


def test_a_legacy_driver_reads_a_disk(tmp_path: Path) -> None:
    device = Blk(DiskImage(make_image(tmp_path / "disk.img")), queue_size=16)
    with Served(device, tmp_path / "blk.sock") as served:
        with Driver(served.connect(), features=LEGACY) as driver:
            driver.start()
            assert read_sector(driver, 7) == bytes([7]) * SECTOR
        # The framing of legacy drivers: header, data and status in descriptors of their own.
        with Driver(served.connect(), features=0) as driver:
            driver.start()
            data, status = driver.piece(SECTOR), driver.piece(1)
            driver.queues[0].driver.add([driver.piece(blk_header(IN, 3)), data, status])
            driver.queues[0].notify()
            while not driver.queues[0].driver.take_all_used():
                driver.frontend.get_status()
            assert driver.memory.read(data.address, SECTOR) == bytes([3]) * SECTOR


def test_features_ok_stays_set_for_a_legacy_driver(tmp_path: Path) -> None:
    with (
        Served(Rng(), tmp_path / "rng.sock") as served,
        Driver(served.connect(), features=LEGACY) as driver,
    ):
        driver.frontend.set_features(LEGACY)
        driver.frontend.set_status(0x0B)
        assert driver.frontend.get_status() == 0x0B


def test_a_legacy_driver_may_not_take_what_does_not_go_together(tmp_path: Path) -> None:
    with (
        Served(Net(FakeNetLink(), mac=MAC), tmp_path / "net.sock") as served,
        Driver(served.connect(), queue_count=2) as driver,
    ):
        driver.frontend.set_features(LEGACY | 1 << 7)
        driver.frontend.set_status(0x0B)
        assert driver.frontend.get_status() == 0x03


# Where there is no such driver


class Modern(VirtioDevice):
    """A device of somebody's own, which says nothing of legacy drivers."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    queue_sizes = (16,)


@pytest.mark.parametrize("make", [Modern, Balloon])
def test_a_device_that_cannot_serve_one_says_so_with_the_remedy(
    tmp_path: Path, make: type[VirtioDevice], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with (
        Served(make(), tmp_path / "x.sock") as served,
        Driver(served.connect(), features=LEGACY) as driver,
    ):
        driver.start()
        driver.frontend.get_status()
    (line,) = {record.getMessage() for record in caplog.records}
    assert "disable-legacy=on" in line
    assert "VIRTIO_F_VERSION_1" in line
    assert line.endswith("ring 0 does not start")


def test_registers_of_version_2_have_no_legacy_driver() -> None:
    with GuestMemory.allocate(1 << 20) as memory:
        transport = MmioTransport(Rng(), memory, LevelInterrupt(lambda level: None))
        driver = MmioDriver(transport, memory, Allocator(0x1000, 1 << 20))
        driver.set_status(DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER)
        driver.set_status(DeviceStatus.FEATURES_OK)
        assert not driver.status & DeviceStatus.FEATURES_OK
