"""The entropy guest in a VM."""

from pathlib import Path

import pytest

from tests.guest.accelerators import each_accelerator, needs_unicorn
from tests.guest.support import (
    assert_one_sentence,
    needs_kvm,
    needs_qemu,
    run_guest,
    run_in_qemu,
    virtiopy,
)


@each_accelerator
@pytest.mark.parametrize("mode", ["trapped", "ioeventfd"])
def test_the_rng_guest_passes(tmp_path: Path, mode: str, name: str) -> None:
    outcome = run_guest(tmp_path, "rng", "--rng", "--mode", mode, "--accel", name)

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 40


@needs_qemu
@needs_kvm
def test_the_same_rng_guest_passes_on_a_device_of_qemus() -> None:
    run_in_qemu("rng", "-device", "virtio-rng-device")


@needs_kvm
def test_a_kick_is_an_exit_in_trapped_mode_alone(tmp_path: Path) -> None:
    trapped = run_guest(tmp_path, "rng", "--rng", "mode=trapped")
    ioeventfd = run_guest(tmp_path, "rng", "--rng", "mode=ioeventfd")

    assert trapped.exits("rng0", "QueueNotify") > 40
    assert ioeventfd.exits("rng0", "QueueNotify") == 0


@needs_kvm
def test_two_entropy_devices_are_driven_each_in_its_mode(tmp_path: Path) -> None:
    outcome = run_guest(tmp_path, "rng", "--rng", "--rng", "mode=trapped")

    assert outcome.status == 0, outcome.failures()
    assert {t["description"][:4] for t in outcome.report["tests"]} == {"rng0", "rng1"}
    assert outcome.exits("rng0", "QueueNotify") == 0
    assert outcome.exits("rng1", "QueueNotify") > 40


@needs_kvm
def test_a_value_that_means_nothing_to_the_option_ends_in_a_sentence() -> None:
    assert_one_sentence(virtiopy("run", "--rng", "/dev/hwrng"), "--rng", "/dev/hwrng", "mode")


@pytest.mark.parametrize(
    ("name", "devices"),
    [pytest.param("tcg", 32, marks=needs_unicorn), pytest.param("kvm", 10, marks=needs_kvm)],
)
def test_more_devices_than_interrupt_lines_are_all_driven(
    tmp_path: Path, name: str, devices: int
) -> None:
    modes = [f"mode={mode}" for mode in ("ioeventfd", "ioeventfd", "trapped")]
    options = [word for n in range(devices) for word in ("--rng", modes[n % len(modes)])]
    outcome = run_guest(tmp_path, "rng", *options, "--accel", name, "--timeout", "90")

    assert outcome.status == 0, outcome.errors
    assert outcome.failures() == []
    tested = {t["description"].split()[0].rstrip(":") for t in outcome.report["tests"]}
    assert tested == {f"rng{number}" for number in range(devices)}
    lines = [device["gsi"] for device in outcome.report["devices"]]
    assert len(set(lines)) < devices
