"""Images in formats of QEMU's, attached to the VM as raw ones are."""

import functools
import http.server
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.support import (
    VIRTIOPY,
    Outcome,
    assert_one_sentence,
    final_pattern,
    holds_final_pattern,
    needs_kvm,
    run_guest,
    virtiopy,
)
from tests.patience import PATIENCE
from tests.unit.test_storage import needs_daemon, wait_for_end

pytestmark = [needs_kvm, needs_daemon]

#: What libvhost-user gives a device up at is left out (guest_drivers/blk).
QEMUS = ("--append", "blk.libvhost-user=1")


def create(path: Path, format_name: str, size: str = "8M") -> Path:
    """Make an empty image."""
    command = ["qemu-img", "create", "-q", "-f", format_name, str(path), size]
    subprocess.run(command, check=True)
    return path


def as_raw(path: Path, format_name: str) -> Path:
    """Convert an image, so that its content can be looked at."""
    raw = path.with_suffix(".raw")
    command = ["qemu-img", "convert", "-f", format_name, "-O", "raw", str(path), str(raw)]
    subprocess.run(command, check=True)
    return raw


def assert_passed(outcome: Outcome) -> None:
    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 100


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("disk.qcow2", "qcow2"),
        ("disk.vmdk", "vmdk"),
        ("disk.vhdx", "vhdx"),
        ("disk.vdi", "vdi"),
        ("disk.vhd", "vpc"),
    ],
)
def test_the_blk_guest_passes_on_an_image_of_another_format(
    tmp_path: Path, name: str, format_name: str
) -> None:
    image = create(tmp_path / name, format_name)

    outcome = run_guest(tmp_path, "blk", "--disk", image, *QEMUS)

    assert_passed(outcome)
    assert outcome.report["devices"][0]["mode"] == "vhost-user"
    assert outcome.exits("blk0", "QueueNotify") == 0
    assert holds_final_pattern(as_raw(image, format_name))


@pytest.mark.parametrize(
    "options",
    ["format=qcow2,cache=none", "format=qcow2,cache=writethrough", "format=qcow2,queues=4"],
)
def test_the_format_is_given_where_the_name_does_not_tell(tmp_path: Path, options: str) -> None:
    image = create(tmp_path / "disk", "qcow2")

    outcome = run_guest(tmp_path, "blk", "--disk", f"{image},{options}", *QEMUS)

    assert_passed(outcome)
    assert holds_final_pattern(as_raw(image, "qcow2"))


@pytest.mark.parametrize("name", ["disk.img", "disk.qcow2"])
def test_a_raw_image_that_looks_like_qcow2_stays_raw(tmp_path: Path, name: str) -> None:
    # What a guest could have written: a qcow2 with a file of the host's behind it.
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret!!" * 128)
    image = tmp_path / name
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(image)],
        check=True,
    )
    os.truncate(image, 1 << 20)

    outcome = run_guest(tmp_path, "probe", "--disk", f"{image},format=raw")

    assert outcome.status == 0, outcome.errors
    assert f"capacity {(1 << 20) // 512} sectors" in outcome.output
    assert "starts with 51 46 49 fb" in outcome.output
    assert outcome.report["devices"][0]["mode"] != "vhost-user"


def test_an_image_that_is_read_only_is_offered_as_that(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", "qcow2")
    before = image.read_bytes()
    image.chmod(0o444)

    outcome = run_guest(tmp_path, "probe", "--disk", f"{image},readonly=on")

    assert outcome.status == 0, outcome.errors
    assert "feature 5 RO" in outcome.output
    assert image.read_bytes() == before


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, as QEMU asks for them."""

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def _respond(self, *, with_body: bool) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        start, end = 0, len(data) - 1
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end + 1 - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.end_headers()
        if with_body:
            self.wfile.write(data[start : end + 1])

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of the test's folder."""
    handler = functools.partial(_Ranges, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(
    not list(Path("/usr/lib").glob("**/qemu/block-curl.so")),
    reason="QEMU's curl module is missing (qemu-block-extra)",
)
@pytest.mark.parametrize("format_name", ["qcow2", "raw"])
def test_an_image_is_read_over_http(tmp_path: Path, web: str, format_name: str) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(b"over the web".ljust(1 << 20, b"\0"))
    image = raw
    if format_name != "raw":
        image = tmp_path / "disk.qcow2"
        command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)]
        subprocess.run(command, check=True)

    outcome = run_guest(tmp_path, "probe", "--disk", f"{web}/{image.name}")

    assert outcome.status == 0, outcome.errors
    assert "feature 5 RO" in outcome.output
    assert f"starts with {b'over the web'.hex(' ')}" in outcome.output


def test_an_image_is_used_over_nbd(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8 << 20))
    path = tmp_path / "nbd.sock"
    server = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-k", str(path), str(image)])
    try:
        while not path.exists():
            assert server.poll() is None
        outcome = run_guest(tmp_path, "blk", "--disk", f"nbd+unix:///?socket={path}", *QEMUS)
    finally:
        server.terminate()
        server.wait()

    assert_passed(outcome)
    assert image.read_bytes()[: len(final_pattern())] == final_pattern()


def find_daemon(pid: int) -> int | None:
    """Return the process of a VM's storage daemon, once it runs."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().startswith("qemu-storage"):
            return int(child)
    return None


def cpu_ticks(pid: int) -> int:
    """Return how long a process has run."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_daemon_ends_with_the_vm_however_that_ends(
    tmp_path: Path, number: signal.Signals
) -> None:
    image = create(tmp_path / "disk.qcow2", "qcow2")
    command = [*VIRTIOPY, "run", "--disk", str(image), "--guest", "blk"]
    process = subprocess.Popen(
        [*command, "--append", "blk.requests=1000000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while (daemon := find_daemon(process.pid)) is None:
            assert process.poll() is None
        # In the middle of the guest's requests.
        while cpu_ticks(daemon) < 5:
            assert process.poll() is None
        process.send_signal(number)
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    wait_for_end(daemon)
    check = ["qemu-img", "check", "-q", "-f", "qcow2", str(image)]
    subprocess.run(check, check=True)


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        ("nothing.qcow2", ["nothing.qcow2", "does not exist", "qemu-img create -f qcow2"]),
        ("text.qcow2", ["text.qcow2", "not in qcow2 format", "format="]),
        ("text.vmdk", ["text.vmdk", "vmdk"]),
        ("text.qcow2,format=bmp", ["format=bmp", "qcow2"]),
        ("disk.qcow2,serial=x", ["serial"]),
        ("disk.qcow2,queue-size=4", ["queue-size"]),
        ("disk.qcow2,mode=trapped", ["mode=trapped"]),
        ("disk.qcow2,queues=1000", ["queues=1000"]),
        ("http://127.0.0.1:1/x.qcow2,readonly=off", ["readonly=off", "reading alone"]),
        ("nbd://127.0.0.1:1/x", ["127.0.0.1:1", "refused"]),
        ("rbd://pool/x", ["rbd://pool/x", "vhost-user=SOCKET"]),
    ],
)
def test_a_fault_of_the_users_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.qcow2", "text.vmdk"):
        Path(name).write_text("This is no disk.")
    create(Path("disk.qcow2"), "qcow2")

    assert_one_sentence(virtiopy("run", "--disk", disk, "--guest", "probe"), *words)


def test_such_an_image_is_not_served_by_virtiopy(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", "qcow2")

    outcome = virtiopy("serve", "blk", str(image), "--socket", tmp_path / "s.sock")

    assert_one_sentence(outcome, "disk.qcow2", "qemu-storage-daemon")
