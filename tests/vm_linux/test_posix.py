"""Files of a folder of the host's are what POSIX says, over 9P and by virtio-fs: see posix.c."""

import os
from pathlib import Path

import pytest

from tests.vm_linux.conftest import MOUNT_9P, Shared

pytestmark = pytest.mark.timeout(300)

each_way = pytest.mark.parametrize("way", ["9p", "fs"])

FILES = 40
#: What is not so, and why: docs/share.md says it too.
KNOWN = {
    # diod locks files as a whole. Linux's 9P driver sets times in seconds.
    "9p": {"locks_of_ranges", "nanoseconds"},
    "fs": set[str](),
}
#: What posix.c checks, but for the disk that is full.
CHECKS = (
    *("permissions", "record_locks", "locks_of_ranges", "whole_locks", "mapped"),
    *("rename_over_an_open_file", "unlink_of_an_open_file", "hard_links", "symbolic_links"),
    *("attributes", "appending", "sparse", "odd_names", "folders", "times", "nanoseconds"),
    *("special_files", "many"),
)


def check(shared: Shared, folder: str, *names: str) -> dict[str, str]:
    """Run checks there; returns what was said of each."""
    text = shared.linux.sh(f"/mnt/posix {folder} {FILES} {' '.join(names)}", check=False)
    said = {}
    for line in text.splitlines():
        outcome, _, rest = line.partition("ok ")
        name, _, why = rest.partition(": ")
        said[name] = why if outcome == "not " else "ok"
    return said


@each_way
def test_files_are_what_posix_says(shared: Shared, way: str) -> None:
    mount, folder = shared.mounted(way)
    place = folder / "checks"
    place.mkdir(exist_ok=True)
    if way == "9p":
        # A shared mapping that is written takes a cache.
        shared.linux.sh(f"umount /mnt && {MOUNT_9P},cache=mmap files /mnt")
    said = check(shared, f"{mount}/checks", *CHECKS)
    if way == "9p":
        shared.linux.sh(f"umount /mnt && {MOUNT_9P} files /mnt")

    assert tuple(said) == CHECKS
    assert {name for name, word in said.items() if word != "ok"} == KNOWN[way], said
    assert_the_host_sees_it(place)


def assert_the_host_sees_it(place: Path) -> None:
    """What the guest has left is what it said."""
    status = (place / "sticky" / "of-1000").stat()
    assert (status.st_uid, status.st_gid) == (1000, 1002)
    assert (place / "sticky").stat().st_mode & 0o7777 == 0o1777
    assert (place / "roots").stat().st_mode & 0o7777 == 0o600
    assert (place / "one").stat().st_ino == (place / "other").stat().st_ino
    assert os.readlink(place / "link") == "pointed-at"
    assert os.getxattr(place / "attributed", "user.of-mine") == b"value"
    assert (place / "mapped").read_bytes() == b"b" + bytes(65534) + b"e"
    assert (place / "sparse").stat().st_size == (1 << 30) + 3
    assert (place / "sparse").stat().st_blocks < 1024
    assert int((place / "dated").stat().st_atime) == 1_000_000_000
    names = os.listdir(os.fsencode(place / "names"))
    assert all((place / "names" / os.fsdecode(name)).read_bytes() == name for name in names)
    assert len(names) == 10
    assert max(map(len, names)) == 255
    assert "Straße €".encode() in names
    assert not (place / "many").exists()
    assert not (place / "device").exists()


@each_way
def test_a_disk_of_the_hosts_that_is_full_is_an_error_until_there_is_room(
    shared: Shared, way: str
) -> None:
    place = {"9p": "/places", "fs": "/tree"}[way]
    assert check(shared, place, "full") == {"full": "ok"}
    assert (shared.small / "after").read_text() == "room again"
    (shared.small / "after").unlink()
