"""The kernel's target as a SCSI host device of a VM: /dev/vhost-scsi."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.costs import costs_by_mode
from tests.lab.target import mount_configfs, scsi_target
from tests.patience import PATIENCE
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.boot.elf import GuestImage
from virtiopy.boot.guests import guest_path
from virtiopy.cli.attachments import build, parse
from virtiopy.cli.tapresults import parse_tap
from virtiopy.devices.registry import entry_named
from virtiopy.errors import ConfigError
from virtiopy.exits.model import Costs
from virtiopy.host.target import TARGETS
from virtiopy.memory import GuestMemory
from virtiopy.vhost.kernel.scsi import KernelScsi
from virtiopy.vhost.worker import worker_threads
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode

pytestmark = pytest.mark.lab

WWPN = "naa.5001405000000a01"
SIZE, BLOCK = 8 << 20, 512
LAST = bytes(range(256)) * 2


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE - BLOCK) + LAST)
    with scsi_target(path, WWPN):
        yield path


def test_the_scsi_guest_passes_on_a_disk_that_the_kernel_has(image: Path) -> None:
    output = bytearray()
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(GuestMemory.allocate(32 << 20))
        accelerator = KvmAccelerator(memory)
        stack.callback(accelerator.close)
        machine = stack.enter_context(Machine(memory, accelerator, console=output.extend))
        machine.add_device(KernelScsi(WWPN), "scsi0", IoMode.VHOST)
        # Named after the thread that opened /dev/vhost-scsi: this one.
        assert len(worker_threads(threading.get_native_id())) >= 1
        machine.boot(GuestImage.open(guest_path("scsi")), "scsi.vhost=1")
        result = machine.run(PATIENCE)
    text = output.decode()
    failed = [test.description for test in parse_tap(text).tests if test.outcome == "failed"]
    assert failed == [], text
    assert result.status == 0, text
    # The guest read the last block and wrote it back; no other was touched.
    assert image.read_bytes() == bytes(SIZE - BLOCK) + LAST


def test_a_target_is_made_of_images_and_taken_away_again(tmp_path: Path) -> None:
    mount_configfs()
    path = tmp_path / "own,disk.img"
    path.write_bytes(bytes(SIZE - BLOCK) + LAST)
    before = sorted(TARGETS.glob("*/*"))
    entry = entry_named("scsi")
    value = f"disk={str(path).replace(',', ',,')},rotational=off,mode=vhost"
    output = bytearray()
    with (
        GuestMemory.allocate(32 << 20) as memory,
        contextlib.closing(KvmAccelerator(memory)) as accelerator,
        Machine(memory, accelerator, console=output.extend) as machine,
    ):
        device = build(entry, parse(entry, value))
        machine.add_device(device, "scsi0", IoMode.VHOST)
        # It is in use meanwhile, and so cannot be used twice.
        with pytest.raises(ConfigError, match="is in use"):
            build(entry, parse(entry, value))
        machine.boot(GuestImage.open(guest_path("scsi")), "scsi.vhost=1")
        result = machine.run(PATIENCE)
    text = output.decode()
    assert [test for test in parse_tap(text).tests if test.outcome == "failed"] == [], text
    assert result.status == 0, text
    assert path.read_bytes() == bytes(SIZE - BLOCK) + LAST
    assert sorted(TARGETS.glob("*/*")) == before


READS = 100


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[IoMode, Costs]:
    """What a read cost in each mode, with exits for registers; none is missing in the lab."""
    mount_configfs()
    path = tmp_path_factory.mktemp("exits") / "disk.img"
    path.write_bytes(bytes(SIZE))
    return costs_by_mode("scsi", f"disk={path}", READS)


def test_a_read_costs_one_queue_notify_exit_in_trapped_mode_and_none_in_the_others(
    costs: dict[IoMode, Costs],
) -> None:
    exits = {mode: one.of("QueueNotify") for mode, one in costs.items()}
    # A device whose turn took long on a busy machine asks for no kick meanwhile.
    assert 0.9 * READS <= exits.pop(IoMode.TRAPPED) <= READS
    assert exits == {IoMode.IOEVENTFD: 0, IoMode.VHOST: 0}


def test_vhosts_thread_does_the_work_in_vhost_mode(costs: dict[IoMode, Costs]) -> None:
    for mode, one in costs.items():
        assert (one.cpu_seconds["vhost"] > 0) == (mode is IoMode.VHOST)


def test_a_target_that_is_none_is_said(image: Path) -> None:
    with pytest.raises(ConfigError, match="The kernel has no target naa"):
        KernelScsi("naa.1")
    # The target that there is can be had, and had again.
    for _ in range(2):
        KernelScsi(WWPN).close()
