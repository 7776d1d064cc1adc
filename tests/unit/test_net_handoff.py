"""The network device's rings between the device and vhost, of which there is a model here."""

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_control import NoAccelerator
from tests.unit.test_net import HEADER, MAC, MQ, MRG, frame, header
from tests.unit.vhost_model import FEATURES, RX, TX, VhostModel, WireLink
from virtiopy.accel.base import Accelerator
from virtiopy.devices.net import Net, RecordedLink
from virtiopy.devices.net.control import ControlClass, MqCommand, RxCommand
from virtiopy.devices.net.features import NetFeature
from virtiopy.devices.rng import Rng
from virtiopy.errors import ConfigError, HostError
from virtiopy.host.pcap import PcapFile
from virtiopy.machine import IoMode, Machine
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature, feature_mask
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.mmio import Interrupt, MmioTransport, Register
from virtiopy.virtqueue.driver import Allocator, Piece

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
        monkeypatch.setattr("virtiopy.vhost.handoff.VhostNet", self.kernel.open)
        self.memory = GuestMemory.allocate(MEMORY)
        accelerator: Accelerator = NoAccelerator()  # type: ignore[assignment]
        self.machine = Machine(self.memory, accelerator, console=lambda data: None)
        self.device = Net(self.link, mac=MAC, queue_size=queue_size)
        self.slot = self.machine.add_device(self.device, "net0", mode)
        self.transport: MmioTransport = self.slot.transport
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
        notifiers = self.transport.notifiers(queue)
        assert notifiers is not None
        os.eventfd_write(notifiers.kick, 1)

    @property
    def call(self) -> int:
        """The irqfd."""
        notifiers = self.transport.notifiers(RX)
        assert notifiers is not None
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


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(monkeypatch)
    yield rig
    rig.close()


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """In ioeventfd mode, with nothing negotiated yet."""
    rig = Rig(monkeypatch, IOEVENTFD, None)
    yield rig
    rig.close()


@pytest.fixture
def by_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """In ioeventfd mode, its driver up."""
    rig = Rig(monkeypatch, IOEVENTFD)
    yield rig
    rig.close()


# At DRIVER_OK


def test_the_rings_go_to_vhost_at_driver_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, features=None)
    rig.driver.negotiate([])
    for index in range(3):
        rig.driver.set_up_queue(index, 16)
    assert rig.kernel.running == []
    rig.driver.set_status(DeviceStatus.DRIVER_OK)
    assert rig.kernel.running == [(0, RX), (0, TX)]
    assert rig.slot.mode is VHOST
    rig.close()


def test_vhost_moves_the_frames(rig: Rig) -> None:
    rig.supply(2)
    rig.send(3)
    rig.arrive(2)
    rig.run_loop()
    assert rig.received() == []
    assert rig.link.sent[0] == []

    rig.kernel.work()
    assert rig.received() == frames(0, 1)
    assert rig.link.sent[0] == [header() + content for content in frames(0, 1, 2)]
    assert rig.fact("rx_frames") == rig.fact("tx_frames") == 0


def test_vhost_sends_the_interrupts_and_any_may_be_for_used_buffers(rig: Rig) -> None:
    rig.send()
    rig.kernel.work()
    assert os.eventfd_read(rig.call) == 1
    assert rig.driver.interrupts() == Interrupt.USED_BUFFER


def test_the_control_queue_stays_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, features=CTRL_RX)
    assert rig.kernel.running == [(0, RX), (0, TX)]
    assert rig.command(ControlClass.RX, RxCommand.PROMISC, b"\1") == 0
    rig.close()


def test_what_is_offered_is_what_device_and_vhost_have(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = feature_mask([MRG, EVENT_IDX])
    rig = Rig(monkeypatch, features=None, kernel_features=FEATURES & ~lacking)
    by_itself = Rig(monkeypatch, IOEVENTFD, None)
    offered, usual = rig.driver.offered_features(), by_itself.driver.offered_features()
    assert usual & lacking == lacking
    assert offered == usual & ~lacking
    rig.close()
    by_itself.close()


def test_a_device_that_the_driver_never_started_is_not_handed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, features=None)
    rig.driver.negotiate([])
    rig.driver.set_up_queue(RX, 16)
    rig.driver.reset()
    assert rig.kernel.starts == 0
    rig.close()


