"""What QEMU's docs/interop/vhost-user asks of a backend beyond serving requests, by its headings.

The other features are proven in test_vhost_user_backend.py: MQ, CONFIGURE_MEM_SLOTS, LOG_SHMFD,
CONFIG_CHANGE_MSG.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.net.rig import MAC, FakeLink
from tests.unit.vhost_user import FEATURES, Driver, Served, readable
from tests.unit.vhost_user_peer import IN, SECTOR, blk_header, make_image, read_sector
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.blk import Blk
from virtiopy.devices.console import Console
from virtiopy.devices.net import Net
from virtiopy.devices.rng import Rng
from virtiopy.devices.scsi.device import Scsi
from virtiopy.host.disk import DiskImage
from virtiopy.host.stream import FileStream
from virtiopy.spec import DeviceStatus, feature_mask, has_feature
from virtiopy.vhost.user.backend import PROTOCOL_FEATURES
from virtiopy.vhost.user.connection import Connection
from virtiopy.vhost.user.messages import (
    VHOST_F_LOG_ALL,
    ConfigAccess,
    ConfigFlags,
    Flag,
    LogArea,
    Message,
    ProtocolFeature,
    Request,
    RingAddresses,
    RingState,
    ring_file,
    to_u64,
    u64,
)
from virtiopy.virtqueue.driver import Piece
from virtiopy.virtqueue.queue import QueueState

WRITEBACK = 32
CONFIG_WCE = feature_mask([9, 11])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    device = Blk(DiskImage(make_image(tmp_path / "disk.img")), num_queues=2, queue_size=16)
    with Served(device, tmp_path / "blk.sock") as served:
        yield served


@pytest.fixture
def driver(served: Served) -> Iterator[Driver]:
    with Driver(served.connect(), queue_count=2) as driver:
        yield driver


@pytest.fixture
def raw(served: Served) -> Iterator[Connection]:
    with Connection(served.connect()) as connection:
        yield connection


def ask(connection: Connection, message: Message) -> Message:
    connection.send(message)
    answer = connection.receive()
    assert answer is not None
    assert answer.request == message.request
    assert answer.flags == Flag.REPLY
    return answer


# VHOST_USER_PROTOCOL_F_REPLY_ACK


def test_only_what_needs_a_reply_is_acknowledged_and_only_where_negotiated(
    raw: Connection,
) -> None:
    raw.send(Message(Request.SET_OWNER, flags=Flag.NEED_REPLY))
    # The answer is this one's: the first has none.
    assert to_u64(ask(raw, Message(Request.GET_PROTOCOL_FEATURES))) == PROTOCOL_FEATURES
    raw.send(Message(Request.SET_PROTOCOL_FEATURES, u64(1 << ProtocolFeature.REPLY_ACK)))
    raw.send(Message(Request.SET_OWNER))
    assert to_u64(ask(raw, Message(Request.SET_OWNER, flags=Flag.NEED_REPLY))) == 0


def test_what_has_an_answer_has_no_acknowledgement_beside_it(raw: Connection) -> None:
    raw.send(Message(Request.SET_PROTOCOL_FEATURES, u64(1 << ProtocolFeature.REPLY_ACK)))
    for _ in range(2):
        answer = ask(raw, Message(Request.GET_PROTOCOL_FEATURES, flags=Flag.NEED_REPLY))
        assert to_u64(answer) == PROTOCOL_FEATURES


# Front-end message types: what is legal as soon as it is offered


def test_what_is_offered_need_not_be_negotiated_to_ask_for_it(
    raw: Connection, served: Served
) -> None:
    assert to_u64(ask(raw, Message(Request.GET_QUEUE_NUM))) == 2
    raw.send(Message(Request.RESET_DEVICE))
    raw.send(Message(Request.SET_BACKEND_REQ_FD, fds=[raw.socket.fileno()]))
    assert to_u64(ask(raw, Message(Request.GET_FEATURES))) == served.server.backend.offered_features


@pytest.mark.parametrize(
    "request_",
    [Request.GET_STATUS, Request.GET_CONFIG, Request.GET_MAX_MEM_SLOTS, Request.GET_INFLIGHT_FD],
)
def test_what_has_to_be_negotiated_is_refused_before(raw: Connection, request_: Request) -> None:
    raw.send(Message(request_))
    assert raw.socket.recv(1) == b""


# VHOST_USER_SET_CONFIG


def test_only_fields_that_can_be_written_are_written(driver: Driver) -> None:
    driver.wanted = FEATURES | CONFIG_WCE
    driver.start()
    frontend = driver.frontend
    before = frontend.get_config(60)
    assert not frontend.set_config(0, bytes(8))
    assert not frontend.set_config(WRITEBACK, b"\0\0")
    assert not frontend.set_config(1000, b"\0")
    assert not frontend.set_config(WRITEBACK, b"\0", flags=2)
    assert frontend.get_config(60) == before
    assert frontend.set_config(WRITEBACK, b"\0")
    assert frontend.get_config(60) == before[:WRITEBACK] + b"\0" + before[WRITEBACK + 1 :]


def test_a_migrated_configuration_space_is_taken_as_far_as_it_goes(driver: Driver) -> None:
    driver.wanted = FEATURES | CONFIG_WCE
    driver.start()
    frontend = driver.frontend
    assert frontend.set_config(0, bytes(8), flags=ConfigFlags.LIVE_MIGRATION)
    assert int.from_bytes(frontend.get_config(8), "little") == 256


# VHOST_USER_RESET_DEVICE, VHOST_USER_SET_STATUS, VHOST_USER_GET_STATUS


def test_a_reset_disables_all_rings_and_forgets_their_kicks(driver: Driver, served: Served) -> None:
    driver.start()
    assert read_sector(driver, 3) == bytes([3]) * SECTOR
    driver.frontend.reset_device()
    for index, queue in enumerate(driver.queues):
        driver.frontend.enable_ring(index)
        queue.notify()
    # Nothing has started: the base is that of a ring that was never worked.
    assert [driver.frontend.stop_ring(index) for index in range(2)] == [QueueState()] * 2


def test_what_was_negotiated_outlives_a_reset(driver: Driver) -> None:
    driver.wanted = FEATURES | CONFIG_WCE
    driver.start()
    driver.frontend.reset_device()
    base = QueueState(driver.queues[0].driver.used.idx)
    driver.frontend.start_ring(0, driver.queues[0].ring(base), driver.memory)
    assert read_sector(driver, 3) == bytes([3]) * SECTOR
    # Which takes that CONFIG_WCE is known to the device.
    assert driver.frontend.set_config(WRITEBACK, b"\0")


def test_features_that_no_device_works_with_are_not_ok(tmp_path: Path) -> None:
    # GUEST_TSO4 requires GUEST_CSUM (5.1.3.1).
    with (
        Served(Net(FakeNetLink(), mac=MAC), tmp_path / "net.sock") as served,
        Driver(served.connect(), queue_count=2) as driver,
    ):
        frontend = driver.frontend
        frontend.set_features(FEATURES | 1 << 7)
        frontend.set_status(0x0B)
        assert frontend.get_status() == 0x03
        frontend.set_features(FEATURES)
        frontend.set_status(0x0B)
        assert frontend.get_status() == 0x0B


def test_a_broken_device_works_again_when_all_its_rings_were_stopped(tmp_path: Path) -> None:
    """Some frontends have neither RESET_DEVICE nor STATUS."""
    out = tmp_path / "out"
    with (
        Served(Console(FileStream(out)), tmp_path / "console.sock") as served,
        Driver(served.connect(), queue_count=2) as driver,
    ):
        driver.start()
        queue = driver.queues[1]
        queue.driver.available.ring[0] = 1000
        queue.driver.available.idx = 1
        queue.notify()
        readable(queue.error)
        os.eventfd_read(queue.error)
        for index in range(2):
            driver.frontend.stop_ring(index)
        queue.driver.available.idx = 0
        driver.frontend.set_features(FEATURES)
        for index in range(2):
            driver.frontend.start_ring(index, driver.queues[index].ring(), driver.memory)
        queue.driver.add([driver.piece(b"again\n")])
        queue.notify()
        queue.wait()
        assert out.read_bytes() == b"again\n"


class FakeNetLink(FakeLink):
    """A link with files that can be watched."""

    def __init__(self, pairs: int = 1) -> None:
        super().__init__(pairs=pairs)
        self._files = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(pairs + 1)]

    def fileno(self, pair: int) -> int:
        return self._files[pair]

    def state_fileno(self) -> int:
        return self._files[-1]

    def close(self) -> None:
        for fd in self._files:
            os.close(fd)


# Ring states


def test_without_protocol_features_a_ring_starts_enabled(driver: Driver) -> None:
    driver.frontend.has_states = False
    driver.start()
    assert read_sector(driver, 2) == bytes([2]) * SECTOR


def test_another_kick_for_a_ring_that_is_worked_loses_none_of_the_one_before(
    driver: Driver, served: Served
) -> None:
    driver.start()
    notify_and_wait(served, driver)
    queue = driver.queues[0]
    # It was kicked by a file that the backend did not come to read.
    queue.driver.add([driver.piece(blk_header(IN, 2)), driver.piece(SECTOR), driver.piece(1)])
    other = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    driver.frontend._tell(Request.SET_VRING_KICK, ring_file(0, has_fd=True), [other])
    os.close(other)
    assert [used.length for used in queue.wait()] == [SECTOR + 1]


def test_a_transmitq_that_is_disabled_is_worked_and_what_is_sent_discarded(
    tmp_path: Path,
) -> None:
    link = FakeNetLink()
    with (
        Served(Net(link, mac=MAC), tmp_path / "net.sock") as served,
        Driver(served.connect(), queue_count=2) as driver,
    ):
        driver.start()
        frame = driver.piece(bytes(12) + b"\xff" * 60)
        for enabled in (False, True):
            driver.frontend.enable_ring(1, enable=enabled)
            driver.queues[1].driver.add([frame])
            driver.queues[1].notify()
            driver.queues[1].wait()
        assert [len(frame) for frame in link.sent[0]] == [72]


# VHOST_USER_GET_VRING_BASE: of devices that hold buffers


def notify_and_wait(served: Served, driver: Driver) -> None:
    """Kick, and return when that has been obeyed: the loop had a turn that began afterwards."""
    driver.queues[0].notify()
    for _ in range(2):
        served.loop.call(lambda: None, "a turn")


def test_buffers_that_are_held_are_available_again_when_the_ring_stops(tmp_path: Path) -> None:
    with (
        Served(Net(FakeNetLink(), mac=MAC), tmp_path / "net.sock") as served,
        Driver(served.connect(), queue_count=2) as driver,
    ):
        driver.start()
        for _ in range(3):
            driver.queues[0].driver.add([driver.piece(2048)])
        notify_and_wait(served, driver)
        assert driver.frontend.stop_ring(0) == QueueState(0)


def test_a_buffer_twice_is_given_back_twice(tmp_path: Path) -> None:
    with (
        Served(Net(FakeNetLink(), mac=MAC), tmp_path / "net.sock") as served,
        Driver(served.connect(), queue_count=2) as driver,
    ):
        driver.start()
        queue = driver.queues[0].driver
        head = queue.place([driver.piece(2048)])
        queue.make_available(head, head)
        notify_and_wait(served, driver)
        assert driver.frontend.stop_ring(0) == QueueState(0)


def test_a_buffer_that_a_malformed_one_has_overtaken_is_used(tmp_path: Path) -> None:
    with (
        Served(Net(FakeNetLink(), mac=MAC), tmp_path / "net.sock") as served,
        Driver(served.connect(), queue_count=2) as driver,
    ):
        driver.start()
        queue = driver.queues[0].driver
        held = queue.place([driver.piece(2048)])
        malformed = queue.place([Piece(1 << 40, 2048, writable=True)])
        later = queue.place([driver.piece(2048)])
        queue.make_available(held, malformed, later)
        notify_and_wait(served, driver)
        assert driver.frontend.stop_ring(0) == QueueState(2)
        assert [(it.head, it.length) for it in queue.take_all_used()] == [(malformed, 0), (held, 0)]


# Migration


def test_avail_event_is_in_the_used_ring_and_is_logged_there(driver: Driver) -> None:
    log = os.memfd_create("log")
    os.ftruncate(log, 4096)
    frontend = driver.frontend
    frontend._tell(Request.SET_PROTOCOL_FEATURES, u64(PROTOCOL_FEATURES))
    driver.wanted = FEATURES | 1 << VHOST_F_LOG_ALL
    driver.start()
    frontend.connection.send(Message(Request.SET_LOG_BASE, LogArea(4096, 0).encode(), fds=[log]))
    frontend._answer(Request.SET_LOG_BASE)
    addresses, host = driver.queues[0].driver.areas, driver.memory.regions[0].host_address
    # So that avail_event is on a page of its own.
    used_log = 0x5000 - 4 - 8 * 16
    told = RingAddresses(
        0,
        1,
        host + addresses.descriptor,
        host + addresses.device,
        host + addresses.driver,
        used_log,
    )
    frontend._tell(Request.SET_VRING_ADDR, told.encode())
    assert read_sector(driver, 1) == bytes([1]) * SECTOR
    frontend.stop_ring(0)
    assert os.pread(log, 1, 0)[0] >> 4 & 3 == 3
    os.close(log)


# Inflight I/O tracking


def unfinished(driver: Driver, sectors: list[int]) -> list[Piece]:
    """Make reads available, and do not tell; returns where their data goes."""
    rooms = []
    for sector in sectors:
        data, status = driver.piece(SECTOR), driver.piece(1)
        driver.queues[0].driver.add([driver.piece(blk_header(IN, sector)), data, status])
        rooms.append(data)
    return rooms


def test_what_a_killed_backend_had_in_flight_is_completed_once(
    tmp_path: Path, served: Served
) -> None:
    """The first backend completes one of three out of order, and is killed with two in flight."""
    with Driver(served.connect()) as driver:
        driver.track_inflight()
        driver.start()
        assert read_sector(driver, 1) == bytes([1]) * SECTOR
        driver.frontend.stop_ring(0)
        rooms = unfinished(driver, [5, 6, 7])
        heads = [driver.queues[0].driver.available.ring[index] for index in (1, 2, 3)]
        # What such a backend leaves: the second is used, and all were taken.
        used = driver.queues[0].driver.used
        used.ring[1].id = heads[1]
        used.ring[1].len = SECTOR + 1
        used.idx = 2
        assert driver.inflight is not None
        for age, head in enumerate([heads[2], heads[0]]):
            entry = bytes([1, 0, 0, 0, 0, 0, 0, 0]) + (age + 9).to_bytes(8, "little")
            os.pwrite(driver.inflight.fd, entry, 16 + 16 * head)
        os.pwrite(driver.inflight.fd, (2).to_bytes(2, "little"), 14)
        driver.reconnect(served.connect())
        done = driver.queues[0].wait(3)
        # The oldest first, and the one that was used not again.
        assert [it.head for it in done] == [heads[1], heads[2], heads[0]]
        assert [driver.memory.read(room.address, 1)[0] for room in rooms] == [5, 0, 7]
        assert driver.frontend.stop_ring(0) == QueueState(4)


def test_a_batch_that_was_used_and_not_yet_accounted_for_is_not_done_again(
    served: Served,
) -> None:
    """Killed between the update of the used ring's idx and that of the area."""
    with Driver(served.connect()) as driver:
        driver.track_inflight()
        driver.start()
        assert read_sector(driver, 1) == bytes([1]) * SECTOR
        driver.frontend.stop_ring(0)
        assert driver.inflight is not None
        head = driver.queues[0].driver.available.ring[0]
        os.pwrite(driver.inflight.fd, b"\1", 16 + 16 * head)
        os.pwrite(driver.inflight.fd, (0).to_bytes(2, "little"), 14)
        os.pwrite(driver.inflight.fd, int(head).to_bytes(2, "little"), 12)
        driver.reconnect(served.connect())
        assert read_sector(driver, 2) == bytes([2]) * SECTOR
        assert driver.queues[0].driver.used.idx == 2


