"""docs/scsi.md and docs/vsock.md: their commands say what the page shows."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.guest.pages import Reader, blocks
from tests.guest.support import QEMU, needs_kvm, needs_qemu, with_command
from tests.guest.test_vhost_user_docs import GREETING, boot_sector
from tests.lab.test_device_docs import IN_THE_LAB

needs_socat = pytest.mark.skipif(shutil.which("socat") is None, reason="apt-get install socat")
#: By night: most of them boot Linux.
boots = pytest.mark.nightly

CALLS, LISTENS, COSTS, SERVED = "vsock-0", "vsock-1", "vsock-3", "vsock-4"
PLUGGED, IN_QEMU = "scsi-0", "scsi-1"
BLOCKS = {
    f"{page}-{number}": block
    for page in ("scsi", "vsock")
    for number, block in enumerate(blocks(page))
}


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    environment = with_command(tmp_path / "bin")
    for name in ("disk.img", "a.img", "b.img"):
        with (tmp_path / name).open("wb") as image:
            image.truncate(64 << 20)
    with Reader(tmp_path, environment) as reading:
        yield reading


def test_each_block_is_typed_by_a_test() -> None:
    here = {CALLS, LISTENS, COSTS, SERVED, PLUGGED, IN_QEMU}
    assert here | set(IN_THE_LAB) == set(BLOCKS)


@boots
@needs_unicorn
@needs_socat
@pytest.mark.parametrize("name", [CALLS, LISTENS, SERVED])
def test_programs_of_guest_and_host_talk(reader: Reader, name: str) -> None:
    reader.type(BLOCKS[name])


@boots
@needs_kvm
def test_a_packets_costs_are_counted(reader: Reader) -> None:
    said = reader.type(BLOCKS[COSTS])
    assert "300 packets of 4 KiB" in said
    assert "ioeventfd" in said


@boots
@needs_unicorn
def test_units_come_grow_and_go(reader: Reader) -> None:
    reader.type(BLOCKS[PLUGGED])


@boots
@needs_qemu
def test_qemu_boots_from_a_disk_that_is_served(reader: Reader, tmp_path: Path) -> None:
    with (tmp_path / "disk.img").open("r+b") as image:
        image.write(boot_sector())
    # The reader's has a window, and does not end.
    wrapper = tmp_path / "bin" / QEMU
    more = "-display none -serial stdio -no-reboot -accel tcg"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which(QEMU)} "$@" {more}\n')
    wrapper.chmod(0o755)
    assert GREETING.decode().strip() in reader.type(BLOCKS[IN_QEMU])
