"""Linux's own blk driver and fio on a disk of QEMU's storage daemon, with a proxy between."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.guest.support import VIRTIOPY
from tests.guest.vhost_user import Backend, needs_storage_daemon
from tests.linux.disk import QUEUES, LinuxDisk, make_image
from tests.linux.guest import finish

pytestmark = [needs_storage_daemon, pytest.mark.nightly]

#: Of each of the four jobs' files.
SIZE = 8 << 20


def test_no_request_is_lost_between_linux_and_the_storage_daemon(
    request: pytest.FixtureRequest, share: Path, tmp_path: Path
) -> None:
    image, socket, seen = (
        make_image(tmp_path / "disk.img"),
        tmp_path / "b.sock",
        tmp_path / "p.sock",
    )
    report = tmp_path / "report.json"
    daemon = [
        *("qemu-storage-daemon", "--blockdev", f"driver=file,node-name=d,filename={image}"),
        *("--export", f"vhost-user-blk,id=e,node-name=d,writable=on,num-queues={QUEUES},"),
    ]
    daemon[-1] += f"addr.type=unix,addr.path={socket}"
    proxy = [*VIRTIOPY, "proxy", "--listen", str(seen), "--connect", str(socket)]
    proxy += [f"--check={report}", "--device", "blk"]
    with Backend(daemon, socket), Backend(proxy, seen, share / "proxy.log") as passed:
        disk = LinuxDisk(image, share, passed)
        with disk.boot(request.config, f"--size={SIZE}") as lab:
            finish(lab)

    job = disk.fio_job()
    assert job["error"] == 0
    assert job["write"]["io_bytes"] + job["read"]["io_bytes"] >= 4 * SIZE
    assert disk.check_on_host().returncode == 0
    sums = disk.sums()
    assert sums["known"] == hashlib.sha256(disk.known).hexdigest()
    assert {name: disk.sum_on_host(name) for name in sums} == sums
    judged = json.loads(report.read_text())
    # libvhost-user notifies as soon as it has a ring's eventfd (vu_set_vring_call_exec).
    found = [(one["statement"], one["device"]) for one in judged["findings"]]
    assert found == [("suspended:2", "backend")], passed.output
    assert passed.process.returncode == 1
    kept = {one["id"]: one["count"] for one in judged["statements"] if one["outcome"] == "kept"}
    assert kept["2.7.8:1"] > 1000