@pytest.mark.parametrize("ring", [RX, TX])
def test_one_queue_of_a_pair_is_handed_over_and_then_the_other(
    monkeypatch: pytest.MonkeyPatch, ring: int
) -> None:
    rig = Rig(monkeypatch, features=None)
    rig.driver.negotiate([])
    rig.driver.set_up_queue(ring, 16)
    rig.driver.set_status(DeviceStatus.DRIVER_OK)
    assert rig.kernel.running == [(0, ring)]
    rig.driver.set_up_queue(1 - ring, 16)
    assert rig.kernel.running == [(0, RX), (0, TX)]
    assert works(rig)
    rig.close()


# Coming back


def test_a_reset_in_the_middle_of_a_burst_leaves_the_rings_alone(rig: Rig) -> None:
    rig.supply(3)
    rig.send(5)
    rig.kernel.work()
    rig.send(5)
    rig.arrive(2)
    rig.driver.reset()
    assert rig.kernel.running == []
    # All of it is the driver's to use for something else.
    rig.memory.write(0x10000, bytes(MEMORY - 0x10000))
    rig.go()
    assert rig.memory.read(0x10000, MEMORY - 0x10000) == bytes(MEMORY - 0x10000)
    assert len(rig.link.sent[0]) == 5

    rig.driver.start([])
    rig.link.incoming[0].clear()
    assert rig.kernel.running == [(0, RX), (0, TX)]
    assert works(rig)


def test_a_queue_that_is_reset_leaves_the_other_to_vhost(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, features=[RING_RESET])
    rig.supply(4)
    rig.send(2)
    rig.kernel.work()
    rig.driver.write(Register.QueueSel, TX)
    rig.driver.write(Register.QueueReset, 1)
    assert rig.kernel.running == [(0, RX)]
    rig.arrive(2)
    rig.kernel.work()
    assert rig.received() == frames(0, 1)

    rig.driver.set_up_queue(TX, 8)
    assert rig.kernel.running == [(0, RX), (0, TX)]
    assert works(rig)
    rig.close()


