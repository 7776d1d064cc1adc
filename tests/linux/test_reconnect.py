"""The backend of Linux's disk is killed while fio reads and writes, and starts again."""

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.vhost_user import serve
from tests.lab.machine import Lab
from tests.linux.disk import QUEUES, LinuxDisk, make_image
from tests.linux.guest import finish, wait_for
from tests.patience import PATIENCE
from virtiopy._native import ffi

#: How much one request reads or writes.
REQUEST = "--bsrange=4k-8k"

#: What each backend writes before it is killed, bytes: all that can be in flight when it comes, so
#: that some of it has to be completed, and other requests written.
PROGRESS = QUEUES * 32 * (8 << 10)


def requests_in_flight(pid: int) -> int:
    """Count what a backend has in its area of requests in flight: the memory of that process."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    found = re.search(r"^(\w+)-(\w+) .*virtiopy-inflight", maps, re.MULTILINE)
    assert found is not None, "the backend has no area of requests in flight"
    start, end = (int(address, 16) for address in found.groups())
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(start)
        area = ffi.from_buffer("char[]", memory.read(end - start))
    # Regions are of one size, and each begins at a multiple of 64 bytes.
    head, entry = (
        ffi.sizeof(f"struct vhost_user_{name}") for name in ("queue_region", "desc_state")
    )
    first = ffi.cast("struct vhost_user_queue_region *", area)
    size = -(-(head + first.desc_num * entry) // 64) * 64
    regions = [ffi.cast("struct vhost_user_queue_region *", area + size * i) for i in range(QUEUES)]
    return sum(region.desc[i].inflight for region in regions for i in range(region.desc_num))


class FioRun:
    """fio in the guest, on a disk."""

    def __init__(self, lab: Lab, disk: LinuxDisk) -> None:
        self._lab = lab
        self._disk = disk
        # How many requests were completed when the last backend was killed.
        self._stood_at = 0

    def _await(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            assert self._lab.process.poll() is None, "Linux has ended"
            assert not (self._disk.share / "fio.ended").exists(), "fio is done too early"
            assert time.monotonic() < deadline, f"{what} does not happen"
            time.sleep(0.0005)

    def await_progress(self) -> None:
        """Wait until Linux has more requests completed than when the last backend was killed."""
        self._await(lambda: self._count() > self._stood_at, "the end of a request")

    def kill_backend(self) -> None:
        """Kill the backend in the middle of a request of fio's."""
        goal = self._written() + PROGRESS
        self._await(lambda: self._written() > goal, "what is to be written")
        self._await(self._stop_in_a_request, "a request in flight")
        self._disk.backend.kill()
        # Requests are completed no more. The first of two counts may have been begun before.
        counts = len(self._disk.completed()) + 2
        self._await(lambda: len(self._disk.completed()) >= counts, "a count of requests")
        assert self._count() > self._stood_at, "the backend has completed nothing"
        self._stood_at = self._count()

    def _stop_in_a_request(self) -> bool:
        """Stop the backend where it is; has it go on where it has no request in flight."""
        pid = self._disk.backend.process.pid
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        if requests_in_flight(pid):
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    def _count(self) -> int:
        return (self._disk.completed() or [0])[-1]

    def _written(self) -> int:
        """Count the bytes that this backend has written, to the image above all."""
        counters = Path(f"/proc/{self._disk.backend.process.pid}/io").read_text()
        found = re.search(r"^wchar: (\d+)$", counters, re.MULTILINE)
        assert found is not None
        return int(found[1])


@dataclass(slots=True, frozen=True)
class Plan:
    """How often the backend is killed, and the size of each of the four jobs' files, in bytes."""

    kills: int
    size: int


PLANS = [
    pytest.param(Plan(4, 8 << 20), id="4"),
    pytest.param(Plan(20, 26 << 20), id="20", marks=pytest.mark.nightly),
]


@pytest.fixture(scope="module", params=PLANS)
def plan(request: pytest.FixtureRequest) -> Plan:
    assert isinstance(request.param, Plan)
    return request.param


@pytest.fixture(scope="module")
def disk(
    request: pytest.FixtureRequest,
    plan: Plan,
    share: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> LinuxDisk:
    """A disk whose backend was killed; between two kills, and after the last, fio went on."""
    folder = tmp_path_factory.mktemp("disk")
    image, socket = make_image(folder / "disk.img"), folder / "disk.sock"
    with serve("blk", f"{image},queues={QUEUES}", socket, share / "backend.log") as backend:
        disk = LinuxDisk(image, share, backend)
        with disk.boot(request.config, f"--size={plan.size}", REQUEST) as lab:
            run = FioRun(lab, disk)
            wait_for(share / "fio.started", lab)
            for _ in range(plan.kills):
                run.kill_backend()
                backend.restart()
            run.await_progress()
            finish(lab)
    return disk


def test_fio_reads_what_it_wrote(disk: LinuxDisk, plan: Plan) -> None:
    job = disk.fio_job()

    assert job["error"] == 0
    assert job["write"]["io_bytes"] + job["read"]["io_bytes"] >= QUEUES * plan.size
    # At some time each job had as many requests in flight as it may.
    assert float(job["iodepth_level"]["32"]) > 10


def test_every_queue_carried_requests(disk: LinuxDisk) -> None:
    interrupts = disk.interrupts()

    assert len(interrupts) == QUEUES
    assert all(count > 10 for count in interrupts), interrupts


def test_requests_in_flight_went_on_in_another_backend(disk: LinuxDisk, plan: Plan) -> None:
    lives = (disk.share / "backend.log").read_text().split("blk is ready")[2:]

    assert len(lives) == plan.kills
    # Not in every life: one may be stopped between the used ring's idx and its own account.
    assert any("requests in flight go on" in life for life in lives)


def test_the_file_system_is_clean_in_the_guest_and_on_the_host(disk: LinuxDisk) -> None:
    assert "Pass 5" in (disk.share / "fsck.txt").read_text()
    check = disk.check_on_host()
    assert check.returncode == 0, check.stdout


def test_the_image_holds_the_files_that_the_guest_wrote(disk: LinuxDisk) -> None:
    sums = disk.sums()

    assert set(sums) == {"known", *(f"verified.{job}.0" for job in range(QUEUES))}
    assert sums["known"] == hashlib.sha256(disk.known).hexdigest()
    assert {name: disk.sum_on_host(name) for name in sums} == sums


def test_what_linux_deletes_is_given_back_to_the_host(disk: LinuxDisk, plan: Plan) -> None:
    # fio's files and the known one, and less than what was deleted for the file system's own.
    assert disk.image.stat().st_blocks * 512 < QUEUES * plan.size + len(disk.known) + (48 << 20)
