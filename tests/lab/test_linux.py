"""Stock Linux on a KVM that runs guests as processors do, on one CPU and on two."""

import subprocess
import sys

import pytest

from tests.lab.machine import REPOSITORY
from tests.patience import PATIENCE

# By night: the lab's KVM is emulated, and a boot there takes a minute on a quiet machine.
pytestmark = [pytest.mark.lab, pytest.mark.nightly]


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_command_runs_in_linux_on_kvm(cpus: int) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "virtiopy.cli.main", "linux", "--accel", "kvm"),
            *("--cpus", str(cpus), "--", "nproc; uname -s"),
        ],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(cpus), "Linux"]
