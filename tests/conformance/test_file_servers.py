"""The suite, put to servers of files that virtiopy did not write: virtiofsd, and diod behind 9P."""

import shutil
from pathlib import Path

import pytest

from tests.conformance.runs import run_pytest
from virtiopy.host.launcher import find_tool
from virtiopy.host.virtiofsd import VIRTIOFSD, find_virtiofsd

#: Over vhost-user, in the suite's own process.
SERVED_BY_DIOD = """\
from pathlib import Path

from virtiopy.conformance.targets.target import inproc
from virtiopy.devices.ninep import NineP
from virtiopy.host.share import Share


def share() -> NineP:
    return NineP(Share(Path("shared")), "shared")


virtio_target = inproc(share, served=True)
"""

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
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="apt-get install bubblewrap")
def test_what_virtiopy_serves_stands_messages_that_no_driver_may_send(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "test_own.py").write_text(SERVED_BY_DIOD)
    run = run_pytest("-k", "hostile and test_ninep", folder=tmp_path)
    assert run.returncode == 0, run.stdout
    assert "24 served" in run.stdout
