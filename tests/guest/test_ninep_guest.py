"""The 9P guest in a VM."""

import shutil
from pathlib import Path

import pytest

from tests.guest.accelerators import each_accelerator
from tests.guest.support import assert_one_sentence, run_guest, virtiopy
from virtiopy.host.share import find_tool

pytestmark = [
    pytest.mark.skipif(find_tool("diod") is None, reason="apt-get install diod"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="apt-get install bubblewrap"),
]


@each_accelerator
@pytest.mark.parametrize("mode", ["trapped", "ioeventfd"])
def test_the_ninep_guest_passes(tmp_path: Path, mode: str, name: str) -> None:
    share = f"{tmp_path},tag=files"
    outcome = run_guest(tmp_path, "ninep", "--share", share, "--mode", mode, "--accel", name)

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 20
    assert "No sandbox: --share starts diod" in outcome.errors


def test_a_sandbox_that_is_asked_for_is_not_left_out_in_silence(tmp_path: Path) -> None:
    done = virtiopy("run", "--sandbox", "on", "--share", f"{tmp_path},tag=files")
    assert_one_sentence(done, "--share starts diod", "--sandbox on")
