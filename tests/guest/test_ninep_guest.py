"""The 9P guest in a VM."""

import shutil
from pathlib import Path

import pytest

from tests.guest.accelerators import each_accelerator
from tests.guest.support import run_guest
from virtiopy.host.launcher import find_tool
from virtiopy.sandbox.process import lacking

pytestmark = [
    pytest.mark.skipif(find_tool("diod") is None, reason="apt-get install diod"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="apt-get install bubblewrap"),
]

needs_sandbox = pytest.mark.skipif(bool(lacking()), reason=f"this kernel has no {lacking()}")


@needs_sandbox
@each_accelerator
@pytest.mark.parametrize("mode", ["trapped", "ioeventfd"])
def test_the_ninep_guest_passes(tmp_path: Path, mode: str, name: str) -> None:
    share = f"{tmp_path},tag=files"
    words = ["--share", share, "--mode", mode, "--accel", name, "--sandbox", "on"]
    outcome = run_guest(tmp_path, "ninep", *words)

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 20
    assert "sandbox" not in outcome.errors
