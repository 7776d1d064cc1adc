"""DPDK's testpmd, without huge pages: a driver and a backend of network devices."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.namespace import Namespace
from tests.patience import PATIENCE
from virtiopy.closing import Closing
from virtiopy.host.tap import NAMESPACES

TESTPMD = "dpdk-testpmd"

needs_dpdk = pytest.mark.skipif(
    shutil.which(TESTPMD) is None, reason=f"{TESTPMD} is missing (dpdk-dev)"
)


#: Memory without huge pages, MiB, and what fits.
MEMORY, BUFFERS = 128, 4096


class Testpmd(Closing):
    """testpmd with these virtual devices, which are its ports; one CPU, 0 or 1, forwards."""

    __test__ = False

    def __init__(
        self,
        log: Path,
        devices: Iterable[str],
        forward: str,
        namespace: Namespace | None = None,
        *,
        cpu: int = 1,
    ) -> None:
        inside = [] if namespace is None else ["nsenter", f"--net={NAMESPACES / namespace.name}"]
        command = [
            *(*inside, "stdbuf", "-oL", TESTPMD, "-l", "0,1", "--main-lcore", str(1 - cpu)),
            *("--no-huge", "-m", str(MEMORY), "--no-pci"),
            *("--no-telemetry", *(f"--vdev={device}" for device in devices), "--"),
            *("--interactive", f"--forward-mode={forward}", "--auto-start", "--no-mlockall"),
            f"--total-num-mbufs={BUFFERS}",
        ]
        self.log = log
        # Where it keeps what other processes of its kind may ask for.
        runtime = log.with_suffix(".run")
        runtime.mkdir(exist_ok=True)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, "RUNTIME_DIRECTORY": str(runtime)},
            )

    def close(self) -> None:
        """End it as its user would: at the end of its input it closes its ports."""
        self.process.communicate(timeout=PATIENCE)

    @property
    def output(self) -> str:
        """What it has said."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Wait until it has said so."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, f"no {text!r}: {self.output}"
            time.sleep(0.01)
