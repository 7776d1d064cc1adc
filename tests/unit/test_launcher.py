"""The process that starts file servers for a VMM in the sandbox."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.processes import descendants, is_running, named, wait_until
from virtiopy.errors import ConfigError
from virtiopy.eventloop import EventLoop
from virtiopy.host import launcher as module
from virtiopy.host.launcher import Launcher, find_tool
from virtiopy.host.share import Share
from virtiopy.sandbox.landlock import landlock_version

pytestmark = [
    pytest.mark.skipif(find_tool("diod") is None, reason="apt-get install diod"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="apt-get install bubblewrap"),
]

#: Tries from within the launcher, once it is confined, what it must not do.
_ATTEMPTS = """
import ctypes, json, os, socket, sys
sys.path.append("/python")
from virtiopy.sandbox import launching

def spawn(program):
    os.waitpid(os.posix_spawn(program, [program], {}), 0)

def make(path):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))

libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

attempts = {
    "start another program": lambda: spawn("/usr/bin/true"),
    "start Python": lambda: spawn(sys.executable),
    "open /etc/shadow": lambda: os.open("/etc/shadow", os.O_RDONLY),
    "open /usr/bin": lambda: os.open("/usr/bin/true", os.O_RDONLY),
    "write a library": lambda: os.open("/usr/lib/os-release", os.O_WRONLY),
    "make a file": lambda: make("/file"),
    "make one in the folder": lambda: make("/share/made"),
    "make a device": lambda: os.mknod("/share/device", 0o20600, os.makedev(1, 3)),
    "connect": lambda: socket.socket(socket.AF_UNIX),
    "connect to a network": lambda: socket.socket(socket.AF_INET),
    "mount": lambda: call("mount", b"none", b"/share", b"tmpfs", 0, None),
    "unshare": lambda: call("unshare", 0x20000),
    "trace": lambda: call("ptrace", 16, os.getpid(), 0, 0),
    "signal another": lambda: os.kill(int(sys.argv[2]), 0),
}
launching.confine(sys.argv[1])
failed = {}
for name, attempt in attempts.items():
    try:
        attempt()
        failed[name] = None
    except OSError as error:
        failed[name] = type(error).__name__
print(json.dumps(failed), file=sys.stderr)
"""


class _Server:
    """What a share tells of its sessions."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.gone = threading.Event()

    def answered(self, message: bytes | memoryview) -> None:
        raise AssertionError(message)

    def server_gone(self) -> None:
        self.gone.set()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop() as loop:
        loop.start()
        yield loop


def _sleepers(launcher: Launcher) -> set[int]:
    return named(descendants(launcher.pid), "sleep")


def _sleeping(folder: Path) -> Launcher:
    sleep = find_tool("sleep")
    assert sleep is not None
    return Launcher(folder, [os.path.realpath(sleep), "1000"])


@pytest.mark.skipif(landlock_version() < 2, reason="this kernel's Landlock moves no files")
@pytest.mark.parametrize("admits", [False, True], ids=["diod", "virtiofsd"])
def test_it_can_start_nothing_but_its_program(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, admits: bool
) -> None:
    monkeypatch.setattr(module, "_SCRIPT", _ATTEMPTS)
    diod = find_tool("diod")
    assert diod is not None
    with pytest.raises(ConfigError) as caught:
        Launcher(folder, [diod, str(os.getpid())], admits=admits)
    text = str(caught.value)
    failed = json.loads(text[text.index("{") : text.index("}") + 1])
    assert failed.pop("make one in the folder") is None
    # To Unix sockets, of which there are none but its own.
    assert (failed.pop("connect") is None) == admits
    # There is no such file in its root, and no such process in its PID namespace.
    assert failed.pop("open /etc/shadow") == "FileNotFoundError"
    assert failed.pop("signal another") == "ProcessLookupError"
    assert failed.pop("write a library") in {"PermissionError", "OSError"}
    assert set(failed.values()) == {"PermissionError"}, failed
    assert {path.name for path in folder.iterdir()} == {"made"}


def test_it_has_its_socket_and_no_other_file(folder: Path) -> None:
    with _sleeping(folder) as launcher:
        [pid] = descendants(launcher.pid)
        files = {path.name: os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    assert files.pop("0").startswith("socket:")
    assert files == {"1": "/dev/null", "2": "/dev/null"}


def test_a_program_is_ended_with_its_socket(folder: Path) -> None:
    with _sleeping(folder) as launcher:
        ours, its = socket.socketpair()
        with its:
            assert launcher.start(its)
        wait_until(lambda: len(_sleepers(launcher)) == 1)
        ours.close()
        wait_until(lambda: not _sleepers(launcher))


def test_the_end_of_a_program_is_the_end_of_its_socket(folder: Path) -> None:
    with _sleeping(folder) as launcher:
        ours, its = socket.socketpair()
        with its:
            assert launcher.start(its)
        wait_until(lambda: len(_sleepers(launcher)) == 1)
        os.kill(_sleepers(launcher).pop(), signal.SIGKILL)
        ours.settimeout(PATIENCE)
        assert ours.recv(1) == b""
        ours.close()


def test_a_program_that_cannot_be_started_is_the_end_of_its_socket(folder: Path) -> None:
    with Launcher(folder, ["/usr/lib/os-release"]) as launcher:
        for _ in range(2):
            ours, its = socket.socketpair()
            with its:
                assert launcher.start(its)
            ours.settimeout(PATIENCE)
            assert ours.recv(1) == b""
            ours.close()


def test_sessions_over_and_over_leave_no_process_and_no_file(folder: Path, loop: EventLoop) -> None:
    share, server = Share(folder), _Server()
    before = len(os.listdir("/proc/self/fd"))
    [launcher] = descendants(share.launcher.pid)
    its_files = len(os.listdir(f"/proc/{launcher}/fd"))
    for _ in range(50):
        with server.lock:
            # Not before the launcher has taken the last: there is no room for any number.
            while not share.start(loop, server):
                pass
            share.end()
    wait_until(lambda: descendants(share.launcher.pid) == {launcher})
    wait_until(lambda: len(os.listdir(f"/proc/{launcher}/fd")) == its_files)
    assert len(os.listdir("/proc/self/fd")) == before
    share.close()
    assert not is_running(launcher)


def test_it_ends_with_us_when_we_are_killed(folder: Path) -> None:
    program = (
        "import socket, sys, time\nfrom pathlib import Path\n"
        "from virtiopy.host.share import Share\n"
        "share = Share(Path(sys.argv[1]))\n"
        "ours, its = socket.socketpair()\n"
        "assert share.launcher.start(its)\n"
        "its.close()\nprint('started', flush=True)\ntime.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "started\n"
        wait_until(lambda: bool(named(descendants(killed.pid), "diod")))
        started = descendants(killed.pid)
        # bubblewrap, the launcher, diod.
        assert len(started) == 3
        killed.kill()
    wait_until(lambda: not any(is_running(pid) for pid in started))


def test_a_launcher_that_cannot_be_had_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_tool", lambda name: "/bin/false")
    with pytest.raises(ConfigError, match="cannot be given to a server of its own"):
        Launcher(folder, ["/usr/sbin/diod"])