def test_an_area_has_as_many_entries_as_its_message_says(served: Served) -> None:
    """As libvhost-user has it: a driver's ring may be smaller than the area's queue size."""
    with Driver(served.connect(), queue_size=8) as driver:
        driver.inflight = driver.frontend.get_inflight(1, 64)
        assert driver.inflight is not None
        driver.start()
        assert read_sector(driver, 4) == bytes([4]) * SECTOR
        # version and desc_num
        assert os.pread(driver.inflight.fd, 4, 8) == bytes([1, 0, 64, 0])


# VHOST_USER_GET_CONFIG, and a status that needs a reset


def test_config_beyond_the_end_is_zeroes_of_the_size_that_was_asked_for(raw: Connection) -> None:
    raw.send(Message(Request.SET_PROTOCOL_FEATURES, u64(1 << ProtocolFeature.CONFIG)))
    answer = ask(raw, Message(Request.GET_CONFIG, ConfigAccess(300, bytes(16)).encode()))
    assert ConfigAccess.decode(answer) == ConfigAccess(300, bytes(16))


def test_a_status_that_needs_a_reset_stays_until_there_is_one(driver: Driver) -> None:
    driver.start()
    driver.frontend.set_status(0x0F)
    queue = driver.queues[0]
    queue.driver.available.ring[0] = 1000
    queue.driver.available.idx = 1
    queue.notify()
    readable(queue.error)
    driver.frontend.set_status(0x0F)
    assert driver.frontend.get_status() == 0x0F | DeviceStatus.DEVICE_NEEDS_RESET
    driver.frontend.set_status(0)
    assert driver.frontend.get_status() == 0


