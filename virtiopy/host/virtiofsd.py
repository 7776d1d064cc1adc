"""Folders of the host's that a guest has by virtio-fs: QEMU's virtiofsd serves them.

virtiofsd puts itself into namespaces of its own, where the folder is the root: no path leads out of
it. It serves one connection, and ends with that.
"""

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from virtiopy.closing import Closing
from virtiopy.errors import ConfigError
from virtiopy.host.folders import check_folder

log = logging.getLogger(__name__)

#: Where Debian's qemu-system-common has it: no PATH has it.
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")

#: Seconds that it may take to end.
ENDING_TIME = 10.0

#: Makes a folder one that cannot be written in this process's mount namespace, and runs the rest of
#: its arguments: virtiofsd serves what it finds there.
_READONLY = (
    'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd / && '
    'exec setpriv --pdeathsig TERM "$@"'
)


class FsDaemon(Closing):
    """virtiofsd for a folder; raises ConfigError where that cannot be shared."""

    def __init__(self, folder: Path, *, readonly: bool = False) -> None:
        if not VIRTIOFSD.exists():
            raise ConfigError(
                f"The folder {folder} needs {VIRTIOFSD}, which is not here: apt-get install "
                "qemu-system-common, or attach vhost-user=SOCKET of a virtiofsd of your own."
            )
        check_folder(folder, "The shared folder")
        if os.geteuid() != 0:
            raise ConfigError(
                f"The folder {folder} needs root, as which alone virtiofsd runs: use --share for "
                "it, or attach vhost-user=SOCKET of a virtiofsd that root has started."
            )
        self.folder, self.readonly = folder.resolve(), readonly
        self._process: subprocess.Popen[bytes] | None = None
        # mkdtemp: no other user may enter.
        self._private = tempfile.TemporaryDirectory("", "virtiopy-")
        self._path = Path(self._private.name, "fs.sock")
        self._stderr = Path(self._private.name, "stderr")

    @property
    def pid(self) -> int | None:
        """The process of virtiofsd, if there is one."""
        return None if self._process is None else self._process.pid

    def connect(self) -> socket.socket:
        """Start virtiofsd, in place of one that was there, and connect to it.

        Raises ConfigError where it cannot be started.
        """
        self._end()
        self._path.unlink(missing_ok=True)
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(str(self._path))
                listener.listen(1)
                self._process = self._start(listener.fileno())
                # It waits in the listener's queue until virtiofsd accepts it.
                stream.connect(str(self._path))
        except OSError as error:
            stream.close()
            raise ConfigError(
                f"virtiofsd cannot be started for {self.folder} ({error.strerror}): see to that."
            ) from error
        return stream

    def _start(self, fd: int) -> subprocess.Popen[bytes]:
        served = [str(VIRTIOFSD), "-f", f"--fd={fd}", "-o", f"source={_escaped(self.folder)}"]
        served += ["-o", "xattr", "-o", "log_level=warn"]
        command = ["setpriv", "--pdeathsig", "TERM", *served]
        if self.readonly:
            command = [
                *("unshare", "--mount", "--propagation", "private"),
                *("sh", "-c", _READONLY, str(self.folder), *served),
            ]
        with self._stderr.open("wb") as stderr:
            return subprocess.Popen(
                command,
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                # The terminal's Ctrl-C is for us alone.
                process_group=0,
            )

    def said(self) -> str:
        """Return what it says on standard error, in one line."""
        text = self._stderr.read_text(errors="replace") if self._stderr.exists() else ""
        return "; ".join(line.strip() for line in text.splitlines() if line.strip())

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(ENDING_TIME)
        except subprocess.TimeoutExpired:
            log.warning("virtiofsd does not end, and is killed")
            process.kill()
            process.wait()

    def close(self) -> None:
        """End it."""
        self._end()
        with contextlib.suppress(FileNotFoundError):
            self._private.cleanup()


def _escaped(folder: Path) -> str:
    """Return a folder's path as virtiofsd's -o takes it."""
    return str(folder).replace("\\", "\\\\").replace(",", "\\,")


def find_virtiofsd() -> Path | None:
    """Return where virtiofsd is, if it can be used."""
    found = VIRTIOFSD if VIRTIOFSD.exists() and os.geteuid() == 0 else None
    return found if found is not None and shutil.which("setpriv") else None
