"""Programs that are started while the sandbox is on: by a process that is started before it.

The launcher's process can start one program, for one folder, and has no other file of the host's:
bubblewrap gives it a root of its own, with the folder, the libraries and itself, for reading but
for the folder. It gives up the rest by itself (virtiopy.sandbox.launching), and ends with us, also
when we are killed: as the first process of its PID namespace, with all that it has started.
"""

import contextlib
import errno
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import _cffi_backend

import virtiopy
from virtiopy.closing import Closing
from virtiopy.errors import ConfigError
from virtiopy.sandbox.calls import Ability
from virtiopy.sandbox.launching import INSIDE
from virtiopy.sandbox.process import has_filters
from virtiopy.sandbox.program import as_bytes

log = logging.getLogger(__name__)

#: Seconds that it may take to start, and to end.
STARTING_TIME = 60.0
ENDING_TIME = 10.0

#: What a server of files, where it runs as root, is more than another user in: it makes files any
#: user's. It makes no device files, by which a guest would reach the host's.
FILE_CAPABILITIES = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID"),
    *("CAP_SETUID", "CAP_SETGID"),
)

_ROOT_LINKS = ("bin", "sbin", "lib", "lib64")
#: Where this package is in its root: of Python's own path, only what Python brought is there.
_PACKAGES = Path("/python")
_SCRIPT = (
    f"import sys; sys.path.append({str(_PACKAGES)!r})\n"
    "from virtiopy.sandbox.launching import main; main()"
)


def find_tool(tool: str) -> str | None:
    """Return where a program is, also where only root looks for it."""
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")


class Launcher(Closing):
    """The process that starts `command`, a server of files, for a folder.

    The command has the folder as `INSIDE`, and its socket as its standard input. As root it keeps
    `capabilities`; it has none otherwise. One that `admits` its client, from a socket that listens,
    is started by `connect`, any other by `start`. Raises ConfigError where it cannot be had.
    """

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        *,
        readonly: bool = False,
        capabilities: Sequence[str] = (),
        admits: bool = False,
    ) -> None:
        self._requests, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as opened:
            opened.callback(self._requests.close)
            abilities = Ability.SERVE | (Ability.ADMIT if admits else Ability.NONE)
            with its, _filter(abilities) as calls:
                line = [
                    *(find_tool("bwrap") or "bwrap", *_root()),
                    *(("--proc", "/proc") if admits else ()),
                    *("--ro-bind" if readonly else "--bind", str(folder.resolve()), INSIDE),
                    *("--unshare-pid", "--unshare-ipc", "--unshare-net", "--as-pid-1"),
                    *("--die-with-parent", *_kept(capabilities)),
                    *(() if calls is None else ("--seccomp", str(calls))),
                    *("--", os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", _SCRIPT),
                    *command,
                ]
                self._process: subprocess.Popen[bytes] = subprocess.Popen(
                    line,
                    env={},
                    pass_fds=() if calls is None else (calls,),
                    stdin=its.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    # The terminal's Ctrl-C is for us alone.
                    process_group=0,
                )
            opened.callback(self._end)
            self._wait_until_ready(folder)
            opened.pop_all()

    @property
    def pid(self) -> int:
        """The process that we have started, whose child the launcher is."""
        return self._process.pid

    def start(self, stream: socket.socket) -> bool:
        """Have the command started on this socket, in place of the one before, and do not wait.

        False where that cannot be asked for. A command that cannot be started, or ends, is seen by
        the end of the socket.
        """
        try:
            socket.send_fds(self._requests, [b"\0"], [stream.fileno()], socket.MSG_DONTWAIT)
        except OSError as error:
            log.warning("no server of a folder can be started: %s", error.strerror)
            return False
        return True

    def connect(self) -> socket.socket:
        """Have the command started, in place of the one before, and return a socket to it.

        Raises OSError.
        """
        self._requests.settimeout(ENDING_TIME)
        self._requests.send(b"\0")
        _, fds, _, _ = socket.recv_fds(self._requests, 1, 1, socket.MSG_CMSG_CLOEXEC)
        if not fds:
            raise ConnectionResetError(errno.ECONNRESET, "what starts it has ended")
        return socket.socket(fileno=fds[0])

    def close(self) -> None:
        """End it, and what it has started."""
        self._requests.close()
        self._end()

    def _wait_until_ready(self, folder: Path) -> None:
        assert self._process.stderr is not None
        self._requests.settimeout(STARTING_TIME)
        with self._process.stderr as said:
            try:
                if self._requests.recv(1):
                    return
                # Standard error has an end, as it was given to no other process.
                why = said.read().decode(errors="replace").strip().splitlines()
            except TimeoutError:
                self._process.kill()
                why = [f"nothing after {STARTING_TIME:g} seconds"]
        raise ConfigError(
            f"The folder {folder} cannot be given to a server of its own "
            f"({why[-1] if why else 'bubblewrap ended'}): see that bubblewrap (bwrap) works for "
            "this user."
        )

    def _end(self) -> None:
        self._requests.close()
        try:
            self._process.wait(ENDING_TIME)
        except subprocess.TimeoutExpired:
            # We may send no signal any more; the kernel does when we end.
            log.warning("what serves a folder does not end, until virtiopy does")


@contextlib.contextmanager
def _filter(abilities: Ability) -> Iterator[int | None]:
    """Open the filter of system calls, for bubblewrap; None where the kernel has none."""
    if not has_filters():
        yield None
        return
    fd = os.memfd_create("filter")
    try:
        os.write(fd, as_bytes(abilities))
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def _root() -> Iterator[str]:
    """Give bubblewrap's options for what the launcher and a program of the distribution's need."""
    yield from ("--ro-bind", "/usr", "/usr", "--dev", "/dev")
    for name in _ROOT_LINKS:
        path = Path("/", name)
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path), f"/{name}")
        elif path.is_dir():
            yield from ("--ro-bind", f"/{name}", f"/{name}")
    # Python's own, where it is not the distribution's.
    interpreter = Path(os.path.realpath(sys.executable))
    for python in (Path(sys.base_prefix), interpreter):
        if not python.is_relative_to("/usr"):
            yield from ("--ro-bind", str(python), str(python))
    ours = Path(virtiopy.__file__).parent
    backend = Path(_cffi_backend.__file__)
    for path in (ours, backend):
        yield from ("--ro-bind", str(path), str(_PACKAGES / path.name))


def _kept(capabilities: Sequence[str]) -> Iterator[str]:
    if os.geteuid() == 0:
        yield from ("--cap-drop", "ALL")
        for name in capabilities:
            yield from ("--cap-add", name)
