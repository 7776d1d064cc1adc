"""The file system guest in a VM: virtiofsd serves its device."""

import json
from pathlib import Path

import pytest

from tests.guest.accelerators import each_accelerator
from tests.guest.support import run_guest, virtiopy
from virtiopy.host.virtiofsd import find_virtiofsd
from virtiopy.sandbox.process import lacking

pytestmark = pytest.mark.skipif(
    find_virtiofsd() is None, reason="virtiofsd takes root: apt-get install qemu-system-common"
)


@pytest.mark.skipif(bool(lacking()), reason=f"this kernel has no {lacking()}")
@each_accelerator
def test_the_fs_guest_passes(tmp_path: Path, name: str) -> None:
    words = ["--fs", f"{tmp_path},tag=files", "--accel", name, "--sandbox", "on"]
    outcome = run_guest(tmp_path, "fs", *words)

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 20
    assert "sandbox" not in outcome.errors


def test_requests_are_counted_in_the_one_mode(tmp_path: Path) -> None:
    report = tmp_path / "exits.json"
    words = ["--fs", str(tmp_path), "--accel", "tcg", "--exit-free", "off", "--requests", "100"]
    done = virtiopy("exits", *words, "--json", report)
    assert done.status == 0, done.errors
    [mode] = json.loads(report.read_text())["modes"]
    assert mode["mode"] == "vhost-user"
    assert mode["measured"]["per_request"]["queue_notify_exits"] == 0
    # virtiofsd's threads are found, or there would be no time of theirs.
    assert mode["measured"]["cpu_seconds"]["backend"] > 0
