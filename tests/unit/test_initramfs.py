"""What goes into an initramfs: the archive, modules in order, programs with their libraries."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from virtiopy.cli.linux import parse_root
from virtiopy.errors import ConfigError
from virtiopy.linux import initramfs
from virtiopy.linux.cpio import Archive
from virtiopy.linux.initramfs import (
    ROOT_FOLDERS,
    Contents,
    RootWrites,
    Task,
    applets,
    build,
    find_busybox,
    programs_for,
)
from virtiopy.linux.kernels import LinuxKernel
from virtiopy.linux.modules import ModuleTree
from virtiopy.linux.programs import add_program, find_program

needs_busybox = pytest.mark.skipif(
    shutil.which("busybox") is None, reason="busybox is missing: apt-get install busybox-static"
)


def unpacked(tmp_path: Path, archive: bytes) -> Path:
    """What busybox's cpio, which others wrote, makes of an archive."""
    folder = tmp_path / "unpacked"
    folder.mkdir(exist_ok=True)
    subprocess.run(
        ["busybox", "cpio", "-idm", "--quiet"],
        cwd=folder,
        input=archive,
        check=True,
        timeout=PATIENCE,
    )
    return folder


@needs_busybox
def test_an_archive_unpacks_to_what_was_put_in(tmp_path: Path) -> None:
    archive = Archive()
    archive.file("a/b/c.txt", b"content")
    archive.file("run.sh", b"#!/bin/sh\n", executable=True)
    archive.link("a/link", "b/c.txt")
    archive.folder("empty")
    folder = unpacked(tmp_path, archive.encoded())

    assert (folder / "a/b/c.txt").read_bytes() == b"content"
    assert os.access(folder / "run.sh", os.X_OK)
    assert (folder / "a/link").readlink() == Path("b/c.txt")
    assert (folder / "empty").is_dir()
    assert "a/b" in archive


@needs_busybox
def test_names_and_the_command_may_hold_bytes_that_are_no_text(tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff")
    archive = Archive()
    archive.file(f"usr/bin/{odd}", b"content")
    archive.link("link", odd)
    folder = unpacked(tmp_path, archive.encoded())
    unpacked(tmp_path, initramfs._last(Task([f"cat {odd}"])))

    assert (folder / "usr/bin" / odd).read_bytes() == b"content"
    assert (folder / "link").readlink() == Path(odd)
    assert (folder / "virtiopy/command").read_bytes() == b"cat \xff\n"


def make_tree(tmp_path: Path, *, with_list: bool) -> LinuxKernel:
    """Modules of which blk needs ring and core, and ring needs core; rng is built in."""
    folder = tmp_path / "lib" / "modules" / "6.1-test"
    needs = {"core": "", "virtio-ring": "core", "virtio_blk": "virtio-ring,core"}
    for name, others in needs.items():
        path = folder / "kernel" / f"{name}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x7fELF\0depends=" + others.encode() + b"\0license=GPL\0")
    (folder / "modules.builtin").write_text("kernel/drivers/rng.ko\n")
    if with_list:
        (folder / "modules.dep").write_text(
            "kernel/core.ko:\nkernel/virtio-ring.ko: kernel/core.ko\n"
            "kernel/virtio_blk.ko: kernel/virtio-ring.ko kernel/core.ko\n"
        )
    return LinuxKernel(tmp_path / "vmlinuz", "6.1-test", folder)


@pytest.mark.parametrize("with_list", [True, False], ids=["modules.dep", "their own words"])
def test_modules_come_after_those_that_they_need(tmp_path: Path, with_list: bool) -> None:
    tree = ModuleTree(make_tree(tmp_path, with_list=with_list))
    names = [module.name for module in tree.in_order(["virtio_blk", "rng", "virtio_ring"])]
    assert names == ["core", "virtio_ring", "virtio_blk"]


def test_a_missing_module_is_told_unless_it_is_optional(tmp_path: Path) -> None:
    tree = ModuleTree(make_tree(tmp_path, with_list=True))
    assert [m.name for m in tree.in_order(["core"], optional=["ext4"])] == ["core"]
    with pytest.raises(ConfigError, match="needs its module ext4, which is not in"):
        tree.in_order(["ext4"])


@needs_busybox
def test_a_program_brings_the_libraries_that_it_needs(tmp_path: Path) -> None:
    archive = Archive()
    add_program(archive, find_program("ldconfig" if shutil.which("ldconfig") else "sh"))
    add_program(archive, Path(os.path.realpath("/bin/ls")))
    folder = unpacked(tmp_path, archive.encoded())
    done = subprocess.run(
        ["chroot", str(folder), "/usr/bin/ls", "/usr/bin"],
        capture_output=True,
        text=True,
        check=False,
    )
    if os.geteuid() != 0:
        pytest.skip("chroot takes root")
    assert "ls" in done.stdout.split(), done.stderr