def test_a_status_of_zero_stops_the_rings(driver: Driver) -> None:
    driver.start()
    assert read_sector(driver, 1) == bytes([1]) * SECTOR
    driver.frontend.set_status(0)
    driver.frontend._tell(Request.SET_VRING_NUM, RingState(0, 8).encode())


# A guest that is stopped and goes on: SET_STATUS 0 comes before GET_VRING_BASE


def test_a_rings_position_outlives_a_status_of_zero(driver: Driver) -> None:
    """QEMU's `stop` and `cont`, and both sides of a migration."""
    driver.start()
    driver.frontend.set_status(0x0F)
    for sector in range(20):
        assert read_sector(driver, sector) == bytes([sector]) * SECTOR
    driver.frontend.set_status(0)
    driver.frontend.enable_ring(0, enable=False)
    base = driver.frontend.stop_ring(0)
    assert base == QueueState(20)
    driver.frontend.set_features(FEATURES)
    driver.frontend.start_ring(0, driver.queues[0].ring(base), driver.memory)
    driver.frontend.set_status(0x0F)
    assert read_sector(driver, 20) == bytes([20]) * SECTOR
    assert driver.frontend.stop_ring(0) == QueueState(21)


def test_a_rings_position_outlives_other_features(driver: Driver) -> None:
    driver.start()
    assert read_sector(driver, 1) == bytes([1]) * SECTOR
    driver.frontend.set_status(0)
    driver.frontend.set_features(FEATURES | CONFIG_WCE)
    assert driver.frontend.stop_ring(0) == QueueState(1)


