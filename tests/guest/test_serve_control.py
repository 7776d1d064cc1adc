"""virtiopy serve --control: commands to a device while it is served to another VMM."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guest.support import VIRTIOPY
from tests.guest.vhost_user import Backend, serve
from tests.patience import PATIENCE
from tests.unit.vhost_user import FEATURES, Driver
from virtiopy.control.client import ask, device_facts
from virtiopy.devices.scsi.events import EventType, ResetReason
from virtiopy.devices.scsi.features import EVENT_SIZE, ScsiFeature
from virtiopy.errors import VirtiopyError
from virtiopy.spec import feature_mask
from virtiopy.vhost.user.frontend import VhostUserFrontend, connect

MIB = 1 << 20
SCSI_FEATURES = FEATURES | feature_mask(
    [ScsiFeature.VIRTIO_SCSI_F_HOTPLUG, ScsiFeature.VIRTIO_SCSI_F_CHANGE]
)
EVENTQ, QUEUES = 1, 3


@contextmanager
def controlled(device: str, options: str, folder: Path) -> Iterator[tuple[Backend, Path]]:
    path, control = folder / "device.sock", folder / "control.sock"
    with serve(device, options, path, control=control) as backend:
        # It listens before the device is there: who is answered has waited for that.
        VhostUserFrontend(connect(path)).close()
        yield backend, control
    assert backend.process.returncode == 0
    assert "Traceback" not in backend.output
    assert not control.exists()


def ctl(control: Path, *words: str) -> str:
    command = [*VIRTIOPY, "ctl", str(control), *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout


def start(backend: Backend) -> Driver:
    stream = connect(backend.path)
    stream.settimeout(PATIENCE)
    driver = Driver(stream, queue_count=QUEUES, features=SCSI_FEATURES)
    driver.start()
    return driver


def offer(driver: Driver) -> int:
    """Give the device a buffer for an event; returns where it is."""
    piece = driver.piece(EVENT_SIZE)
    driver.queues[EVENTQ].driver.add([piece])
    driver.queues[EVENTQ].notify()
    return piece.address


def event(driver: Driver, address: int) -> tuple[int, int, int]:
    """Return an event's type, its LUN, and its reason."""
    driver.queues[EVENTQ].wait()
    data = driver.memory.read(address, EVENT_SIZE)
    kind, lun, reason = data[:4], data[4:12], data[12:]
    return (
        int.from_bytes(kind, "little"),
        int.from_bytes(lun[2:4], "big"),
        int.from_bytes(reason, "little"),
    )


def test_disks_are_plugged_into_a_served_host_and_out_again(tmp_path: Path) -> None:
    images = [tmp_path / f"{name}.img" for name in ("first", "second", "third")]
    for image in images:
        image.write_bytes(bytes(MIB))
    first, second, third = images
    with controlled("scsi", f"disk={first},disk={second}", tmp_path) as (backend, control):
        assert device_facts(ask(control, {"command": "status"}), "scsi0")["status"] == []
        with start(backend) as driver:
            facts = device_facts(ask(control, {"command": "status"}), "scsi0")
            assert facts["mode"] == "ioeventfd"
            room = offer(driver)
            said = ctl(control, "scsi-add", "--attach", f"disk={third},lun=5")
            assert said == f"scsi0: unit 0:5 size {MIB}\n"
            assert event(driver, room) == (EventType.TRANSPORT_RESET, 5, ResetReason.RESCAN)
            room = offer(driver)
            ask(control, {"command": "scsi-remove", "unit": "0:1"})
            assert event(driver, room) == (EventType.TRANSPORT_RESET, 1, ResetReason.REMOVED)
            second.unlink()
            room = offer(driver)
            with third.open("ab") as longer:
                longer.truncate(2 * MIB)
            ask(control, {"command": "scsi-resize", "unit": "0:5"})
            assert event(driver, room)[:2] == (EventType.PARAM_CHANGE, 5)
        # The next frontend's rings start, without the image that is gone.
        with start(backend) as driver:
            room = offer(driver)
            ask(control, {"command": "scsi-remove", "unit": "0:5"})
            assert event(driver, room) == (EventType.TRANSPORT_RESET, 5, ResetReason.REMOVED)


def test_the_mode_is_for_as_long_as_a_device_is_served(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    with (
        controlled("blk", str(tmp_path / "disk.img"), tmp_path) as (_, control),
        pytest.raises(VirtiopyError, match="blk0 is served, and stays in native mode"),
    ):
        ask(control, {"command": "mode", "mode": "ioeventfd"})


def test_a_context_id_is_not_changed_under_a_driver_that_is_not_told(tmp_path: Path) -> None:
    with controlled("vsock", f"cid=3,path={tmp_path}/vm.sock", tmp_path) as (backend, control):
        # Without a driver it is.
        assert ctl(control, "vsock-cid", "--cid", "4") == "vsock0: guest_cid 4\n"
        stream = connect(backend.path)
        stream.settimeout(PATIENCE)
        with Driver(stream, queue_count=2) as driver:
            driver.start()
            with pytest.raises(VirtiopyError, match="VMM has the event queue"):
                ask(control, {"command": "vsock-cid", "cid": "5"})
