"""Folders of the host's that a guest has: diod serves them, as 9P2000.L on a socket pair.

diod follows a path as the host's kernel does, symbolic links and `..` with it. So it runs where
there is no path out of the folder: its launcher has a root of its own. The launcher starts a diod
for each driver that the device has.
"""

import contextlib
import os
import select
import socket
from collections import deque
from pathlib import Path

from virtiopy.devices.ninep import HEADER_SIZE, MESSAGE_MAX, FileServerUser, header_of, make_message
from virtiopy.errors import ConfigError
from virtiopy.eventloop import READABLE, WRITABLE, EventLoop, Watch
from virtiopy.host.folders import check_folder
from virtiopy.host.launcher import FILE_CAPABILITIES, Launcher, find_tool
from virtiopy.host.parts import Parts
from virtiopy.sandbox.launching import INSIDE

_TATTACH = 104
#: The n_uname of a user who has only a name.
_NO_NUMBER = 0xFFFFFFFF
#: A socket option that Python has no name for (asm-generic/socket.h).
_SO_SNDBUFFORCE = 32


class Share:
    """The file server of a folder; raises ConfigError where there is none, or no program for it."""

    def __init__(self, folder: Path, *, readonly: bool = False) -> None:
        self.folder, self.readonly = folder, readonly
        for tool, package in (("diod", "diod"), ("bwrap", "bubblewrap")):
            if find_tool(tool) is None:
                raise ConfigError(
                    f"The share {folder} needs {tool}, which is not here: "
                    f"apt-get install {package}."
                )
        check_folder(folder, "The share")
        self._session: Session | None = None
        self._held = False
        #: The only user that diod can be; None where it can be any. We may be another one later.
        self._user = os.geteuid() or None
        self.launcher = Launcher(
            folder, _command(), readonly=readonly, capabilities=FILE_CAPABILITIES
        )

    def start(self, loop: EventLoop | None, user: FileServerUser) -> bool:
        """Start diod; without a loop its answers would not be noticed, so it is not started."""
        if loop is None:
            return False
        ours, its = socket.socketpair()
        for stream in (ours, its):
            _widen(stream)
        with its:
            if not self.launcher.start(its):
                ours.close()
                return False
        self._session = Session(ours, loop, user)
        self._session.hold(held=self._held)
        return True

    def send(self, message: bytes) -> None:
        """Send a request; one that names a folder names ours."""
        assert self._session is not None
        self._session.send(_attached_here(message, self._user))

    def wait(self, seconds: float) -> bool:
        """Wait up to so long for diod's answers or its end, or for room for our requests."""
        return self._session is not None and self._session.wait(seconds)

    def hold(self, *, held: bool) -> None:
        """Have the loop look away from diod's answers, or look again."""
        self._held = held
        if self._session is not None:
            self._session.hold(held=held)

    def end(self) -> None:
        """End diod, and what it has open."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def close(self) -> None:
        """End diod, and what starts it."""
        self.end()
        self.launcher.close()


def _widen(stream: socket.socket) -> None:
    """Give a socket room for a whole message, where we may: else it goes in several turns."""
    with contextlib.suppress(PermissionError):
        stream.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * MESSAGE_MAX)


def _command() -> list[str]:
    diod = ["-f", "-n", "-N", "-c", "/dev/null", "-L", "stderr", "-e", INSIDE]
    return [os.path.realpath(find_tool("diod") or "diod"), *diod, "-r", "0", "-w", "0"]


def _attached_here(message: bytes, only_user: int | None) -> bytes:
    """Return a message with the folder's name, and the user that diod may be, in a Tattach.

    Tattach has fid[4] afid[4] uname[s] aname[s] n_uname[4] after the header; one that is cut short
    is left to diod to refuse.
    """
    if message[4] != _TATTACH:
        return message
    position = HEADER_SIZE + 8
    position += 2 + _number(message, position, 2)
    end = position + 2 + _number(message, position, 2)
    if len(message) < end + 4:
        return message
    user = _number(message, end, 4)
    if only_user is not None or user == _NO_NUMBER:
        # diod can be no other user than who started it, and knows no user by a name: as which
        # Linux's driver mounts.
        user = only_user or 0
    folder = INSIDE.encode()
    rest = message[HEADER_SIZE:position] + len(folder).to_bytes(2, "little") + folder
    return make_message(_TATTACH, header_of(message)[2], rest + user.to_bytes(4, "little"))


def _number(message: bytes, position: int, size: int) -> int:
    return int.from_bytes(message[position : position + size], "little")


class Session:
    """One diod and the socket to it; the caller holds the device's lock."""

    def __init__(
        self,
        stream: socket.socket,
        loop: EventLoop,
        user: FileServerUser,
    ) -> None:
        self._stream, self._user, self._loop = stream, user, loop
        self._parts = Parts(self._put, user.answered)
        # What has come of the server's messages, which are no larger.
        self._input = memoryview(bytearray(MESSAGE_MAX))
        self._filled = 0
        self._output: deque[memoryview] = deque()
        self._closed = self._held = False
        stream.setblocking(False)
        self._poll = select.poll()
        self._poll.register(stream, READABLE)
        self._watch: Watch = loop.watch(stream.fileno(), READABLE, self._ready, "a share")

    def send(self, message: bytes) -> None:
        """Send a request of the driver's, in parts where it is large."""
        self._parts.ask(message)

    def _put(self, message: bytes) -> None:
        """Send a message, now or when there is room."""
        self._output.append(memoryview(message))
        if len(self._output) == 1:
            self._write()

    def hold(self, *, held: bool) -> None:
        """Have the loop look away, or look again."""
        self._held = held
        self._arm()

    def _arm(self) -> None:
        if not self._closed:
            self._watch.events = 0 if self._held else self._wanted

    @property
    def _wanted(self) -> int:
        return READABLE | (WRITABLE if self._output else 0)

    def wait(self, seconds: float) -> bool:
        """Wait up to so long until there is something to read or to write, and do that."""
        self._poll.modify(self._stream, self._wanted)
        ready = self._poll.poll(seconds * 1000)
        if ready:
            self._ready(ready[0][1])
        return bool(ready)

    def _ready(self, events: int) -> None:
        with self._user.lock:
            if self._closed:
                return
            if events & WRITABLE:
                self._write()
            if events & ~WRITABLE:
                self._read()

    def _write(self) -> None:
        # A server that is gone is noticed where its socket is read.
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._output:
                sent = self._stream.send(self._output[0])
                if sent == len(self._output[0]):
                    self._output.popleft()
                else:
                    self._output[0] = self._output[0][sent:]
        self._arm()

    def _read(self) -> None:
        try:
            count = self._stream.recv_into(self._input[self._filled :])
        except BlockingIOError:
            return
        except ConnectionResetError:
            count = 0
        if not count:
            self._fail()
            return
        end, begin = self._filled + count, 0
        while end - begin >= HEADER_SIZE and not self._closed:
            size = header_of(self._input[begin:])[0]
            if not HEADER_SIZE <= size <= MESSAGE_MAX:
                self._fail()
                return
            if end - begin < size:
                break
            self._parts.answered(self._input[begin : begin + size])
            begin += size
        self._filled = end - begin
        if begin and self._filled:
            self._input[: self._filled] = bytes(self._input[begin:end])

    def _fail(self) -> None:
        self.close()
        self._user.server_gone()

    def close(self) -> None:
        """End diod: it is ended once its socket is closed."""
        if self._closed:
            return
        self._closed = True
        self._loop.unwatch(self._watch)
        self._stream.close()
