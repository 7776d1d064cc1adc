"""The host's side of a console port: a file, a Unix socket, a pseudoterminal.

What the user asked for and cannot be had raises ConfigError, when the stream is made. What
happens later, such as a reader that goes away, is a matter of being connected or not. While
no reader is there output is dropped and counted; with `wait` it waits for the first to come.
"""

import contextlib
import errno
import fcntl
import logging
import os
import select
import termios
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path

from virtiopy.devices.streams import Size, StreamUser
from virtiopy.errors import ConfigError, DriverError
from virtiopy.eventloop import READABLE, WRITABLE, EventLoop, Watch
from virtiopy.files import check_output, create_output, finish, is_special
from virtiopy.host.limits import IOV_MAX, OUTPUT_LIMIT
from virtiopy.sockets import OWNER_ONLY, SocketFile, bind_listener
from virtiopy.virtqueue.buffers import Buffers, total

log = logging.getLogger(__name__)

#: How often a pseudoterminal that no process has open is looked at: nothing tells of an open(2).
PTY_POLL_SECONDS = 0.1

#: How long a pseudoterminal's reader may take to read the rest, once the device is gone.
PTY_LINGER_SECONDS = 1.0

#: How often, 2 ms apart, a pty has to be seen empty: a kernel worker brings it the last bytes.
PTY_LINGER_LOOKS = 25

#: How long a socket waits after a connection could not be accepted.
ACCEPT_RETRY_SECONDS = 1.0

#: What is kept of one who hung up, bytes: more than the kernel holds of any file.
_REST_MAX = 1 << 24

_CHUNK = 1 << 16
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GONE = select.EPOLLHUP | select.EPOLLERR


