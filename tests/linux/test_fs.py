"""Linux's virtio-fs driver in QEMU and virtiofsd, which two others wrote, with a proxy between."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.guest.support import VIRTIOPY
from tests.guest.vhost_user import Backend
from tests.linux.guest import boot, finish
from tests.vm_linux.conftest import build_posix
from tests.vm_linux.test_posix import CHECKS, assert_the_host_sees_it
from virtiopy.host.virtiofsd import VIRTIOFSD, find_virtiofsd

pytestmark = [
    # A boot of its own takes minutes.
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        find_virtiofsd() is None, reason="virtiofsd takes root: apt-get install qemu-system-common"
    ),
]

FILES = 1000


def test_files_are_what_posix_says_with_the_proxy_between_qemu_and_virtiofsd(
    request: pytest.FixtureRequest, share: Path, tmp_path: Path
) -> None:
    folder, socket, seen = tmp_path / "folder", tmp_path / "b.sock", tmp_path / "p.sock"
    for number in range(FILES):
        path = folder / "tree" / str(number % 10) / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number))
    build_posix(share / "posix")
    report = tmp_path / "report.json"
    daemon = [str(VIRTIOFSD), "-f", f"--socket-path={socket}", "-o", f"source={folder}"]
    daemon += ["-o", "xattr", "-o", "sandbox=chroot"]
    proxy = [*VIRTIOPY, "proxy", "--listen", str(seen), "--connect", str(socket)]
    proxy += [f"--check={report}", "--device", "fs"]
    with (
        Backend(daemon, socket, share / "virtiofsd.log"),
        Backend(proxy, seen, share / "proxy.log") as passed,
        boot(
            request.config,
            share,
            "fs.sh",
            str(FILES),
            qemu=[
                *("-chardev", f"socket,id=fs,path={seen}"),
                *("-device", "vhost-user-fs-pci,chardev=fs,tag=files"),
            ],
            modules=("virtiofs",),
            tools={},
            cpus=1,
        ) as lab,
    ):
        finish(lab)

    said = (share / "posix.txt").read_text().splitlines()
    assert said == [f"ok {name}" for name in CHECKS if name != "special_files"]
    assert_the_host_sees_it(folder / "checks")
    same = subprocess.run(["diff", "-r", folder / "tree", folder / "copy"], check=False)
    assert same.returncode == 0
    judged = json.loads(report.read_text())
    # libvhost-user, which virtiofsd is built on, notifies as soon as it has a ring's eventfd.
    found = [(one["statement"], one["device"]) for one in judged["findings"]]
    assert found == [("suspended:2", "backend")], passed.output
    kept = {one["id"]: one["count"] for one in judged["statements"] if one["outcome"] == "kept"}
    assert kept["2.7.8:1"] > 1000
