"""A machine with a network device, its driver in this process, and the model of vhost-net."""

import os
from collections.abc import Iterable

import pytest

from tests.unit.net.rig import HEADER, MAC, frame, header
from tests.unit.test_control import NoAccelerator
from tests.unit.vhost_model import FEATURES, RX, TX, VhostModel, WireLink
from virtiopy.accel.base import Accelerator
from virtiopy.devices.net import Net
from virtiopy.devices.net.features import NetFeature
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature
from virtiopy.transport.driver import MmioDriver
from virtiopy.virtqueue.driver import Allocator, Piece
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode

MEMORY = 16 << 20
NEEDS_RESET = DeviceStatus.DEVICE_NEEDS_RESET
EVENT_IDX, RING_RESET = Feature.VIRTIO_F_EVENT_IDX, Feature.VIRTIO_F_RING_RESET
CTRL_RX = (NetFeature.VIRTIO_NET_F_CTRL_VQ, NetFeature.VIRTIO_NET_F_CTRL_RX)
VHOST, IOEVENTFD = IoMode.VHOST, IoMode.IOEVENTFD


class Rig:
    """A machine with a network device, the driver's side of it, and vhost's model.

    The loop runs when a test says so, and vhost works when a test says so.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        mode: IoMode = VHOST,
        features: Iterable[int] | None = (),
        *,
        pairs: int = 1,
        kernel_features: int = FEATURES,
        queue_size: int = 16,
    ) -> None:
        self.link = WireLink(pairs)
        self.kernel = VhostModel(self.link)
        self.kernel.features = kernel_features
        monkeypatch.setattr("virtiopy.vhost.kernel.pair.VhostNet", self.kernel.open)
        self.memory = GuestMemory.allocate(MEMORY)
        accelerator: Accelerator = NoAccelerator()  # type: ignore[assignment]
        self.machine = Machine(self.memory, accelerator, console=lambda data: None)
        self.device = Net(self.link, mac=MAC, queue_size=queue_size)
        self.slot = self.machine.add_device(self.device, "net0", mode)
        self.transport = self.slot.transport
        self.driver = MmioDriver(self.transport, self.memory, Allocator(0x10000, MEMORY))
        self.sent = 0
        self.arrived = 0
        #: Where each receive buffer is, by its queue and head.
        self.buffers: dict[tuple[int, int], int] = {}
        if features is not None:
            self.driver.start(features)

    def close(self) -> None:
        self.machine.close()
        self.memory.close()

    def run_loop(self) -> None:
        """Do what the loop has to do, until there is nothing left that a kick asks for."""
        for _ in range(3):
            self.machine.loop.call_soon(self.machine.loop.stop, "stop")
            self.machine.loop.start()
            self.machine.loop.stop()
            assert self.machine.loop.failure is None

    def go(self) -> None:
        """Let both sides do what they have to do."""
        self.kernel.work()
        self.run_loop()

    def kick(self, queue: int) -> None:
        notifiers = self.transport.lifecycle.notifiers(queue)
        assert notifiers is not None
        os.eventfd_write(notifiers.kick, 1)

    @property
    def call(self) -> int:
        """The irqfd."""
        notifiers = self.transport.lifecycle.notifiers(RX)
        assert notifiers is not None
        assert notifiers.call is not None
        return notifiers.call

    # Frames that say their number

    def send(self, count: int = 1, *, queue: int = TX) -> None:
        for _ in range(count):
            data = header() + frame(seed=self.sent)
            address = self.driver.allocator.take(len(data))
            self.memory.write(address, data)
            self.driver.queues[queue].add([Piece(address, len(data))])
            self.sent += 1
        self.kick(queue)

    def arrive(self, count: int = 1, *, pair: int = 0) -> None:
        self.link.arrive(*(frame(seed=self.arrived + number) for number in range(count)), pair=pair)
        self.arrived += count

    def supply(self, count: int = 1, size: int = 2048, *, queue: int = RX) -> None:
        for _ in range(count):
            address = self.driver.allocator.take(size)
            head = self.driver.queues[queue].add([Piece(address, size, writable=True)])
            self.buffers[queue, head] = address
        self.kick(queue)

    def received(self, queue: int = RX) -> list[bytes]:
        """The frames that the driver was given, without their headers."""
        used = self.driver.queues[queue].take_all_used()
        return [
            self.memory.read(self.buffers.pop((queue, one.head)), one.length)[HEADER:]
            for one in used
        ]

    def lend_broken_chain(self, queue: int = TX) -> None:
        """Make a chain available whose descriptor is nowhere."""
        ring = self.driver.queues[queue]
        head = ring.place([Piece(0x1000, 100)])
        ring.write_descriptor(head, 1 << 40, 100, 0, 0)
        ring.make_available(head)
        self.kick(queue)

    def command(self, class_: int, command: int, data: bytes) -> int:
        queue = max(self.driver.queues)
        address = self.driver.allocator.take(2 + len(data) + 1)
        self.memory.write(address, bytes([class_, command]) + data + b"\xee")
        self.driver.queues[queue].add(
            [Piece(address, 2 + len(data)), Piece(address + 2 + len(data), 1, writable=True)]
        )
        self.kick(queue)
        self.run_loop()
        assert len(self.driver.queues[queue].take_all_used()) == 1
        return self.memory.read(address + 2 + len(data), 1)[0]

    def fact(self, name: str) -> object:
        return self.device.facts()[name]

    @property
    def needs_reset(self) -> bool:
        return bool(self.driver.status & NEEDS_RESET)


def frames(*numbers: int) -> list[bytes]:
    return [frame(seed=number) for number in numbers]


def works(rig: Rig) -> bool:
    """Say whether a frame each way gets through now, whoever moves it."""
    before = len(rig.link.sent[0])
    number = rig.arrived
    rig.supply()
    rig.send()
    rig.arrive()
    rig.go()
    rig.driver.queues[TX].take_all_used()
    return rig.received() == frames(number) and len(rig.link.sent[0]) == before + 1
