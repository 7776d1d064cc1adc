"""The network device's rings between the device and vhost, of which there is a model here."""

import logging
import os
from collections.abc import Iterator

import pytest

from tests.patience import PATIENCE
from tests.unit.net.rig import MAC, MQ, MRG, header
from tests.unit.test_notifiers import SeenLock
from tests.unit.vhost_model import FEATURES, RX, TX, WireLink
from tests.unit.vhost_rig import (
    CTRL_RX,
    EVENT_IDX,
    IOEVENTFD,
    MEMORY,
    RING_RESET,
    VHOST,
    Rig,
    frames,
    works,
)
from virtiopy.devices.net import Net
from virtiopy.devices.net.control import ControlClass, MqCommand, RxCommand
from virtiopy.spec import DeviceStatus, feature_mask
from virtiopy.transport.registers import Interrupt, Register


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(monkeypatch)
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


def test_each_ring_polls_as_long_as_the_device_says(rig: Rig) -> None:
    device = Net(WireLink(pairs=2), mac=MAC, busy_poll=50)
    rig.machine.add_device(device, "net1", VHOST)
    assert [vhost.busy_poll for vhost in rig.kernel.opened] == [{}, *[{RX: 50, TX: 50}] * 2]


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


def test_an_error_that_is_seen_while_the_rings_come_back_is_none(rig: Rig) -> None:
    """The loop waits for the device's lock with it, and then the eventfds are closed."""
    lock = SeenLock()
    rig.device.lock = lock  # type: ignore[assignment]
    rig.lend_broken_chain()
    rig.kernel.work()
    with lock:
        lock.wanted.clear()
        rig.machine.loop.start()
        assert lock.wanted.wait(PATIENCE)
        rig.device.reclaim()
    rig.machine.loop.stop()
    assert rig.machine.loop.failure is None
    assert not rig.needs_reset


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
    rig.slot.change_mode(VHOST)
    assert rig.kernel.running == []
    assert not rig.needs_reset


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
    rig.slot.change_mode(VHOST)
    assert rig.kernel.running == [(0, RX), (0, TX), (1, RX), (1, TX)]
    rig.slot.change_mode(IOEVENTFD)
    assert not rig.kernel.running
    assert not rig.kernel.opened
    rig.close()


def test_frames_of_a_queue_being_reset_wait_in_the_link_while_vhost_has_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, IOEVENTFD, (*MQ, RING_RESET), pairs=2)
    set_pairs(rig, 2)
    rig.supply(queue=2)
    rig.run_loop()
    rig.driver.write(Register.QueueSel, RX)
    rig.driver.write(Register.QueueReset, 1)
    first, second = rig.device.pairs
    assert first.taker is second
    rig.slot.change_mode(VHOST)
    # Else the loop would find it readable for ever, with nobody to take it.
    assert first.watch is not None
    assert not first.watch.events
    rig.slot.change_mode(IOEVENTFD)
    assert first.taker is second
    rig.close()


def test_a_ring_that_breaks_brings_all_pairs_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, features=MQ, pairs=2)
    set_pairs(rig, 2)
    rig.lend_broken_chain(3)
    rig.go()
    assert rig.needs_reset
    assert rig.kernel.running == []
    rig.close()