def test_a_ring_that_vhost_finds_broken_needs_a_reset_and_says_why(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.send(2)
    rig.lend_broken_chain()
    rig.kernel.work()
    with caplog.at_level(logging.WARNING):
        rig.run_loop()

    assert rig.needs_reset
    assert rig.kernel.running == []
    assert "vhost finds transmitq1 broken: 100 bytes at guest physical" in caplog.text
    assert Interrupt.CONFIG_CHANGE in rig.driver.interrupts()
    # The chains before it were sent, and no more is.
    rig.send()
    rig.go()
    assert len(rig.link.sent[0]) == 2

    rig.driver.reset()
    rig.driver.start([])
    assert rig.kernel.running == [(0, RX), (0, TX)]
    assert works(rig)


def test_an_error_that_is_seen_only_after_a_reset_is_no_longer_one(rig: Rig) -> None:
    rig.lend_broken_chain()
    rig.kernel.work()
    rig.driver.reset()
    rig.driver.start([])
    rig.run_loop()
    assert not rig.needs_reset
    assert works(rig)


def test_an_available_ring_that_cannot_be_is_told_as_such(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.driver.queues[RX].available.idx = 1000
    rig.arrive()
    rig.kernel.work()
    rig.run_loop()
    assert rig.needs_reset
    assert "vhost finds receiveq1 broken: queue 0: available idx 1000" in caplog.text


@pytest.mark.parametrize("moved", [RX, TX])
def test_rings_that_are_moved_outside_memory_need_a_reset(rig: Rig, moved: int) -> None:
    """While the other goes on, and of a device that starts with it."""
    rig.driver.write(Register.QueueSel, moved)
    rig.driver.write(Register.QueueReady, 0)
    assert rig.kernel.running == [(0, 1 - moved)]
    rig.driver.write(Register.QueueDescHigh, 0x100)
    rig.driver.write(Register.QueueReady, 1)
    assert rig.needs_reset
    assert rig.kernel.running == []

    rig.driver.negotiate([])
    for index in range(2):
        rig.driver.set_up_queue(index, 16)
    rig.driver.write(Register.QueueSel, moved)
    rig.driver.write(Register.QueueReady, 0)
    rig.driver.write(Register.QueueDescHigh, 0x100)
    rig.driver.write(Register.QueueReady, 1)
    starts = rig.kernel.starts
    rig.driver.set_status(DeviceStatus.DRIVER_OK)
    assert rig.needs_reset
    assert rig.kernel.starts == starts

    rig.driver.start([])
    assert works(rig)


def test_a_ring_that_moves_is_never_written_where_vhost_has_it(rig: Rig) -> None:
    """The addresses of a queue in use are not the driver's to change (4.2.2.2)."""
    rig.driver.write(Register.QueueSel, TX)
    rig.driver.write(Register.QueueDescHigh, 0x100)
    assert not rig.needs_reset
    assert works(rig)


def test_a_link_that_fails_takes_the_rings_back(by_loop: Rig) -> None:
    rig = by_loop
    rig.supply()
    rig.run_loop()
    rig.link.read_error = OSError("for the test")
    rig.arrive()
    rig.run_loop()
    rig.slot.handoff(VHOST)
    assert rig.kernel.running == []
    assert not rig.needs_reset


# Switching while the driver is up


@pytest.mark.parametrize("features", [(), (EVENT_IDX,), (MRG, EVENT_IDX)])
def test_frames_in_the_rings_wait_for_the_other(
    monkeypatch: pytest.MonkeyPatch, features: Iterable[int]
) -> None:
    rig = Rig(monkeypatch, IOEVENTFD, features)
    rig.supply(8)
    rig.arrive(2)
    rig.run_loop()
    rig.send(2)
    rig.slot.handoff(VHOST)
    assert rig.kernel.running == [(0, RX), (0, TX)]
    rig.arrive(2)
    rig.kernel.work()
    rig.send(2)
    rig.arrive(2)
    rig.slot.handoff(IOEVENTFD)
    assert rig.kernel.running == []
    rig.run_loop()
    assert rig.received() == frames(*range(6))
    assert rig.link.sent[0] == [header() + content for content in frames(*range(4))]
    assert rig.fact("handoffs") == 1
    rig.close()


@pytest.mark.parametrize("mode", ["vhost", "ioeventfd"])
def test_the_mode_may_be_a_word_and_may_be_the_one_it_is_in(rig: Rig, mode: str) -> None:
    rig.slot.handoff(mode)
    assert rig.machine.net[0].mode == mode
    starts = rig.kernel.starts
    rig.slot.handoff(mode)
    assert rig.kernel.starts == starts
    assert works(rig)


def test_frames_that_wait_for_room_in_the_link_are_sent_once(by_loop: Rig) -> None:
    rig = by_loop
    rig.link.room = 2
    rig.send(5)
    rig.run_loop()
    assert len(rig.link.sent[0]) == 2
    rig.slot.handoff(VHOST)
    rig.kernel.work()
    assert rig.link.sent[0] == [header() + content for content in frames(*range(5))]
    assert len(rig.driver.queues[TX].take_all_used()) == 5


def test_a_frame_that_waits_for_buffers_is_delivered_before_the_rings_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, IOEVENTFD, [MRG])
    rig.supply(1, 40)
    rig.run_loop()
    rig.arrive()
    rig.run_loop()
    rig.slot.handoff(VHOST)
    assert rig.slot.mode is VHOST
    assert rig.kernel.running == []

    rig.supply(1, 40)
    rig.run_loop()
    assert rig.kernel.running == [(0, RX), (0, TX)]
    # 40 bytes, of which 12 are the header, and 32 more.
    used = rig.driver.queues[RX].take_all_used()
    assert [one.length for one in used] == [40, 32]
    assert rig.fact("rx_frames") == 1
    rig.buffers.clear()
    assert works(rig)
    rig.close()


def test_chains_behind_which_one_was_rejected_are_used_before_the_rings_go(by_loop: Rig) -> None:
    """They cannot be made available again: the ring would be looked at twice behind them."""
    rig = by_loop
    rig.supply()
    rig.lend_broken_chain(RX)
    rig.supply()
    rig.run_loop()
    assert [used.length for used in rig.driver.queues[RX].take_all_used()] == [0]
    rig.slot.handoff(VHOST)
    assert rig.kernel.running == []
    rig.arrive()
    rig.run_loop()
    assert rig.received() == frames(0)
    assert rig.kernel.running == [(0, RX), (0, TX)]
    assert works(rig)


def test_buffers_that_the_device_had_popped_are_filled_by_vhost_in_their_order(
    by_loop: Rig,
) -> None:
    rig = by_loop
    rig.supply(4)
    rig.run_loop()
    heads = [head for _, head in rig.buffers]
    rig.slot.handoff(VHOST)
    rig.arrive(4)
    rig.kernel.work()
    assert [used.head for used in rig.driver.queues[RX].take_all_used()] == heads


def test_a_last_interrupt_of_vhosts_is_not_lost(rig: Rig) -> None:
    rig.send()
    rig.kernel.work()
    rig.slot.handoff(IOEVENTFD)
    assert os.eventfd_read(rig.call) >= 1
    assert rig.driver.interrupts() == Interrupt.USED_BUFFER
    assert rig.driver.interrupts() == 0


def test_a_mode_is_remembered_until_the_driver_is_up(idle: Rig) -> None:
    rig = idle
    rig.slot.handoff(VHOST)
    assert rig.slot.mode is VHOST
    assert rig.kernel.running == []
    rig.driver.start([])
    assert rig.kernel.running == [(0, RX), (0, TX)]
    assert works(rig)


def test_a_mode_is_forgotten_as_it_was_remembered(idle: Rig) -> None:
    rig = idle
    rig.slot.handoff(VHOST)
    rig.slot.handoff(IOEVENTFD)
    assert rig.kernel.opened == []
    rig.driver.start([])
    assert rig.kernel.starts == 0
    assert works(rig)


def test_a_device_that_needs_a_reset_is_handed_over_after_it(by_loop: Rig) -> None:
    rig = by_loop
    rig.lend_broken_chain(RX)
    rig.driver.queues[RX].available.idx = 1000
    rig.kick(RX)
    rig.run_loop()
    assert rig.needs_reset
    rig.slot.handoff(VHOST)
    assert rig.kernel.running == []
    rig.driver.start([])
    assert rig.kernel.running == [(0, RX), (0, TX)]
    assert works(rig)


def test_a_link_that_is_down_keeps_nobody_from_switching(by_loop: Rig) -> None:
    rig = by_loop
    rig.link.set_up(False)
    rig.run_loop()
    assert rig.fact("link") == "down"
    rig.slot.handoff(VHOST)
    assert rig.kernel.running == [(0, RX), (0, TX)]
    rig.link.set_up(True)
    rig.run_loop()
    assert rig.fact("link") == "up"
    assert works(rig)
    rig.link.set_up(False)
    rig.run_loop()
    rig.slot.handoff(IOEVENTFD)
    rig.link.set_up(True)
    rig.run_loop()
    assert works(rig)


# Several pairs


def set_pairs(rig: Rig, count: int) -> None:
    command = MqCommand.VQ_PAIRS_SET
    assert rig.command(ControlClass.MQ, command, count.to_bytes(2, "little")) == 0


def test_each_pair_in_use_is_handed_over_with_its_queue_of_the_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, features=MQ, pairs=3)
    assert rig.kernel.running == [(0, RX), (0, TX)]
    set_pairs(rig, 3)
    assert rig.kernel.running == [(pair, ring) for pair in range(3) for ring in (RX, TX)]
    for pair in range(3):
        rig.supply(queue=2 * pair)
        rig.arrive(pair=pair)
        rig.send(queue=2 * pair + 1)
    rig.kernel.work()
    assert [rig.received(2 * pair) for pair in range(3)] == [frames(0), frames(1), frames(2)]
    assert [len(sent) for sent in rig.link.sent] == [1, 1, 1]

    set_pairs(rig, 1)
    assert rig.kernel.running == [(0, RX), (0, TX)]
    # What is sent from a pair that is not in use is dropped (5.1.9.5.6.1).
    rig.send(queue=3)
    rig.go()
    assert [len(sent) for sent in rig.link.sent] == [1, 1, 1]
    assert rig.fact("tx_dropped_disabled_queue") == 1
    rig.close()


