"""No driver keeps a device, and so the event loop, from others: each works in turns."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.patience import PATIENCE
from tests.unit.blk.bench import FakeDisk, header
from tests.unit.console.bench import FakeStream
from tests.unit.net.rig import MAC
from tests.unit.vhost_model import WireLink
from virtiopy.devices.balloon import Balloon, BalloonQueue
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.batches import BATCHES_MAX
from virtiopy.devices.blk import Blk, RequestType
from virtiopy.devices.console import Console
from virtiopy.devices.net import Net
from virtiopy.devices.net.header import HEADER_SIZE
from virtiopy.devices.rng import Rng
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.virtqueue.buffers import Buffers
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece
from virtiopy.virtqueue.queue import (
    BATCH,
    BATCHES_A_TURN,
    REJECTS_A_POP,
    TURN_SECONDS,
    Completion,
    QueueObserver,
    Virtqueue,
    batches_of_a_turn,
)

MEMORY_SIZE = 8 << 20

#: Chains that the endless driver below gives up after: a device that takes no turns serves them.
MANY = 20_000


@dataclass(eq=False)
class Endless(QueueObserver):
    """A driver that makes each chain available again as soon as it is used."""

    loop: EventLoop
    drivers: dict[int, DriverQueue] = field(default_factory=dict)
    kick: Callable[[int], None] = field(init=False)
    served: int = 0
    ended: bool = False

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        self.served += len(completions)
        if queue.index in self.drivers and self.served < MANY and not self.ended:
            driver = self.drivers[queue.index]
            driver.make_available(*(chain.token for chain, _ in completions))
            if driver.should_kick():
                self.loop.call_soon(partial(self.kick, queue.index), "kick")


@dataclass
class Bench:
    driver: MmioDriver
    device: VirtioDevice
    loop: EventLoop
    endless: Endless
    #: Buffers that a device may hold while it has nothing to do.
    held: int = 0

    def room(self, size: int) -> Piece:
        return Piece(self.driver.allocator.take(size), size, writable=True)

    def data(self, data: bytes) -> Piece:
        piece = Piece(self.driver.allocator.take(len(data)), len(data))
        self.driver.memory.write(piece.address, data)
        return piece

    def settle(self) -> None:
        """Wait until the device has nothing left to do."""
        end = time.monotonic() + PATIENCE
        while self._has_work():
            assert time.monotonic() < end
            self.turn()

    def _has_work(self) -> bool:
        with self.device.lock:
            queues = self.device.queues.values()
            return any(q.in_flight > self.held or q.enable_kicks() for q in queues)

    def turn(self) -> None:
        """Have something else done on the loop."""
        self.loop.call(lambda: None, "somebody else's turn")


@contextmanager
def serve(device: VirtioDevice, *, may_block: bool = False) -> Iterator[Bench]:
    with GuestMemory.allocate(MEMORY_SIZE) as memory, EventLoop("devices") as loop:
        endless = Endless(loop)

        transport = MmioTransport(
            device, memory, LevelInterrupt(lambda level: None), loop=loop, may_block=may_block
        )
        transport.lifecycle.queue_observers.append(endless)

        def kick(index: int) -> None:
            with device.lock:
                transport.lifecycle.kick(index)

        endless.kick = kick
        driver = MmioDriver(transport, memory, Allocator(0x1000, MEMORY_SIZE))
        driver.start()
        loop.start()
        yield Bench(driver, device, loop, endless)
        endless.ended = True
        loop.stop()
        driver.reset()
        device.close()
        assert loop.failure is None


def _rng(bench: Bench) -> tuple[int, list[Piece]]:
    return 0, [bench.room(16)]


def _blk(bench: Bench) -> tuple[int, list[Piece]]:
    return 0, [bench.data(header(RequestType.IN)), bench.room(512), bench.room(1)]


def _console(bench: Bench) -> tuple[int, list[Piece]]:
    return 1, [bench.data(b"x")]


def _control_of_console(bench: Bench) -> tuple[int, list[Piece]]:
    return 3, [bench.data(bytes(8))]


def _net(bench: Bench) -> tuple[int, list[Piece]]:
    return 1, [bench.data(bytes(HEADER_SIZE + 60))]


def _control_of_net(bench: Bench) -> tuple[int, list[Piece]]:
    return 2, [bench.data(b"\7\7"), bench.room(1)]


def _balloon(bench: Bench) -> tuple[int, list[Piece]]:
    return BalloonQueue.deflateq, [bench.data(b"\1\0\0\0")]


def _statistics(bench: Bench) -> tuple[int, list[Piece]]:
    bench.held = 1
    return BalloonQueue.statsq, [bench.data(bytes(10))]


def _console_with_ports() -> VirtioDevice:
    return Console(FakeStream(), {"other": FakeStream()})


Request = Callable[[Bench], tuple[int, list[Piece]]]
DEVICES: dict[str, tuple[Callable[[], VirtioDevice], Request]] = {
    "rng": (Rng, _rng),
    "blk": (lambda: Blk(FakeDisk()), _blk),
    "console": (lambda: Console(FakeStream()), _console),
    "console control": (_console_with_ports, _control_of_console),
    "net": (lambda: Net(WireLink(), mac=MAC), _net),
    "net control": (lambda: Net(WireLink(), mac=MAC), _control_of_net),
    "balloon": (Balloon, _balloon),
    "balloon statistics": (Balloon, _statistics),
}


@pytest.mark.parametrize("may_block", [True, False], ids=["trapped", "eventfds"])
@pytest.mark.parametrize("name", DEVICES)
def test_a_driver_that_never_ends_leaves_others_their_turn(name: str, may_block: bool) -> None:
    build, request = DEVICES[name]
    with serve(build(), may_block=may_block) as bench:
        index, pieces = request(bench)
        queue = bench.driver.queues[index]
        bench.endless.drivers[index] = queue
        for _ in range(16):
            queue.add(pieces)
        with bench.device.lock:
            bench.driver.kick(index)
            # One turn, and then the lock is free for the loop.
            assert bench.endless.served <= BATCHES_A_TURN * BATCH
        before = bench.endless.served
        for _ in range(20):
            bench.turn()
        assert before < bench.endless.served < MANY
        bench.endless.ended = True
        bench.settle()


@pytest.mark.parametrize("name", [name for name in DEVICES if name != "balloon statistics"])
def test_malformed_chains_are_rejected_in_turns_all_of_them(name: str) -> None:
    build, request = DEVICES[name]
    with serve(build()) as bench:
        index, pieces = request(bench)
        queue = bench.driver.queues[index]
        bench.endless.drivers[index] = queue
        [head] = [queue.place([Piece(1 << 40, 1)])]
        queue.make_available(*[head] * queue.size)
        with bench.device.lock:
            bench.driver.kick(index)
            assert bench.endless.served <= BATCHES_A_TURN * max(REJECTS_A_POP, BATCH)
        for _ in range(20):
            bench.turn()
        assert bench.endless.served < MANY
        bench.endless.ended = True
        bench.settle()
        # And the device serves what is good.
        queue.add(pieces)
        served = bench.endless.served
        bench.driver.kick(index)
        bench.settle()
        assert bench.endless.served == served + 1


def test_malformed_receive_buffers_are_rejected_without_a_frame() -> None:
    with serve(Net(WireLink(), mac=MAC)) as bench:
        queue = bench.driver.queues[0]
        head = queue.place([Piece(1 << 40, 1, writable=True)])
        for _ in range(20):
            queue.make_available(*[head] * queue.size)
            bench.driver.kick(0)
            bench.settle()
        assert bench.endless.served == 20 * queue.size


class SlowDisk(FakeDisk):
    """A disk that reads when it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = threading.Event()

    def read(self, offset: int, buffers: Buffers) -> None:
        self.allowed.wait()
        super().read(offset, buffers)


