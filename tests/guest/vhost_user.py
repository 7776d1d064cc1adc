"""Backends in processes of their own: virtiopy's, and QEMU's."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.guest.support import VIRTIOPY
from tests.patience import PATIENCE
from virtiopy.closing import Closing

STORAGE_DAEMON = "qemu-storage-daemon"

needs_storage_daemon = pytest.mark.skipif(
    shutil.which(STORAGE_DAEMON) is None, reason=f"{STORAGE_DAEMON} is missing (qemu-utils)"
)


class Backend(Closing):
    """Runs `command`, which is to listen at `path`; its output is kept, in `log`."""

    def __init__(self, command: list[str], path: Path, log: Path | None = None) -> None:
        self.command = command
        self.path = path
        self.log = log or path.with_suffix(".log")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(self.command, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not _listens(self.path):
            assert process.poll() is None, self.output
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.01)
        return process

    @property
    def output(self) -> str:
        """What it has said."""
        return self.log.read_text()

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start it again."""
        self.process = self._start()

    def close(self) -> None:
        """End it as its user would."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)


def _listens(path: Path) -> bool:
    # Without connecting: there is one frontend at a time.
    for line in Path("/proc/net/unix").read_text().splitlines():
        words = line.split()
        if words[3] == "00010000" and words[-1] == str(path):
            return True
    return False


def serve(
    device: str,
    options: str,
    path: Path,
    log: Path | None = None,
    *,
    judged: bool = False,
    control: Path | None = None,
) -> Backend:
    """Serve a device of virtiopy's; with `judged` it says at its end what its driver came to.

    It takes commands at `control`, where that is given.
    """
    command = [*VIRTIOPY, "-v", "serve", device, options, "--socket", str(path)]
    if judged:
        command += ["--check-driver"]
    if control is not None:
        command += ["--control", str(control)]
    return Backend(command, path, log)


def serve_by_qemu(image: Path, path: Path, driver: str = "raw") -> Backend:
    """Serve an image by qemu-storage-daemon."""
    command = [
        STORAGE_DAEMON,
        *("--blockdev", f"driver=file,filename={image},node-name=file"),
        *("--blockdev", f"driver={driver},file=file,node-name=disk,discard=unmap"),
        "--export",
        f"type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={path},writable=on",
    ]
    return Backend(command, path)