def test_all_pairs_switch_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, IOEVENTFD, MQ, pairs=2)
    set_pairs(rig, 2)
    rig.slot.handoff(VHOST)
    assert rig.kernel.running == [(0, RX), (0, TX), (1, RX), (1, TX)]
    rig.slot.handoff(IOEVENTFD)
    assert not rig.kernel.running
    assert not rig.kernel.opened
    rig.close()


def test_a_ring_that_breaks_brings_all_pairs_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, features=MQ, pairs=2)
    set_pairs(rig, 2)
    rig.lend_broken_chain(3)
    rig.go()
    assert rig.needs_reset
    assert rig.kernel.running == []
    rig.close()


# Refusals


def test_what_vhost_refuses_stays_where_it_is_and_says_why(by_loop: Rig) -> None:
    rig = by_loop
    rig.supply(3)
    rig.run_loop()
    rig.kernel.open()
    rig.kernel.refusal = HostError("For the test: make it work.")
    with pytest.raises(HostError, match=r"^net0 stays in ioeventfd mode: For the test: make"):
        rig.slot.handoff(VHOST)
    assert rig.slot.mode is IOEVENTFD
    assert len(rig.kernel.opened) == 1
    assert works(rig)
    rig.kernel.refusal = None
    rig.slot.handoff(VHOST)
    assert works(rig)


