"""Stock Linux on a KVM that runs guests as processors do, on one CPU and on two."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.machine import REPOSITORY
from tests.patience import PATIENCE
from tests.vm_linux.rubbish import build_rubbish

# By night: the lab's KVM is emulated, and a boot there takes a minute on a quiet machine.
pytestmark = [pytest.mark.lab, pytest.mark.nightly]


def virtiopy(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "virtiopy.cli.main", *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_command_runs_in_linux_on_kvm(cpus: int) -> None:
    done = virtiopy("linux", "--accel", "kvm", "--cpus", str(cpus), "--", "nproc; uname -s")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(cpus), "Linux"]


def test_rubbish_in_every_register_of_the_pc_ends_nothing(tmp_path: Path) -> None:
    kernel = build_rubbish(tmp_path)
    done = virtiopy("run", "--accel", "kvm", "--serial", "stdout", "--kernel", kernel)
    assert done.returncode == 7, done.stderr
    assert done.stdout.endswith("\nh\n")
