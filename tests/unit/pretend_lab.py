"""A pytest plugin for tests of tests/lab/plugin.py: a lab that is a process on this host."""

import os
import subprocess
from pathlib import Path

import pytest

import tests.lab.plugin
from tests.lab.machine import INSIDE
from virtiopy.closing import Closing


class PretendLab(Closing):
    """What tests/lab/plugin.py uses of a Lab."""

    console = "the pretended console"

    def __init__(self, command: list[str], share: Path, environment: dict[str, str]) -> None:
        self.share = share
        with (share / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env=os.environ | environment | {INSIDE: str(share)},
                stdout=output,
                stderr=output,
            )

    @property
    def status(self) -> int | None:
        return self.process.poll()

    def wait(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def pytest_configure(config: pytest.Config) -> None:
    if INSIDE not in os.environ:
        pytest.MonkeyPatch().setattr(tests.lab.plugin, "Lab", PretendLab)
