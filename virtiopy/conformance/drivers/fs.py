"""The driver of the file system device (5.11): FUSE requests, of the kernel's version 7.31."""

import enum
import errno
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from virtiopy.conformance.drivers.base import DeviceDriver, Request
from virtiopy.conformance.problems import StepError
from virtiopy.conformance.sessions.base import Session
from virtiopy.spec import DeviceId

#: The queues (5.11.2), without VIRTIO_FS_F_NOTIFICATION.
HIPRIO, REQUESTQ = 0, 1

#: The configuration space (5.11.4): the tag, and num_request_queues.
TAG_SIZE = 36
NUM_REQUEST_QUEUES_AT = TAG_SIZE
CONFIG_SIZE = TAG_SIZE + 4

#: Bytes of what each request and each answer begins with.
IN_SIZE, OUT_SIZE = 40, 16

ROOT = 1
MAJOR, MINOR = 7, 31

#: Bytes of answers.
_INIT_ROOM, _CREATE_ROOM, _FH_AT = 64, 144, 128


class Opcode(enum.IntEnum):
    """FUSE_*: numbers of the kernel's interface."""

    FORGET = 2
    UNLINK = 10
    READ = 15
    WRITE = 16
    RELEASE = 18
    INIT = 26
    CREATE = 35
    SETUPMAPPING = 48


def fields(*pairs: tuple[int, int]) -> bytes:
    """Return numbers, little-endian as the driver has it: each a value and its size in bytes."""
    return b"".join(value.to_bytes(size, "little") for value, size in pairs)


def words(*values: int) -> bytes:
    """Return numbers of 32 bits."""
    return fields(*((value, 4) for value in values))


def longs(*values: int) -> bytes:
    """Return numbers of 64 bits."""
    return fields(*((value, 8) for value in values))


def message(
    opcode: int, body: bytes = b"", *, node: int = ROOT, unique: int = 2, size: int | None = None
) -> bytes:
    """Return a request; `size` stands for its own."""
    length = IN_SIZE + len(body) if size is None else size
    return words(length, opcode) + longs(unique, node) + bytes(16) + body


@dataclass(slots=True, frozen=True)
class Answer:
    """What the device answers: an error number, 0 for none, and what follows."""

    error: int
    body: bytes

    def number(self, offset: int, size: int) -> int:
        """Return a number of the body."""
        return int.from_bytes(self.body[offset : offset + size], "little")


@dataclass(slots=True, frozen=True)
class OpenFile:
    """A file that the device has open."""

    name: bytes
    node: int
    handle: int


class FsDriver(DeviceDriver):
    """A driver that makes a file of its own in the root, and removes it."""

    device_id: ClassVar[DeviceId] = DeviceId.FILE_SYSTEM
    name: ClassVar[str] = "fs"
    main_queue = REQUESTQ
    queues = 2
    config_size = CONFIG_SIZE

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._unique = count(2, 2)

    def request(
        self, opcode: int, body: bytes = b"", *, node: int = ROOT, room: int = 0
    ) -> Request:
        """Return a request with room for so much behind the answer's header."""
        unique = next(self._unique)

        def check(content: bytes, length: int) -> None:
            assert length >= OUT_SIZE, f"an answer of {length} bytes (5.11.6.1)"
            said = int.from_bytes(content[:4], "little")
            assert said == length, f"out.len is {said}, of {length} bytes that were written"
            answered = int.from_bytes(content[8:OUT_SIZE], "little")
            assert answered == unique, f"the answer is to request {answered}, not {unique}"

        data = message(opcode, body, node=node, unique=unique)
        return Request(REQUESTQ, data, OUT_SIZE + room, check, parts=([IN_SIZE], [OUT_SIZE]))

    def good_request(self) -> Request:
        """Return a FUSE_INIT of another protocol, which is refused: it begins no session."""
        request = self.request(Opcode.INIT, words(MAJOR - 1, MINOR, 0, 0))

        def check(content: bytes, length: int) -> None:
            request.check(content, length)
            error = _error(content)
            assert error == errno.EPROTO, f"error {error} answers a FUSE_INIT of another protocol"

        return Request(REQUESTQ, request.readable, request.room, check, parts=request.parts)

    def forget(self) -> Request:
        """Return a FORGET of nothing, for the high priority queue: it has no answer."""

        def check(content: bytes, length: int) -> None:
            assert length == 0, f"{length} bytes written to a FORGET (5.11.6.2)"

        data = message(Opcode.FORGET, longs(0), unique=next(self._unique))
        return Request(HIPRIO, data, 0, check, parts=([IN_SIZE], ()))

    def ask(self, opcode: int, body: bytes = b"", *, node: int = ROOT, room: int = 0) -> Answer:
        """Send a request, and return its answer."""
        sent = self.send(self.request(opcode, body, node=node, room=room))
        used = self.session.wait_for(REQUESTQ, sent.head)
        content = self.check(sent, used)
        return Answer(_error(content), content[OUT_SIZE : used.length])

    def begin(self) -> None:
        """Bring the device up, and begin a session."""
        self.start()
        answer = self.ask(Opcode.INIT, words(MAJOR, MINOR, 0, 0), room=_INIT_ROOM)
        if answer.error or answer.number(0, 4) != MAJOR:
            raise StepError(f"a FUSE_INIT of {MAJOR}.{MINOR} is answered by error {answer.error}")

    def create(self, name: bytes = b"virtiopy-conformance") -> OpenFile:
        """Make a file for reading and writing."""
        body = words(0o2, 0o100600, 0, 0) + name + b"\0"
        answer = self.ask(Opcode.CREATE, body, room=_CREATE_ROOM)
        if answer.error:
            raise StepError(f"a file cannot be made in the root: error {answer.error}")
        return OpenFile(name, answer.number(0, 8), answer.number(_FH_AT, 8))

    def write(self, file: OpenFile, data: bytes, offset: int = 0) -> Answer:
        """Write to a file."""
        head = longs(file.handle, offset) + words(len(data), 0) + longs(0) + words(0, 0)
        return self.ask(Opcode.WRITE, head + data, node=file.node, room=8)

    def read(self, file: OpenFile, size: int, offset: int = 0) -> Answer:
        """Read from a file."""
        return self.ask(*self.reading(file, size, offset), node=file.node, room=size)

    @staticmethod
    def reading(file: OpenFile, size: int, offset: int = 0) -> tuple[int, bytes]:
        """Return what a request to read from a file is made of."""
        return Opcode.READ, longs(file.handle, offset) + words(size, 0) + longs(0) + words(0, 0)

    def remove(self, file: OpenFile) -> None:
        """Close a file, and remove it."""
        self.ask(Opcode.RELEASE, longs(file.handle) + words(0, 0) + longs(0), node=file.node)
        self.ask(Opcode.UNLINK, file.name + b"\0")


def _error(content: bytes) -> int:
    return -int.from_bytes(content[4:8], "little", signed=True)
