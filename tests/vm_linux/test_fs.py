"""Linux mounts a folder of the host's by virtio-fs."""

import hashlib
import os
import signal

import pytest

from tests.processes import descendants, named
from tests.vm_linux.conftest import SECRET, Shared
from virtiopy.host.virtiofsd import FsDaemon

pytestmark = pytest.mark.timeout(300)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_large_file_is_read_whole(shared: Shared) -> None:
    found = shared.linux.sh("sha256sum </tree/large").split()[0]
    assert found == sha256((shared.tree / "large").read_bytes())


def test_a_large_file_is_written_whole(shared: Shared) -> None:
    found = shared.linux.sh(
        "dd if=/dev/urandom of=/tree/written bs=64k count=48 2>/dev/null && "
        "sync && sha256sum </tree/written"
    )
    written = (shared.tree / "written").read_bytes()
    assert len(written) == 3 << 20
    assert found.split()[0] == sha256(written)


def test_a_tree_is_copied_and_is_the_same(shared: Shared) -> None:
    source = shared.tree / "source"
    for number in range(80):
        path = source / str(number % 7) / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 31))
    shared.linux.sh("cp -a /tree/source /tree/copy && sync")
    files = [path for path in source.rglob("*") if path.is_file()]
    assert len(files) == 80
    for path in files:
        copy = shared.tree / "copy" / path.relative_to(source)
        assert copy.read_bytes() == path.read_bytes()


def test_permissions_and_names_are_the_hosts(shared: Shared) -> None:
    (shared.tree / "script").write_text("#!/bin/sh\n")
    shared.linux.sh("chmod 4751 /tree/script && ln -s script /tree/name && mv /tree/name /tree/new")
    assert (shared.tree / "script").stat().st_mode & 0o7777 == 0o4751
    assert os.readlink(shared.tree / "new") == "script"


def test_a_folder_for_reading_alone_is_not_written(shared: Shared) -> None:
    text = shared.linux.sh("echo no >/still/new; rm /still/large", check=False)
    assert text.count("Read-only file system") == 2
    assert sorted(os.listdir(shared.fixed)) == ["large"]
    found = shared.linux.sh("sha256sum </still/large").split()[0]
    assert found == sha256((shared.fixed / "large").read_bytes())


def test_a_link_out_of_the_folder_is_the_guests_own_file(shared: Shared) -> None:
    (shared.tree / "link").symlink_to(shared.outside)
    assert SECRET not in shared.linux.sh("cat /tree/link /tree/../outside", check=False)


def _served_by(daemon: FsDaemon) -> set[int]:
    return named(descendants(daemon.launcher.pid), "virtiofsd")


def test_a_driver_that_was_reset_has_a_session_of_its_own(shared: Shared) -> None:
    before = _served_by(shared.daemon)
    shared.linux.sh(
        "umount -l /tree; cd /sys/bus/virtio/drivers/virtiofs; "
        "for d in virtio*; do echo $d >unbind; echo $d >bind; done; "
        "mount -t virtiofs tree /tree && test -e /tree/large"
    )
    assert _served_by(shared.daemon) != before


def test_virtiofsd_that_is_killed_leaves_errors_and_is_there_for_the_next_mount(
    shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    [pid] = before = _served_by(shared.daemon)
    os.kill(pid, signal.SIGKILL)
    text = shared.linux.sh("ls /tree/source/0; cat /tree/large | wc -c", check=False)
    assert "Input/output error" in text
    assert [r.message for r in caplog.records if "backend is gone" in r.message]
    shared.linux.sh("umount -l /tree; mount -t virtiofs tree /tree && test -e /tree/large")
    assert _served_by(shared.daemon) != before
