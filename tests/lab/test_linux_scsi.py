"""Linux's own SCSI driver in a VM of ours, on the kernel's target: /dev/vhost-scsi."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.booted import boot
from tests.lab.target import mount_configfs
from virtiopy.host.target import TARGETS

# By night: the lab's KVM is emulated, and a boot of Linux there takes a minute.
pytestmark = [pytest.mark.lab, pytest.mark.nightly]

MIB = 1 << 20


def targets() -> list[Path]:
    """Return the targets for vhost and the backstores that the kernel has."""
    return sorted([*TARGETS.glob("vhost/naa.*"), *TARGETS.glob("core/fileio_*")])


def served_commands() -> int:
    """Return how many commands the kernel's targets for vhost were given."""
    counts = TARGETS.glob("vhost/*/tpgt_*/lun/lun_*/statistics/scsi_tgt_port/in_cmds")
    return sum(int(path.read_text()) for path in counts)


@contextlib.contextmanager
def plugged_in(image: Path) -> Iterator[None]:
    """Have one more unit, LUN 5 of the one target that there is, which a file has."""
    [group] = TARGETS.glob("vhost/naa.*/tpgt_*")
    with contextlib.ExitStack() as made:

        def make(folder: Path) -> Path:
            folder.mkdir()
            made.callback(folder.rmdir)
            return folder

        store = make(make(TARGETS / "core" / "fileio_77") / "plugged")
        (store / "control").write_text(f"fd_dev_name={image},fd_dev_size={image.stat().st_size}")
        (store / "enable").write_text("1")
        link = make(group / "lun" / "lun_5") / "plugged"
        link.symlink_to(store)
        made.callback(link.unlink)
        yield


SG3_UTILS = (
    *("sg_inq", "sg_vpd", "sg_readcap", "sg_luns", "sg_modes", "sg_opcodes"),
    *("sg_unmap", "sg_write_same"),
)
SCSI = """
disk=/dev/$(basename /sys/class/scsi_disk/*:0:0:0/device/block/*)
cat /sys/class/scsi_host/host0/proc_name
head -c 1048576 $disk | sha256sum
dd if=/dev/urandom of=/tmp/known bs=64k count=16 2>/dev/null
sha256sum </tmp/known
dd if=/tmp/known of=$disk bs=64k seek=64 conv=fsync 2>/dev/null
echo WRITTEN
sg_inq $disk; sg_vpd -p lbpv $disk; sg_readcap $disk; sg_luns $disk; sg_modes -a $disk
sg_opcodes $disk 2>&1 || echo sg_opcodes: $?
sg_write_same --16 --lba=16384 --num=64 --in=/tmp/known --xferlen=512 $disk
sg_unmap --force --lba=16400 --num=8 $disk
echo SG3-UTILS
fio --name=verified --filename=$disk --offset=16M --size=2M --rw=randrw --bsrange=4k-64k \
    --ioengine=psync --direct=1 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --minimal
echo FIO
plugged='/sys/class/scsi_disk/*:0:0:5'
until ls -d $plugged/device/block/* >/dev/null 2>&1; do sleep 0.1; done
head -c 7 /dev/$(basename $plugged/device/block/*)
echo
echo PLUGGED
while ls -d $plugged >/dev/null 2>&1; do sleep 0.1; done
echo GONE
"""


def test_linux_uses_disks_of_the_kernels_target(tmp_path: Path) -> None:
    mount_configfs()
    before = targets()
    image, other = tmp_path / "disk.img", tmp_path / "other.img"
    first = os.urandom(MIB)
    image.write_bytes(first + bytes(31 * MIB))
    other.write_bytes(b"plugged".ljust(4 * MIB, b"!"))
    tools = [word for tool in (*SG3_UTILS, "fio") for word in ("--with", tool)]
    with boot(SCSI, "--scsi", f"disk={image},rotational=off,mode=vhost", *tools) as linux:
        driver, read, written = linux.read_until("WRITTEN").splitlines()
        seconds, commands = linux.vhost_seconds(), served_commands()
        facts = linux.read_until("SG3-UTILS")
        assert linux.read_until("FIO").split(";")[4] == "0"
        # What Linux did, vhost's thread and the kernel's target have done.
        assert linux.vhost_seconds() > seconds > 0
        assert served_commands() > commands > 0
        with plugged_in(other):
            assert linux.read_until("PLUGGED").strip() == "plugged"
        linux.read_until("GONE")
    assert driver == "virtio_scsi"
    assert read.split()[0] == hashlib.sha256(first).hexdigest()
    content = image.read_bytes()
    known = content[4 * MIB : 5 * MIB]
    assert written.split()[0] == hashlib.sha256(known).hexdigest()
    same = known[:512]
    assert content[8 * MIB :][: 64 * 512] == same * 16 + bytes(8 * 512) + same * 40
    assert "LIO-ORG" in facts
    assert "Unmap command supported (LBPU): 1" in facts
    assert "Last LBA=65535" in facts
    assert "Lun list length = 8" in facts
    assert "Caching, page_control: current" in facts
    # The target of Linux 6.1 has no such command.
    assert re.search(r"^sg_opcodes: 9$", facts, re.MULTILINE), facts
    assert targets() == before
