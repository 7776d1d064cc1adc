"""A disk that an NBD server has, as qemu-storage-daemon is one: the client's side of the protocol.

What is sent and what comes is in https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md:
fixed newstyle negotiation, and simple replies.
"""

import enum
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import NoReturn

from virtiopy.closing import Closing
from virtiopy.errors import ConfigError, PeerError
from virtiopy.virtqueue.buffers import Buffers, split_at, total

_GREETING = b"NBDMAGIC" + b"IHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPTION_MAGIC = b"IHAVEOPT"
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_OPTION_GO = 7
_REPLY_ACK, _REPLY_INFO = 1, 3
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_REQUEST_MAGIC, _SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698

#: The longest piece of information that a server has to tell, bytes; and pieces of it.
_INFO_MAX, _INFOS_MAX = 4096, 32

#: Bytes of data in a request: every server takes so many. Without data 4 GiB less a MiB.
REQUEST_MAX = 32 << 20
LENGTH_MAX = (1 << 32) - (1 << 20)

#: Seconds that a server may take for a request.
PATIENCE = 60.0


class Command(enum.IntEnum):
    """NBD_CMD_*."""

    READ = 0
    WRITE = 1
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


class CommandFlag(enum.IntFlag):
    """NBD_CMD_FLAG_*."""

    NONE = 0
    FUA = 1
    NO_HOLE = 2


