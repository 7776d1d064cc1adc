"""The SCSI guest in a VM, on devices of ours and on QEMU's; and what --scsi says of a bad value."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.guest.accelerators import each_accelerator
from tests.guest.support import (
    assert_one_sentence,
    make_image,
    needs_qemu,
    run_guest,
    run_in_qemu,
    virtiopy,
)
from tests.guest.vhost_user import serve


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.img", 1 << 20)


@each_accelerator
@pytest.mark.parametrize("mode", ["trapped", "ioeventfd"])
def test_the_scsi_guest_passes(tmp_path: Path, image: Path, mode: str, name: str) -> None:
    before = image.read_bytes()
    scsi = f"disk={image},cdrom={make_image(tmp_path / 'disc.iso', 1 << 20)}"
    outcome = run_guest(tmp_path, "scsi", "--scsi", scsi, "--mode", mode, "--accel", name)

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 60
    assert image.read_bytes() == before


@needs_qemu
def test_the_same_scsi_guest_passes_on_a_device_of_qemus(image: Path) -> None:
    drive = f"if=none,id=d,file={image},format=raw"
    run_in_qemu(
        "scsi",
        *("-device", "virtio-scsi-device", "-drive", drive, "-device", "scsi-hd,drive=d"),
        accel="tcg",
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "has no unit"),
        ("queues=2", "has no unit"),
        ("disk=", "without an image"),
        ("lun=1,disk={image}", "has lun before what it is of: begin with disk or cdrom"),
        ("disk={image},lun=1,disk={image},lun=1", "two units at target=0,lun=1"),
        ("disk={image},lun=16384", "lun=16384: use a number from 0 to 16383"),
        ("disk={image},target=256", "target=256: use a number from 0 to 255"),
        ("disk={image},lun=1,lun=2", "has lun twice"),
        ("disk={image},serial=" + "x" * 37, "up to 36 ASCII characters"),
        ("disk={image},rotational=no", "rotational=no: use one of on, off"),
        ("disk={image}.none", "does not exist"),
        ("disk={image}.loop", "cannot be opened (Too many levels of symbolic links)"),
        ("cdrom={image},readonly=off", "readonly of a cdrom, which takes target, lun, "),
        ("disk={image},queue-size=3", "queue-size=3"),
        ("disk={image}.qcow2", "does not exist"),
        ("disk={image},reaches={image}.none,lun=x", "lun=x: use a number"),
    ],
)
def test_a_value_that_is_wrong_is_said_in_a_sentence(image: Path, value: str, words: str) -> None:
    Path(f"{image}.loop").symlink_to(f"{image}.loop")
    value = value.format(image=image)
    assert_one_sentence(virtiopy("run", "--guest", "scsi", "--scsi", value), words)


def test_an_image_is_attached_once(image: Path) -> None:
    value = f"disk={image},disk={image}"
    assert_one_sentence(virtiopy("run", "--guest", "scsi", "--scsi", value), "is in use")


@pytest.mark.skipif(shutil.which("qemu-storage-daemon") is None, reason="qemu-utils is missing")
def test_the_scsi_guest_passes_on_an_image_of_another_format(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    scsi = f"disk={image},cache=none"
    outcome = run_guest(tmp_path, "scsi", "--scsi", scsi, "--accel", "tcg")

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    check = subprocess.run(["qemu-img", "check", image], capture_output=True, check=False)
    assert check.returncode == 0, check.stdout


def test_the_scsi_guest_passes_on_a_device_that_another_process_serves(
    tmp_path: Path, image: Path
) -> None:
    path = tmp_path / "scsi.sock"
    with serve("scsi", f"disk={image},queues=2", path):
        outcome = run_guest(tmp_path, "scsi", "--scsi", f"vhost-user={path}", "--accel", "tcg")
        value = f"vhost-user={path},disk={image}"
        assert_one_sentence(virtiopy("run", "--scsi", value), "leave disk out")

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 60
