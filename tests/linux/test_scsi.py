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

from tests.guest.vhost_user import serve
from tests.linux.guest import boot, finish

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
    with serve("scsi", options, socket, share / "backend.log") as backend:
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
    assert "Compare and write" in facts


def test_discarded_blocks_are_given_back_to_the_host(used: Used) -> None:
    with used.image.open("rb") as image:
        image.seek(70 << 20)
        assert image.read(8 << 20) == bytes(8 << 20)


def test_the_backend_has_nothing_to_complain_of(used: Used) -> None:
    assert "WARNING" not in used.log
    assert "Traceback" not in used.log