class Channel:
    """An open file that does not block, which is closed as soon as the other end hangs up.

    What was there to read then is kept, and can still be read. The caller holds `lock`, and the
    callbacks are called with it.
    """

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        #: Bytes that found no reader.
        self.dropped = 0
        self._wanted = 0
        self._input_ended = False
        self._rest = bytearray()
        self._complained = False
        self._closed = False
        self._watch: Watch | None = None
        self._loop: EventLoop | None = None

    def start(
        self,
        loop: EventLoop,
        lock: threading.RLock,
        *,
        input_ready: Callable[[], None],
        room_ready: Callable[[], None],
        hung_up: Callable[[], None],
    ) -> None:
        """Call back from now on; with nothing wanted, only for a hang-up."""
        self._loop = loop
        self._lock = lock
        self._input_ready = input_ready
        self._room_ready = room_ready
        self._always_ready = loop.bottom_half(self._run, self.name)
        self._hung_up = loop.bottom_half(self._locked(hung_up), self.name)
        # A regular file is always ready, and cannot be watched (EPERM).
        with contextlib.suppress(PermissionError):
            self._watch = loop.watch(self.fd, 0, self._ready, self.name)

    @property
    def is_open(self) -> bool:
        """Whether the other end is there, as far as is known."""
        return self.fd >= 0

    @property
    def has_rest(self) -> bool:
        """Whether there is something left to read of one that hung up."""
        return bool(self._rest)

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes; none where there are none now, or none any more."""
        if self._rest:
            data = bytes(self._rest[:count])
            del self._rest[:count]
            return data
        if self.fd < 0 or self._input_ended or count == 0:
            return b""
        try:
            data = os.read(self.fd, count)
        except BlockingIOError:
            return b""
        except OSError as error:
            log.info("%s: %s", self.name, error.strerror)
            self.hang_up()
            return b""
        if not data:
            # The other end may still read: it has shut down only what it sends.
            self._input_ended = True
            self.want()
        return data

    def write(self, buffers: Buffers) -> int:
        """Take bytes, and return how many: all and to no end, where the other end is gone.

        Raises DriverError for buffers that are no memory any more.
        """
        if self.fd >= 0:
            try:
                return os.writev(self.fd, buffers[:IOV_MAX])
            except BlockingIOError:
                return 0
            except OSError as error:
                if error.errno == errno.EFAULT:
                    raise DriverError("a buffer to be written was taken away") from error
                self._complain(error)
        length = total(buffers)
        self.dropped += length
        return length

    def _complain(self, error: OSError) -> None:
        if error.errno not in _FULL_DISK:
            log.info("%s: %s", self.name, error.strerror)
            self.hang_up()
        elif not self._complained:
            self._complained = True
            log.error("%s: %s: output is dropped", self.name, error.strerror)

    def want(self, *, input: bool | None = None, room: bool | None = None) -> None:  # noqa: A002
        """Say what to call back for; None leaves it as it is."""
        for bit, on in ((READABLE, input), (WRITABLE, room)):
            if on is not None:
                self._wanted = self._wanted | bit if on else self._wanted & ~bit
        if self._watch is not None:
            self._watch.events = self._wanted & ~(READABLE if self._input_ended else 0)
        elif self._loop is not None and self._is_always_ready():
            self._always_ready.schedule()

    def _is_always_ready(self) -> bool:
        readable = self._rest or (self.fd >= 0 and not self._input_ended)
        return bool(self._wanted & WRITABLE or (self._wanted & READABLE and readable))

    def _run(self) -> None:
        with self._lock:
            if not self._closed and self._watch is None and self._is_always_ready():
                self._call_back(self._wanted)

    def _ready(self, events: int) -> None:
        with self._lock:
            # Another thread may have found it closed while this one waited for the lock.
            if self._watch is None:
                return
            if events & _GONE:
                self.hang_up()
            else:
                self._call_back(events & self._wanted)

    def _call_back(self, events: int) -> None:
        if events & READABLE:
            self._input_ready()
        if events & WRITABLE:
            self._room_ready()

    def _locked(self, callback: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with self._lock:
                if not self._closed:
                    callback()

        return run

    def hang_up(self) -> None:
        """Close it because the other end is gone; it is called back for that, later."""
        if self.fd < 0:
            return
        with contextlib.suppress(OSError):
            while len(self._rest) < _REST_MAX and (data := os.read(self.fd, _CHUNK)):
                self._rest += data
        self._release()
        if self._loop is not None:
            self._hung_up.schedule()
            self.want()

    def close(self) -> None:
        """Close it; nothing is called back any more."""
        self._closed = True
        self._release()

    def _release(self) -> None:
        if self._watch is not None and self._loop is not None:
            self._loop.unwatch(self._watch)
            self._watch = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class FileStream:
    """A file that output goes to, up to `limit` bytes; there is no input."""

    connected = True
    size: Size | None = None

    def __init__(self, path: Path, *, append: bool = False, limit: int = OUTPUT_LIMIT) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            if append or is_special(path):
                if is_special(path):
                    check_output(path, "The output file")
                fd = os.open(path, flags | os.O_APPEND, 0o600)
            else:
                fd = create_output(path, "The output file")
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written ({error.strerror}): name a file that you may write, "
                "in a directory that exists."
            ) from error
        self._channel = Channel(fd, str(path))
        # What is no regular file does not grow.
        self._room = None if is_special(path) else limit

    def open(self, loop: EventLoop, user: StreamUser) -> None:
        """Start."""
        self._channel.start(
            loop,
            user.lock,
            input_ready=user.input_ready,
            room_ready=user.room_ready,
            hung_up=user.connection_changed,
        )

    def read(self, count: int) -> bytes:
        """Return nothing."""
        return b""

    def write(self, buffers: Buffers) -> int:
        """Append to the file; what it has no room for is dropped, and that is logged once."""
        if self._room is None:
            return self._channel.write(buffers)
        if self._room <= 0:
            length = total(buffers)
            self._channel.dropped += length
            return length
        written = self._channel.write(buffers)
        self._room -= written
        if self._room <= 0:
            log.warning(
                "%s: it has the bytes of its limit: output is dropped from here on; limit= gives "
                "it more",
                self._channel.name,
            )
        return written

    def watch_input(self, on: bool) -> None:
        """Do nothing: there is no input."""

    def watch_room(self, on: bool) -> None:
        """Say when more can be written: where the file is a pipe."""
        self._channel.want(room=on)

    def close(self) -> None:
        """Close the file."""
        if self._channel.is_open:
            finish(self._channel.fd)
        self._channel.close()


class _Visited:
    """A stream that others connect to, one at a time, and leave again."""

    size: Size | None = None

    def __init__(self, *, wait: bool) -> None:
        self.name = ""
        #: Bytes that were dropped while no reader was there.
        self.dropped = 0
        self._holds = wait
        self._channel: Channel | None = None
        self._wanted = {"input": False, "room": False}
        self._loop: EventLoop
        self._user: StreamUser

    @property
    def connected(self) -> bool:
        """Whether the other end is there."""
        return self._channel is not None and self._channel.is_open

    def _connect(self, fd: int) -> None:
        self._channel = Channel(fd, self.name)
        self._channel.start(
            self._loop,
            self._user.lock,
            input_ready=self._user.input_ready,
            room_ready=self._user.room_ready,
            hung_up=self._visitor_left,
        )
        self._channel.want(**self._wanted)
        self._holds = False
        self._user.connection_changed()

    def _visitor_left(self) -> None:
        self._user.connection_changed()
        self._invite_if_done()

    def _invite_if_done(self) -> None:
        """Let the next one come, once all that the last one wrote was read."""
        channel = self._channel
        if channel is not None and not channel.is_open and not channel.has_rest:
            self.dropped += channel.dropped
            self._channel = None
            self._invite()

    def _invite(self) -> None:
        """Wait for the other end to come."""
        raise NotImplementedError

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes of what the visitor wrote."""
        if self._channel is None:
            return b""
        data = self._channel.read(count)
        if not self._channel.is_open:
            self._invite_if_done()
        return data

    def write(self, buffers: Buffers) -> int:
        """Write to the visitor; with none, drop it or take nothing."""
        if self._holds:
            return 0
        if self._channel is not None:
            return self._channel.write(buffers)
        length = total(buffers)
        self.dropped += length
        return length

    def watch_input(self, on: bool) -> None:
        """Say when there is input, of this visitor and those to come."""
        self._wanted["input"] = on
        if self._channel is not None:
            self._channel.want(input=on)

    def watch_room(self, on: bool) -> None:
        """Say when there is room, of this visitor and those to come."""
        self._wanted["room"] = on
        if self._channel is not None:
            self._channel.want(room=on)

    def close(self) -> None:
        """Show the visitor out."""
        if self._channel is not None:
            self._channel.close()


