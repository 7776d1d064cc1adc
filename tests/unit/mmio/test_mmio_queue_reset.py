"""Virtio over MMIO (4.2): queues are stopped and reset (4.2.2, 2.6.1)."""

import pytest

from tests.unit.mmio.bench import DRIVER_OK, QUEUE_SIZES, RING_RESET, VERSION_1, Bench
from virtiopy.spec import feature_mask
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.queue import QueueState


def test_queue_ready_0_stops_the_queue(running: Bench) -> None:
    running.write(Register.QueueSel, 0)
    running.write(Register.QueueReady, 0)
    assert running.read(Register.QueueReady) == 0
    assert running.take_calls() == [("stop_queue", 0)]
    assert not running.serves(0)
    assert running.serves(1)


def test_a_stopped_queue_can_be_set_up_again(running: Bench) -> None:
    running.write(Register.QueueSel, 0)
    running.write(Register.QueueReady, 0)
    running.driver.set_up_queue(0, 2)
    assert running.serves()


def test_writing_1_to_queue_ready_twice_starts_the_queue_once(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_status(DRIVER_OK)
    bench.driver.set_up_queue(0, 4)
    assert bench.serves()
    bench.take_calls()
    bench.write(Register.QueueReady, 1)
    assert bench.take_calls() == []
    assert bench.serves()


def test_a_queue_stopped_before_driver_ok_is_not_started_by_it(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 4)
    bench.write(Register.QueueReady, 0)
    bench.driver.set_status(DRIVER_OK)
    assert bench.take_calls()[-1] == ("activate",)


def test_queue_reset_stops_the_selected_queue_alone(running: Bench) -> None:
    running.write(Register.QueueSel, 0)
    running.write(Register.QueueReset, 1)
    assert (running.read(Register.QueueReset), running.read(Register.QueueReady)) == (0, 0)
    assert running.take_calls() == [("stop_queue", 0)]
    assert not running.serves(0)
    assert running.serves(1)


def test_a_queue_that_was_reset_starts_anew_with_other_parameters(running: Bench) -> None:
    assert running.serves()
    running.write(Register.QueueSel, 0)
    running.write(Register.QueueReset, 1)
    running.driver.set_up_queue(0, 2)
    queue = running.device.queues[0]
    assert (queue.size, queue.state) == (2, QueueState())
    assert [running.serves() for _ in range(3)] == [True] * 3


def test_queue_reset_gives_the_queue_size_its_first_value(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.write(Register.QueueSize, 2)
    bench.write(Register.QueueReset, 1)
    queue = bench.transport.lifecycle.queue_config(0)
    assert queue is not None
    assert queue.size == QUEUE_SIZES[0]


def test_queue_reset_is_ignored_unless_it_was_negotiated(bench: Bench) -> None:
    bench.driver.start([])
    bench.take_calls()
    bench.write(Register.QueueSel, 0)
    bench.write(Register.QueueReset, 1)
    assert bench.read(Register.QueueReady) == 1
    assert bench.take_calls() == []
    assert bench.serves()


def test_queue_reset_is_ignored_before_it_is_negotiated(bench: Bench) -> None:
    bench.driver.write_features(feature_mask([VERSION_1, RING_RESET]))
    bench.driver.set_up_queue(0, 4)
    bench.write(Register.QueueReset, 1)
    assert bench.read(Register.QueueReady) == 1


@pytest.mark.parametrize("value", [0, 2, 0xFFFF_FFFF])
def test_only_1_resets_a_queue(running: Bench, value: int) -> None:
    running.write(Register.QueueSel, 0)
    running.write(Register.QueueReset, value)
    assert running.serves()


def test_queue_reset_does_not_mend_a_device_that_needs_a_reset(running: Bench) -> None:
    running.transport.lifecycle.needs_reset("for the test")
    running.write(Register.QueueSel, 0)
    running.write(Register.QueueReset, 1)
    running.driver.set_up_queue(0, 4)
    assert not running.serves()