class Transmission(enum.IntFlag):
    """NBD_FLAG_*: what an export can."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_FUA = 8
    SEND_TRIM = 32
    SEND_WRITE_ZEROES = 64


@dataclass(slots=True, frozen=True)
class Export:
    """What a server says of an export; bytes."""

    size: int
    flags: Transmission
    least_block: int = 1
    preferred_block: int = 4096


class NbdDisk(Closing):
    """A disk that a server has under `name`; `connect` gives a new connection to it.

    Each thread that uses it at a time has a connection. One that breaks ends its request with an
    OSError, and the next makes another. `release` is called at its end. Raises PeerError and
    ConfigError.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        name: str,
        *,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._name = name
        self._release = release
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []
        self._handles = count(1)
        try:
            stream, export = self._open()
        except OSError as error:
            raise PeerError(f"the NBD server of {name} does not answer ({error})") from error
        self._idle.append(stream)
        self._flags = export.flags
        #: Bytes.
        self.size = export.size
        self.readonly = Transmission.READ_ONLY in export.flags
        self.alignment = export.least_block
        self.physical_block_size = max(512, min(export.preferred_block, 1 << 16))
        self.can_punch_holes = Transmission.SEND_TRIM in export.flags and not self.readonly

    def close(self) -> None:
        """Close its connections, and let go of the server."""
        for stream in self._idle:
            stream.close()
        self._idle.clear()
        self._release()

    def measure(self) -> None:
        """Take the size that the export has now; raises ConfigError where it cannot be asked."""
        try:
            stream, export = self._open()
        except (OSError, PeerError) as error:
            raise ConfigError(f"The server of {self._name} does not answer ({error}).") from error
        self.size = export.size
        self._give_back(stream)

    # Input and output

    def read(self, offset: int, buffers: Buffers) -> None:
        """Fill `buffers` from `offset`; raises OSError."""
        for at, pieces in _requests(offset, buffers):
            with self._stream() as stream:
                self._ask(stream, Command.READ, at, total(pieces))
                for piece in pieces:
                    _receive_into(stream, piece)

    def read_cached(self, offset: int, buffers: Buffers) -> bool:
        """Say that the server has to be asked."""
        return False

    def write(self, offset: int, buffers: Buffers, *, stable: bool = False) -> None:
        """Write `buffers` at `offset`; `stable` returns only once they are on the disk.

        Raises OSError.
        """
        fua = stable and Transmission.SEND_FUA in self._flags
        flags = CommandFlag.FUA if fua else CommandFlag.NONE
        for at, pieces in _requests(offset, buffers):
            with self._stream() as stream:
                self._ask(stream, Command.WRITE, at, total(pieces), flags=flags, data=pieces)
        if stable and not fua:
            self.flush()

    def flush(self) -> None:
        """Return once all completed writes are on the disk; raises OSError."""
        if Transmission.SEND_FLUSH in self._flags:
            with self._stream() as stream:
                self._ask(stream, Command.FLUSH, 0, 0)

    def discard(self, offset: int, length: int) -> None:
        """Give a range back to the server where it takes it; raises OSError."""
        if self.can_punch_holes:
            self._do(Command.TRIM, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeroes; with `unmap` give it back where the server can.

        Raises OSError.
        """
        if Transmission.SEND_WRITE_ZEROES in self._flags:
            self._do(
                Command.WRITE_ZEROES,
                offset,
                length,
                CommandFlag.NONE if unmap else CommandFlag.NO_HOLE,
            )
            return
        zeroes = memoryview(bytes(min(length, 1 << 20)))
        for at in range(offset, offset + length, max(1, len(zeroes))):
            self.write(at, [zeroes[: offset + length - at]])

    def _do(
        self, command: Command, offset: int, length: int, flags: CommandFlag = CommandFlag.NONE
    ) -> None:
        for at in range(offset, offset + length, LENGTH_MAX):
            with self._stream() as stream:
                part = min(LENGTH_MAX, offset + length - at)
                self._ask(stream, command, at, part, flags=flags)

    # A request

    @contextmanager
    def _stream(self) -> Iterator[socket.socket]:
        """Give a connection for one request; one that breaks in it is closed."""
        with self._lock:
            stream = self._idle.pop() if self._idle else None
        if stream is None:
            try:
                stream, _ = self._open()
            except (ConfigError, PeerError) as error:
                raise OSError(errno.EIO, str(error)) from error
        try:
            yield stream
        except _RefusedError as error:
            self._give_back(stream)
            raise OSError(error.number, os.strerror(error.number)) from error
        except PeerError as error:
            stream.close()
            raise OSError(errno.EIO, str(error)) from error
        except BaseException:
            stream.close()
            raise
        self._give_back(stream)

    def _give_back(self, stream: socket.socket) -> None:
        with self._lock:
            self._idle.append(stream)

    def _ask(
        self,
        stream: socket.socket,
        command: Command,
        offset: int,
        length: int,
        *,
        flags: CommandFlag = CommandFlag.NONE,
        data: Buffers = (),
    ) -> None:
        """Send a request, and take the reply up to its data; raises OSError and PeerError."""
        handle = next(self._handles) & (1 << 64) - 1
        head = _big(_REQUEST_MAGIC, 4) + _big(flags, 2) + _big(command, 2)
        head += _big(handle, 8) + _big(offset, 8) + _big(length, 4)
        stream.sendall(head)
        for piece in data:
            stream.sendall(piece)
        reply = _receive(stream, 16)
        number = int.from_bytes(reply[4:8])
        if int.from_bytes(reply[:4]) != _SIMPLE_REPLY_MAGIC or int.from_bytes(reply[8:]) != handle:
            raise PeerError("a reply of the NBD server is none to what it was asked")
        if number:
            # The protocol's error numbers are Linux's.
            raise _RefusedError(number)

    # Negotiation

    def _open(self) -> tuple[socket.socket, Export]:
        """Connect, and choose the export; raises OSError, PeerError and ConfigError."""
        stream = self._connect()
        try:
            stream.settimeout(PATIENCE)
            return stream, self._negotiate(stream)
        except BaseException:
            stream.close()
            raise

    def _negotiate(self, stream: socket.socket) -> Export:
        if _receive(stream, 16) != _GREETING:
            raise PeerError("what listens is no NBD server of the new style")
        flags = int.from_bytes(_receive(stream, 2)) & (_FIXED_NEWSTYLE | _NO_ZEROES)
        if not flags & _FIXED_NEWSTYLE:
            raise PeerError("the NBD server knows no fixed newstyle negotiation")
        name = self._name.encode()
        data = _big(len(name), 4) + name + _big(1, 2) + _big(_INFO_BLOCK_SIZE, 2)
        stream.sendall(
            _big(flags, 4) + _OPTION_MAGIC + _big(_OPTION_GO, 4) + _big(len(data), 4) + data
        )
        infos: dict[int, bytes] = {}
        for _ in range(_INFOS_MAX):
            head = _receive(stream, 20)
            kind, length = int.from_bytes(head[12:16]), int.from_bytes(head[16:])
            if int.from_bytes(head[:8]) != _OPTION_REPLY_MAGIC or length > _INFO_MAX:
                raise PeerError("a reply of the NBD server to an option is none")
            content = _receive(stream, length)
            if kind == _REPLY_ACK:
                return _export(infos)
            if kind != _REPLY_INFO:
                _refused(kind, content)
            infos[int.from_bytes(content[:2])] = content[2:]
        raise PeerError("the NBD server does not end its negotiation")


class _RefusedError(Exception):
    """A request that the server answers with an error number; the connection is sound."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _refused(kind: int, content: bytes) -> NoReturn:
    words = content.decode(errors="replace").strip() or f"reply {kind:#x}"
    raise PeerError(f"the NBD server refuses the export: {words}")


def _export(infos: dict[int, bytes]) -> Export:
    export = infos.get(_INFO_EXPORT, b"")
    if len(export) != 10:
        raise PeerError("the NBD server does not say how large its export is")
    size, flags = int.from_bytes(export[:8]), Transmission(int.from_bytes(export[8:]) & 0x6F)
    blocks = infos.get(_INFO_BLOCK_SIZE, b"")
    if len(blocks) != 12:
        return Export(size, flags)
    least, preferred = int.from_bytes(blocks[:4]), int.from_bytes(blocks[4:8])
    if not 1 <= least <= 1 << 16 or least & (least - 1):
        raise PeerError(f"the NBD server has a smallest block of {least} bytes")
    return Export(size, flags, least, preferred)


def _requests(offset: int, buffers: Buffers) -> Iterator[tuple[int, Sequence[memoryview]]]:
    """Yield the parts that requests may have, with where each begins."""
    rest: Sequence[memoryview] = buffers
    while total(rest):
        pieces, rest = split_at(rest, REQUEST_MAX)
        yield offset, pieces
        offset += total(pieces)


def _big(value: int, size: int) -> bytes:
    return value.to_bytes(size, "big")


def _receive(stream: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    _receive_into(stream, memoryview(data))
    return bytes(data)


def _receive_into(stream: socket.socket, buffer: memoryview) -> None:
    while len(buffer):
        received = stream.recv_into(buffer)
        if not received:
            raise PeerError("the NBD server closed the connection")
        buffer = buffer[received:]
