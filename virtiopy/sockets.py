"""Unix sockets that virtiopy listens at: their owner's alone, and in place of none that is used."""

import contextlib
import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from virtiopy.closing import Closing
from virtiopy.errors import ConfigError

#: Who may connect: the owner, whatever the umask.
OWNER_ONLY = 0o600


@dataclass(slots=True, frozen=True)
class SocketFile(Closing):
    """The file of a socket of ours; `close` removes it, and no other that came in its place."""

    path: Path
    device: int
    inode: int

    @classmethod
    def at(cls, path: Path) -> "SocketFile":
        """Return the file that is there now."""
        status = path.lstat()
        return cls(path, status.st_dev, status.st_ino)

    def close(self) -> None:
        """Remove the file, if it is still the socket's."""
        with contextlib.suppress(OSError):
            if SocketFile.at(self.path) == self:
                self.path.unlink()


def bind_listener(
    path: Path,
    *,
    taken: str,
    mode: int = OWNER_ONLY,
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> socket.socket:
    """Make a socket at `path`, to listen at, in place of one that no process listens at any more.

    It does not block. Raises ConfigError, with `taken`, where a process listens, or where another
    kind of file is; OSError where no socket can be made.
    """
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # What the socket's inode has, its file gets (unix(7)): at no moment has it more.
        os.fchmod(listener.fileno(), mode & OWNER_ONLY)
        try:
            listener.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path, taken)
            listener.bind(str(path))
        if mode & ~OWNER_ONLY:
            # The umask has no part in what the user asks for.
            path.chmod(mode)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path, taken: str) -> None:
    if not path.is_socket() or path.is_symlink():
        raise ConfigError(f"{path} exists and is no socket: name another path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        # Where so many wait already that it is full, connecting would wait too (unix(7)).
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
        except OSError as error:
            # A process listens there for sockets of another type.
            if error.errno != errno.EPROTOTYPE:
                raise
    raise ConfigError(taken)