class SocketStream(_Visited):
    """A Unix socket at `path` that clients connect to; the second waits until the first leaves.

    A socket that was left behind there is replaced; ours is removed at the end. `mode` says who
    may connect.
    """

    def __init__(self, path: Path, *, wait: bool = False, mode: int = OWNER_ONLY) -> None:
        super().__init__(wait=wait)
        self.name = f"socket {path}"
        self._watch: Watch | None = None
        taken = f"Another process listens at the socket {path} already: name another path."
        try:
            self._listener = bind_listener(path, taken=taken, mode=mode)
            self._listener.listen(1)
            self._file = SocketFile.at(path)
        except OSError as error:
            raise ConfigError(
                f"No socket can be made at {path} ({error.strerror or error}): name a path of up "
                "to 107 bytes in a directory that you may write."
            ) from error

    def open(self, loop: EventLoop, user: StreamUser) -> None:
        """Start."""
        self._loop, self._user = loop, user
        self._watch = loop.watch(self._listener.fileno(), READABLE, self._accept, self.name)

    def _accept(self, events: int) -> None:
        with self._user.lock:
            if self._channel is not None or self._watch is None:
                return
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                # It was gone again; or we have too many files open, and it would come at once.
                log.info("%s: %s", self.name, error.strerror)
                self._watch.events = 0
                self._loop.call_later(ACCEPT_RETRY_SECONDS, self._invite, self.name)
                return
            client.setblocking(False)
            self._watch.events = 0
            self._connect(client.detach())

    def _invite(self) -> None:
        if self._watch is not None:
            self._watch.events = READABLE

    def close(self) -> None:
        """Close the connection and remove the socket."""
        super().close()
        if self._watch is not None:
            self._loop.unwatch(self._watch)
            self._watch = None
        self._listener.close()
        self._file.close()


class PtyStream(_Visited):
    """A pseudoterminal in raw mode, for a terminal program or another VM; `path` names it.

    With `link`, that is a symbolic link to it, removed at the end; one that is there already is
    replaced, where it leads to a terminal or nowhere.
    """

    def __init__(self, link: Path | None = None, *, wait: bool = False) -> None:
        super().__init__(wait=wait)
        try:
            self._master, terminal = os.openpty()
        except OSError as error:
            raise ConfigError(
                f"There is no free pseudoterminal ({error.strerror}): mount /dev/pts, or raise "
                "kernel.pty.max with sysctl."
            ) from error
        # It is hung up while no process has it open: see _poll.
        tty.setraw(terminal)
        self.path = os.ttyname(terminal)
        os.close(terminal)
        os.set_blocking(self._master, False)
        self.name = f"pty {self.path}"
        self._link = link
        if link is not None:
            try:
                _replace_link(link, self.path)
            except ConfigError:
                os.close(self._master)
                raise

    def open(self, loop: EventLoop, user: StreamUser) -> None:
        """Start."""
        self._loop, self._user = loop, user
        self._invite()

    def _invite(self) -> None:
        self._loop.call_soon(self._poll, self.name)

    def _poll(self) -> None:
        """Look whether a process has opened the terminal."""
        with self._user.lock:
            if self._master < 0:
                return
            if self._is_open_elsewhere():
                # The channel closes what it has; the terminal is to live on.
                self._connect(fcntl.fcntl(self._master, fcntl.F_DUPFD_CLOEXEC, 0))
            else:
                self._loop.call_later(PTY_POLL_SECONDS, self._poll, self.name)

    def _is_open_elsewhere(self) -> bool:
        poll = select.poll()
        poll.register(self._master, 0)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the terminal, as soon as what was written has been read, and remove the link."""
        if self._master < 0:
            return
        if self.connected and self._is_open_elsewhere():
            self._linger()
        super().close()
        os.close(self._master)
        self._master = -1
        if self._link is not None:
            with contextlib.suppress(OSError):
                if os.readlink(self._link) == self.path:
                    self._link.unlink()

    def _linger(self) -> None:
        # The kernel throws away what a terminal has not been read when its master is closed.
        try:
            terminal = os.open(self.path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            end = time.monotonic() + PTY_LINGER_SECONDS
            # Several times, for the kernel may just be about to move more to where it counts.
            empty = 0
            while empty < PTY_LINGER_LOOKS and time.monotonic() < end:
                empty = 0 if _unread(terminal) else empty + 1
                time.sleep(0.002)
        finally:
            os.close(terminal)


def _unread(fd: int) -> int:
    """Return how many bytes can be read now."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")


def _replace_link(link: Path, target: str) -> None:
    try:
        if link.is_symlink() and (not link.exists() or link.is_char_device()):
            link.unlink()
        link.symlink_to(target)
    except OSError as error:
        raise ConfigError(
            f"No link can be made at {link} ({error.strerror}): name a path that is free, in a "
            "directory that you may write."
        ) from error