def test_a_missing_vhost_is_told_at_once(idle: Rig) -> None:
    idle.kernel.refusal = HostError("There is none: load it.")
    with pytest.raises(HostError, match="net0 stays in ioeventfd mode: There is none"):
        idle.slot.handoff(VHOST)
    assert idle.slot.mode is IOEVENTFD


def test_features_that_vhost_lacks_keep_a_driver_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without = FEATURES & ~feature_mask([EVENT_IDX])
    rig = Rig(monkeypatch, IOEVENTFD, [EVENT_IDX], kernel_features=without)
    with pytest.raises(HostError, match="lacks features"):
        rig.slot.handoff(VHOST)
    assert works(rig)
    rig.close()


def test_what_is_refused_at_driver_ok_is_worked_by_the_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(monkeypatch, features=None)
    rig.kernel.refusal = HostError("For the test: make it work.")
    rig.driver.start([])
    assert rig.slot.mode is IOEVENTFD
    assert rig.fact("handoff_refused") == "For the test: make it work."
    assert "For the test" in caplog.text
    assert works(rig)

    rig.kernel.refusal = None
    rig.driver.reset()
    rig.driver.start([])
    assert rig.slot.mode is VHOST
    assert rig.kernel.running == [(0, RX), (0, TX)]
    rig.close()


def test_a_refused_mode_can_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, features=None)
    rig.kernel.refusal = HostError("For the test: make it work.")
    rig.driver.start([])
    rig.kernel.refusal = None
    rig.slot.handoff(VHOST)
    assert rig.slot.mode is VHOST
    assert rig.kernel.running == [(0, RX), (0, TX)]
    rig.close()


def test_who_asks_for_what_a_refusal_led_to_gets_it_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, features=None)
    rig.kernel.refusal = HostError("For the test: make it work.")
    rig.driver.start([])
    rig.slot.handoff(IOEVENTFD)
    rig.kernel.refusal = None
    rig.driver.reset()
    rig.driver.start([])
    assert rig.slot.mode is IOEVENTFD
    assert rig.kernel.starts == 0
    rig.close()


