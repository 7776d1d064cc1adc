"""What a ring means stays true for a network device in C and in Python: stops, moves, accounts."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.unit.net.rig import frame, header
from tests.unit.vhost_user import FEATURES, Driver, Queue, Served, log_writes
from virtiopy.conformance.targets.hosts import Link
from virtiopy.devices.net import Net
from virtiopy.devices.net.features import NetFeature
from virtiopy.spec import feature_mask
from virtiopy.vhost.user.messages import VHOST_F_LOG_ALL
from virtiopy.virtqueue.driver import Piece
from virtiopy.virtqueue.queue import QueueState
from virtiopy.worker.native import open_native

MAC = bytes.fromhex("020000000001")
RX, TX = 0, 1
TAKEN = FEATURES | feature_mask([NetFeature.VIRTIO_NET_F_MRG_RXBUF])


class One:
    """A device with one pair, and its driver, which has not started it yet."""

    def __init__(self, folder: Path, *, native: bool) -> None:
        self.native = native
        self.link = Link()
        self.device = Net(self.link, mac=MAC, queue_size=64)
        self.served = Served(self.device, folder / "net.sock")
        if native:
            self.device.delegate(open_native)
        self.driver = Driver(self.served.connect(), queue_count=2, queue_size=64, features=TAKEN)
        self.rooms: dict[int, Piece] = {}

    def close(self) -> None:
        self.driver.close()
        self.served.close()
        self.link.release()

    def start(self) -> None:
        self.driver.start()
        assert self.device.facts()["pairs_delegated"] == int(self.native)

    def supply(self, *sizes: int) -> None:
        for size in sizes:
            room = self.driver.piece(size)
            self.rooms[self.driver.queues[RX].driver.add([room])] = room
        self.driver.queues[RX].notify()

    def received(self, count: int = 1) -> list[bytes]:
        found = []
        for used in self.driver.queues[RX].wait(count):
            room = self.rooms.pop(used.head)
            found.append(self.driver.memory.read(room.address, used.length))
        return found

    def send(self, *seeds: int) -> None:
        for seed in seeds:
            self.driver.queues[TX].driver.add([self.driver.piece(header() + frame(seed=seed))])
        self.driver.queues[TX].notify()

    def sends(self, *seeds: int) -> None:
        """Send frames, and see each of them once, in this order."""
        self.send(*seeds)
        for seed in seeds:
            assert self.link.sent() == header() + frame(seed=seed)

    def receives(self, seed: int) -> None:
        self.link.inject(header() + frame(seed=seed))
        assert self.received() == [header(num_buffers=1) + frame(seed=seed)]


@pytest.fixture(params=[True, False], ids=["native", "python"])
def one(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[One]:
    one = One(tmp_path, native=request.param)
    yield one
    one.close()


def fill(link: Link) -> int:
    """Send by the device's end of the link until it has no room; returns how often."""
    for count in range(1_000_000):
        with contextlib.suppress(BlockingIOError):
            link.write(0, [header() + frame(1400)])
            continue
        return count
    raise AssertionError("a link without end")


def test_a_frame_that_waits_for_the_link_when_its_ring_stops_is_sent_once(one: One) -> None:
    one.start()
    others = fill(one.link)
    one.send(1, 2, 3)
    while not one.device.counters()["tx_waits"]:
        pass
    base = one.driver.frontend.stop_ring(TX)
    assert base == QueueState(0)
    for _ in range(others):
        assert one.link.sent() is not None
    one.driver.frontend.start_ring(TX, one.driver.queues[TX].ring(base), one.driver.memory)
    for seed in (1, 2, 3):
        assert one.link.sent() == header() + frame(seed=seed)
    assert len(one.driver.queues[TX].wait(3)) == 3
    assert one.link.sent(seconds=0) is None


def test_a_frame_that_waits_for_the_link_is_forgotten_by_a_reset(one: One) -> None:
    one.start()
    others = fill(one.link)
    one.send(1)
    while not one.device.counters()["tx_waits"]:
        pass
    one.driver.frontend.reset_device()
    for _ in range(others):
        assert one.link.sent() is not None
    one.driver.queues = [Queue(one.driver.memory, 64, one.driver.allocator) for _ in range(2)]
    one.start()
    one.sends(2)
    assert one.link.sent(seconds=0) is None


def test_a_frame_that_waits_for_buffers_when_its_ring_stops_is_received(one: One) -> None:
    one.start()
    one.supply(100)
    one.link.inject(header() + frame(1000))
    base = one.driver.frontend.stop_ring(RX)
    assert base == QueueState(0)
    one.supply(2048)
    one.driver.frontend.start_ring(RX, one.driver.queues[RX].ring(base), one.driver.memory)
    assert b"".join(one.received(2)) == header(num_buffers=2) + frame(1000)


def test_a_frame_that_waits_for_buffers_is_kept_where_the_mode_changes(tmp_path: Path) -> None:
    one = One(tmp_path, native=True)
    try:
        one.start()
        one.supply(100)
        one.link.inject(header() + frame(1000))
        one.device.reclaim()
        one.supply(2048)
        assert b"".join(one.received(2)) == header(num_buffers=2) + frame(1000)
        assert one.device.counters()["rx_dropped_no_buffer"] == 0
    finally:
        one.close()


