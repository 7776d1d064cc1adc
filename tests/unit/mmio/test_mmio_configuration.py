"""Virtio over MMIO (4.2): configuration space (2.5) and ConfigGeneration."""

import pytest

from tests.unit.mmio.bench import CONFIG, Bench
from virtiopy.transport.registers import Interrupt, Register


def test_config_generation_changes_when_the_configuration_does(running: Bench) -> None:
    seen = [running.read(Register.ConfigGeneration)]
    for _ in range(3):
        running.transport.lifecycle.config_changed()
        seen.append(running.read(Register.ConfigGeneration))
    assert len(set(seen)) == 4


def test_config_generation_stays_while_nothing_changes(running: Bench) -> None:
    before = running.read(Register.ConfigGeneration)
    running.driver.read_config(0, 4)
    assert running.serves()
    assert running.read(Register.ConfigGeneration) == before


def test_config_generation_wraps_at_32_bits(bench: Bench) -> None:
    bench.transport.lifecycle.config_generation = 0xFFFF_FFFF
    bench.transport.lifecycle.config_changed()
    assert bench.read(Register.ConfigGeneration) == 0


def test_a_change_of_configuration_interrupts_a_driver_that_is_up(running: Bench) -> None:
    running.transport.lifecycle.config_changed()
    assert running.driver.interrupts() == Interrupt.CONFIG_CHANGE


def test_a_change_of_configuration_does_not_interrupt_a_driver_that_is_not_up(
    bench: Bench,
) -> None:
    bench.driver.negotiate()
    bench.transport.lifecycle.config_changed()
    assert bench.levels == []


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("offset", range(8))
def test_the_configuration_reads_in_8_16_and_32_bits_at_any_byte(
    bench: Bench, offset: int, size: int
) -> None:
    assert bench.transport.read(0x100 + offset, size) == CONFIG[offset : offset + size]


def test_the_configuration_can_be_read_before_features_ok(bench: Bench) -> None:
    assert bench.driver.read_config(0, 8) == int.from_bytes(CONFIG[:8], "little")


def test_a_configuration_read_over_the_end_is_filled_with_zeroes(bench: Bench) -> None:
    assert bench.transport.read(0x100 + 10, 4) == CONFIG[10:] + bytes(2)


@pytest.mark.parametrize("offset", [12, 13, 0x800, 0xEFC])
def test_a_configuration_read_past_the_end_is_zero(bench: Bench, offset: int) -> None:
    assert bench.transport.read(0x100 + offset, 4) == bytes(4)


@pytest.mark.parametrize("size", [3, 8])
def test_the_configuration_reads_as_its_bytes_in_any_other_width(bench: Bench, size: int) -> None:
    assert bench.transport.read(0x100, size) == CONFIG[:size]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_configuration_write_reaches_the_device(bench: Bench, size: int) -> None:
    bench.transport.write(0x104, b"\x77" * size)
    assert bench.take_calls() == [("write_config", 4, b"\x77" * size)]


@pytest.mark.parametrize(("offset", "size"), [(9, 4), (11, 2), (12, 1), (0xEFF, 1)])
def test_a_configuration_write_past_the_end_does_not_reach_the_device(
    bench: Bench, offset: int, size: int
) -> None:
    bench.transport.write(0x100 + offset, bytes(size))
    assert bench.take_calls() == []
