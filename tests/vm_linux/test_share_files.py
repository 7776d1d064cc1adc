"""A share under the host's own Python in the guest: many files, mapped memory, locks."""

import os
import shutil
from pathlib import Path

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.vm_linux.in_guest_files import content, path_of
from tests.vm_linux.test_cli import virtiopy
from virtiopy.host.launcher import find_tool

pytestmark = [
    needs_unicorn,
    pytest.mark.skipif(find_tool("diod") is None, reason="apt-get install diod"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="apt-get install bubblewrap"),
    pytest.mark.skipif(
        not Path("/usr/bin/python3").exists(), reason="/usr/bin/python3 is what the guest runs"
    ),
    # The guest's Python is executed by the software CPU.
    pytest.mark.nightly,
    pytest.mark.timeout(3600),
]

SCRIPT = Path(__file__).with_name("in_guest_files.py")
FILES = 1_000


def test_files_mappings_and_locks_of_a_share_are_as_on_a_disk(tmp_path: Path) -> None:
    mount = "mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap files /mnt"
    done = virtiopy(
        *("linux", "--accel", "tcg", "--memory", "1G", "--root", "/"),
        *("--share", f"{tmp_path},tag=files", "--"),
        f"{mount} && /usr/bin/python3 {SCRIPT} /mnt {FILES}",
        seconds=3000,
    )
    assert done.status == 0, done.output + done.errors
    assert len(done.output.splitlines()) == 3
    kept = {path_of(tmp_path, number): content(number) for number in range(0, FILES, 2)}
    for path, data in kept.items():
        assert path.read_bytes() == data
    assert sum(len(files) for _, _, files in os.walk(tmp_path / "tree")) == len(kept)
    assert (tmp_path / "mapped").read_bytes()[4000:4200] == b"m" * 200
