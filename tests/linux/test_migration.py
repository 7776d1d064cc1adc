"""A guest that moves from one QEMU to another, and back, with devices that virtiopy serves."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.vhost_user import Backend, serve
from tests.linux.ram import PINGED, SOUND, Qemu, RamLinux, disk_options, net_options
from tests.namespace import Namespace, needs_taps
from tests.patience import PATIENCE

pytestmark = needs_taps

#: What the guest has written, bytes, when it moves.
PROGRESS = 256 << 10


@dataclass(slots=True, frozen=True)
class Side:
    """The backends of one of the two hosts, which are one here: they share the disk's image."""

    disk: Backend
    net: Backend

    @property
    def devices(self) -> list[str]:
        """QEMU's options for them."""
        return [*disk_options(self.disk.path), *net_options(self.net.path)]

    @property
    def output(self) -> str:
        """What they have said."""
        return self.disk.output + self.net.output


@contextlib.contextmanager
def side(name: str, image: Path, namespace: Namespace) -> Iterator[Side]:
    """Serve the image, and a tap on the bridge."""
    folder = image.parent
    tap = f"tap={name},create=on,netns={namespace.name}"
    with (
        serve("blk", str(image), folder / f"{name}-blk.sock") as disk,
        serve("net", tap, folder / f"{name}-net.sock") as net,
    ):
        # It listens before it makes the tap.
        deadline = time.monotonic() + PATIENCE
        while "net is ready" not in net.output:
            assert time.monotonic() < deadline, net.output
            time.sleep(0.01)
        namespace.ip("link", "set", name, "master", "bridge", "up")
        yield Side(disk, net)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as stream:
        stream.truncate(16 << 20)
    return path


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as namespace:
        namespace.ip("link", "add", "bridge", "type", "bridge")
        namespace.ip("address", "add", "192.0.2.1/24", "dev", "bridge")
        namespace.ip("link", "set", "bridge", "up")
        yield namespace


def test_a_guest_moves_there_and_back_and_loses_nothing(
    request: pytest.FixtureRequest, image: Path, namespace: Namespace, tmp_path: Path
) -> None:
    linux = RamLinux(request.config, tmp_path)
    with (
        side("here", image, namespace) as here,
        side("there", image, namespace) as there,
        contextlib.ExitStack() as stack,
    ):
        guest = stack.enter_context(Qemu(linux, tmp_path / "first", here.devices))
        guest.until_said(SOUND, PINGED)
        for name, home, next_home in (("second", here, there), ("third", there, here)):
            new = Qemu(linux, tmp_path / name, next_home.devices, incoming=True)
            stack.enter_context(new)
            guest.until_written(home.disk.process.pid, PROGRESS)
            guest.migrate_to(new)
            guest.quit()
            guest = new
            guest.until_said(SOUND, PINGED)
        for said in ("goes on from the used ring", "needs a reset", "disconnected"):
            assert said not in here.output + there.output
