"""The file system guest in a VM: virtiofsd serves its device."""

from pathlib import Path

import pytest

from tests.guest.accelerators import each_accelerator
from tests.guest.support import assert_one_sentence, run_guest, virtiopy
from virtiopy.host.virtiofsd import find_virtiofsd

pytestmark = pytest.mark.skipif(
    find_virtiofsd() is None, reason="virtiofsd takes root: apt-get install qemu-system-common"
)


@each_accelerator
def test_the_fs_guest_passes(tmp_path: Path, name: str) -> None:
    outcome = run_guest(tmp_path, "fs", "--fs", f"{tmp_path},tag=files", "--accel", name)

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 20
    assert "No sandbox: --fs starts virtiofsd" in outcome.errors


def test_a_sandbox_that_is_asked_for_is_not_left_out_in_silence(tmp_path: Path) -> None:
    done = virtiopy("run", "--sandbox", "on", "--fs", f"{tmp_path},tag=files")
    assert_one_sentence(done, "--fs starts virtiofsd", "--sandbox on")
