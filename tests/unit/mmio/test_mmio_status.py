"""Virtio over MMIO (4.2): feature bits (2.2) and the status field (2.1)."""

import pytest

from tests.unit.mmio.bench import (
    ACKNOWLEDGE,
    ALL_STEPS,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FAKE_FEATURE,
    FEATURES_OK,
    NEEDS_RESET,
    OFFERED,
    VERSION_1,
    Bench,
)
from virtiopy.spec import DeviceStatus, feature_mask
from virtiopy.transport.driver import NegotiationError
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.split import SplitQueue

# Feature bits (2.2)


@pytest.mark.parametrize("word", [0, 1])
def test_device_features_sel_selects_32_bits_of_the_offer(bench: Bench, word: int) -> None:
    bench.write(Register.DeviceFeaturesSel, word)
    assert bench.read(Register.DeviceFeatures) == OFFERED >> 32 * word & 0xFFFF_FFFF


@pytest.mark.parametrize("word", [2, 3, 31, 0x8000_0000, 0xFFFF_FFFF])
def test_no_feature_beyond_bit_63_is_offered(bench: Bench, word: int) -> None:
    bench.write(Register.DeviceFeaturesSel, word)
    assert bench.read(Register.DeviceFeatures) == 0


def test_the_device_is_told_what_was_negotiated(bench: Bench) -> None:
    bench.driver.negotiate([FAKE_FEATURE])
    assert bench.take_calls()[-1] == ("negotiated", feature_mask([FAKE_FEATURE, VERSION_1]))


def test_a_word_of_driver_features_written_twice_holds_the_second_value(bench: Bench) -> None:
    bench.driver.write_features(OFFERED)
    bench.driver.write_features(1 << VERSION_1)
    bench.driver.set_status(FEATURES_OK)
    assert bench.device.driver_features == 1 << VERSION_1


@pytest.mark.parametrize("bit", [0, 31, 33, 34, 41, 63])
def test_a_feature_that_is_not_offered_is_refused(bench: Bench, bit: int) -> None:
    with pytest.raises(NegotiationError):
        bench.driver.negotiate([bit])


def test_features_without_version_1_are_refused(bench: Bench) -> None:
    bench.driver.set_status(ACKNOWLEDGE, DRIVER)
    bench.driver.write_features(1 << FAKE_FEATURE)
    bench.driver.set_status(FEATURES_OK)
    assert bench.driver.status == ACKNOWLEDGE | DRIVER