def test_what_was_made_available_while_the_guest_was_stopped_is_served(driver: Driver) -> None:
    driver.start()
    driver.frontend.set_status(0x0F)
    assert read_sector(driver, 1) == bytes([1]) * SECTOR
    driver.frontend.set_status(0)
    rooms = unfinished(driver, [5, 6, 7])
    base = driver.frontend.stop_ring(0)
    driver.frontend.start_ring(0, driver.queues[0].ring(base), driver.memory)
    driver.queues[0].wait(3)
    assert [driver.memory.read(room.address, 1)[0] for room in rooms] == [5, 6, 7]


# A base that is not the used ring's idx


def base_counts_what_is_available(driver: Driver) -> int:
    """Return the base that cloud-hypervisor sends."""
    return int(driver.queues[0].driver.available.idx)


@pytest.mark.parametrize("tracked", [True, False])
def test_a_base_that_counts_what_is_available_loses_no_request(
    served: Served, tracked: bool
) -> None:
    """What the killed backend had not taken; without an area, what it had taken, too."""
    with Driver(served.connect()) as driver:
        if tracked:
            driver.track_inflight()
        driver.start()
        assert read_sector(driver, 1) == bytes([1]) * SECTOR
        driver.frontend.stop_ring(0)
        rooms = unfinished(driver, [5, 6])
        driver.reconnect(served.connect(), [base_counts_what_is_available(driver)])
        assert len(driver.queues[0].wait(2)) == 2
        assert [driver.memory.read(room.address, 1)[0] for room in rooms] == [5, 6]
        assert driver.frontend.stop_ring(0) == QueueState(3)


