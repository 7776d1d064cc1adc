"""Where a backend meets its frontends: a socket that it listens on, or connects to."""

import contextlib
import errno
import logging
import socket
from pathlib import Path

from virtiopy.closing import Closing
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError
from virtiopy.eventloop import READABLE, EventLoop, Watch
from virtiopy.vhost.user.backend import Backend
from virtiopy.vhost.user.rings import Lease

log = logging.getLogger(__name__)

#: Seconds until a socket is tried again at which no frontend listened, or whose frontend has gone.
CONNECT_PAUSE = 0.5

#: Seconds until a frontend is accepted again after one that could not be.
ACCEPT_PAUSE = 0.1

#: Frontends that wait while one is served.
_BACKLOG = 8


def listen(path: Path) -> socket.socket:
    """Make a socket to be served, in place of one that no backend listens at any more.

    Raises ConfigError, with the remedy.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _bind(listener, path)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"The socket {path} cannot be made ({error.strerror or error}): "
            "name one in a folder that you can write to."
        ) from error
    except ConfigError:
        listener.close()
        raise
    return listener


def _bind(listener: socket.socket, path: Path) -> None:
    try:
        listener.bind(str(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        _remove_if_dead(path)
        listener.bind(str(path))


def _remove_if_dead(path: Path) -> None:
    """Remove a socket that was left over; raises ConfigError for anything else."""
    if not path.is_socket():
        raise ConfigError(f"There is a file at {path}: name another path for the socket.")
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
    raise ConfigError(f"Another process serves {path} already: name another path for the socket.")


class Server(Closing):
    """`device` at a socket, on `loop`, which is the caller's to run; the device is, too.

    `source` is a socket that listens, and is closed with the server; or the path of one that a
    frontend listens at, which is connected to, and again when the frontend has gone. The path
    that it listens at is removed unless it is `kept`, for who made it to start another server.
    The `lease` is claimed while any ring is worked.
    """

    def __init__(
        self,
        device: VirtioDevice,
        loop: EventLoop,
        source: socket.socket | Path,
        *,
        kept: bool = False,
        lease: Lease | None = None,
    ) -> None:
        self._loop = loop
        #: The path that the socket was made at, and the file there, to be removed at the end.
        self._made: tuple[Path, tuple[int, int]] | None = None
        if isinstance(source, socket.socket) and not kept:
            path = Path(source.getsockname())
            self._made = path, _identity(path)
        self._source = source
        self._accepting: Watch | None = None
        self._closing = False
        self.backend = Backend(device, loop, self._await_frontend, lease)
        # What one frontend has the host fail at is not the end of all the others.
        loop.on_host_error = self.backend.host_failed
        if isinstance(source, socket.socket):
            source.setblocking(False)
            self._await_frontend()
        else:
            loop.call_soon(self._connect, "connect to the frontend")

    def close(self) -> None:
        """Complete what is being done, and leave the frontend and the socket."""
        self._closing = True
        self._stop_accepting()
        self.backend.close()
        if isinstance(self._source, socket.socket):
            if self._made is not None:
                path, identity = self._made
                # Another program may have put a file of its own in the socket's place.
                with contextlib.suppress(OSError):
                    if _identity(path) == identity:
                        path.unlink()
            self._source.close()

    def _await_frontend(self) -> None:
        if self._closing:
            return
        if isinstance(self._source, Path):
            # Not at once: one that takes each connection and ends it would have us do nothing else.
            self._loop.call_later(CONNECT_PAUSE, self._connect, "connect to the frontend")
        elif self._accepting is None:
            self._accepting = self._loop.watch(
                self._source.fileno(), READABLE, self._accept, "frontends"
            )

    def _stop_accepting(self) -> None:
        if self._accepting is not None:
            self._loop.unwatch(self._accepting)
            self._accepting = None

    def _accept(self, events: int) -> None:
        assert isinstance(self._source, socket.socket)
        try:
            stream, _ = self._source.accept()
        except OSError as error:
            # It was gone again; or we have too many files open, and it would come at once.
            log.info("a frontend could not be accepted: %s", error.strerror)
            self._stop_accepting()
            self._loop.call_later(ACCEPT_PAUSE, self._await_frontend, "frontends")
            return
        # The next one waits until this one has gone.
        self._stop_accepting()
        log.info("a frontend is here")
        self.backend.connect(stream)

    def _connect(self) -> None:
        if self._closing or self.backend.connected:
            return
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # One that accepts no connection is not waited for (EAGAIN, unix(7)).
        stream.setblocking(False)
        try:
            stream.connect(str(self._source))
        except OSError as error:
            stream.close()
            log.debug("no frontend listens at %s: %s", self._source, error.strerror)
            self._loop.call_later(CONNECT_PAUSE, self._connect, "connect to the frontend")
            return
        log.info("connected to a frontend")
        self.backend.connect(stream)


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
