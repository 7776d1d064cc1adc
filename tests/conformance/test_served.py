"""The protocol's statements, put to what `virtiopy serve` serves, by threads in C or by Python."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.conformance.runs import run_pytest
from tests.namespace import MAY_HAVE_TAPS, Namespace
from tests.patience import PATIENCE
from virtiopy.host.tap import NAMESPACES

# Each test of the suite has a process that is started for it.
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]

#: What is served, by the device's name on the command line; {folder} is a test's own.
SERVED = {
    "blk-native": "blk {folder}/disk.img,mode=native",
    "rng": "rng",
    "scsi": "scsi disk={folder}/disk.img",
    "vsock": "vsock cid=77,path={folder}/vm.sock",
}


def keeps_the_protocol(folder: Path, device: str, command: str) -> None:
    """Put a served device to the statements of the protocol."""
    run = run_pytest(
        *("--pyargs", "virtiopy.conformance", f"--virtio-device={device}", "-k", "vhostuser"),
        f"--virtio-spawn={command}",
        f"--virtio-patience={PATIENCE / 5}",
        folder=folder,
    )
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout


def served(options: str) -> str:
    """Return the command that serves a device."""
    return f"{sys.executable} -m virtiopy serve {options} --socket {{socket}}"


@pytest.mark.parametrize("name", SERVED)
def test_a_served_device_keeps_the_protocol(tmp_path: Path, name: str) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 21))
    options = SERVED[name].replace("{folder}", str(tmp_path))
    keeps_the_protocol(tmp_path, name.partition("-")[0], served(options))


@pytest.mark.skipif(not MAY_HAVE_TAPS, reason="taps take root and /dev/net/tun")
def test_a_network_device_that_a_thread_works_keeps_the_protocol(tmp_path: Path) -> None:
    with Namespace() as namespace:
        inside = f"nsenter --net={NAMESPACES / namespace.name}"
        command = served("net tap=tap0,create=on,mode=native")
        keeps_the_protocol(tmp_path, "net", f"{inside} {command}")


@pytest.mark.skipif(shutil.which("diod") is None, reason="diod is missing")
def test_a_folder_that_diod_serves_keeps_the_protocol(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    keeps_the_protocol(tmp_path, "ninep", served(f"ninep {shared},tag=files"))
