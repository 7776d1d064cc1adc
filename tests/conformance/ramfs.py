"""A file system device in memory, with one file at a time: what mutants of one are made of."""

import errno
import struct

from virtiopy.conformance.drivers.fs import HIPRIO, IN_SIZE, MAJOR, MINOR, OUT_SIZE, ROOT, Opcode
from virtiopy.devices.base import VirtioDevice
from virtiopy.spec import DeviceId
from virtiopy.vhost.user.fs import FsFeature
from virtiopy.virtqueue.buffers import gather, scatter, total
from virtiopy.virtqueue.queue import Chain, Virtqueue

NODE, HANDLE = 2, 9


class FuseError(Exception):
    """A request fails with an error number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class RamFs(VirtioDevice):
    """A file system device (5.11)."""

    device_id = DeviceId.FILE_SYSTEM
    feature_bits = FsFeature
    queue_sizes = (128, 128)
    request_queues = 1

    def __init__(self) -> None:
        super().__init__()
        self.content: bytearray | None = None

    def config_space(self) -> bytes:
        return b"ramfs".ljust(36, b"\0") + struct.pack("<I", self.request_queues)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        data = gather(chain.readable)
        if queue.index == HIPRIO or total(chain.writable) < OUT_SIZE or len(data) < IN_SIZE:
            return 0
        unique = struct.unpack_from("<Q", data, 8)[0]
        try:
            error, body = 0, self.answer_within(total(chain.writable) - OUT_SIZE, data)
        except FuseError as failure:
            error, body = failure.number, b""
        head = struct.pack("<IiQ", OUT_SIZE + len(body), -error, unique)
        return scatter(chain.writable, head + body)

    def answer_within(self, room: int, data: bytes) -> bytes:
        """Return the answer's body, which has so much room; raises FuseError."""
        length, opcode, _, node = struct.unpack_from("<IIQQ", data)
        if length != len(data):
            raise FuseError(errno.EINVAL)
        body = self.answer(opcode, node, data[IN_SIZE:])
        if len(body) > room:
            raise FuseError(errno.EINVAL)
        return body

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        """Return the answer's body; raises FuseError."""
        try:
            if opcode == Opcode.INIT:
                return self.init(*struct.unpack_from("<II", body))
            if opcode == Opcode.CREATE and node == ROOT:
                self.content = bytearray()
                return struct.pack("<Q120xQ8x", NODE, HANDLE)
            if opcode == Opcode.UNLINK and node == ROOT:
                self.content = None
                return b""
            if opcode == Opcode.SETUPMAPPING:
                return self.map(*struct.unpack_from("<QQQQQ", body))
            if node != NODE or self.content is None:
                raise FuseError(errno.ENOENT)
            if opcode == Opcode.WRITE:
                _, offset, size = struct.unpack_from("<QQI", body)
                return struct.pack("<Ixxxx", self.write(offset, body[40:][:size]))
            if opcode == Opcode.READ:
                _, offset, size = struct.unpack_from("<QQI", body)
                return self.read(offset, size)
        except struct.error:
            raise FuseError(errno.EINVAL) from None
        if opcode == Opcode.RELEASE:
            return b""
        raise FuseError(errno.ENOSYS)

    def init(self, major: int, minor: int) -> bytes:
        if major != MAJOR:
            raise FuseError(errno.EPROTO)
        return struct.pack("<II56x", MAJOR, min(minor, MINOR))

    def map(self, handle: int, offset: int, size: int, flags: int, at: int) -> bytes:
        raise FuseError(errno.ENOSYS)

    def write(self, offset: int, data: bytes) -> int:
        assert self.content is not None
        self.content[offset : offset + len(data)] = data
        return len(data)

    def read(self, offset: int, size: int) -> bytes:
        assert self.content is not None
        return bytes(self.content[offset : offset + size])
