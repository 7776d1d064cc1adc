"""A target of the kernel's that is made of images: what is refused before the kernel is asked."""

import os
from pathlib import Path

import pytest

from virtiopy.cli.attachments import build, mode_of, parse
from virtiopy.cli.sandboxed import Sandbox
from virtiopy.cli.serve import command as serve
from virtiopy.devices.registry import entry_named
from virtiopy.errors import ConfigError, HostError
from virtiopy.host.disk import DiskImage
from virtiopy.host.target import ScsiTarget, TargetUnit

ENTRY = entry_named("scsi")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def test_a_kernel_without_targets_is_said_and_the_image_is_let_go(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for _ in range(2):
        unit = TargetUnit(0, 0, DiskImage(image), "S1")
        with pytest.raises(HostError, match="modprobe target_core_mod"):
            ScsiTarget([unit], targets=tmp_path / "target")
    # Nothing is left of it, and nothing keeps the image.
    assert sorted(tmp_path.iterdir()) == [image]
    DiskImage(image).close()


def test_a_user_who_is_not_root_is_told_so(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    unit = TargetUnit(0, 0, DiskImage(image), "S1")
    with pytest.raises(HostError, match="run as root"):
        ScsiTarget([unit], targets=tmp_path / "target")


def test_what_was_made_is_taken_away_where_the_rest_cannot_be(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    # The folders of a kernel that makes nothing in them: the first setting has no file there.
    (tmp_path / "target" / "core").mkdir(parents=True)
    monkeypatch.setattr(Path, "write_text", _refuse)
    unit = TargetUnit(0, 0, DiskImage(image), "S1")
    with pytest.raises(HostError, match="The kernel makes no target"):
        ScsiTarget([unit], targets=tmp_path / "target")
    assert list((tmp_path / "target" / "core").iterdir()) == []


def _refuse(path: Path, data: str) -> int:
    raise FileNotFoundError(2, "No such file or directory", str(path))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("mode=vhost", "has no unit"),
        ("disk=,mode=vhost", "without an image"),
        ("cdrom={image},mode=vhost", "has raw images that can be written"),
        ("disk={image},readonly=on,mode=vhost", "has raw images that can be written"),
        ("disk={image}.qcow2,mode=vhost", "has raw images that can be written"),
        ("disk={image},queue-size=64,mode=vhost", "leave queue-size out"),
        ("disk={image},lun=1,disk={image},lun=1,mode=vhost", "two units at target=0,lun=1"),
        ("disk={image},queues=65,mode=vhost", "queues=65"),
        ("disk={image}.none,mode=vhost", "does not exist"),
    ],
)
def test_a_value_that_is_wrong_is_said_in_a_sentence(image: Path, value: str, words: str) -> None:
    options = parse(ENTRY, value.format(image=image))
    assert mode_of(ENTRY, options, "trapped").mode == "vhost"
    with pytest.raises(ConfigError, match=words):
        build(ENTRY, options)


def test_a_run_with_one_has_no_sandbox(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = f"disk={image},mode=vhost"
    Sandbox("auto", None).attaches(ENTRY, parse(ENTRY, value))
    assert "takes its target away at the end, as root" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--sandbox on forbids"):
        Sandbox("on", None).attaches(ENTRY, parse(ENTRY, value))


def test_it_is_not_served(image: Path, tmp_path: Path) -> None:
    arguments = ["scsi", f"disk={image},mode=vhost", "--socket", str(tmp_path / "s")]
    with pytest.raises(ConfigError, match="leave it out"):
        serve.main(arguments, standalone_mode=False)
