"""The sandbox of `run` and `serve`: each role tries from within what it must not."""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.accelerators import has_unicorn
from tests.guest.support import VIRTIOPY, assert_one_sentence, make_image, virtiopy
from tests.namespace import Namespace, needs_taps
from tests.patience import PATIENCE
from tests.processes import wait_until
from virtiopy.cache import cache_folder
from virtiopy.control.client import ask, device_facts
from virtiopy.errors import ConfigError, HostError
from virtiopy.host.launcher import find_tool
from virtiopy.host.storage import DAEMON
from virtiopy.host.virtiofsd import find_virtiofsd
from virtiopy.linux.kernels import NoKernelError, find_kernel
from virtiopy.sandbox.process import User, lacking
from virtiopy.vhost.user.record.format import header

#: Runs a command line, and once it is in the sandbox tries each thing that it must not do. A name
#: is followed by how it failed; None where it did not.
_ATTEMPTS = """
import ctypes, json, os, pathlib, socket, sys
from virtiopy.cli import sandboxed
from virtiopy.cli.main import main

libc = ctypes.CDLL(None, use_errno=True)

def call(name):
    function = getattr(libc, name)
    def attempt(*arguments):
        if function(*arguments) < 0:
            raise OSError(ctypes.get_errno(), "")
    return attempt

def inet():
    with socket.socket() as stream:
        stream.connect(("127.0.0.1", 9))

def unix():
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect("/nonexistent/socket")

def signal_another():
    os.kill(os.getppid(), 0)

attempts = {
    "open": lambda: os.close(os.open("/etc/shadow", os.O_RDONLY)),
    "create": lambda: os.close(os.open("/var/tmp/virtiopy-escaped", os.O_CREAT | os.O_WRONLY)),
    "another's environment": lambda: open(f"/proc/{os.getppid()}/environ", "rb").close(),
    "inet": inet,
    "unix": unix,
    "execve": lambda: os.execv("/bin/true", ["true"]),
    "fork": lambda: os.fork() or os._exit(0),
    "kill": signal_another,
    "ptrace": lambda: call("ptrace")(16, os.getppid(), 0, 0),
    "mount": lambda: call("mount")(b"none", b"/mnt", b"tmpfs", 0, None),
    "unshare": lambda: call("unshare")(0x20000),
    "chmod": lambda: os.chmod(sys.executable, 0o755),
}
enter = sandboxed.Sandbox.enter

def try_all(box):
    enter(box)
    # The name of a system call is told for each that was refused by the filter.
    failed = {}
    only = os.environ["ONLY"] or attempts
    for name, attempt in attempts.items():
        if name not in only:
            continue
        try:
            attempt()
            failed[name] = None
        except OSError as error:
            failed[name] = type(error).__name__
    threads = [
        (path / "status").read_text() for path in pathlib.Path("/proc/self/task").iterdir()
    ]
    os.write(2, ("FAILED " + json.dumps(failed) + chr(10)).encode())
    os.write(2, ("THREADS " + json.dumps(threads) + chr(10)).encode())
    os._exit(0)

sandboxed.Sandbox.enter = try_all
sys.argv[0] = "virtiopy"
main()
"""

needs_sandbox = pytest.mark.skipif(bool(lacking()), reason=f"this kernel has no {lacking()}")
needs_share = pytest.mark.skipif(
    find_tool("diod") is None or find_tool("bwrap") is None,
    reason="apt-get install diod bubblewrap",
)
needs_fs = pytest.mark.skipif(
    find_virtiofsd() is None, reason="virtiofsd takes root: apt-get install qemu-system-common"
)


def _has_linux() -> bool:
    try:
        find_kernel(cache_folder())
    except NoKernelError:
        return False
    return has_unicorn() and shutil.which("busybox") is not None


needs_linux = pytest.mark.skipif(
    not _has_linux(), reason="no kernel to boot, no unicorn, or no busybox"
)


@dataclass(slots=True, frozen=True)
class _Tried:
    failed: dict[str, str | None]
    threads: list[str]
    told: set[str]


