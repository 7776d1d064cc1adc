"""Whatever a guest's drivers do, the run ends at its time and the control socket is answered."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.patience import timed
from tests.unit.machine.bench import FakeAccelerator
from tests.unit.test_turns import DEVICES, Bench, Endless
from virtiopy.control.client import ask
from virtiopy.control.server import ControlServer
from virtiopy.devices.blk import Blk
from virtiopy.host.disk import DiskImage
from virtiopy.memory import GuestMemory
from virtiopy.transport.driver import MmioDriver
from virtiopy.virtqueue.driver import Allocator, Piece
from virtiopy.virtqueue.queue import Chain, Completion, QueueObserver, Virtqueue
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode

MEMORY = 8 << 20

#: Seconds: the bounds that a user is promised, on a machine that may be busy.
ANSWER_BOUND = 0.5
END_BOUND = 1.0

MODES = [IoMode.TRAPPED, IoMode.IOEVENTFD]


@dataclass(eq=False)
class Endlessly(Endless):
    """A driver that never gives up: see Endless, which does after a number of requests."""

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        self.served = 0
        super().used(queue, completions)


@contextmanager
def flooded(name: str, mode: IoMode) -> Iterator[Machine]:
    """Make a machine with a device whose driver makes each used buffer available again."""
    build, request = DEVICES[name]
    device = build()
    with (
        GuestMemory.allocate(MEMORY) as memory,
        Machine(memory, FakeAccelerator(), console=lambda data: None) as machine,
    ):
        slot = machine.add_device(device, "flooded0", mode)
        lifecycle = slot.transport.lifecycle
        flood = Endlessly(machine.loop)
        lifecycle.queue_observers.append(flood)

        def kick(index: int) -> None:
            with device.lock:
                lifecycle.kick(index)

        flood.kick = kick
        driver = MmioDriver(slot.transport, memory, Allocator(0x1000, MEMORY))
        driver.start()
        bench = Bench(driver, device, machine.loop, flood)
        index, pieces = request(bench)
        flood.drivers[index] = driver.queues[index]
        for _ in range(64):
            driver.queues[index].add(pieces)
        machine.loop.call_soon(lambda: kick(index), "the first kick")
        yield machine


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", DEVICES)
@timed
def test_a_flood_keeps_no_run_from_ending_at_its_time(name: str, mode: IoMode) -> None:
    with flooded(name, mode) as machine:
        begun = time.monotonic()
        assert machine.run(timeout=0.2).status is None
        assert time.monotonic() - begun < 0.2 + END_BOUND


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", DEVICES)
@timed
def test_the_control_socket_is_answered_during_a_flood(
    tmp_path: Path, name: str, mode: IoMode
) -> None:
    path = tmp_path / "vm.sock"
    with flooded(name, mode) as machine, ControlServer(machine, path):
        run = threading.Thread(target=machine.run, kwargs={"timeout": 20})
        run.start()
        try:
            for _ in range(5):
                begun = time.monotonic()
                assert "devices" in ask(path, {"command": "status"})
                assert time.monotonic() - begun < ANSWER_BOUND
        finally:
            machine.end(0)
            run.join()


# A disk read that overwrites its own ring

QUEUE = 64
RING = 4 + 2 * QUEUE  # flags, idx and entries
SECTORS = 1 << 16


@dataclass(eq=False)
class Count(QueueObserver):
    """Counts what a device was made to do."""

    chains: int = field(default=0)

    def taken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        self.chains += len(chains)


def self_feeding_image(path: Path) -> Path:
    """Make a disk whose sector n is an available ring with n + 2 chains, and a request to read
    sector n + 1: so each read makes the next one available.
    """
    with path.open("wb") as image:
        for sector in range(SECTORS):
            ring = bytes(2) + ((sector + 2) % SECTORS).to_bytes(2, "little") + bytes(2 * QUEUE)
            header = bytes(8) + ((sector + 1) % SECTORS).to_bytes(8, "little")
            image.write((ring + header).ljust(512, b"\0"))
    return path


@pytest.mark.parametrize("mode", MODES)
@timed
def test_a_read_that_overwrites_its_own_ring_keeps_no_run_from_ending(
    tmp_path: Path, mode: IoMode
) -> None:
    image = DiskImage(self_feeding_image(tmp_path / "disk.img"), any_content=True)
    count = Count()
    with (
        GuestMemory.allocate(MEMORY) as memory,
        Machine(memory, FakeAccelerator(), console=lambda data: None) as machine,
    ):
        slot = machine.add_device(Blk(image, queue_size=QUEUE), "blk0", mode)
        slot.transport.lifecycle.queue_observers.append(count)
        driver = MmioDriver(slot.transport, memory, Allocator(0x1000, MEMORY))
        driver.start()
        queue = driver.queues[0]
        header = driver.allocator.take(16)
        rest = 512 - RING - 16
        queue.add(
            [
                Piece(header, 16),
                Piece(queue.areas.driver, RING, writable=True),
                Piece(header, 16, writable=True),
                Piece(driver.allocator.take(rest + 1), rest + 1, writable=True),
            ]
        )

        def kick() -> None:
            with slot.device.lock:
                slot.transport.lifecycle.kick(0)

        machine.loop.call_soon(kick, "the kick")
        begun = time.monotonic()
        assert machine.run(timeout=0.3).status is None
        assert time.monotonic() - begun < 0.3 + END_BOUND
    # It went on all the time.
    assert count.chains > 20
