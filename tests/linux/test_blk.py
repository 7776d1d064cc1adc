"""Linux's own blk driver, file system and fio, on a disk that virtiopy serves to QEMU."""

import hashlib
from pathlib import Path

import pytest

from tests.guest.vhost_user import serve
from tests.linux.disk import QUEUES, LinuxDisk, make_image
from tests.linux.guest import finish

# By day test_reconnect.py shows all of this of a disk whose backend is killed besides.
pytestmark = pytest.mark.nightly

#: Of each of the four jobs' files.
SIZE = 8 << 20


@pytest.fixture(scope="module")
def disk(
    request: pytest.FixtureRequest, share: Path, tmp_path_factory: pytest.TempPathFactory
) -> LinuxDisk:
    folder = tmp_path_factory.mktemp("disk")
    image, socket = make_image(folder / "disk.img"), folder / "disk.sock"
    options = f"{image},queues={QUEUES}"
    with serve("blk", options, socket, share / "backend.log") as backend:
        disk = LinuxDisk(image, share, backend)
        with disk.boot(request.config, f"--size={SIZE}") as lab:
            finish(lab)
    return disk


def test_fio_reads_what_it_wrote(disk: LinuxDisk) -> None:
    job = disk.fio_job()

    assert job["error"] == 0
    assert job["write"]["io_bytes"] + job["read"]["io_bytes"] >= 4 * SIZE
    # At some time each job had as many requests in flight as it may.
    assert float(job["iodepth_level"]["32"]) > 10


def test_every_queue_carried_requests(disk: LinuxDisk) -> None:
    interrupts = disk.interrupts()

    assert len(interrupts) == QUEUES
    assert all(count > 10 for count in interrupts), interrupts


def test_the_file_system_is_clean_in_the_guest_and_on_the_host(disk: LinuxDisk) -> None:
    assert "Pass 5" in (disk.share / "fsck.txt").read_text()
    check = disk.check_on_host()
    assert check.returncode == 0, check.stdout


def test_the_image_holds_the_files_that_the_guest_wrote(disk: LinuxDisk) -> None:
    sums = disk.sums()

    assert set(sums) == {"known", *(f"verified.{job}.0" for job in range(QUEUES))}
    assert sums["known"] == hashlib.sha256(disk.known).hexdigest()
    assert {name: disk.sum_on_host(name) for name in sums} == sums


def test_what_linux_deletes_is_given_back_to_the_host(disk: LinuxDisk) -> None:
    # fio's files and the known one, and less than what was deleted for the file system's own.
    assert disk.image.stat().st_blocks * 512 < QUEUES * SIZE + len(disk.known) + (48 << 20)