@needs_busybox
def test_only_what_busybox_has_not_is_taken_from_the_host() -> None:
    assert programs_for(["ls", "-l"], []) == ()
    # A line for the shell may begin with a word of the shell's own.
    assert programs_for(["for x in 1; do echo $x; done"], []) == ()
    assert [path.name for path in programs_for(["python3", "-V"], [])] == ["python3"]
    with pytest.raises(ConfigError, match="no program frobnicate, on this host or in busybox"):
        programs_for(["frobnicate", "now"], [])
    with pytest.raises(ConfigError, match="no program frobnicate"):
        programs_for([], ["frobnicate"])


@pytest.fixture
def contents(tmp_path: Path) -> Iterator[Contents]:
    kernel = make_tree(tmp_path, with_list=True)
    original = initramfs._TRANSPORT
    initramfs._TRANSPORT = ("virtio_ring",)
    yield Contents(kernel, ("virtio_blk",))
    initramfs._TRANSPORT = original


@needs_busybox
def test_an_initramfs_has_what_a_boot_needs(tmp_path: Path, contents: Contents) -> None:
    task = Task(["echo", "two words"], ["192.0.2.2/24", "-"])
    archives = build(contents, task, tmp_path / "cache")
    (kept,) = (tmp_path / "cache" / "initramfs").glob("*.cpio")
    # Linux unpacks one after the other; busybox's cpio only the first.
    folder = unpacked(tmp_path, archives[: kept.stat().st_size])
    folder = unpacked(tmp_path, archives[kept.stat().st_size :])

    assert (folder / "init").read_text().startswith("#!/bin/busybox sh")
    assert (folder / "modules/order").read_text() == "core.ko\nvirtio_ring.ko\nvirtio_blk.ko\n"
    assert (folder / "virtiopy/command").read_text() == "echo 'two words'\n"
    assert "NETWORK='192.0.2.2/24 -'" in (folder / "virtiopy/settings").read_text()
    assert {path.name for path in (folder / "bin").iterdir()} >= {*applets(find_busybox())}


@needs_busybox
def test_the_part_that_is_the_same_is_kept_and_what_is_done_is_not(
    tmp_path: Path, contents: Contents
) -> None:
    cache = tmp_path / "cache"
    first = build(contents, Task(["true"]), cache)
    (kept,) = (cache / "initramfs").glob("*.cpio")
    assert first.startswith(kept.read_bytes())
    build(contents, Task(["false"]), cache)
    assert [*(cache / "initramfs").glob("*.cpio")] == [kept]

    # Another file of the same name is another initramfs.
    (module,) = (tmp_path / "lib").rglob("virtio_blk.ko")
    module.write_bytes(b"\x7fELF another")
    build(contents, Task(["true"]), cache)
    assert len([*(cache / "initramfs").glob("*.cpio")]) == 2


@needs_busybox
def test_a_module_that_was_asked_for_is_there_or_its_absence_is_told(
    tmp_path: Path, contents: Contents
) -> None:
    asked = replace(contents, modules=("no_such_device",), asked_for=("virtio-blk",))
    assert b"modules/virtio_blk.ko" in build(asked, Task(["true"]), tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"has no module no_such, in .* or built in"):
        build(replace(contents, asked_for=("no-such",)), Task(["true"]), tmp_path / "cache")


@needs_busybox
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, contents: Contents) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert build(contents, Task(["true"]), blocked / "cache")


# A folder of the host's as the root


def test_a_root_is_a_share_that_cannot_be_written_unless_the_words_say_so(tmp_path: Path) -> None:
    assert parse_root("/a,,b") == ("/a,,b,tag=virtiopy-root,readonly=on", RootWrites.DISCARD)
    for name in ROOT_FOLDERS:
        (tmp_path / name).mkdir()
    share, writes = parse_root(f"{tmp_path},writes=keep")
    assert share == f"{tmp_path},tag=virtiopy-root,readonly=off"
    assert writes is RootWrites.KEEP
    settings = initramfs._last(Task(root=writes))
    assert b"ROOT=keep\n" in settings
    assert b"ROOT_TAG=virtiopy-root\n" in settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (",writes=no", "writes=no: use one of discard, refuse, keep"),
        (",writes=keep", "has no folder dev"),
        (",writes=refuse", "has no folder dev"),
        (",readonly=on", "does not know 'readonly=on'"),
    ],
)
def test_a_root_that_cannot_be_one_is_said(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_root(f"{tmp_path}{text}")
