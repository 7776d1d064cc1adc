"""SCSI units that a user plugs in, resizes and unplugs while the VM runs."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.guest.support import make_image
from virtiopy.cli.attachments import build, build_served, parse
from virtiopy.cli.sandboxed import Sandbox
from virtiopy.cli.scsi import open_for_plugging
from virtiopy.control.server import Arguments
from virtiopy.devices.base import Fact
from virtiopy.devices.registry import device_commands, entry_named
from virtiopy.devices.scsi import Address, Scsi, ScsiDisk
from virtiopy.devices.scsi.plugging import COMMANDS
from virtiopy.errors import ConfigError
from virtiopy.host.disk import DiskImage

ENTRY = entry_named("scsi")
SIZE = 1 << 20


def made(value: str) -> Scsi:
    device = build(ENTRY, parse(ENTRY, value))
    assert isinstance(device, Scsi)
    return device


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "a.img", SIZE)


@pytest.fixture
def device(image: Path) -> Iterator[Scsi]:
    device = made(f"disk={image}")
    yield device
    device.close()


def run(device: Scsi, name: str, files: Sequence[int] = (), **given: str | None) -> dict[str, Fact]:
    return dict(COMMANDS[name].run(device, Arguments(given, files)))


def plug_in(device: Scsi, attach: str) -> dict[str, Fact]:
    """Do as `virtiopy ctl` does: it opens the image."""
    words, files = open_for_plugging({"attach": attach})
    try:
        return run(device, "scsi-add", files, **words)
    finally:
        for fd in files:
            os.close(fd)


def test_units_have_the_addresses_that_are_given_or_the_next_free_ones(tmp_path: Path) -> None:
    paths = [make_image(tmp_path / f"{n}.img", SIZE) for n in range(4)]
    device = made(
        f"disk={paths[0]},disk={paths[1]},lun=5,cdrom={paths[2]},disk={paths[3]},target=3"
    )
    assert sorted(device.units) == [Address(0, 0), Address(0, 1), Address(0, 5), Address(3, 0)]
    device.close()


def test_a_disk_has_a_serial_number_of_its_own_and_the_same_each_time(tmp_path: Path) -> None:
    serials = []
    for name in ("a", "b", "a"):
        device = made(f"disk={make_image(tmp_path / name, SIZE)}")
        [unit] = device.units.values()
        serials.append(unit.identity.serial)
        device.close()
    assert serials[0] == serials[2] != serials[1]
    assert len(serials[0]) == 20


def test_the_cache_mode_is_the_disks(image: Path) -> None:
    for mode, writeback in (("writeback", True), ("none", True), ("writethrough", False)):
        device = made(f"disk={image},cache={mode}")
        [unit] = device.units.values()
        assert isinstance(unit, ScsiDisk)
        assert unit.writeback is writeback
        device.close()


def test_a_unit_comes_grows_and_goes(device: Scsi, tmp_path: Path) -> None:
    path = make_image(tmp_path / "b.img", SIZE)
    assert run(device, "scsi-add", attach=f"disk={path},target=2") == {"unit": "2:0", "size": SIZE}
    os.truncate(path, 2 * SIZE)
    assert run(device, "scsi-resize", unit="2:0") == {"unit": "2:0", "size": 2 * SIZE}
    assert run(device, "scsi-remove", unit="2:0") == {"removed": "2:0"}
    assert sorted(device.units) == [Address(0, 0)]
    # It is closed: another may have the image.
    DiskImage(path).close()


@pytest.mark.parametrize("unit", ["", "0", "0:1", "0:0:0", "x", "999999:0", "-1:0"])
def test_a_unit_that_is_not_there_is_said(device: Scsi, unit: str) -> None:
    for name in ("scsi-resize", "scsi-remove"):
        with pytest.raises(ConfigError, match=r"There is no unit .*\(0:0\)"):
            run(device, name, unit=unit)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "nothing to attach"),
        ("queues=2", "not one unit"),
        ("disk={0},disk={0}", "not one unit"),
        ("disk={0},queues=2", "not one unit"),
        ("disk={0}.none", "does not exist"),
        ("disk={0},lun=0", "two units at target=0,lun=0"),
        ("disk={0}", "in use"),
    ],
)
def test_what_cannot_be_plugged_in_is_said(
    device: Scsi, image: Path, value: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(device, "scsi-add", attach=value.format(image))
    assert sorted(device.units) == [Address(0, 0)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("disk={}", "with `virtiopy ctl`, which opens it"),
        ("disk={},format=qcow2", "convert it to a raw one, or start the run with --sandbox off"),
    ],
)
def test_a_run_in_a_sandbox_opens_nothing_itself(
    device: Scsi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    monkeypatch.setattr(Sandbox, "entered", True)
    path = make_image(tmp_path / "b.img", SIZE)
    with pytest.raises(ConfigError, match=words):
        run(device, "scsi-add", attach=value.format(path))


@pytest.mark.parametrize("options", ["", ",readonly=on", ",cache=none", ",cache=writethrough"])
def test_an_image_that_was_opened_elsewhere_is_claimed_and_let_go(
    device: Scsi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    path = make_image(tmp_path / "b,c.img", SIZE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Sandbox, "entered", True)
    before = len(os.listdir("/proc/self/fd"))
    added = plug_in(device, f"disk=b,,c.img,target=2{options}")
    assert added == {"unit": "2:0", "size": SIZE}
    with pytest.raises(ConfigError, match="in use"):
        DiskImage(path)
    buffer = bytearray(512)
    unit = device.units[Address(2, 0)]
    assert isinstance(unit, ScsiDisk)
    unit.disk.read(512, [memoryview(buffer)])
    assert buffer[:8] == (1).to_bytes(8, "big")
    with pytest.raises(ConfigError, match="in use"):
        plug_in(device, "disk=b,,c.img,target=3")
    run(device, "scsi-remove", unit="2:0")
    DiskImage(path).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_image_of_another_format_is_not_taken_for_a_raw_one(
    device: Scsi, tmp_path: Path
) -> None:
    path = tmp_path / "b.img"
    path.write_bytes(b"QFI\xfb" + bytes(SIZE - 4))
    with pytest.raises(ConfigError, match="begins as a qcow2 image"):
        plug_in(device, f"disk={path}")


@pytest.mark.parametrize("wrong", ["another file", "for reading alone", "no file", "a path alone"])
def test_files_that_are_not_of_the_image_are_refused(
    device: Scsi, tmp_path: Path, wrong: str
) -> None:
    path, other = (make_image(tmp_path / name, SIZE) for name in ("b.img", "c.img"))
    _, files = open_for_plugging({"attach": f"disk={path}"})
    opened = list(files)
    if wrong == "no file":
        opened += os.pipe()
        passed = opened[2:]
    elif wrong == "another file":
        opened.append(os.open(other, os.O_RDONLY))
        passed = [opened[0], opened[2]]
    elif wrong == "for reading alone":
        passed = [opened[1], opened[1]]
    else:
        opened.append(os.open(path, os.O_PATH))
        passed = [opened[2], opened[1]]
    with pytest.raises(ConfigError, match="What was passed is not"):
        run(device, "scsi-add", passed, attach=f"disk={path}")
    for fd in opened:
        os.close(fd)
    assert sorted(device.units) == [Address(0, 0)]


def test_its_commands_are_those_of_ctl() -> None:
    assert set(COMMANDS) <= set(device_commands())


def test_the_rings_of_one_that_is_served_claim_all_images_or_none(
    image: Path, tmp_path: Path
) -> None:
    other = make_image(tmp_path / "b.img", SIZE)
    device, lease = build_served(ENTRY, parse(ENTRY, f"disk={image},disk={other}"))
    assert lease is not None
    with DiskImage(other):
        with pytest.raises(ConfigError, match="in use"):
            lease.claim()
        DiskImage(image).close()
    lease.claim()
    for path in (image, other):
        with pytest.raises(ConfigError, match="in use"):
            DiskImage(path)
    lease.release()
    DiskImage(image).close()
    device.close()


def test_no_image_of_one_that_is_served_is_that_of_two_units(image: Path, tmp_path: Path) -> None:
    # Nothing is claimed before a frontend starts the rings, which could not be done then.
    with pytest.raises(ConfigError, match="two units on the image"):
        build_served(ENTRY, parse(ENTRY, f"disk={image},disk={image}"))
    device, _ = build_served(ENTRY, parse(ENTRY, f"disk={image}"))
    assert isinstance(device, Scsi)
    link = tmp_path / "link.img"
    link.symlink_to(image)
    for name in (image, link):
        with pytest.raises(ConfigError, match="two units on the image"):
            plug_in(device, f"disk={name}")
    assert sorted(device.units) == [Address(0, 0)]
    # It is free again once its unit is unplugged.
    run(device, "scsi-remove", unit="0:0")
    plug_in(device, f"disk={image}")
    device.close()


def test_units_share_an_image_for_reading(image: Path) -> None:
    both = f"disk={image},readonly=on,disk={image},readonly=on"
    device, _ = build_served(ENTRY, parse(ENTRY, both))
    assert isinstance(device, Scsi)
    plug_in(device, f"disk={image},readonly=on")
    assert len(device.units) == 3
    device.close()
