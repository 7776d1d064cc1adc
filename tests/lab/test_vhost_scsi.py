"""The kernel's target as a SCSI host device of a VM: /dev/vhost-scsi."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.target import scsi_target
from tests.patience import PATIENCE
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.boot.elf import GuestImage
from virtiopy.boot.guests import guest_path
from virtiopy.cli.tapresults import parse_tap
from virtiopy.errors import ConfigError
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


def test_a_target_that_is_none_is_said(image: Path) -> None:
    with pytest.raises(ConfigError, match="The kernel has no target naa"):
        KernelScsi("naa.1")
    # The target that there is can be had, and had again.
    for _ in range(2):
        KernelScsi(WWPN).close()
