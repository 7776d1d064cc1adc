"""Virtio over MMIO (4.2): reset (2.4, 4.2.2.1)."""

from collections.abc import Callable

import pytest

from tests.unit.mmio.bench import (
    ACKNOWLEDGE,
    ALL_STEPS,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FAKE_FEATURE,
    OFFERED,
    QUEUE_SIZES,
    Bench,
)
from virtiopy.transport.registers import Register


def _acknowledged(bench: Bench) -> None:
    bench.driver.set_status(ACKNOWLEDGE)


def _driver_found(bench: Bench) -> None:
    bench.driver.set_status(ACKNOWLEDGE, DRIVER)


def _negotiated(bench: Bench) -> None:
    bench.driver.negotiate()


def _queues_ready(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 8)
    bench.driver.set_up_queue(1, 4)


def _up(bench: Bench) -> None:
    bench.driver.start()


def _interrupting(bench: Bench) -> None:
    bench.driver.start()
    assert bench.serves()
    bench.transport.lifecycle.config_changed()


def _failed(bench: Bench) -> None:
    bench.driver.start()
    bench.driver.set_status(FAILED)


def _broken(bench: Bench) -> None:
    bench.driver.start()
    bench.transport.lifecycle.needs_reset("for the test")


STEPS = [
    _acknowledged,
    _driver_found,
    _negotiated,
    _queues_ready,
    _up,
    _interrupting,
    _failed,
    _broken,
]


@pytest.mark.parametrize("step", STEPS)
def test_a_reset_clears_what_the_driver_sees(bench: Bench, step: Callable[[Bench], None]) -> None:
    step(bench)
    bench.driver.reset()
    seen = {name: bench.read(name) for name in (Register.Status, Register.InterruptStatus)}
    assert seen == {Register.Status: 0, Register.InterruptStatus: 0}
    for index in range(2):
        bench.write(Register.QueueSel, index)
        assert bench.read(Register.QueueReady) == 0
    assert not bench.line


@pytest.mark.parametrize("step", STEPS)
def test_a_reset_forgets_the_driver(bench: Bench, step: Callable[[Bench], None]) -> None:
    step(bench)
    bench.take_calls()
    bench.driver.reset()
    assert bench.take_calls() == [("reset",)]
    assert bench.device.queues == {}
    assert bench.transport.lifecycle.driver_features == 0


@pytest.mark.parametrize("step", STEPS)
def test_the_device_works_after_a_reset(bench: Bench, step: Callable[[Bench], None]) -> None:
    step(bench)
    bench.driver.start()
    assert bench.driver.status == ALL_STEPS
    assert bench.serves(0)
    assert bench.serves(1)


def test_a_kick_after_a_reset_touches_no_queue(running: Bench) -> None:
    running.offer()
    queue = running.driver.queues[0]
    running.write(Register.Status, 0)
    running.take_calls()
    running.driver.kick(0)
    assert queue.take_all_used() == []
    assert running.take_calls() == []


def test_a_used_buffer_notification_after_a_reset_goes_nowhere(running: Bench) -> None:
    queue = running.device.queues[0]
    running.driver.reset()
    running.transport.lifecycle.used_buffer_notification(queue)
    assert not running.line


def test_the_queues_of_the_last_driver_are_not_the_next_ones(running: Bench) -> None:
    queue = running.driver.queues[0]
    running.offer()
    running.driver.negotiate()
    running.driver.set_status(DRIVER_OK)
    running.driver.kick(0)
    assert queue.take_all_used() == []


def test_a_reset_gives_selectors_and_features_their_first_values(bench: Bench) -> None:
    for register in (Register.DeviceFeaturesSel, Register.DriverFeaturesSel, Register.QueueSel):
        bench.write(register, 1)
    bench.write(Register.DriverFeatures, 1)
    bench.driver.reset()
    assert bench.read(Register.DeviceFeatures) == OFFERED & 0xFFFF_FFFF
    assert bench.read(Register.QueueSizeMax) == QUEUE_SIZES[0]
    bench.write(Register.DriverFeatures, 1 << FAKE_FEATURE)
    assert bench.transport.lifecycle.driver_features == 1 << FAKE_FEATURE


def test_a_reset_gives_the_queue_size_its_first_value(bench: Bench) -> None:
    bench.write(Register.QueueSize, 0)
    bench.driver.negotiate()
    queue = bench.driver.set_up_queue(0, 8)
    bench.write(Register.QueueReady, 0)
    bench.write(Register.QueueSize, 2)
    bench.driver.negotiate()
    for low, address in (
        (Register.QueueDescLow, queue.areas.descriptor),
        (Register.QueueDriverLow, queue.areas.driver),
        (Register.QueueDeviceLow, queue.areas.device),
    ):
        bench.write(low, address)
    bench.write(Register.QueueReady, 1)
    bench.driver.set_status(DRIVER_OK)
    assert bench.device.queues[0].size == QUEUE_SIZES[0]