def _try(arguments: Sequence[str], folder: Path, only: str = "") -> _Tried:
    done = subprocess.run(
        [sys.executable, "-c", _ATTEMPTS, *arguments],
        cwd=folder,
        env={**os.environ, "ONLY": only},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    found = dict(re.findall("^(FAILED|THREADS) (.*)$", done.stderr, re.MULTILINE))
    assert found, done.stderr
    told = set(re.findall(r"the sandbox refused the system call (\w+)", done.stderr))
    return _Tried(json.loads(found["FAILED"]), json.loads(found["THREADS"]), told)


#: What no role may do.
_FORBIDDEN = {
    "open": "PermissionError",
    "create": "PermissionError",
    "another's environment": "PermissionError",
    "inet": "PermissionError",
    "unix": "PermissionError",
    "execve": "PermissionError",
    "fork": "PermissionError",
    "kill": "PermissionError",
    "ptrace": "PermissionError",
    "mount": "PermissionError",
    "unshare": "PermissionError",
    "chmod": "PermissionError",
}
_TOLD = {"execve", "ptrace", "mount", "unshare", "socket", "kill"}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    return path


@needs_sandbox
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--disk", "disk.img", "--control", "c.sock"],
        ["run", "--accel", "tcg", "--disk", "disk.img", "--mode", "trapped", "--json", "r.json"],
        ["run", "--disk", "disk.img,mode=native,workers=2,queues=2", "--rng", "--console", "pty"],
        pytest.param(["run", "--share", ".,tag=files", "--console", "pty"], marks=needs_share),
        pytest.param(["run", "--fs", ".,tag=files", "--scsi", "disk=disk.img"], marks=needs_fs),
        pytest.param(
            ["linux", "--accel", "tcg", "--disk", "disk.img", "--", "true"], marks=needs_linux
        ),
        ["serve", "blk", "disk.img", "--socket", "s.sock"],
        ["serve", "rng", "--socket", "s.sock"],
    ],
    ids=[
        *("run", "run-tcg", "run-native", "run-share", "run-fs", "linux"),
        *("serve-blk", "serve-rng"),
    ],
)
def test_a_process_cannot_do_what_it_does_not_need(
    arguments: list[str], disk: Path, tmp_path: Path
) -> None:
    tried = _try(arguments, tmp_path)
    assert tried.failed == _FORBIDDEN
    assert tried.told >= _TOLD
    for status in tried.threads:
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"
        for name in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb"):
            # The bounding set is root's alone to make smaller.
            assert int(fields[name], 16) == 0 or (name == "CapBnd" and os.geteuid() != 0)


@needs_sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("sandbox", ["on", "off"])
def test_root_becomes_another_user_in_all_threads(sandbox: str, disk: Path, tmp_path: Path) -> None:
    words = ["--user", "nobody", "--sandbox", sandbox]
    disks = "disk.img,mode=native,workers=2,queues=2"
    tried = _try(["run", "--disk", disks, *words], tmp_path, only="open another's environment")
    assert set(tried.failed.values()) == {"PermissionError"}
    assert len(tried.threads) > 2
    for status in tried.threads:
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert set(fields["Uid"].split()) == {str(pwd.getpwnam("nobody").pw_uid)}
        assert fields["Groups"].split() == []
        for name in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb"):
            assert int(fields[name], 16) == 0, name


def test_a_user_that_is_none_is_refused(disk: Path) -> None:
    outcome = virtiopy("run", "--disk", str(disk), "--user", "no-such-user")
    assert_one_sentence(outcome, "no-such-user", "/etc/passwd")


def test_a_number_of_thousands_of_digits_is_no_user() -> None:
    with pytest.raises(ConfigError, match="this host has no such user"):
        User.named("9" * 5000)


@needs_sandbox
@needs_taps
def test_a_served_network_device_cannot_do_what_it_does_not_need(tmp_path: Path) -> None:
    with Namespace() as namespace:
        tap = f"tap=t0,create=on,netns={namespace.name}"
        assert _try(["serve", "net", tap, "--socket", "s.sock"], tmp_path).failed == _FORBIDDEN


@needs_sandbox
@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "blk", "disk.img", "--socket", "s.sock", "--connect"],
        ["serve", "vsock", "cid=3,path=v", "--socket", "s.sock"],
        ["run", "--vsock", "cid=3,path=v"],
        ["proxy", "--listen", "s.sock", "--connect", "b.sock", "--check", "--record", "r.rec"],
        ["replay", "r.rec", "--socket", "b.sock"],
    ],
    ids=["serve-connect", "serve-vsock", "run-vsock", "proxy", "replay"],
)
def test_what_connects_may_connect_to_unix_sockets_alone(
    arguments: list[str], disk: Path, tmp_path: Path
) -> None:
    if arguments[0] == "replay":
        (tmp_path / "r.rec").write_text(header())
    tried = _try(arguments, tmp_path)
    assert tried.failed == {**_FORBIDDEN, "unix": "FileNotFoundError"}


@needs_sandbox
def test_all_threads_are_in_it(disk: Path, tmp_path: Path) -> None:
    tried = _try(
        ["run", "--disk", "disk.img,mode=native,workers=2,queues=2", "--mode", "native"], tmp_path
    )
    # This one, the two workers, and the one that writes standard output.
    assert len(tried.threads) >= 4


