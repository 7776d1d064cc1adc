"""docs/scsi.md and docs/vsock.md: the commands that take vhost-scsi and vhost-vsock."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.pages import Reader, blocks
from tests.guest.support import with_command
from tests.lab.target import mount_configfs

# By night: three of them boot Linux, on a KVM that is emulated.
pytestmark = [pytest.mark.lab, pytest.mark.nightly]

TALKS, READS, COSTS, TARGET = "vsock-2", "scsi-2", "scsi-3", "scsi-4"
WWPN = "naa.5001405000000001"
#: The system's message bus, which the lab does not have.
BUS = Path("/run/dbus/system_bus_socket")
IN_THE_LAB = (TALKS, READS, COSTS, TARGET)


def block(name: str) -> str:
    page, number = name.split("-")
    return blocks(page)[int(number)]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    mount_configfs()
    environment = with_command(tmp_path / "bin")
    # The lab has loaded its modules, and they are not where the host has its own.
    modprobe = tmp_path / "bin" / "modprobe"
    modprobe.write_text('#!/bin/sh\nexec test -d "/sys/module/$1"\n')
    modprobe.chmod(0o755)
    with (tmp_path / "disk.img").open("wb") as image:
        image.truncate(64 << 20)
    with Reader(tmp_path, environment) as reading:
        yield reading


@pytest.mark.parametrize("name", [TALKS, READS])
def test_a_command_says_what_the_page_shows(reader: Reader, name: str) -> None:
    reader.type(block(name))


def test_a_reads_costs_are_counted(reader: Reader) -> None:
    said = reader.type(block(COSTS))
    assert "vhost" in said
    assert "missing" not in said


@pytest.mark.skipif(shutil.which("targetcli") is None, reason="apt-get install targetcli-fb")
@pytest.mark.skipif(not BUS.exists(), reason=f"targetcli talks to D-Bus, which has no {BUS}")
def test_a_target_that_targetcli_made_is_attached_by_its_name(reader: Reader) -> None:
    try:
        reader.type(block(TARGET))
    finally:
        # Not `clearconfig`: a host that these tests run on directly may have targets of its own.
        for words in (("/vhost", "delete", WWPN), ("/backstores/fileio", "delete", "disk")):
            subprocess.run(["targetcli", *words], check=False)
