"""A transport that is none of the specification's plugs in here, and no device knows of it.

It is a throw-away: the driver writes words into a mailbox, as "feature 32" or "kick 0". That it
fits in this file shows that a device's life is apart from its registers.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from tests.unit.blk.bench import FakeDisk
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.blk import Blk
from virtiopy.devices.rng import Rng
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature
from virtiopy.transport.interrupts import CONFIG, InterruptSource, Progress
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece

MEMORY = 1 << 20


class Mailbox:
    """The transport: words from the driver, and notifications to it as words."""

    answers: ClassVar[dict[str, Callable[[Lifecycle], int]]] = {
        "status": lambda life: life.status,
        "features": lambda life: life.offered,
        "queues": lambda life: len(life.device.queue_sizes),
    }

    def __init__(self, device: VirtioDevice, memory: GuestMemory) -> None:
        self.sent: list[str] = []
        self.lifecycle = Lifecycle(device, memory, self)

    def trigger(self, source: InterruptSource) -> None:
        self.sent.append("configuration" if source is CONFIG else f"used {source}")

    def delegate(self, index: int, progress: Progress | None) -> None: ...

    def reclaim(self, index: int) -> None: ...

    def clear(self) -> None:
        self.sent.clear()

    def ask(self, word: str) -> int:
        return self.answers[word](self.lifecycle)

    def say(self, text: str) -> None:
        word, *numbers = text.split()
        values = [int(number, 0) for number in numbers]
        with self.lifecycle.device.lock:
            match word, values:
                case "status", [value]:
                    self.lifecycle.write_status(value)
                case "feature", [bit]:
                    self.lifecycle.driver_features |= 1 << bit
                case "queue", [index, size, descriptor, driver, device]:
                    if config := self.lifecycle.configurable(index, "all"):
                        config.size, config.descriptor_area = size, descriptor
                        config.driver_area, config.device_area = driver, device
                        self.lifecycle.set_queue_ready(index, ready=True)
                case "kick", [index]:
                    self.lifecycle.kick(index)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(MEMORY) as memory:
        yield memory


def start(mailbox: Mailbox, queue: DriverQueue) -> None:
    mailbox.say("status 3")
    assert mailbox.ask("features") >> Feature.VIRTIO_F_VERSION_1 & 1
    mailbox.say(f"feature {Feature.VIRTIO_F_VERSION_1:d}")
    mailbox.say("status 11")
    areas = queue.areas
    mailbox.say(f"queue 0 {queue.size} {areas.descriptor} {areas.driver} {areas.device}")
    mailbox.say("status 15")
    assert mailbox.ask("status") == 15


@pytest.mark.parametrize("make", [Rng, lambda: Blk(FakeDisk())], ids=["rng", "blk"])
def test_a_device_works_behind_it(memory: GuestMemory, make: Callable[[], VirtioDevice]) -> None:
    mailbox, allocator = Mailbox(make(), memory), Allocator(0x1000, MEMORY)
    queue = DriverQueue(memory, 8, allocator)
    start(mailbox, queue)
    # For blk a request that reads sector 0: header, data, status.
    header, data, status = (Piece(allocator.take(n), n, writable=n != 16) for n in (16, 512, 1))
    memory.write(header.address, bytes(16))
    memory.write(status.address, b"\xee")
    is_blk = isinstance(mailbox.lifecycle.device, Blk)
    queue.add([header, data, status] if is_blk else [data])
    mailbox.say("kick 0")
    assert [used.length for used in queue.take_all_used()] == [513 if is_blk else 512]
    assert mailbox.sent == ["used 0"]
    assert not is_blk or memory.read(status.address, 1) == b"\0"


def test_what_the_device_refuses_is_refused_there_too(memory: GuestMemory) -> None:
    mailbox = Mailbox(Rng(), memory)
    mailbox.say("feature 60")
    mailbox.say("status 11")
    assert mailbox.ask("status") == 3
    mailbox.lifecycle.needs_reset("for the test")
    assert mailbox.ask("status") == 3 | DeviceStatus.DEVICE_NEEDS_RESET
    mailbox.say("status 0")
    assert mailbox.ask("status") == 0
