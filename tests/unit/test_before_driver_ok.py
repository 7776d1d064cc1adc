"""Buffers that a driver makes available before DRIVER_OK are used without another kick (3.1.1)."""

import os
from collections.abc import Callable, Iterator

import pytest

from tests.unit.blk.bench import FakeDisk
from tests.unit.console.bench import FakeStream
from tests.unit.net.rig import MAC, FakeLink
from tests.unit.test_exit_free import Bench as Wired
from virtiopy.devices.balloon import Balloon
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.blk import Blk
from virtiopy.devices.console import Console
from virtiopy.devices.net import Net
from virtiopy.devices.rng import Rng
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.driver import Allocator, Piece

MEMORY = 1 << 20
DATA, ROOM = 0x8_0000, 0x9_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(MEMORY) as memory:
        yield memory


#: A device, the queue that is looked at, and a buffer that it uses at once.
CASES: dict[str, tuple[Callable[[], VirtioDevice], int, list[Piece]]] = {
    "rng": (Rng, 0, [Piece(ROOM, 64, writable=True)]),
    "blk": (lambda: Blk(FakeDisk()), 0, [Piece(DATA, 16), Piece(ROOM, 513, writable=True)]),
    "balloon": (Balloon, 0, [Piece(DATA, 4)]),
    "console": (lambda: Console(FakeStream()), 1, [Piece(DATA, 5)]),
    "net": (lambda: Net(FakeLink(), mac=MAC), 1, [Piece(DATA, 72)]),
}


@pytest.mark.parametrize("kicked", [False, True], ids=["not kicked", "kicked"])
@pytest.mark.parametrize(("make", "index", "pieces"), CASES.values(), ids=CASES)
def test_a_buffer_from_before_driver_ok_is_used(
    memory: GuestMemory,
    make: Callable[[], VirtioDevice],
    index: int,
    pieces: list[Piece],
    *,
    kicked: bool,
) -> None:
    transport = MmioTransport(make(), memory, LevelInterrupt(lambda level: None))
    driver = MmioDriver(transport, memory, Allocator(0x1000, MEMORY))
    driver.negotiate()
    for number in range(2):
        if driver.queue_size_max(number):
            driver.set_up_queue(number, 4)
    driver.queues[index].add(pieces)
    if kicked:
        driver.kick(index)
    assert driver.queues[index].take_all_used() == []
    driver.set_status(DeviceStatus.DRIVER_OK)
    assert len(driver.queues[index].take_all_used()) == 1


def test_linuxs_balloon_driver_has_its_statistics_asked_for(memory: GuestMemory) -> None:
    balloon = Balloon()
    transport = MmioTransport(balloon, memory, LevelInterrupt(lambda level: None))
    driver = MmioDriver(transport, memory, Allocator(0x1000, MEMORY))
    driver.negotiate()
    for number in range(3):
        driver.set_up_queue(number, 4)
    memory.write(DATA, (4).to_bytes(2, "little") + (123456).to_bytes(8, "little"))
    driver.queues[2].add([Piece(DATA, 10)])
    driver.set_status(DeviceStatus.DRIVER_OK)
    balloon.request_statistics()
    assert len(driver.queues[2].take_all_used()) == 1
    assert 123456 in balloon.statistics.values()


def test_a_buffer_from_before_its_queue_is_ready_again_is_used(memory: GuestMemory) -> None:
    transport = MmioTransport(Rng(), memory, LevelInterrupt(lambda level: None))
    driver = MmioDriver(transport, memory, Allocator(0x1000, MEMORY))
    driver.start()
    driver.write(Register.QueueSel, 0)
    driver.write(Register.QueueReset, 1)
    queue = driver.set_up_queue(0, 4)
    driver.write(Register.QueueReset, 1)
    queue.add([Piece(ROOM, 64, writable=True)])
    driver.announce_queue(0, queue)
    assert [used.length for used in queue.take_all_used()] == [64]


def test_a_kick_is_not_made_up_for_those_who_watch() -> None:
    wired = Wired(always=False)
    driver = wired.driver
    driver.negotiate([])
    queue = driver.set_up_queue(0, 4)
    queue.add([Piece(ROOM, 4, writable=True)])
    seen: list[int] = []
    wired.transport.lifecycle.observers[0].kicked = seen.append  # type: ignore[method-assign, assignment]
    driver.set_status(DeviceStatus.DRIVER_OK)
    wired.turn()
    assert len(queue.take_all_used()) == 1
    assert seen == []
    wired.close()


def test_the_worker_that_has_the_queue_looks_at_it() -> None:
    wired = Wired(always=False)
    wired.driver.start([])
    notifiers = wired.transport.lifecycle._notifiers[1]
    notifiers.delegate()
    notifiers.look()
    wired.turn()
    assert os.eventfd_read(notifiers.kick) == 1
    wired.close()