@pytest.mark.parametrize("base", [0, 9])
def test_a_base_that_a_frontend_makes_up_has_no_buffer_served_again(
    driver: Driver, base: int, caplog: pytest.LogCaptureFixture
) -> None:
    """DPDK's virtio_user in server mode sends 0 to a backend that was started again."""
    driver.start()
    assert read_sector(driver, 1) == bytes([1]) * SECTOR
    driver.frontend.stop_ring(0)
    driver.frontend.start_ring(0, driver.queues[0].ring(QueueState(base)), driver.memory)
    assert read_sector(driver, 2) == bytes([2]) * SECTOR
    assert driver.queues[0].driver.used.idx == 2
    assert f"ring 0 goes on from the used ring's idx, 1, and not from the base, {base}" in (
        caplog.text
    )


# VHOST_USER_PROTOCOL_F_CONFIG, which QEMU has no use for with these devices

CONFIGURED_BY_QEMU: dict[str, Callable[[], VirtioDevice]] = {
    "net": lambda: Net(FakeNetLink(), mac=MAC),
    "scsi": lambda: Scsi({}),
    "rng": Rng,
}


@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize("name", CONFIGURED_BY_QEMU)
def test_qemu_is_not_offered_a_configuration_space_that_it_keeps_itself(
    tmp_path: Path, name: str, owned: bool
) -> None:
    """QEMU alone asks before it owns the session, and warns its user of what it does not take."""
    with (
        Served(CONFIGURED_BY_QEMU[name](), tmp_path / "device.sock") as served,
        Connection(served.connect()) as raw,
    ):
        if owned:
            raw.send(Message(Request.SET_OWNER))
        offered = to_u64(ask(raw, Message(Request.GET_PROTOCOL_FEATURES)))
        assert has_feature(offered, ProtocolFeature.CONFIG) is owned


def test_qemu_is_offered_a_disks_configuration_space(raw: Connection) -> None:
    offered = to_u64(ask(raw, Message(Request.GET_PROTOCOL_FEATURES)))
    assert has_feature(offered, ProtocolFeature.CONFIG)
