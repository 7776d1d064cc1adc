"""The real /dev/vhost-net on a real tap, with the driver side in Python: no VM."""

import os
import select
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.lab.network import HEADER_SIZE, TapLink, frame, number_of
from tests.patience import PATIENCE
from virtiopy.errors import ConfigError, HostError
from virtiopy.memory import GuestMemory
from virtiopy.spec import Feature, feature_mask
from virtiopy.vhost.kernel.net import VhostNet
from virtiopy.vhost.vring import Vring
from virtiopy.vhost.worker import cpu_seconds, worker_threads
from virtiopy.virtqueue.buffers import gather, scatter
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece
from virtiopy.virtqueue.queue import QueueState
from virtiopy.virtqueue.split import SplitQueue

pytestmark = pytest.mark.lab

RX, TX = 0, 1
MEMORY = 4 << 20
QUEUE_SIZE = 64
BUFFER = 2048
FRAMES = 200

NOWHERE = 1 << 40
EMPTY_HEADER = bytes(HEADER_SIZE)


def is_readable(fd: int, seconds: float = PATIENCE) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


class Side:
    """One virtqueue: its driver, its eventfds, a buffer for each of its descriptors."""

    def __init__(
        self, memory: GuestMemory, allocator: Allocator, *, event_idx: bool = False
    ) -> None:
        self.queue = DriverQueue(memory, QUEUE_SIZE, allocator, event_idx=event_idx)
        self.buffers = [allocator.take(BUFFER) for _ in range(QUEUE_SIZE)]
        self.kick, self.call, self.error = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))

    def close(self) -> None:
        for fd in (self.kick, self.call, self.error):
            os.close(fd)

    def ring(self, state: QueueState | None = None) -> Vring:
        return Vring(
            QUEUE_SIZE, self.queue.areas, state or QueueState(), self.kick, self.call, self.error
        )

    def device_side(self, state: QueueState) -> SplitQueue:
        return SplitQueue(self.queue.memory, QUEUE_SIZE, self.queue.areas, state=state)

    def wait(self) -> None:
        """Wait for a used buffer notification."""
        assert is_readable(self.call), "no used buffer notification came"
        os.eventfd_read(self.call)


class Rig:
    """A vhost-net on a tap, and a driver for it; the rings are not running yet."""

    def __init__(self, link: TapLink) -> None:
        self.link = link
        self.memory = GuestMemory.allocate(MEMORY)
        allocator = Allocator(0x1000, MEMORY)
        self.sides = [Side(self.memory, allocator), Side(self.memory, allocator)]
        self.rx, self.tx = self.sides
        self.vhost = VhostNet()
        self.prepare()
        #: By head: the buffer of a chain that the device has.
        self.lent: dict[int, int] = {}

    def prepare(self) -> None:
        self.vhost.set_features(feature_mask([Feature.VIRTIO_F_VERSION_1]))
        self.vhost.set_memory(self.memory)

    def start(self, *indexes: int) -> None:
        for index in indexes:
            self.vhost.start_ring(index, self.sides[index].ring(), self.link.tap)

    def close(self) -> None:
        self.vhost.close()
        for side in self.sides:
            side.close()
        self.memory.close()

    def send(self, numbers: range) -> None:
        """Send frames as a driver does, as many at a time as there are descriptors."""
        self.offer(numbers, lambda: None)

    def offer(self, numbers: range, serve: Callable[[], object]) -> None:
        """Send frames; `serve` is called after each batch, for a device in this process."""
        queue = self.tx.queue
        for start in range(0, len(numbers), QUEUE_SIZE):
            batch = numbers[start : start + QUEUE_SIZE]
            for number, address in zip(batch, self.tx.buffers, strict=False):
                data = EMPTY_HEADER + frame(number)
                self.memory.write(address, data)
                queue.add([Piece(address, len(data))])
            os.eventfd_write(self.tx.kick, 1)
            serve()
            left = len(batch) - len(queue.take_all_used())
            while left > 0:
                self.tx.wait()
                left -= len(queue.take_all_used())

    def provide(self, count: int = QUEUE_SIZE) -> None:
        """Offer empty buffers."""
        for address in self.rx.buffers[:count]:
            self.lent[self.rx.queue.add([Piece(address, BUFFER, writable=True)])] = address
        os.eventfd_write(self.rx.kick, 1)

    def collect(self, count: int) -> list[int]:
        """Receive `count` frames; each buffer is offered again."""
        numbers: list[int] = []
        while len(numbers) < count:
            used = self.rx.queue.take_all_used()
            if not used:
                self.rx.wait()
            # Heads are given out again below, so what each stood for is looked up first.
            filled = [(self.lent.pop(element.head), element.length) for element in used]
            for address, length in filled:
                data = self.memory.read(address, length)
                number = number_of(data[HEADER_SIZE:])
                if number is not None:
                    numbers.append(number)
                self.lent[self.rx.queue.add([Piece(address, BUFFER, writable=True)])] = address
            if used:
                os.eventfd_write(self.rx.kick, 1)
        return numbers

    def seen_on_the_wire(self, count: int) -> list[int | None]:
        return [number_of(self.link.wire.recv(BUFFER)) for _ in range(count)]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with TapLink() as link:
        rig = Rig(link)
        yield rig
        rig.close()


def test_vhost_has_the_features_that_our_rings_have(rig: Rig) -> None:
    needed = feature_mask(
        [
            Feature.VIRTIO_F_VERSION_1,
            Feature.VIRTIO_F_INDIRECT_DESC,
            Feature.VIRTIO_F_EVENT_IDX,
        ]
    )
    assert rig.vhost.features & needed == needed
    rig.vhost.set_backend_features(rig.vhost.get_backend_features())


