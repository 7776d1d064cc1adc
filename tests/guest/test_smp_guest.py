"""A guest that starts its other CPUs, in a VM."""

from pathlib import Path

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.guest.support import (
    assert_one_sentence,
    needs_kvm,
    needs_qemu,
    run_guest,
    run_in_qemu,
    virtiopy,
)


@needs_kvm
@pytest.mark.parametrize("cpus", [2, 5])
def test_a_guest_starts_its_other_cpus_and_each_exits(tmp_path: Path, cpus: int) -> None:
    outcome = run_guest(tmp_path, "smp", "--accel", "kvm", "--cpus", str(cpus))

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert f"# {cpus} CPUs" in outcome.output
    by_cpu = outcome.report["exits"]["userspace_total_by_cpu"]
    assert outcome.report["cpus"] == len(by_cpu) == cpus
    # The boot CPU prints; the last one prints the plan and ends the run.
    assert by_cpu[0] > 0
    assert by_cpu[-1] > 0
    assert sum(by_cpu) == outcome.report["exits"]["userspace_total"]


@needs_kvm
@pytest.mark.parametrize("mode", ["trapped", "ioeventfd"])
def test_a_cpu_kicks_a_device_whose_interrupts_another_takes(tmp_path: Path, mode: str) -> None:
    outcome = run_guest(tmp_path, "smp", "--accel", "kvm", "--cpus", "2", "--rng", "--mode", mode)

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert sum("kicks" in t["description"] for t in outcome.report["tests"]) == 4
    assert outcome.exits("rng0", "QueueNotify") == (4 if mode == "trapped" else 0)


@needs_kvm
def test_the_run_ends_when_the_boot_cpu_ends_it_and_another_still_runs(tmp_path: Path) -> None:
    outcome = run_guest(
        tmp_path, "smp", "--accel", "kvm", "--cpus", "3", "--append", "smp.end=boot"
    )

    assert outcome.status == 0, outcome.errors


@needs_kvm
def test_a_run_of_two_cpus_ends_at_its_time() -> None:
    outcome = virtiopy(
        *("run", "--guest", "misbehave", "--append", "misbehave=spin", "--cpus", "2"),
        *("--accel", "kvm", "--timeout", "0.5"),
    )

    assert_one_sentence(outcome, "not done after 0.5 seconds")


@needs_kvm
def test_more_cpus_than_kvm_has_are_refused_in_a_sentence() -> None:
    outcome = virtiopy("run", "--guest", "smp", "--accel", "kvm", "--cpus", "70000")

    assert_one_sentence(outcome, "70000 CPUs", "give it fewer")


@needs_unicorn
def test_the_software_cpu_refuses_to_be_two_in_a_sentence() -> None:
    outcome = virtiopy("run", "--guest", "smp", "--accel", "tcg", "--cpus", "2")

    assert_one_sentence(outcome, "software CPU", "--accel kvm")


@needs_qemu
def test_the_same_guest_starts_qemus_other_cpus() -> None:
    run_in_qemu("smp", "-smp", "3", accel="tcg")
