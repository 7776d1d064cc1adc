"""Linux in a VM of ours, booted in the lab by the command line, on what the kernel works."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.machine import REPOSITORY
from tests.patience import PATIENCE
from virtiopy.vhost.worker import cpu_seconds, worker_threads


@dataclass(slots=True)
class Booted:
    """Linux in a process of virtiopy's, which runs a script, and then waits to be ended."""

    process: "subprocess.Popen[str]"

    def read_until(self, mark: str) -> str:
        """Return what the script says before a line that is this mark, which has to come."""
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            if line.strip() == mark:
                return said
            said += line
        pytest.fail(f"it ends without {mark!r}: {said}")

    def vhost_seconds(self) -> float:
        """Return the CPU time of the kernel's threads that work this VM's rings; there are some."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        threads = worker_threads(*(int(task.name) for task in tasks))
        assert threads, "no thread of vhost's"
        return sum(map(cpu_seconds, threads))


@contextlib.contextmanager
def boot(script: str, *options: str) -> Iterator[Booted]:
    """Boot Linux on KVM with these devices; at the end it is ended by SIGTERM."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "virtiopy.cli.main", "linux", "--accel", "kvm", *options),
            *("--", f"set -e\n{script}\nwhile :; do sleep 1; done"),
        ],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    # The reader of its output sees the end then.
    guard = threading.Timer(6 * PATIENCE, process.kill)
    guard.start()
    try:
        yield Booted(process)
        process.terminate()
        process.wait(PATIENCE)
    finally:
        guard.cancel()
        process.kill()
        process.communicate()
