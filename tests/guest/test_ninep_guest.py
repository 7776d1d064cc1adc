"""The 9P guest in a VM."""

import json
import shutil
from pathlib import Path

import pytest

from tests.guest.accelerators import each_accelerator
from tests.guest.support import assert_one_sentence, run_guest, virtiopy
from tests.guest.vhost_user import serve
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


@each_accelerator
def test_the_ninep_guest_passes_on_a_device_that_another_process_serves(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "ninep.sock"
    with serve("ninep", f"{tmp_path},tag=files", path):
        outcome = run_guest(tmp_path, "ninep", "--share", f"vhost-user={path}", "--accel", name)

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 20


def test_the_tag_is_the_backends(tmp_path: Path) -> None:
    done = virtiopy("run", "--share", "vhost-user=missing.sock,tag=files")
    assert_one_sentence(done, "which has its own tag")


def test_requests_are_counted_in_each_mode(tmp_path: Path) -> None:
    """And the backend's, that `exits` starts, is one of them."""
    report = tmp_path / "exits.json"
    words = ["--share", str(tmp_path), "--accel", "tcg", "--exit-free", "off"]
    done = virtiopy("exits", *words, "--requests", "20", "--json", str(report))
    assert done.status == 0, done.errors
    exits = {
        mode["mode"]: mode["measured"]["per_request"]["queue_notify_exits"]
        for mode in json.loads(report.read_text())["modes"]
    }
    assert exits == {"trapped": 1, "ioeventfd": 0, "vhost-user": 0}