@needs_sandbox
@pytest.mark.skipif(
    shutil.which(DAEMON) is None or shutil.which("qemu-img") is None,
    reason=f"{DAEMON} and qemu-img are missing (qemu-system-common, qemu-utils)",
)
def test_a_storage_daemon_is_confined_and_is_started_again(tmp_path: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "d.qcow2", "1M"],
                   cwd=tmp_path, check=True)  # fmt: skip
    program = """
import os, signal, sys, time
from pathlib import Path
from virtiopy.cli import sandboxed
from virtiopy.cli.main import main
from virtiopy.errors import ConfigError
from virtiopy.host.storage import running

def caps(daemon):
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return fields["NoNewPrivs"], int(fields["CapEff"], 16), int(fields["CapPrm"], 16)

enter = sandboxed.Sandbox.enter

def kill_and_connect(box):
    (daemon,) = running
    before = daemon.pid
    print("BEFORE", *caps(daemon), file=sys.stderr)
    enter(box)
    os.kill(before, signal.SIGKILL)
    daemon._process.wait()
    end = time.monotonic() + 300
    while True:
        try:
            daemon.connect().close()
            break
        except ConfigError:
            if time.monotonic() > end:
                raise
    assert daemon.pid != before
    print("AFTER", *caps(daemon), file=sys.stderr)
    try:
        os.open("/etc/shadow", os.O_RDONLY)
    except PermissionError:
        print("REFUSED", file=sys.stderr)

sandboxed.Sandbox.enter = kill_and_connect
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "--disk", "d.qcow2", "--sandbox", "on"],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line in ("BEFORE 1 0 0", "AFTER 1 0 0", "REFUSED"):
        assert line in done.stderr.splitlines()


@needs_sandbox
def test_off_is_off(disk: Path, tmp_path: Path) -> None:
    tried = _try(["run", "--disk", "disk.img", "--sandbox", "off"], tmp_path, only="fork")
    assert tried.failed == {"fork": None}
    assert tried.told == set()


@needs_sandbox
def test_a_run_makes_no_system_call_that_is_refused(disk: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*VIRTIOPY, "run", "--sandbox", "on", "--disk", "disk.img,mode=native", "--guest", "blk",
         "--json", "r.json", "--control", "c.sock", "--console", "pty:link", "--rng", "--balloon"],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sandbox" not in done.stderr
    # What is ours is gone, and what was asked for is there.
    assert {path.name for path in tmp_path.iterdir()} == {"disk.img", "r.json"}


@needs_sandbox
def test_ctl_opens_an_image_for_a_run_that_may_not(disk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    make_image(folder / "more.img", 1 << 20)
    control = tmp_path / "c.sock"
    with subprocess.Popen(
        [*VIRTIOPY, "run", "--sandbox", "on", "--scsi", "disk=disk.img", "--control", "c.sock",
         "--balloon", "--guest", "balloon", "--append", "balloon.mode=follow", "--timeout", "0"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        # Its own sandbox is on once the driver is live.
        wait_until(lambda: run.poll() is not None or _is_live(control, "balloon0"))
        added = subprocess.run(
            [*VIRTIOPY, "ctl", control, "scsi-add", "--attach", "disk=more.img,lun=1"],
            cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        run.terminate()
        _, errors = run.communicate(timeout=PATIENCE)
    assert added.stdout == f"scsi0: unit 0:1 size {1 << 20}\n", added.stderr
    assert "sandbox" not in errors


def _is_live(control: Path, name: str) -> bool:
    try:
        return "DRIVER_OK" in str(device_facts(ask(control, {"command": "status"}), name))
    except (ConfigError, HostError):
        return False


def test_a_kernel_without_a_part_is_refused_or_told(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import sys\nfrom virtiopy.sandbox import process\nprocess.landlock_version = lambda: 0\n"
        "from virtiopy.cli.main import main\nmain()\n"
    )

    def run(choice: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, "run", "--disk", str(disk), "--sandbox", choice],
            cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    refused = run("on")
    assert refused.returncode == 2
    assert "This kernel has no Landlock" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    told = run("auto")
    assert told.returncode == 0
    assert "this kernel has no Landlock, so the sandbox is less" in told.stderr


@needs_sandbox
def test_a_served_disk_ends_by_sigterm_and_takes_its_socket_away(
    disk: Path, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [*VIRTIOPY, "serve", "blk", "disk.img", "--socket", "s.sock", "--sandbox", "on"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as served:  # fmt: skip
        assert served.stdout is not None
        assert "is ready" in served.stdout.readline()
        served.send_signal(signal.SIGTERM)
        _, errors = served.communicate(timeout=PATIENCE)
    assert errors == ""
    assert not (tmp_path / "s.sock").exists()