@pytest.mark.parametrize("mode", ["trapped", "vhost"])
def test_trapped_mode_is_for_a_whole_life(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    rig = Rig(monkeypatch, IoMode.TRAPPED if mode == "vhost" else VHOST)
    with pytest.raises(ConfigError, match=f"start it with mode={mode}"):
        rig.slot.handoff(mode)
    rig.close()


def test_there_are_no_other_modes(rig: Rig) -> None:
    with pytest.raises(ConfigError, match="trapped, ioeventfd, vhost"):
        rig.slot.handoff("vdpa")


def test_a_device_of_another_kind_stays_where_it_is(rig: Rig) -> None:
    slot = rig.machine.add_device(Rng(), "rng0", IOEVENTFD)
    with pytest.raises(ConfigError, match="rng0 stays in ioeventfd mode: Nobody else can work"):
        slot.handoff(VHOST)
    with pytest.raises(ConfigError, match="Nobody else can work"):
        rig.machine.add_device(Rng(), "rng1", VHOST)
    assert [found.name for found in rig.machine.net] == ["net0"]


def test_a_link_whose_frames_are_recorded_keeps_them(rig: Rig, tmp_path: Path) -> None:
    record = PcapFile(tmp_path / "net.pcap", "t0")
    device = Net(RecordedLink(WireLink(), record), mac=MAC)
    slot = rig.machine.add_device(device, "net1", IOEVENTFD)
    with pytest.raises(ConfigError, match="cannot be recorded here"):
        slot.handoff(VHOST)


def test_a_link_with_longer_frames_than_the_device_keeps_them(by_loop: Rig) -> None:
    by_loop.link.longest = 9000
    with pytest.raises(ConfigError, match="MTU"):
        by_loop.slot.handoff(VHOST)
    assert works(by_loop)


def test_a_mode_that_is_not_required_falls_back_and_says_so(rig: Rig) -> None:
    said: list[str] = []
    rig.slot.handoff(IOEVENTFD)
    rig.kernel.refusal = HostError("There is none: load it.")
    device = Net(WireLink(), mac=MAC)
    slot = rig.machine.add_device(device, "net1", VHOST, refused=said.append)
    assert said == ["net1 is in ioeventfd mode: There is none: load it."]
    assert slot.mode is IOEVENTFD


# Ends


def test_nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    rig = Rig(monkeypatch)
    for mode in (IOEVENTFD, VHOST, IOEVENTFD, VHOST):
        rig.slot.handoff(mode)
    assert works(rig)
    rig.close()
    assert rig.kernel.opened == []
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_refusal_leaves_nothing_open(by_loop: Rig) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    by_loop.kernel.open()
    by_loop.kernel.refusal = HostError("For the test: make it work.")
    with pytest.raises(HostError):
        by_loop.slot.handoff(VHOST)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_switches_while_the_driver_resets_the_device_end_as_asked(by_loop: Rig) -> None:
    """Three threads: the loop's, the CPU's, and the user's."""
    rig = by_loop
    errors: list[BaseException] = []
    done = threading.Event()

    def switch() -> None:
        try:
            while not done.is_set():
                rig.slot.handoff(VHOST)
                rig.slot.handoff(IOEVENTFD)
            rig.slot.handoff(VHOST)
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    rig.machine.loop.start()
    switcher = threading.Thread(target=switch)
    switcher.start()
    for _ in range(100):
        rig.driver.start([])
        rig.supply(2)
        rig.send(2)
        rig.driver.reset()
        rig.driver.allocator = Allocator(0x10000, MEMORY)
    done.set()
    switcher.join()
    rig.machine.loop.stop()
    assert errors == []
    assert rig.machine.loop.failure is None
    rig.driver.start([])
    assert rig.slot.mode is VHOST
    assert rig.kernel.running == [(0, RX), (0, TX)]
    rig.link.incoming[0].clear()
    rig.buffers.clear()
    assert works(rig)


STEPS = ["send", "arrive", "supply", "loop", "vhost", "switch", "loop", "vhost", "switch"]


@given(
    steps=st.lists(st.sampled_from(STEPS), max_size=40),
    features=st.sampled_from([(), (EVENT_IDX,), (MRG,), (MRG, EVENT_IDX)]),
    room=st.integers(0, 20),
)
def test_whatever_the_order_of_things_no_frame_is_lost_repeated_or_reordered(
    steps: list[str], features: tuple[int, ...], room: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        rig = Rig(monkeypatch, IOEVENTFD, features, queue_size=64)
        rig.link.room = room
        received: list[bytes] = []
        for step in [*steps, "end"]:
            if step == "send":
                rig.send()
            elif step == "arrive":
                rig.arrive()
            elif step == "supply":
                rig.supply(1, 2048)
            elif step == "loop":
                rig.run_loop()
            elif step == "vhost":
                rig.kernel.work()
            elif step == "switch":
                rig.slot.handoff(IOEVENTFD if rig.slot.mode is VHOST else VHOST)
            received += rig.received()
        rig.link.room = 1 << 30
        missing = rig.arrived - len(received) - len(rig.buffers)
        rig.supply(max(0, missing))
        rig.go()
        rig.go()
        received += rig.received()
        assert received == frames(*range(rig.arrived))
        assert rig.link.sent[0] == [header() + sent for sent in frames(*range(rig.sent))]
        assert len(rig.driver.queues[TX].take_all_used()) == rig.sent
        assert not rig.needs_reset
        rig.close()
