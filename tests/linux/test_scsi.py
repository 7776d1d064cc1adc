"""Linux's own SCSI drivers, on a host of disks and discs that virtiopy serves to QEMU."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.support import VIRTIOPY
from tests.guest.vhost_user import serve
from tests.lab.machine import Lab
from tests.linux.guest import boot, finish, wait_for
from tests.patience import PATIENCE

# A boot of its own takes minutes; tests/vm_linux/test_scsi.py shares one.
pytestmark = pytest.mark.nightly

QUEUES = 4
SIZE = 128 << 20
_TOOLS = {
    "fio": "fio",
    "genisoimage": "genisoimage",
    "blkdiscard": "util-linux",
    "sg_inq": "sg3-utils",
    "sg_reset": "sg3-utils",
}


@dataclass(slots=True)
class Used:
    """What Linux has left of the disk, and said of it."""

    share: Path
    image: Path
    known: bytes
    log: str

    def said(self, name: str) -> str:
        return (self.share / name).read_text()


def plug(control: Path, image: Path, share: Path, lab: Lab) -> None:
    """Plug a disk in, and out once Linux has read it."""

    def ctl(*words: str) -> None:
        subprocess.run([*VIRTIOPY, "ctl", str(control), *words], check=True, timeout=PATIENCE)

    image.write_bytes(b"plugged".ljust(4 << 20, b"!"))
    wait_for(share / "ready", lab, 2 * PATIENCE)
    ctl("scsi-add", "--attach", f"disk={image},lun=5")
    wait_for(share / "seen", lab)
    ctl("scsi-remove", "--unit", "0:5")


@pytest.fixture(scope="module")
def used(
    request: pytest.FixtureRequest, share: Path, tmp_path_factory: pytest.TempPathFactory
) -> Used:
    folder = tmp_path_factory.mktemp("scsi")
    image, disc, socket = folder / "disk.img", folder / "disc.iso", folder / "scsi.sock"
    image.touch()
    os.truncate(image, SIZE)
    known = os.urandom(1 << 20)
    (folder / "disc").mkdir()
    (folder / "disc" / "known").write_bytes(known)
    if shutil.which("genisoimage") is None:
        pytest.skip("genisoimage is missing: apt-get install genisoimage")
    command = ["genisoimage", "-quiet", "-R", "-o", str(disc), str(folder / "disc")]
    subprocess.run(command, check=True)
    options = f"disk={image},serial=S1,cdrom={disc},queues={QUEUES}"
    control = folder / "control.sock"
    with serve("scsi", options, socket, share / "backend.log", control=control) as backend:
        device = f"vhost-user-scsi-pci,chardev=scsi,num_queues={QUEUES}"
        with boot(
            request.config,
            share,
            "scsi.sh",
            # QEMU 7.2 does not reconnect here.
            qemu=["-chardev", f"socket,id=scsi,path={backend.path}", "-device", device],
            modules=("virtio_scsi", "sd_mod", "sr_mod", "isofs", "sg"),
            tools=_TOOLS,
            cpus=QUEUES,
        ) as lab:
            plug(control, folder / "third.img", share, lab)
            finish(lab)
        return Used(share, image, known, backend.output)


def test_fio_reads_what_it_wrote_on_every_queue(used: Used) -> None:
    text = used.said("fio.json")
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["write"]["io_bytes"] + job["read"]["io_bytes"] >= QUEUES * 8 << 20
    lines = re.findall(r"^.* virtio\d+-request$", used.said("interrupts.txt"), re.MULTILINE)
    counts = [sum(map(int, re.findall(r" (\d+)(?= )", line))) for line in lines]
    assert len(counts) == QUEUES
    assert all(count > 20 for count in counts), counts


def test_a_disc_is_read(used: Used) -> None:
    assert used.said("sum.txt").split()[0] == hashlib.sha256(used.known).hexdigest()


def test_sg3_utils_find_what_the_disk_says(used: Used) -> None:
    facts = used.said("facts.txt")
    assert "Unit serial number: S1" in facts
    assert "Unmap command supported (LBPU): 1" in facts
    assert f"Last LBA={SIZE // 512 - 1}" in facts
    assert "Lun list length = 16" in facts
    assert "Caching, page_control: current" in facts
    assert "Compare and write" in facts
    with used.image.open("rb") as image:
        image.seek(100 << 20)
        assert image.read(64 * 512) == b"y\n" * 4096 + bytes(8 * 512) + b"y\n" * 10240


def test_discarded_blocks_are_given_back_to_the_host(used: Used) -> None:
    with used.image.open("rb") as image:
        image.seek(70 << 20)
        assert image.read(8 << 20) == bytes(8 << 20)


def test_a_disk_is_plugged_in_and_out_while_linux_runs(used: Used) -> None:
    assert used.said("plugged.txt") == "plugged"
    assert (used.share / "gone").exists()


def test_the_backend_has_nothing_to_complain_of(used: Used) -> None:
    assert "WARNING" not in used.log
    assert "Traceback" not in used.log
