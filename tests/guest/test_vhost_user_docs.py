"""docs/vhost-user.md: its commands work, libvirt takes its domain, and its units serve a disk."""

import configparser
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.guest.support import (
    ISOLATED,
    QEMU,
    VIRTIOPY,
    needs_isolation,
    needs_kvm,
    run_guest,
    with_command,
)
from tests.guest.vhost_user import serve
from tests.namespace import Namespace, needs_taps
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "vhost-user.md").read_text()

needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is missing")

#: In another user's place: libvirt's driver wants an account of its own for root.
AS_A_USER = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]

#: What is missing to run a domain, by Debian package.
MISSING = [
    package
    for tool, package in {
        "virt-xml-validate": "libvirt-clients",
        "xmllint": "libxml2-utils",
        "virt-qemu-run": "libvirt-daemon-driver-qemu",
    }.items()
    if shutil.which(tool) is None
]

needs_libvirt = pytest.mark.skipif(bool(MISSING), reason=f"missing: {' '.join(MISSING)}")

needs_users = pytest.mark.skipif(
    subprocess.run([*AS_A_USER, "true"], capture_output=True, check=False).returncode != 0,
    reason="unshare --user --map-user does not work here",
)

GREETING = b"\r\nbooted from the disk\r\n"


def boot_sector() -> bytes:
    """Return one that writes GREETING to the first serial port, and resets the machine."""
    code = bytes.fromhex(
        "ea0500c007"  # ljmp 0x7c0:5
        "8cc8 8ed8"  # mov ds, cs
        "be1e00"  # mov si, 0x1e
        "ac 84c0 7406"  # lodsb; test al, al; jz +6
        "baf803 ee ebf5"  # mov dx, 0x3f8; out dx, al; jmp -11
        "b0fe e664"  # the keyboard controller's reset
        "f4 ebfd"  # hlt, again
    )
    assert len(code) == 0x1E
    return (code + GREETING + b"\0").ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(boot_sector())
    os.truncate(path, 64 << 20)
    return path


def block(name: str) -> str:
    """Return a file that the page shows."""
    found = re.search(rf"^```\w+ {re.escape(name)}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[1]


@needs_isolation
@needs_kvm
@needs_qemu
def test_the_commands_of_the_page_work(tmp_path: Path, disk: Path) -> None:
    """In namespaces for interfaces and processes, so that nothing of them is left."""
    text = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    commands = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    commands = commands.replace("virtiopy/guests/", f"{ROOT}/virtiopy/guests/")
    assert commands.count(QEMU) == 2
    done = subprocess.run(
        [*ISOLATED, "--pid", "--fork", "--kill-child", "sh", "-c", f"set -e\n{commands}"],
        cwd=tmp_path,
        env=with_command(tmp_path / "bin"),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The firmware's own driver has read the boot sector.
    assert GREETING.decode().strip() in done.stdout
    # The guest finds all three on microvm's virtio-mmio.
    for kind in ("block", "network", "entropy"):
        assert re.search(rf"^ok \d+ - .*{kind}", done.stdout, re.MULTILINE), done.stdout
    assert not list(tmp_path.glob("*.sock"))


@needs_libvirt
@needs_users
@needs_taps
def test_libvirt_runs_the_domain_of_the_page(tmp_path: Path, disk: Path) -> None:
    blk, net, serial = tmp_path / "blk.sock", tmp_path / "net.sock", tmp_path / "serial.txt"
    domain = tmp_path / "domain.xml"
    text = block(domain.name).replace("/run/virtiopy", str(tmp_path)).replace("'kvm'", "'qemu'")
    text = text.replace(
        "<serial type='pty'/>", f"<serial type='file'><source path='{serial}'/></serial>"
    )
    domain.write_text(text)
    subprocess.run(["virt-xml-validate", str(domain), "domain"], check=True)

    # Its own folder for all that libvirt keeps, and no daemon for the logs.
    home = tmp_path / "libvirt"
    (home / "etc").mkdir(parents=True)
    (home / "etc" / "qemu.conf").write_text('stdio_handler = "file"\n')
    with (
        Namespace() as namespace,
        serve("blk", f"{disk},queues=4", blk),
        serve("net", f"tap=t0,create=on,netns={namespace.name}", net),
    ):
        run = subprocess.Popen(
            [*AS_A_USER, "virt-qemu-run", "-r", str(home), str(domain)],
            env={**os.environ, "HOME": str(home)},
            stderr=subprocess.PIPE,
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while not serial.exists() or GREETING not in serial.read_bytes():
                assert run.poll() is None, run.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=PATIENCE)


@needs_kvm
def test_the_units_of_the_page_serve_a_disk(tmp_path: Path, disk: Path) -> None:
    """Started as systemd does: with the socket as file descriptor 3."""
    units = configparser.ConfigParser(interpolation=None)
    units.optionxform = str  # type: ignore[assignment,method-assign]
    units.read_string(block("virtiopy-blk.socket") + block("virtiopy-blk.service"))
    path = Path(units["Socket"]["ListenStream"].replace("/run/virtiopy", str(tmp_path)))
    program, *arguments = shlex.split(units["Service"]["ExecStart"])
    assert Path(program).name == "virtiopy"
    arguments = [word.replace("/var/lib/virtiopy", str(tmp_path)) for word in arguments]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = subprocess.Popen(
            ["bash", "-c", f"exec {shlex.join([*VIRTIOPY, *arguments])} 3<&{listener.fileno()}"],
            pass_fds=[listener.fileno()],
        )
        try:
            outcome = run_guest(tmp_path, "probe", "--disk", f"vhost-user={path}")
        finally:
            process.terminate()
        assert process.wait() == 0
    assert outcome.status == 0, outcome.errors
    assert path.exists()