def test_what_workers_have_not_room_for_stays_in_the_ring() -> None:
    size = 4 * BATCHES_MAX * BATCH
    disk = SlowDisk()
    with serve(Blk(disk, queue_size=size)) as bench:
        index, pieces = _blk(bench)
        queue = bench.driver.queues[index]
        request = queue.place(pieces)
        queue.make_available(*[request] * size)
        bench.driver.kick(index)
        for _ in range(20):
            bench.turn()
        assert bench.device.queues[index].in_flight == BATCHES_MAX * BATCH
        disk.allowed.set()
        bench.settle()
        assert bench.endless.served == size


def test_a_device_that_needs_a_reset_takes_no_more_turns() -> None:
    with serve(Rng()) as bench:
        index, pieces = _rng(bench)
        queue = bench.driver.queues[index]
        bench.endless.drivers[index] = queue
        with bench.device.lock:
            queue.add(pieces)
            bench.driver.kick(index)
            served = bench.endless.served
            bench.device.host.needs_reset("a test says so")
        for _ in range(5):
            bench.turn()
        assert bench.endless.served == served


def test_a_queue_that_was_reset_takes_no_more_turns() -> None:
    with serve(Rng()) as bench:
        index, pieces = _rng(bench)
        queue = bench.driver.queues[index]
        bench.endless.drivers[index] = queue
        with bench.device.lock:
            queue.add(pieces)
            bench.driver.kick(index)
            bench.driver.reset()
            served = bench.endless.served
        for _ in range(5):
            bench.turn()
        assert bench.endless.served == served
        bench.driver.start()
        bench.endless.drivers.clear()
        bench.driver.queues[index].add(pieces)
        assert len(bench.driver.collect(index)) == 1


def test_a_turn_whose_time_is_over_begins_no_other_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("virtiopy.virtqueue.queue.time.monotonic", lambda: now)
    assert len(list(batches_of_a_turn())) == BATCHES_A_TURN
    begun = 0
    for _ in batches_of_a_turn():
        begun += 1
        now += 0.6 * TURN_SECONDS
    assert begun == 2
