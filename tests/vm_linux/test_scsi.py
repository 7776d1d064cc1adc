"""Linux's own SCSI drivers, and the commands of sg3-utils, on disks and a disc of ours."""

import hashlib
import os
import re

import pytest

from tests.vm_linux.conftest import DISK_SIZE, SERIAL, Rig
from tests.vm_linux.machine import Linux
from tests.vm_linux.test_devices import MIB, wait_until
from virtiopy.devices.scsi import Address, ScsiDisk
from virtiopy.host.disk import DiskImage

#: What sg3-utils end with: sg_compare_and_write of other data, and a command that is none.
MISCOMPARE, NO_COMMAND = 14, 9


def name_of(linux: Linux, target: int, lun: int) -> str:
    """Return the disk's name, as sda is; Linux finds them in any order, and on any host."""
    return linux.sh(f"basename /sys/class/scsi_disk/*:0:{target}:{lun}/device/block/*")


@pytest.fixture
def sd(linux: Linux) -> str:
    return name_of(linux, 0, 0)


def test_a_disk_tells_what_it_is(linux: Linux, sd: str) -> None:
    queue = f"/sys/block/{sd}/queue"
    assert linux.sh(f"cat /sys/block/{sd}/size {queue}/write_cache {queue}/fua").splitlines() == [
        *(str(DISK_SIZE // 512), "write back", "1"),
    ]
    assert linux.sh(f"cat {queue}/rotational {queue}/logical_block_size").split() == ["0", "512"]
    # It knows that blocks can be given back, and how many at a time.
    assert linux.sh("cat /sys/class/scsi_disk/*:0:0:0/provisioning_mode") == "unmap"
    assert int(linux.sh(f"cat {queue}/discard_max_bytes")) == 1 << 31


def test_a_disk_far_away_is_there_and_is_not_written(rig: Rig) -> None:
    # LUN 300, by the flat space addressing method.
    name = name_of(rig.linux, 3, 0x4000 + 300)
    assert rig.linux.sh(f"cat /sys/block/{name}/ro") == "1"
    rig.linux.sh(f"! dd if=/dev/zero of=/dev/{name} bs=512 count=1 2>&1")
    assert (rig.folder / "fixed.img").read_bytes() == bytes(8 * MIB)


def test_fio_reads_what_it_wrote(linux: Linux, sd: str) -> None:
    report = linux.sh(
        f"cd /tmp && host fio --name=verified --filename=/dev/{sd} --size=4M --rw=randrw "
        "--bsrange=4k-64k --ioengine=psync --direct=1 --verify=crc32c --verify_fatal=1 "
        "--verify_state_save=0 --do_verify=1 --minimal",
    )
    fields = report.splitlines()[-1].split(";")
    assert fields[4] == "0", report  # errors
    assert int(fields[46]) > 0  # KiB written


def test_what_is_written_arrives_and_what_is_there_is_read(rig: Rig, sd: str) -> None:
    written = rig.linux.sh(
        "dd if=/dev/urandom of=/tmp/known bs=100k count=20 2>/dev/null; sha256sum </tmp/known; "
        f"dd if=/tmp/known of=/dev/{sd} bs=100k seek=100 conv=fsync 2>/dev/null; rm /tmp/known"
    ).split()[0]
    with (rig.folder / "scsi.img").open("r+b") as image:
        image.seek(100 * 102_400)
        assert hashlib.sha256(image.read(20 * 102_400)).hexdigest() == written
        data = os.urandom(MIB)
        image.seek(48 * MIB)
        image.write(data)
    read = rig.linux.sh(
        f"dd if=/dev/{sd} bs=64k skip={48 * 16} count=16 iflag=direct 2>/dev/null | sha256sum"
    )
    assert read.split()[0] == hashlib.sha256(data).hexdigest()


def test_the_end_of_the_disk_can_be_read_and_nothing_beyond(linux: Linux, sd: str) -> None:
    last = DISK_SIZE // 4096 - 1
    linux.sh(f"dd if=/dev/{sd} of=/dev/null bs=4k skip={last} count=1 iflag=direct 2>&1")
    assert "0+0 records" in linux.sh(f"dd if=/dev/{sd} of=/dev/null bs=4k skip={last + 1} 2>&1")


def test_discarded_blocks_are_given_back_to_the_host(rig: Rig, sd: str) -> None:
    path = rig.folder / "scsi.img"
    rig.linux.sh(f"dd if=/dev/urandom of=/dev/{sd} bs=1M seek=16 count=8 conv=fsync 2>&1")
    before = path.stat().st_blocks
    rig.linux.sh(f"blkdiscard -o {16 * MIB} -l {8 * MIB} /dev/{sd}")
    assert path.stat().st_blocks <= before - 8 * MIB // 512


def test_blocks_are_zeroed_by_one_command(rig: Rig, sd: str) -> None:
    rig.linux.sh(f"dd if=/dev/urandom of=/dev/{sd} bs=1M seek=32 count=2 conv=fsync 2>&1")
    rig.linux.sh(f"host blkdiscard -z -o {32 * MIB} -l {MIB} /dev/{sd}")
    with (rig.folder / "scsi.img").open("rb") as image:
        image.seek(32 * MIB)
        assert image.read(MIB) == bytes(MIB)
        assert image.read(MIB) != bytes(MIB)


def test_a_disk_grows_and_shrinks_while_it_is_in_use(rig: Rig, sd: str) -> None:
    def resize(size: int) -> None:
        os.truncate(rig.folder / "scsi.img", size)
        rig.scsi.capacity_changed(Address(0, 0))
        # No rescan: an event has told it.
        wait_until(lambda: rig.linux.sh(f"cat /sys/block/{sd}/size") == str(size // 512))

    resize(DISK_SIZE + 16 * MIB)
    rig.linux.sh(f"printf beyond | dd of=/dev/{sd} bs=1M seek={DISK_SIZE // MIB} conv=fsync 2>&1")
    with (rig.folder / "scsi.img").open("rb") as image:
        image.seek(DISK_SIZE)
        assert image.read(6) == b"beyond"
    resize(DISK_SIZE)


@pytest.mark.parametrize(("target", "lun"), [(0, 2), (7, 0)])
def test_a_disk_is_plugged_in_and_out(rig: Rig, target: int, lun: int) -> None:
    path = rig.folder / f"{target}-{lun}.img"
    path.write_bytes(b"plugged".ljust(4 * MIB, b"!"))
    place = f"/sys/class/scsi_disk/*:0:{target}:{lun}"
    rig.scsi.add_unit(Address(target, lun), ScsiDisk(DiskImage(path)))
    wait_until(lambda: rig.linux.sh(f"ls -d {place}/device/block/* 2>/dev/null", check=False))
    name = name_of(rig.linux, target, lun)
    wait_until(lambda: rig.linux.sh(f"cat /sys/block/{name}/size") == str(4 * MIB // 512))
    assert rig.linux.sh(f"head -c 7 /dev/{name}") == "plugged"
    rig.scsi.remove_unit(Address(target, lun))
    wait_until(lambda: rig.linux.sh(f"! ls -d {place} 2>/dev/null", check=False) == "")
    assert rig.linux.sh(f"test -e /sys/block/{name} || echo gone") == "gone"


# The disc


def test_a_disc_is_mounted_and_ejected(rig: Rig) -> None:
    linux = rig.linux
    found = linux.sh("mkdir -p /disc && mount -t iso9660 /dev/sr0 /disc && sha256sum /disc/Some*")
    content = (rig.folder / "disc" / "Some content").read_bytes()
    assert found.split()[0] == hashlib.sha256(content).hexdigest()
    # Linux has locked the tray meanwhile.
    assert linux.sh("host sg_start --eject /dev/sr0 >/dev/null 2>&1; echo $?") != "0"
    linux.sh("umount /disc && host sg_start --eject /dev/sr0")
    assert "Medium not present" in linux.sh(
        "host sg_requests /dev/sr0; host sg_turs -v /dev/sr0 2>&1", check=False
    )
    # Linux closes the tray for a mount.
    linux.sh("mount -t iso9660 /dev/sr0 /disc && umount /disc")


# sg3-utils


def become_ready(linux: Linux, sd: str) -> None:
    """Have a unit tell, once, of what was plugged in before."""
    linux.sh(f"host sg_turs /dev/{sd}", check=False)
    linux.sh(f"host sg_turs /dev/{sd}")


def test_its_pages_are_as_sg3_utils_reads_them(linux: Linux, sd: str) -> None:
    become_ready(linux, sd)
    assert f"Unit serial number: {SERIAL}" in linux.sh(f"host sg_inq /dev/{sd}")
    names = linux.sh(f"host sg_vpd -p di /dev/{sd}")
    assert f"vendor specific: DISK            {SERIAL}" in names
    # NAA 3: locally assigned.
    assert re.search(r"designator type: NAA,  code set: Binary\n *0x3[0-9a-f]{15}$", names), names
    assert "Unmap command supported (LBPU): 1" in linux.sh(f"host sg_vpd -p lbpv /dev/{sd}")
    assert "Non-rotating medium" in linux.sh(f"host sg_vpd -p bdc /dev/{sd}")
    limits = linux.sh(f"host sg_vpd -p bl /dev/{sd}")
    assert "Maximum unmap block descriptor count: 64" in limits
    assert f"Last LBA={DISK_SIZE // 512 - 1}" in linux.sh(f"host sg_readcap -l /dev/{sd}")
    assert "Lun list length = 16" in linux.sh(f"host sg_luns /dev/{sd}")
    assert "Caching, page_control: current" in linux.sh(f"host sg_modes -a /dev/{sd}")
    assert "Compare and write" in linux.sh(f"host sg_opcodes /dev/{sd}")


def test_sg3_utils_command_a_disk(rig: Rig, sd: str) -> None:
    linux = rig.linux
    block = 20 * MIB // 512

    def content() -> bytes:
        with (rig.folder / "scsi.img").open("rb") as image:
            image.seek(block * 512)
            return image.read(8 * 512)

    linux.sh("yes | dd of=/tmp/ones bs=512 count=1 2>/dev/null")
    become_ready(linux, sd)
    linux.sh(f"host sg_write_same --16 --lba={block} --num=8 --in=/tmp/ones /dev/{sd}")
    assert content() == b"y\n" * 2048
    linux.sh(f"host sg_verify --16 --lba={block} --count=8 /dev/{sd}")
    linux.sh(
        f"cat /tmp/ones /dev/zero | head -c 1024 >/tmp/pair && "
        f"host sg_compare_and_write --lba={block} --num=1 --in=/tmp/pair /dev/{sd}"
    )
    assert content() == bytes(512) + b"y\n" * 1792
    status = linux.sh(
        f"host sg_compare_and_write --lba={block} --num=1 --in=/tmp/pair /dev/{sd} "
        ">/dev/null 2>&1; echo $?"
    )
    assert int(status) == MISCOMPARE
    linux.sh(f"host sg_unmap --force --lba={block} --num=8 /dev/{sd} && host sg_sync /dev/{sd}")
    assert content() == bytes(8 * 512)


def test_persistent_reservations_are_no_command(linux: Linux, sd: str) -> None:
    said = linux.sh(f"host sg_persist --in --read-keys /dev/{sd} 2>&1; echo status $?")
    assert said.endswith(f"status {NO_COMMAND}"), said


def test_a_unit_is_reset_and_works_on(linux: Linux, sd: str) -> None:
    linux.sh(f"host sg_reset --device /dev/{sd}")
    linux.sh(f"dd if=/dev/{sd} of=/dev/null bs=4k count=10 iflag=direct 2>&1")
