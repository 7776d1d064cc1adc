"""Linux mounts a folder of the host's over 9P."""

import hashlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.accelerators import has_unicorn
from tests.guest.support import assert_one_sentence, virtiopy
from tests.processes import descendants, named
from tests.vm_linux.conftest import needs
from tests.vm_linux.machine import Linux
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.ninep import NineP
from virtiopy.host.launcher import find_tool
from virtiopy.host.share import Share
from virtiopy.linux.cache import cache_folder
from virtiopy.linux.kernels import NoKernelError, find_kernel

MOUNT = "mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144"
SECRET = "not for the guest"


@dataclass(slots=True)
class Shared:
    """Linux, which has mounted `folder` at /mnt; `outside` is a file beside it."""

    linux: Linux
    folder: Path
    outside: Path
    share: Share


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    if not has_unicorn():
        pytest.skip("unicorn is not installed")
    if find_tool("diod") is None:
        pytest.skip("diod is missing: apt-get install diod")
    needs("bwrap", "busybox")
    try:
        find_kernel(cache_folder())
    except NoKernelError as error:
        pytest.skip(str(error))
    base = tmp_path_factory.mktemp("share")
    folder, outside = base / "folder", base / "outside"
    folder.mkdir()
    outside.write_text(SECRET)
    (folder / "large").write_bytes(os.urandom(3 << 20))
    share, other = Share(folder), Share(folder, readonly=True)
    devices: dict[str, VirtioDevice] = {
        "ninep0": NineP(share, "files"),
        "ninep1": NineP(other, "fixed"),
    }
    with Linux(devices, modules=("9pnet_virtio", "9p")) as linux:
        linux.sh(f"mkdir /fixed; {MOUNT} files /mnt && {MOUNT} fixed /fixed")
        yield Shared(linux, folder, outside, share)


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
    assert not (shared.folder / "new").exists()
    assert (shared.folder / "large").exists()


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
        f"{MOUNT} files /mnt && test -e /mnt/large"
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
