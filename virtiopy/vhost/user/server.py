"""Where a backend meets its frontends: a socket that it listens on, or connects to."""

import logging
import socket
from pathlib import Path

from virtiopy.closing import Closing
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError
from virtiopy.eventloop import READABLE, EventLoop, Watch
from virtiopy.sockets import OWNER_ONLY, SocketFile, bind_listener
from virtiopy.vhost.user.backend import Backend
from virtiopy.vhost.user.rings import Lease

log = logging.getLogger(__name__)

#: Seconds until a socket is tried again at which no frontend listened, or whose frontend has gone.
CONNECT_PAUSE = 0.5

#: Seconds until a frontend is accepted again after one that could not be.
ACCEPT_PAUSE = 0.1

#: Frontends that wait while one is served.
_BACKLOG = 8


def listen(path: Path, mode: int = OWNER_ONLY) -> socket.socket:
    """Make a socket to be served, in place of one that no process listens at any more.

    `mode` says who may connect. Raises ConfigError, with the remedy.
    """
    taken = f"Another process serves {path} already: name another path for the socket."
    try:
        listener = bind_listener(path, taken=taken, mode=mode)
    except OSError as error:
        raise ConfigError(
            f"The socket {path} cannot be made ({error.strerror or error}): "
            "name one in a folder that you can write to."
        ) from error
    listener.listen(_BACKLOG)
    return listener


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
        backend: type[Backend] = Backend,
    ) -> None:
        self._loop = loop
        #: The file that was made, to be removed at the end.
        self._made: SocketFile | None = None
        if isinstance(source, socket.socket) and not kept:
            self._made = SocketFile.at(Path(source.getsockname()))
        self._source = source
        self._accepting: Watch | None = None
        self._closing = False
        self.backend = backend(device, loop, self._await_frontend, lease)
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
                self._made.close()
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