def test_one_ring_of_the_pair_stops_and_the_other_goes_on(one: One) -> None:
    one.start()
    for ring in (RX, TX):
        one.driver.frontend.stop_ring(ring)
        if ring == RX:
            one.sends(1, 2)
            one.driver.queues[TX].wait(2)
        else:
            one.supply(2048)
            one.receives(3)
        used = one.driver.queues[ring].driver.used.idx
        vring = one.driver.queues[ring].ring(QueueState(used))
        one.driver.frontend.start_ring(ring, vring, one.driver.memory)
    one.supply(2048)
    one.receives(4)
    one.sends(5)


def test_rings_that_move_go_on_where_they_are(one: One) -> None:
    one.start()
    for turn in range(3):
        one.supply(2048)
        one.receives(turn)
        one.sends(turn)
        one.driver.queues[TX].wait()
        for ring in (RX, TX):
            before = one.driver.queues[ring].driver.areas
            assert one.driver.frontend.stop_ring(ring) == QueueState(1)
            one.driver.queues[ring] = Queue(one.driver.memory, 64, one.driver.allocator)
            one.driver.memory.write(before.driver, b"\xff" * 64)
            vring = one.driver.queues[ring].ring()
            one.driver.frontend.start_ring(ring, vring, one.driver.memory)


def test_memory_changes_under_rings_that_are_worked(one: One) -> None:
    one.start()
    one.supply(*[2048] * 6)
    for turn in range(6):
        one.driver.frontend.set_memory(one.driver.memory)
        one.receives(turn)
        one.sends(turn)
        one.driver.queues[TX].wait()


def test_pages_that_are_received_into_are_logged(one: One) -> None:
    one.driver.wanted |= 1 << VHOST_F_LOG_ALL
    used_log = 0x300_0000
    with log_writes(one.driver, RX, used_log) as dirty:
        one.driver.allocator.take(1, 4096)
        one.supply(1000)
        [room] = one.rooms.values()
        one.driver.allocator.take(1, 4096)
        one.receives(7)
        one.driver.frontend.stop_ring(RX)
        assert dirty() == {room.address >> 12, used_log >> 12}


def test_what_is_in_flight_goes_on_in_the_next_backend(one: One) -> None:
    """As if this one had been killed: the area is as it was while the buffers were in flight."""
    one.driver.track_inflight()
    one.start()
    one.supply(*[2048] * 4)
    one.receives(1)
    inflight = one.driver.inflight
    assert inflight is not None
    area = os.pread(inflight.fd, inflight.area.mmap_size, 0)
    one.driver.frontend.close()
    one.driver.frontend.connection.socket.close()
    os.pwrite(inflight.fd, area, 0)
    one.driver.reconnect(one.served.connect())
    for seed in (2, 3, 4):
        one.receives(seed)
    one.supply(2048)
    one.receives(5)
    one.sends(6)


def test_hundreds_of_messages_under_traffic_lose_nothing(one: One) -> None:
    """Enabled and disabled, and the call eventfd set anew, in the middle of frames."""
    one.start()
    one.supply(*[2048] * 60)
    frontend, queue = one.driver.frontend, one.driver.queues[TX]
    for turn in range(20):
        one.link.inject(header() + frame(seed=turn))
        one.send(turn)
        for _ in range(5):
            for ring in (RX, TX):
                frontend.enable_ring(ring, enable=False)
                frontend.set_call(ring, one.driver.queues[ring].call)
                frontend.enable_ring(ring)
    # What is sent while its ring is disabled is discarded.
    queue.wait(20)
    received = one.received(20)
    assert received == [header(num_buffers=1) + frame(seed=turn) for turn in range(20)]
    counts = one.device.counters()
    assert counts["tx_frames"] + counts["tx_dropped_disabled_queue"] == 20
    for _ in range(counts["tx_frames"]):
        assert one.link.sent() is not None
    one.sends(*range(100, 110))


def test_an_interrupt_that_blocks_keeps_no_message_waiting(one: One) -> None:
    one.start()
    full = os.eventfd(0, os.EFD_CLOEXEC)
    os.eventfd_write(full, (1 << 64) - 2)
    try:
        one.driver.frontend.set_call(TX, full)
        one.driver.queues[TX].driver.enable_interrupts()
        one.send(1)
        assert one.link.sent(seconds=PATIENCE) == header() + frame(seed=1)
        one.driver.frontend.get_features()
        assert one.driver.frontend.stop_ring(TX) == QueueState(1)
        one.driver.frontend.set_call(TX, one.driver.queues[TX].call)
        vring = one.driver.queues[TX].ring(QueueState(1))
        one.driver.frontend.start_ring(TX, vring, one.driver.memory)
        one.driver.queues[TX].driver.take_all_used()
        one.sends(2)
    finally:
        os.close(full)
