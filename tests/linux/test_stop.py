"""A guest that QEMU stops and has go on, while it uses devices that virtiopy serves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.vhost_user import Backend, serve
from tests.linux.ram import PINGED, SOUND, Qemu, RamLinux, disk_options, net_options
from tests.namespace import Namespace, needs_taps

pytestmark = needs_taps

STOPS = 20

#: What the guest has written between two stops, bytes.
PROGRESS = 256 << 10


@pytest.fixture
def linux(request: pytest.FixtureRequest, tmp_path: Path) -> RamLinux:
    return RamLinux(request.config, tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Backend]:
    image = tmp_path / "disk.img"
    with image.open("wb") as stream:
        stream.truncate(16 << 20)
    with serve("blk", str(image), tmp_path / "blk.sock") as backend:
        yield backend


def tap_options(namespace: Namespace) -> str:
    return f"tap=t0,create=on,netns={namespace.name},address=192.0.2.1/24"


def test_a_guest_that_is_stopped_many_times_loses_nothing(
    linux: RamLinux, disk: Backend, tmp_path: Path
) -> None:
    devices = [*disk_options(disk.path), *net_options(tmp_path / "net.sock")]
    with (
        Namespace() as namespace,
        serve("net", tap_options(namespace), tmp_path / "net.sock") as net,
        Qemu(linux, tmp_path / "qemu", devices) as qemu,
    ):
        qemu.until_said(SOUND, PINGED)
        for _ in range(STOPS):
            qemu.until_written(disk.process.pid, PROGRESS)
            qemu.ask("stop")
            qemu.ask("cont")
        qemu.until_said(SOUND, PINGED)
    assert "warning" not in qemu.output
    assert "goes on from the used ring" not in disk.output + net.output
    assert "needs a reset" not in disk.output + net.output