@pytest.mark.parametrize("word", [2, 3, 4, 31, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
def test_a_feature_beyond_bit_63_is_refused(bench: Bench, word: int) -> None:
    bench.driver.write_features(1 << VERSION_1)
    bench.write(Register.DriverFeaturesSel, word)
    bench.write(Register.DriverFeatures, 1)
    bench.driver.set_status(FEATURES_OK)
    assert bench.driver.status == 0


def test_a_feature_beyond_bit_63_is_not_forgotten_when_another_word_is_written(
    bench: Bench,
) -> None:
    bench.driver.write_features(1 << VERSION_1)
    for word, value in ((5, 1), (7, 0)):
        bench.write(Register.DriverFeaturesSel, word)
        bench.write(Register.DriverFeatures, value)
    bench.driver.set_status(FEATURES_OK)
    assert bench.driver.status == 0


@pytest.mark.parametrize("word", [2, 3, 0xFFFF_FFFF])
def test_writing_zero_beyond_bit_63_asks_for_nothing(bench: Bench, word: int) -> None:
    bench.driver.write_features(OFFERED)
    bench.write(Register.DriverFeaturesSel, word)
    bench.write(Register.DriverFeatures, 0)
    bench.driver.set_status(FEATURES_OK)
    assert bench.device.driver_features == OFFERED


def test_what_the_device_does_not_accept_is_refused(bench: Bench) -> None:
    bench.device.willing = False
    with pytest.raises(NegotiationError):
        bench.driver.negotiate()


def test_a_refused_driver_is_not_announced_to_the_device(bench: Bench) -> None:
    bench.device.willing = False
    with pytest.raises(NegotiationError):
        bench.driver.negotiate()
    assert "negotiated" not in [name for name, *_ in bench.take_calls()]


def test_a_driver_that_was_refused_may_ask_for_less(bench: Bench) -> None:
    with pytest.raises(NegotiationError):
        bench.driver.negotiate([0])
    bench.driver.write_features(1 << VERSION_1)
    bench.driver.set_status(FEATURES_OK)
    assert bench.driver.status == ACKNOWLEDGE | DRIVER | FEATURES_OK


def test_driver_features_are_fixed_once_features_ok_is_set(bench: Bench) -> None:
    bench.driver.negotiate([])
    bench.driver.write_features(OFFERED)
    bench.write(Register.Status, ALL_STEPS)
    assert (
        bench.transport.lifecycle.driver_features == bench.device.driver_features == 1 << VERSION_1
    )


def test_all_that_is_offered_is_accepted(bench: Bench) -> None:
    assert bench.driver.negotiate() == OFFERED


def test_the_same_features_are_accepted_again_after_a_reset(bench: Bench) -> None:
    bench.driver.negotiate()
    assert bench.driver.negotiate() == OFFERED


# The device status field (2.1, 3.1.1)


def test_the_status_shows_each_step_of_initialization(bench: Bench) -> None:
    seen = [bench.driver.status]
    for step in (ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK):
        if step == FEATURES_OK:
            bench.driver.write_features(1 << VERSION_1)
        bench.driver.set_status(step)
        seen.append(bench.driver.status)
    assert seen == [0, 1, 3, 11, 15]


def test_the_device_hears_of_each_step_once(bench: Bench) -> None:
    bench.driver.start([])
    bench.write(Register.Status, ALL_STEPS)
    assert bench.take_calls() == [("reset",), ("negotiated", 1 << VERSION_1), ("activate", 0, 1)]


def test_features_ok_and_driver_ok_may_come_in_one_write(bench: Bench) -> None:
    bench.driver.write_features(1 << VERSION_1)
    bench.write(Register.Status, ALL_STEPS)
    assert bench.driver.status == ALL_STEPS


def test_driver_ok_without_features_ok_is_ignored(bench: Bench) -> None:
    bench.write(Register.Status, ACKNOWLEDGE | DRIVER | DRIVER_OK)
    assert bench.driver.status == ACKNOWLEDGE | DRIVER
    assert bench.take_calls() == []


def test_driver_ok_beside_a_refused_features_ok_is_ignored(bench: Bench) -> None:
    bench.write(Register.Status, ALL_STEPS)
    assert bench.driver.status == ACKNOWLEDGE | DRIVER
    assert bench.take_calls() == []


@pytest.mark.parametrize("kept", [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK])
def test_the_driver_cannot_clear_a_status_bit(running: Bench, kept: DeviceStatus) -> None:
    running.write(Register.Status, kept)
    assert running.driver.status == ALL_STEPS


def test_the_driver_can_set_failed(running: Bench) -> None:
    running.driver.set_status(FAILED)
    assert running.driver.status == ALL_STEPS | FAILED


@pytest.mark.parametrize("bits", [16, 32, NEEDS_RESET, 0x100, 0xFFFF_FF00])
def test_the_driver_cannot_set_other_bits(running: Bench, bits: int) -> None:
    running.write(Register.Status, running.driver.status | bits)
    assert running.driver.status == ALL_STEPS


def test_only_zero_resets_not_a_write_whose_low_byte_is_zero(running: Bench) -> None:
    running.write(Register.Status, 0x100)
    assert running.driver.status == ALL_STEPS


def test_the_driver_cannot_clear_device_needs_reset(running: Bench) -> None:
    running.transport.lifecycle.needs_reset("for the test")
    running.write(Register.Status, ALL_STEPS)
    assert running.driver.status == ALL_STEPS | NEEDS_RESET


def test_a_running_driver_is_interrupted_when_the_device_needs_a_reset(running: Bench) -> None:
    running.transport.lifecycle.needs_reset("for the test")
    assert running.read(Register.InterruptStatus) == Interrupt.CONFIG_CHANGE
    assert running.line


def test_a_driver_that_is_not_up_is_not_interrupted_when_the_device_needs_a_reset(
    bench: Bench,
) -> None:
    bench.driver.negotiate()
    bench.transport.lifecycle.needs_reset("for the test")
    assert bench.driver.status & NEEDS_RESET
    assert bench.levels == []


def test_a_device_that_needs_a_reset_before_driver_ok_does_not_run_after_it(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 4)
    bench.transport.lifecycle.needs_reset("for the test")
    bench.driver.set_status(DRIVER_OK)
    assert not bench.serves()


def test_no_used_buffer_notification_leaves_before_driver_ok(bench: Bench) -> None:
    bench.driver.negotiate()
    queue = bench.driver.set_up_queue(0, 4)
    bench.transport.lifecycle.used_buffer_notification(SplitQueue(bench.memory, 4, queue.areas))
    assert bench.read(Register.InterruptStatus) == 0
    assert bench.levels == []
