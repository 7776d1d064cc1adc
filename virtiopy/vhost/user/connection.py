"""A vhost-user connection: whole messages, with their file descriptors, over a Unix socket."""

import array
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable

from virtiopy.closing import Closing
from virtiopy.errors import PeerError
from virtiopy.vhost.user.messages import HEADER_SIZE, REGIONS_MAX, Header, Message, decode_header


class DisconnectedError(PeerError):
    """The peer has closed its end."""


class Connection(Closing):
    """Messages to and from one peer; `stream` is a connected SOCK_STREAM, and is closed with it.

    Whether `send` and `receive` wait, and how long for a message, is the socket's timeout: None for
    ever, 0 not at all.
    """

    def __init__(self, stream: socket.socket) -> None:
        self.socket = stream
        #: Told of each message, before it is sent or after it was received, and which of the two.
        self.on_message: Callable[[Message, bool], None] | None = None
        self._data = bytearray()
        self._fds: list[int] = []
        self._header: Header | None = None

    def close(self) -> None:
        """Close the socket, and what came with a message that is not whole."""
        self.socket.close()
        close_all(self._fds)

    @property
    def _flags(self) -> int:
        """What keeps a call from waiting where the socket does not wait.

        A socket that the peer gave is the peer's too, and so is its O_NONBLOCK.
        """
        return socket.MSG_DONTWAIT if self.socket.gettimeout() == 0 else 0

    def send(self, message: Message) -> None:
        """Send a message; its file descriptors stay the caller's.

        Raises PeerError when it cannot be sent whole: the connection is of no use any more.
        """
        if self.on_message is not None:
            self.on_message(message, True)
        data = message.encode()
        try:
            flags = socket.MSG_NOSIGNAL | self._flags
            # Not send_fds(), which drops the flags (Python 3.11).
            sent = self.socket.sendmsg([data], _rights(message.fds), flags)
            if sent < len(data):
                self.socket.sendall(data[sent:], flags)
        except TimeoutError as error:
            raise PeerError(f"it takes no {message.name}") from error
        except BlockingIOError as error:
            raise PeerError(f"it takes no {message.name}: its socket is full") from error
        except OSError as error:
            raise DisconnectedError(f"{message.name} cannot be sent: {error.strerror}") from error

    def receive(self) -> Message | None:
        """Return the next message, whose file descriptors are the caller's then.

        None when it is not there yet, or not whole, and the socket does not wait. Raises PeerError
        for what is no message, or did not come in time, and DisconnectedError at the end.
        """
        timeout = self.socket.gettimeout()
        end = time.monotonic() + timeout if timeout else None
        if self._header is None:
            if not self._fill(HEADER_SIZE, end):
                return None
            self._header = decode_header(bytes(self._data))
            self._data.clear()
        header = self._header
        if not self._fill(header.size, end):
            return None
        message = Message(header.request, bytes(self._data), header.flags, self._fds)
        self._data.clear()
        self._header, self._fds = None, []
        if self.on_message is not None:
            self.on_message(message, False)
        return message

    @property
    def in_a_message(self) -> bool:
        """Whether a message has begun to come and is not whole."""
        return bool(self._data) or self._header is not None

    def _fill(self, size: int, end: float | None) -> bool:
        """Read until there are `size` bytes of this message, and not one of the next.

        That is to be by `end`, of the monotonic clock: the socket's timeout begins anew with each
        byte. File descriptors come with the first byte of their message, or with one of its others.
        """
        while (missing := size - len(self._data)) > 0:
            try:
                data, ancillary, flags, _ = self.socket.recvmsg(
                    missing,
                    socket.CMSG_SPACE(REGIONS_MAX * 4),
                    socket.MSG_CMSG_CLOEXEC | self._flags,
                )
            except BlockingIOError:
                return False
            except TimeoutError as error:
                raise PeerError("it says nothing") from error
            except OSError as error:
                raise DisconnectedError(f"the connection failed: {error.strerror}") from error
            self._fds += _descriptors(ancillary)
            if flags & socket.MSG_CTRUNC or len(self._fds) > REGIONS_MAX:
                raise PeerError("more file descriptors than can be taken")
            if not data:
                raise DisconnectedError(
                    "it went away in the middle of a message" if self.in_a_message else "it left"
                )
            self._data += data
            if end is not None and len(self._data) < size and time.monotonic() > end:
                raise PeerError("it says a message too slowly") from TimeoutError()
        return True


def _rights(fds: list[int]) -> "list[tuple[int, int, array.array[int]]]":
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def close_all(fds: Iterable[int]) -> None:
    """Close file descriptors, and forget them where they are in a list."""
    if isinstance(fds, list):
        fds, taken = list(fds), fds
        taken.clear()
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
