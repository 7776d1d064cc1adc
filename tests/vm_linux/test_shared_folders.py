"""Linux uses a folder of the host's, in the same way over 9P and by virtio-fs."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from tests.vm_linux.conftest import SECRET, Shared

pytestmark = pytest.mark.timeout(300)

each_way = pytest.mark.parametrize("way", ["9p", "fs"])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_in(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@each_way
def test_a_large_file_is_read_whole(shared: Shared, way: str) -> None:
    mount, folder = shared.mounted(way)
    assert shared.linux.sh(f"sha256sum <{mount}/large").split()[0] == sha256(folder / "large")


@each_way
def test_a_large_file_is_written_whole(shared: Shared, way: str) -> None:
    mount, folder = shared.mounted(way)
    found = shared.linux.sh(
        f"dd if=/dev/urandom of={mount}/written bs=64k count=48 2>/dev/null && "
        f"sync && sha256sum <{mount}/written"
    )
    assert (folder / "written").stat().st_size == 3 << 20
    assert found.split()[0] == sha256(folder / "written")


@each_way
def test_a_tree_is_copied_and_is_the_same(shared: Shared, way: str) -> None:
    mount, folder = shared.mounted(way)
    for number in range(140):
        path = folder / "source" / str(number % 7) / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 21))
    shared.linux.sh(f"cp -a {mount}/source {mount}/copy && sync")
    source = files_in(folder / "source")
    assert len(source) == 140
    assert files_in(folder / "copy") == source


@each_way
def test_permissions_and_names_are_the_hosts(shared: Shared, way: str) -> None:
    mount, folder = shared.mounted(way)
    (folder / "script").write_text("#!/bin/sh\n")
    shared.linux.sh(
        f"chmod 4751 {mount}/script && ln -s script {mount}/name && mv {mount}/name {mount}/new"
    )
    assert (folder / "script").stat().st_mode & 0o7777 == 0o4751
    assert os.readlink(folder / "new") == "script"


@each_way
def test_a_folder_for_reading_alone_is_not_written(shared: Shared, way: str) -> None:
    mount = {"9p": "/fixed", "fs": "/still"}[way]
    text = shared.linux.sh(f"echo no >{mount}/new; rm {mount}/large", check=False)
    assert text.count("Read-only file system") == 2
    assert os.listdir(shared.fixed) == ["large"]
    found = shared.linux.sh(f"sha256sum <{mount}/large").split()[0]
    assert found == sha256(shared.fixed / "large")


@each_way
def test_a_link_out_of_the_folder_is_the_guests_own_file(shared: Shared, way: str) -> None:
    mount, folder = shared.mounted(way)
    (folder / "link").symlink_to(shared.outside)
    assert SECRET not in shared.linux.sh(f"cat {mount}/link {mount}/../outside", check=False)


@each_way
def test_a_folder_that_goes_away_under_the_guest_is_an_error_there(
    shared: Shared, way: str
) -> None:
    mount, folder = shared.mounted(way)
    (folder / "goes" / "away").mkdir(parents=True)
    (folder / "goes" / "away" / "file").write_text("content")
    shared.linux.sh(f"cat {mount}/goes/away/file")
    shutil.rmtree(folder / "goes")
    # What it has read may be the guest's for a while: the server is asked for what is new.
    text = shared.linux.sh(
        f"echo more >{mount}/goes/away/new; mkdir {mount}/goes/on; "
        f"test -e {mount}/large && echo the rest is there",
        check=False,
    )
    assert text.count("No such file or directory") + text.count("nonexistent directory") == 2
    assert text.endswith("the rest is there")


def test_a_root_that_is_removed_is_an_error_in_each_way_and_the_rest_goes_on(
    shared: Shared,
) -> None:
    shutil.rmtree(shared.going)
    for way in ("9p", "fs"):
        text = shared.linux.sh(
            f"cat /going/{way}/large; mkdir /going/{way}/new; "
            "test -e /mnt/large && test -e /tree/large && echo the rest is there",
            check=False,
        )
        assert text.count("No such file or directory") + text.count("nonexistent directory") == 2
        assert text.endswith("the rest is there")
