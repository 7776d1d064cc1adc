"""The suite, put to a file system device that virtiopy did not write: virtiofsd's."""

from pathlib import Path

import pytest

from tests.conformance.runs import run_pytest
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
