"""SCSI units that a user plugs in, resizes and unplugs while the VM runs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.support import make_image
from virtiopy.cli.attachments import build, build_served, parse
from virtiopy.cli.sandboxed import Sandbox
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


def run(device: Scsi, name: str, **given: str) -> dict[str, Fact]:
    return dict(COMMANDS[name].run(device, Arguments(given)))


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


def test_a_run_in_a_sandbox_plugs_nothing_in(
    device: Scsi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sandbox, "entered", True)
    path = make_image(tmp_path / "b.img", SIZE)
    with pytest.raises(ConfigError, match="start it with --sandbox off"):
        run(device, "scsi-add", attach=f"disk={path}")


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
