"""The host's side of a socket device: Unix sockets, as Firecracker and cloud-hypervisor have them.

A program that connects to PATH says `CONNECT port` and a newline; it is told `OK port`, with the
port that it has itself, once the guest has accepted, and its bytes are the guest's from there on.
Where the guest refuses, the socket is closed. A guest that connects to a port N of the host's gets
the program that listens at PATH_N.

Sockets are streams. Seqpacket sockets of a guest are seqpacket sockets here too: at PATH_N, and
at a second path for the programs that connect, whose first message is `CONNECT port`.
"""

import contextlib
import errno
import logging
import re
import select
import socket
import threading
from pathlib import Path

from virtiopy.devices.vsock.features import SocketType
from virtiopy.devices.vsock.sockets import HostSocket, SocketsUser, SocketUser
from virtiopy.errors import ConfigError, DriverError
from virtiopy.eventloop import READABLE, WRITABLE, EventLoop, Watch
from virtiopy.host.limits import IOV_MAX
from virtiopy.sockets import OWNER_ONLY, SocketFile, bind_listener
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, total

log = logging.getLogger(__name__)

#: The longest path of a Unix socket, bytes, and what a port adds to one.
PATH_MAX, PORT_LENGTH = 107, len("_4294967295")

#: Programs that may have connected and not said to which port.
CALLERS_MAX = 64

#: The longest first line, bytes; what comes behind it is the guest's.
_LINE_MAX = 32
_LINE = re.compile(rb"CONNECT ([0-9]{1,10})", re.IGNORECASE)

#: The kernel's buffer for messages, bytes, which has to take the largest: it grants 416 KiB.
_MESSAGE_BUFFER = 1 << 20

#: Seconds to wait after a program could not be let in.
_RETRY = 1.0

_GONE = select.EPOLLHUP | select.EPOLLERR
_KINDS = {SocketType.STREAM: socket.SOCK_STREAM, SocketType.SEQPACKET: socket.SOCK_SEQPACKET}