def test_frames_that_the_driver_sends_come_out_of_the_tap_in_order(rig: Rig) -> None:
    rig.start(TX)
    rig.send(range(FRAMES))
    assert rig.seen_on_the_wire(FRAMES) == list(range(FRAMES))


def test_frames_from_the_wire_reach_the_driver_in_order(rig: Rig) -> None:
    rig.start(RX)
    rig.provide()
    for number in range(FRAMES):
        rig.link.wire.send(frame(number))
    assert rig.collect(FRAMES) == list(range(FRAMES))


def test_a_transmit_ring_goes_to_python_and_back_in_the_middle_of_a_flow(rig: Rig) -> None:
    rig.start(TX)
    rig.send(range(50))
    assert rig.vhost.stop_ring(TX) == QueueState(50)

    ours = rig.tx.device_side(QueueState(50))
    taken: list[int | None] = []

    def serve() -> None:
        for chain in ours.pop_many():
            taken.append(number_of(gather(chain.readable)[HEADER_SIZE:]))
            ours.push(chain, 0)

    rig.offer(range(50, 60), serve)
    assert taken == list(range(50, 60))

    rig.vhost.start_ring(TX, rig.tx.ring(ours.state), rig.link.tap)
    rig.send(range(60, 110))
    assert rig.seen_on_the_wire(100) == [*range(50), *range(60, 110)]
    assert rig.vhost.stop_ring(TX) == QueueState(110)


def test_a_receive_ring_goes_to_python_and_back_with_buffers_in_it(rig: Rig) -> None:
    rig.start(RX)
    rig.provide()
    for number in range(10):
        rig.link.wire.send(frame(number))
    assert rig.collect(10) == list(range(10))

    base = rig.vhost.stop_ring(RX)
    ours = rig.rx.device_side(base)
    assert base == QueueState(rig.rx.queue.used.idx)
    for number in range(10, 15):
        chain = ours.pop()
        assert chain is not None
        ours.push(chain, scatter(chain.writable, EMPTY_HEADER + frame(number)))
    assert rig.collect(5) == list(range(10, 15))

    rig.vhost.start_ring(RX, rig.rx.ring(ours.state), rig.link.tap)
    for number in range(15, 25):
        rig.link.wire.send(frame(number))
    assert rig.collect(10) == list(range(15, 25))


def test_what_is_in_a_ring_before_it_starts_needs_no_kick(rig: Rig) -> None:
    data = EMPTY_HEADER + frame(1)
    rig.memory.write(rig.tx.buffers[0], data)
    rig.tx.queue.add([Piece(rig.tx.buffers[0], len(data))])

    rig.start(TX)

    assert rig.seen_on_the_wire(1) == [1]


def test_frames_that_come_while_no_one_works_the_ring_wait_in_the_tap(rig: Rig) -> None:
    rig.start(RX)
    rig.provide()
    base = rig.vhost.stop_ring(RX)
    for number in range(20):
        rig.link.wire.send(frame(number))

    rig.vhost.start_ring(RX, rig.rx.ring(base), rig.link.tap)

    assert rig.collect(20) == list(range(20))


def test_a_descriptor_outside_memory_signals_the_error_eventfd(rig: Rig) -> None:
    rig.start(RX, TX)
    rig.provide()
    rig.send(range(5))
    head = rig.tx.queue.place([Piece(rig.tx.buffers[0], 100)])
    rig.tx.queue.write_descriptor(head, NOWHERE, 100, 0, 0)
    rig.tx.queue.make_available(head)
    os.eventfd_write(rig.tx.kick, 1)

    assert is_readable(rig.tx.error)
    # The bad chain was not taken, and the other ring works on.
    assert rig.vhost.stop_ring(TX) == QueueState(5)
    rig.link.wire.send(frame(7))
    assert rig.collect(1) == [7]


def test_a_running_ring_refuses_to_be_set_up(rig: Rig) -> None:
    rig.start(TX)
    with pytest.raises(HostError, match="stop it first"):
        rig.vhost.set_base(TX, QueueState(3))


def test_a_file_that_is_no_tap_is_refused(rig: Rig) -> None:
    with (
        open("/dev/null", "r+b", buffering=0) as null,
        pytest.raises(ConfigError, match="no tap"),
    ):
        rig.vhost.start_ring(TX, rig.tx.ring(), null.fileno())


def test_after_a_change_of_owner_everything_can_be_set_up_again(rig: Rig) -> None:
    rig.start(TX)
    rig.send(range(3))
    rig.vhost.reset_owner()
    with pytest.raises(HostError, match="VHOST_SET_MEM_TABLE"):
        rig.vhost.set_memory(rig.memory)

    rig.vhost.set_owner()
    rig.prepare()
    rig.vhost.start_ring(TX, rig.tx.ring(QueueState(3)), rig.link.tap)
    rig.send(range(3, 6))

    assert rig.seen_on_the_wire(6) == list(range(6))


def test_the_busy_poll_timeout_is_kept(rig: Rig) -> None:
    rig.vhost.set_busy_poll(RX, 50)
    assert rig.vhost.get_busy_poll(RX) == 50
    assert rig.vhost.get_busy_poll(TX) == 0


def test_the_work_is_done_by_a_thread_named_after_its_owner(rig: Rig) -> None:
    owner = threading.get_native_id()
    (thread,) = worker_threads(owner)
    before = cpu_seconds(thread)
    rig.start(TX)
    rig.send(range(FRAMES))
    assert cpu_seconds(thread) > before

    rig.vhost.close()
    assert worker_threads(owner) == []
    rig.vhost = VhostNet()


def test_nothing_stays_open(rig: Rig) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with TapLink() as link:
        other = Rig(link)
        other.start(RX, TX)
        other.send(range(3))
        other.close()
    assert set(os.listdir("/proc/self/fd")) == before
