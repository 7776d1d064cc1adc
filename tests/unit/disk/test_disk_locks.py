"""Who may use a disk image at a time."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.openfiles import open_files
from tests.unit.disk.bench import readonly_or_not
from virtiopy._native import lib
from virtiopy.errors import ConfigError
from virtiopy.host.disk import DiskImage


@pytest.mark.parametrize(("first", "second"), [(False, False), (False, True), (True, False)])
def test_an_image_that_is_written_is_not_shared(image: Path, first: bool, second: bool) -> None:
    with (
        DiskImage(image, readonly=first),
        pytest.raises(ConfigError, match=r"in use by another program: stop what"),
    ):
        DiskImage(image, readonly=second)


def test_readers_share_an_image(image: Path) -> None:
    with DiskImage(image, readonly=True) as one, DiskImage(image, readonly=True) as other:
        assert one.size == other.size


def test_an_image_in_use_by_other_names_is_recognized(image: Path) -> None:
    link = image.with_name("link.img")
    link.hardlink_to(image)
    with DiskImage(image), pytest.raises(ConfigError, match="in use"):
        DiskImage(link)


def test_a_refused_user_leaves_no_lock_and_no_file_behind(image: Path) -> None:
    with DiskImage(image, readonly=True):
        before = open_files()
        with pytest.raises(ConfigError):
            DiskImage(image)
        assert open_files() == before
        DiskImage(image, readonly=True).close()


@readonly_or_not
def test_closing_an_image_gives_up_its_locks(image: Path, readonly: bool) -> None:
    DiskImage(image, readonly=readonly).close()
    DiskImage(image).close()


@pytest.mark.parametrize(
    ("readonly", "locked"), [(True, [100, 201, 203]), (False, [100, 101, 103, 201, 203])]
)
def test_the_locks_are_those_of_qemu(image: Path, readonly: bool, locked: list[int]) -> None:
    # block/file-posix.c: byte 100 + n says "does", 200 + n "lets nobody", n being a permission:
    # consistent read, write, write unchanged, resize.
    with DiskImage(image, readonly=readonly), image.open("rb") as other:
        seen = [byte for byte in range(90, 210) if lib.vp_ofd_is_locked(other.fileno(), byte)]
    assert seen == locked


QEMU = "qemu-system-x86_64"
needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")


def _start_qemu(image: Path, *, readonly: bool) -> subprocess.Popen[str]:
    """Start a QEMU, without a guest, whose block device has `image`."""
    state = "on" if readonly else "off"
    return subprocess.Popen(
        [
            *(QEMU, "-M", "microvm,accel=tcg", "-m", "16M", "-S", "-nodefaults", "-no-user-config"),
            *("-display", "none", "-qmp", "stdio", "-device", "virtio-blk-device,drive=d"),
            *("-drive", f"if=none,id=d,format=raw,readonly={state},file={image}"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def qemu_using(image: Path, *, readonly: bool) -> Iterator[None]:
    with _start_qemu(image, readonly=readonly) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        try:
            # QEMU answers commands once its devices are there.
            qemu.stdin.write('{"execute": "qmp_capabilities"}')
            qemu.stdin.flush()
            assert "QMP" in json.loads(qemu.stdout.readline())
            assert json.loads(qemu.stdout.readline()) == {"return": {}}
            yield
        finally:
            qemu.kill()


@needs_qemu
@pytest.mark.parametrize(("qemus", "ours"), [(False, False), (False, True), (True, False)])
def test_an_image_in_use_by_qemu_is_refused(image: Path, qemus: bool, ours: bool) -> None:
    with qemu_using(image, readonly=qemus), pytest.raises(ConfigError, match="in use"):
        DiskImage(image, readonly=ours)


@needs_qemu
@pytest.mark.parametrize(("ours", "qemus"), [(False, False), (False, True), (True, False)])
def test_an_image_in_use_by_virtiopy_is_refused_by_qemu(
    image: Path, ours: bool, qemus: bool
) -> None:
    with DiskImage(image, readonly=ours), _start_qemu(image, readonly=qemus) as qemu:
        _, complaint = qemu.communicate('{"execute": "qmp_capabilities"}{"execute": "quit"}')
    assert qemu.returncode != 0
    assert "Is another process using the image" in complaint


@needs_qemu
def test_qemu_and_virtiopy_read_an_image_together(image: Path) -> None:
    with qemu_using(image, readonly=True):
        DiskImage(image, readonly=True).close()
    with DiskImage(image, readonly=True), qemu_using(image, readonly=True):
        pass


@needs_qemu
def test_an_image_that_qemu_gave_up_can_be_used(image: Path) -> None:
    with qemu_using(image, readonly=False):
        pass
    DiskImage(image).close()
