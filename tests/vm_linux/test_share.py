"""Linux mounts a folder of the host's over 9P."""

import hashlib
import os
import shutil
import signal

import pytest

from tests.guest.support import assert_one_sentence, virtiopy
from tests.processes import descendants, named
from tests.vm_linux.conftest import MOUNT_9P, SECRET, Shared
from virtiopy.host.launcher import find_tool


def test_a_large_file_is_read_whole(shared: Shared) -> None:
    found = shared.linux.sh("sha256sum </mnt/large").split()[0]
    assert found == hashlib.sha256((shared.folder / "large").read_bytes()).hexdigest()


def test_a_tree_is_copied_and_is_the_same(shared: Shared) -> None:
    for number in range(200):
        path = shared.folder / "tree" / str(number % 7) / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 11))
    shared.linux.sh("cp -a /mnt/tree /mnt/copy && sync")
    files = [path for path in (shared.folder / "tree").rglob("*") if path.is_file()]
    assert len(files) == 200
    for path in files:
        copy = shared.folder / "copy" / path.relative_to(shared.folder / "tree")
        assert copy.read_bytes() == path.read_bytes()


def test_permissions_are_the_hosts(shared: Shared) -> None:
    (shared.folder / "script").write_text("#!/bin/sh\n")
    shared.linux.sh("chmod 4751 /mnt/script && ln -s script /mnt/name && mv /mnt/name /mnt/other")
    assert (shared.folder / "script").stat().st_mode & 0o7777 == 0o4751
    assert os.readlink(shared.folder / "other") == "script"


def test_a_share_for_reading_alone_is_not_written(shared: Shared) -> None:
    text = shared.linux.sh("echo no >/fixed/new; rm /fixed/large", check=False)
    assert text.count("Read-only file system") == 2
    assert not (shared.fixed / "new").exists()
    assert (shared.fixed / "large").exists()


def test_a_link_out_of_the_folder_is_the_guests_own_file(shared: Shared) -> None:
    (shared.folder / "link").symlink_to(shared.outside)
    assert SECRET not in shared.linux.sh("cat /mnt/link /mnt/../outside", check=False)


def test_diod_that_is_killed_leaves_errors_and_works_after_a_reset(
    shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    [pid] = named(descendants(shared.share.launcher.pid), "diod")
    os.kill(pid, signal.SIGKILL)
    text = shared.linux.sh("ls /mnt/tree/0; cat /mnt/large | wc -c", check=False)
    assert "Input/output error" in text
    assert [r.message for r in caplog.records if "file server of files ended" in r.message]
    shared.linux.sh(
        "umount -l /mnt; cd /sys/bus/virtio/drivers/9pnet_virtio; "
        "for d in virtio*; do grep -qx files $d/mount_tag && name=$d; done; "
        "echo $name >unbind; echo $name >bind; "
        f"{MOUNT_9P} files /mnt && test -e /mnt/large"
    )
    assert named(descendants(shared.share.launcher.pid), "diod") != {pid}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("missing,tag=files", "missing is no folder"),
        (".", "tag="),
        (f".,tag={'x' * 256}", "255"),
    ],
)
def test_a_share_that_is_none_is_said_in_a_sentence(value: str, words: str) -> None:
    if find_tool("diod") is None or shutil.which("bwrap") is None:
        pytest.skip("diod or bubblewrap is missing: apt-get install diod bubblewrap")
    assert_one_sentence(virtiopy("run", "--share", value), words)
