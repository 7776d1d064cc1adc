"""The suite, put to servers of files that virtiopy did not write: virtiofsd and diod."""

import shlex
from pathlib import Path

import pytest

from tests.conformance.runs import run_pytest
from tests.guest.support import VIRTIOPY
from tests.patience import PATIENCE
from virtiopy.host.launcher import find_tool
from virtiopy.host.virtiofsd import VIRTIOFSD, find_virtiofsd

# Each test of the suite has a server that is started for it.
pytestmark = [pytest.mark.thorough, pytest.mark.nightly, pytest.mark.timeout(1200)]


@pytest.mark.skipif(
    find_virtiofsd() is None, reason="virtiofsd takes root: apt-get install qemu-system-common"
)
def test_virtiofsd_keeps_to_the_statements_on_file_systems(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    run = run_pytest(
        "--pyargs",
        "virtiopy.conformance",
        "--virtio-device=fs",
        f"--virtio-spawn={VIRTIOFSD} -f --socket-path={{socket}} -o source={shared} -o xattr",
        *("-k", "fs and test_requests"),
        folder=tmp_path,
    )
    assert run.returncode == 0, run.stdout
    assert "7 passed" in run.stdout
    assert list(shared.iterdir()) == []


@pytest.mark.skipif(find_tool("diod") is None, reason="apt-get install diod")
@pytest.mark.skipif(find_tool("bwrap") is None, reason="apt-get install bubblewrap")
def test_a_9p_device_that_virtiopy_serves_carries_requests_out(tmp_path: Path) -> None:
    """With diod behind it, whose answers come later than those of the suite's own server."""
    shared = tmp_path / "shared"
    shared.mkdir()
    serve = shlex.join([*VIRTIOPY, "serve", "ninep", f"{shared},tag=files", "--socket"])
    run = run_pytest(
        "--pyargs",
        "virtiopy.conformance",
        "--virtio-device=ninep",
        f"--virtio-spawn={serve} {{socket}}",
        f"--virtio-patience={PATIENCE / 5}",
        *("-k", "test_basic"),
        folder=tmp_path,
    )
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
    assert list(shared.iterdir()) == []
