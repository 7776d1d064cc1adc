"""Virtio over MMIO (4.2): kicks, interrupts and shared memory."""

import pytest

from tests.unit.mmio.bench import ALL_STEPS, DRIVER_OK, NEEDS_RESET, Bench
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.driver import Used
from virtiopy.virtqueue.queue import Virtqueue

# Kicks (4.2.3.3) and interrupts (4.2.3.4)


def test_a_kick_reaches_the_queue_that_it_names(running: Bench) -> None:
    running.driver.kick(1)
    running.driver.kick(0)
    assert running.take_calls() == [("handle", 1), ("handle", 0)]


@pytest.mark.parametrize("index", [2, 0xFFFF, 0x1_0000, 0xFFFF_FFFF])
def test_a_kick_of_an_absent_queue_is_ignored(running: Bench, index: int) -> None:
    running.write(Register.QueueNotify, index)
    assert running.take_calls() == []


def test_a_kick_of_a_queue_that_is_not_ready_is_ignored(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(1, 4)
    bench.driver.set_status(DRIVER_OK)
    bench.take_calls()
    bench.driver.kick(0)
    assert bench.take_calls() == []


def test_a_kick_before_driver_ok_consumes_no_buffer(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 4)
    bench.take_calls()
    bench.offer()
    assert bench.driver.collect(0) == []
    assert bench.take_calls() == []


def test_a_buffer_offered_before_driver_ok_is_used_at_the_next_kick(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 4)
    bench.offer()
    bench.driver.kick(0)
    bench.driver.set_status(DRIVER_OK)
    assert bench.driver.collect(0) == [Used(0, 4)]


def test_a_kick_of_a_device_that_needs_a_reset_is_ignored(running: Bench) -> None:
    running.transport.lifecycle.needs_reset("for the test")
    assert not running.serves()
    assert running.take_calls() == []


def test_a_broken_ring_makes_the_device_need_a_reset(running: Bench) -> None:
    queue = running.driver.queues[0]
    queue.available.idx = queue.size + 1
    running.driver.kick(0)
    assert running.driver.status == ALL_STEPS | NEEDS_RESET
    assert running.driver.interrupts() == Interrupt.CONFIG_CHANGE


def test_a_used_buffer_raises_the_line_until_it_is_acknowledged(running: Bench) -> None:
    assert running.serves()
    assert (running.read(Register.InterruptStatus), running.line) == (1, True)
    running.write(Register.InterruptACK, Interrupt.USED_BUFFER)
    assert (running.read(Register.InterruptStatus), running.line) == (0, False)


def test_the_line_stays_up_until_the_last_event_is_acknowledged(running: Bench) -> None:
    assert running.serves()
    running.transport.lifecycle.config_changed()
    assert running.read(Register.InterruptStatus) == 3
    running.write(Register.InterruptACK, Interrupt.USED_BUFFER)
    assert (running.read(Register.InterruptStatus), running.line) == (2, True)
    running.write(Register.InterruptACK, Interrupt.CONFIG_CHANGE)
    assert (running.read(Register.InterruptStatus), running.line) == (0, False)


def test_what_came_since_interrupt_status_was_read_gets_an_edge_of_its_own(
    running: Bench,
) -> None:
    running.transport.lifecycle.used_buffer_notification(running.device.queues[0])
    seen = running.read(Register.InterruptStatus)
    running.transport.lifecycle.config_changed()
    del running.levels[:]
    running.write(Register.InterruptACK, seen)
    assert running.levels == [False, True]
    assert running.read(Register.InterruptStatus) == Interrupt.CONFIG_CHANGE


def test_acknowledging_what_did_not_happen_changes_nothing(running: Bench) -> None:
    assert running.serves()
    running.write(Register.InterruptACK, 0xFFFF_FFFE)
    assert (running.read(Register.InterruptStatus), running.line) == (1, True)


def test_reading_interrupt_status_acknowledges_nothing(running: Bench) -> None:
    assert running.serves()
    running.read(Register.InterruptStatus)
    assert (running.read(Register.InterruptStatus), running.line) == (1, True)


def test_acknowledging_with_the_line_low_leaves_it_alone(running: Bench) -> None:
    running.write(Register.InterruptACK, 3)
    assert running.levels == []


def test_a_buffer_that_comes_before_kicks_are_asked_for_again_needs_none(
    running: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2.7.10: notify() is called for the buffer, and once more before handle() asks for kicks.
    calls: list[Virtqueue] = []

    def notify(queue: Virtqueue) -> None:
        calls.append(queue)
        if len(calls) == 2:
            running.offer()

    monkeypatch.setattr(running.device, "notify", notify)
    running.offer()
    assert [used.length for used in running.driver.collect(0)] == [4, 4]


# Shared memory (4.2.2)


@pytest.mark.parametrize("region", [0, 1, 0xFF, 0xFFFF_FFFF])
def test_there_is_no_shared_memory_region(bench: Bench, region: int) -> None:
    bench.write(Register.SHMSel, region)
    registers = (Register.SHMLenLow, Register.SHMLenHigh, Register.SHMBaseLow, Register.SHMBaseHigh)
    assert {bench.read(register) for register in registers} == {0xFFFF_FFFF}