class UnixSocket:
    """A connected Unix socket: HostSocket. `rest` is what was received of it before.

    One that has `called` is told when the guest accepts.
    """

    def __init__(
        self,
        connected: socket.socket,
        loop: EventLoop,
        lock: threading.RLock,
        kind: SocketType,
        name: str,
        *,
        called: bool = False,
        rest: bytes = b"",
    ) -> None:
        self.name, self.gone = name, False
        self._socket, self._loop, self._lock = connected, loop, lock
        self._is_stream = kind is SocketType.STREAM
        self._called, self._rest = called, rest
        self._user: SocketUser | None = None
        self._wanted = 0
        self._closed = self._output_ended = False
        connected.setblocking(False)
        if not self._is_stream:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE_BUFFER)
        self._watch: Watch | None = loop.watch(connected.fileno(), 0, self._ready, name)

    def watch(self, user: SocketUser) -> None:
        """Tell this user."""
        self._user = user

    def want(self, *, input: bool | None = None, room: bool | None = None) -> None:  # noqa: A002
        """Say what to tell of."""
        for bit, on in ((READABLE, input), (WRITABLE, room)):
            if on is not None:
                self._wanted = self._wanted | bit if on else self._wanted & ~bit
        if self._watch is not None:
            self._watch.events = self._wanted
        if self._rest and self._wanted & READABLE:
            # The kernel does not know of it.
            self._loop.call_soon(self._has_rest, self.name)

    def _has_rest(self) -> None:
        with self._lock:
            if self._rest and self._wanted & READABLE and not self._closed:
                self._tell(READABLE)

    def _ready(self, events: int) -> None:
        with self._lock:
            if self._watch is None or self._user is None:
                return
            if events & _GONE:
                # It would be said again and again.
                self._unwatch()
                self.gone = True
                self._user.hung_up()
            else:
                self._tell(events & self._wanted)

    def _tell(self, events: int) -> None:
        if events & READABLE and self._user is not None:
            self._user.input_ready()
        if events & WRITABLE and self._user is not None:
            self._user.room_ready()

    def established(self, host_port: int) -> None:
        """Tell a program that has called that the guest accepted."""
        if self._called:
            # The first bytes of a socket have room.
            self.send([memoryview(f"OK {host_port}\n".encode())])

    def receive(self, buffers: Buffers) -> int | None:
        """Receive bytes, or one message; an error of the socket's is its end."""
        if self._rest:
            length = scatter(buffers, self._rest)
            self._rest = self._rest[length:]
            return length
        try:
            return self._socket.recvmsg_into(buffers[:IOV_MAX])[0]
        except BlockingIOError:
            return None
        except OSError as error:
            self._check(error)
            return 0

    def send(self, buffers: Buffers) -> int | None:
        """Send bytes, or one message whole."""
        if self.gone:
            return total(buffers)
        if not self._is_stream and len(buffers) > IOV_MAX:
            buffers = [memoryview(gather(buffers))]
        try:
            return self._socket.sendmsg(buffers[:IOV_MAX], [], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return None
        except OSError as error:
            self._check(error)
            self.gone = True
            return total(buffers)

    def _check(self, error: OSError) -> None:
        if error.errno == errno.EFAULT:
            raise DriverError("a buffer of a socket was taken away") from error
        log.info("%s: %s", self.name, error.strerror)

    def end_input(self) -> None:
        """Let the program send nothing more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def end_output(self) -> None:
        """Show the program the end."""
        if not self._output_ended:
            self._output_ended = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._loop.unwatch(self._watch)
            self._watch = None

    def close(self) -> None:
        """Close it."""
        self._closed, self._user = True, None
        self._unwatch()
        self._socket.close()


class _Listener:
    """One socket that programs connect to, and those that have not said to which port."""

    def __init__(self, path: Path, kind: SocketType, mode: int) -> None:
        self._kind, self.name = kind, f"vsock {path}"
        self._callers: dict[socket.socket, Watch] = {}
        self._said: dict[socket.socket, bytes] = {}
        self._watch: Watch | None = None
        self._loop: EventLoop
        self._user: SocketsUser
        taken = f"Another process listens at the socket {path} already: name another path."
        try:
            self._listener = bind_listener(path, taken=taken, mode=mode, kind=_KINDS[kind])
            self._listener.listen(128)
            self._file = SocketFile.at(path)
        except OSError as error:
            raise ConfigError(
                f"No socket can be made at {path} ({error.strerror or error}): name a path in a "
                "directory that you may write."
            ) from error

    def open(self, loop: EventLoop, user: SocketsUser) -> None:
        """Let programs connect."""
        self._loop, self._user = loop, user
        self._watch = loop.watch(self._listener.fileno(), READABLE, self._accept, self.name)

    def _accept(self, events: int) -> None:
        with self._user.lock:
            if self._watch is None:
                return
            try:
                caller, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Too many files are open, say, and it would come again at once.
                log.warning("%s: %s", self.name, error.strerror)
                self._watch.events = 0
                self._loop.call_later(_RETRY, self._invite, self.name)
                return
            caller.setblocking(False)
            self._said[caller] = b""
            self._callers[caller] = self._loop.watch(
                caller.fileno(), READABLE, lambda events: self._hear(caller), self.name
            )
            if len(self._callers) >= CALLERS_MAX:
                self._watch.events = 0

    def _invite(self) -> None:
        with self._user.lock:
            if self._watch is not None:
                self._watch.events = READABLE

    def _hear(self, caller: socket.socket) -> None:
        """Take what a program says first: the port that it wants."""
        with self._user.lock:
            if caller not in self._callers:
                return
            try:
                data = caller.recv(_LINE_MAX)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            said = self._said[caller] + data
            line, newline, rest = said.partition(b"\n")
            if self._kind is SocketType.SEQPACKET and data:
                newline = b"\n"
            if data and not newline and len(said) < _LINE_MAX:
                self._said[caller] = said
                return
            self._dismiss(caller)
            match = _LINE.fullmatch(line) if newline else None
            if match is None or int(match[1]) >= 1 << 32:
                log.info("%s: a program says %r, not CONNECT and a port", self.name, said)
                caller.close()
                return
            port = int(match[1])
            name = f"{self.name}, guest's port {port}"
            connected = UnixSocket(
                *(caller, self._loop, self._user.lock, self._kind, name), called=True, rest=rest
            )
            self._user.connect(port, self._kind, connected)

    def _dismiss(self, caller: socket.socket) -> None:
        self._loop.unwatch(self._callers.pop(caller))
        del self._said[caller]
        self._invite()

    def close(self) -> None:
        """Let no program connect any more, and take the socket away."""
        for caller in list(self._callers):
            self._dismiss(caller)
            caller.close()
        if self._watch is not None:
            self._loop.unwatch(self._watch)
            self._watch = None
        self._listener.close()
        self._file.close()


class HybridSockets:
    """The programs that a guest's sockets reach, by Unix sockets at `path`: HostSockets.

    `seqpacket` is where programs connect that want seqpacket sockets, if anywhere. `mode` says who
    may connect at either. Raises ConfigError.
    """

    def __init__(
        self, path: Path, *, seqpacket: Path | None = None, mode: int = OWNER_ONLY
    ) -> None:
        self.path = path
        if len(str(path).encode()) > PATH_MAX - PORT_LENGTH:
            raise ConfigError(
                f"The socket {path} has too long a path, to which ports are added: use one of up "
                f"to {PATH_MAX - PORT_LENGTH} bytes."
            )
        self._loop: EventLoop | None = None
        self._lock: threading.RLock
        with contextlib.ExitStack() as opened:
            self._listeners = [_Listener(path, SocketType.STREAM, mode)]
            opened.callback(self._listeners[0].close)
            if seqpacket is not None:
                self._listeners.append(_Listener(seqpacket, SocketType.SEQPACKET, mode))
            opened.pop_all()

    def open(self, loop: EventLoop, user: SocketsUser) -> None:
        """Let programs connect."""
        self._loop, self._lock = loop, user.lock
        for listener in self._listeners:
            listener.open(loop, user)

    def connect(self, port: int, kind: SocketType) -> HostSocket | None:
        """Connect to the program at PATH_port; None where none listens, or too many wait."""
        if self._loop is None:
            return None
        path = f"{self.path}_{port}"
        try:
            ours = socket.socket(
                socket.AF_UNIX, _KINDS[kind] | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
        except OSError as error:
            log.warning("%s: %s", path, error.strerror)
            return None
        try:
            ours.connect(path)
        except OSError as error:
            log.info("a guest connects to port %d: %s: %s", port, path, error.strerror)
            ours.close()
            return None
        return UnixSocket(ours, self._loop, self._lock, kind, f"vsock {path}")

    def close(self) -> None:
        """Let no program connect any more."""
        for listener in self._listeners:
            listener.close()
