"""A vhost-user disk with the habits of QEMU's sample backend, which is built on libvhost-user.

It takes nothing from virtiopy. It serves one frontend and then ends: with status 0 when the
frontend leaves, and with 1 and a word where libvhost-user panics: a ring whose in-flight area was
not sent back, a ring that no memory holds, a request that it does not know, a buffer outside the
memory.

    python -m tests.guest.sample_backend IMAGE SOCKET
"""

import array
import mmap
import os
import selectors
import socket
import struct
import sys
from pathlib import Path
from typing import NoReturn

SECTOR = 512
FEATURES = sum(
    1 << bit
    # SIZE_MAX, SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, INDIRECT_DESC, EVENT_IDX,
    # PROTOCOL_FEATURES, VERSION_1
    for bit in (1, 2, 6, 9, 10, 11, 28, 29, 30, 32)
)
MQ, REPLY_ACK, CONFIG, INFLIGHT_SHMFD = 0, 3, 9, 12
PROTOCOL_FEATURES = sum(1 << bit for bit in (MQ, REPLY_ACK, CONFIG, INFLIGHT_SHMFD))
EVENT_IDX = 1 << 29
QUEUES = 4

GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE = 1, 2, 3, 4, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
GET_CONFIG, SET_CONFIG, GET_INFLIGHT_FD, SET_INFLIGHT_FD = 24, 25, 31, 32

NEXT, WRITE, INDIRECT = 1, 2, 4
IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
OK, IOERR, UNSUPP = 0, 1, 2


def panic(why: str) -> NoReturn:
    """End as libvhost-user does."""
    sys.exit(f"panic: {why}")


class Region:
    """A region of the driver's memory."""

    def __init__(self, guest: int, size: int, user: int, offset: int, fd: int) -> None:
        self.guest, self.size, self.user, self.offset = guest, size, user, offset
        self.map = mmap.mmap(fd, size + offset)
        os.close(fd)

    def at(self, offset: int, size: int) -> memoryview:
        """Return bytes at an offset into it."""
        return memoryview(self.map)[self.offset + offset : self.offset + offset + size]


class Ring:
    """A split virtqueue."""

    def __init__(self) -> None:
        self.size = self.last = self.used_idx = self.signalled = 0
        self.areas: list[memoryview] = []
        self.kick = self.call = -1
        self.enabled = False
        self.inflight: memoryview | None = None
        self.again: list[int] = []

    @property
    def runs(self) -> bool:
        """Whether it is served."""
        return self.enabled and self.kick >= 0 and bool(self.areas)

    def mark(self, head: int, *, in_flight: bool) -> None:
        """Write down whether a request is in flight, where the area has room for it."""
        # A ring may be larger than the area, which goes by what the frontend thinks is its size.
        if self.inflight is not None and 16 + 16 * head < len(self.inflight):
            self.inflight[16 + 16 * head] = in_flight


class Sample:
    """One frontend's session."""

    def __init__(self, image: Path, peer: socket.socket) -> None:
        self.disk = os.open(image, os.O_RDWR)
        self.sectors = image.stat().st_size // SECTOR
        self.peer = peer
        self.regions: list[Region] = []
        self.rings = [Ring() for _ in range(QUEUES)]
        self.features = self.protocol = 0
        self.writeback = 1
        self.selector = selectors.DefaultSelector()
        self.selector.register(peer, selectors.EVENT_READ, None)

    def run(self) -> None:
        """Serve until the frontend leaves."""
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    if not self.take_message():
                        return
                elif key.fd == key.data.kick:
                    os.read(key.fd, 8)
                    self.work(key.data)

    # Messages

    def take_message(self) -> bool:
        """Do what one message says; False when there is none any more."""
        head, fds, _, _ = socket.recv_fds(self.peer, 12, 8)
        if not head:
            return False
        request, flags, size = struct.unpack("<III", head)
        payload = b""
        while len(payload) < size:
            payload += self.peer.recv(size - len(payload))
        reply = self.do(request, payload, fds)
        if reply is None and flags & 8 and self.protocol >> REPLY_ACK & 1:
            reply = struct.pack("<Q", 0), []
        if reply is not None:
            body, files = reply
            message = struct.pack("<III", request, 1 | 4, len(body)) + body
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
            self.peer.sendmsg([message], ancillary if files else [])
        return True

    def do(self, request: int, payload: bytes, fds: list[int]) -> tuple[bytes, list[int]] | None:
        """Do what one request asks for; returns its reply, if it has one."""
        number = int.from_bytes(payload[:8], "little")
        index, value = struct.unpack("<II", payload[:8].ljust(8, b"\0"))
        if request == GET_FEATURES:
            return struct.pack("<Q", FEATURES), []
        if request == SET_FEATURES:
            self.features = number
            if not number >> 30 & 1:
                for ring in self.rings:
                    ring.enabled = True
        elif request in (SET_OWNER, RESET_OWNER):
            pass
        elif request == GET_PROTOCOL_FEATURES:
            return struct.pack("<Q", PROTOCOL_FEATURES), []
        elif request == SET_PROTOCOL_FEATURES:
            self.protocol = number
        elif request == GET_QUEUE_NUM:
            return struct.pack("<Q", QUEUES), []
        elif request == SET_MEM_TABLE:
            self.map_memory(payload, fds)
        elif request in (SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR):
            self.set_file(request, number, fds)
        elif request == GET_CONFIG:
            offset, size, _ = struct.unpack_from("<III", payload)
            return payload[:12] + self.config()[offset : offset + size].ljust(size, b"\0"), []
        elif request == SET_CONFIG:
            offset, size, _ = struct.unpack_from("<III", payload)
            if (offset, size) != (32, 1):
                panic("only writeback can be set")
            self.writeback = payload[12]
        elif request == GET_INFLIGHT_FD:
            return self.make_inflight(payload)
        elif request == SET_INFLIGHT_FD:
            self.map_inflight(payload, fds)
        else:
            return self.do_ring(request, self.ring(index), value, payload)
        return None

    def do_ring(
        self, request: int, ring: Ring, value: int, payload: bytes
    ) -> tuple[bytes, list[int]] | None:
        """Do what a request about one ring asks for."""
        if request == SET_VRING_NUM:
            ring.size = value
        elif request == SET_VRING_BASE:
            ring.last = ring.used_idx = ring.signalled = value
        elif request == SET_VRING_ADDR:
            descriptor, used, available = struct.unpack_from("<QQQ", payload, 8)
            ring.areas = [
                self.user(descriptor, 16 * ring.size),
                self.user(available, 6 + 2 * ring.size),
                self.user(used, 6 + 8 * ring.size),
            ]
            ring.used_idx = ring.signalled = u16(ring.areas[2], 2)
            if ring.last != ring.used_idx:
                # It goes on from what the ring itself says.
                ring.last = ring.used_idx
        elif request == SET_VRING_ENABLE:
            ring.enabled = bool(value)
            self.work(ring)
        elif request == GET_VRING_BASE:
            last = ring.last
            self.close_kick(ring)
            ring.areas = []
            return struct.pack("<II", self.rings.index(ring), last), []
        else:
            panic(f"unhandled request {request}")
        return None

    def ring(self, index: int) -> Ring:
        """Return a ring by its index."""
        if index >= QUEUES:
            panic(f"there is no queue {index}")
        return self.rings[index]

    def set_file(self, request: int, number: int, fds: list[int]) -> None:
        """Take a ring's eventfd."""
        ring = self.ring(number & 0xFF)
        fd = -1 if number & 0x100 else fds[0]
        if request == SET_VRING_CALL:
            if ring.call >= 0:
                os.close(ring.call)
            ring.call = fd
        elif request == SET_VRING_ERR:
            if fd >= 0:
                os.close(fd)
        else:
            if fd < 0:
                panic("no kick eventfd: polling is not supported")
            self.close_kick(ring)
            ring.kick = fd
            self.selector.register(fd, selectors.EVENT_READ, ring)
            if self.protocol >> INFLIGHT_SHMFD & 1:
                self.recover(ring)
            self.work(ring)

    def close_kick(self, ring: Ring) -> None:
        """Serve a ring no more."""
        if ring.kick >= 0:
            self.selector.unregister(ring.kick)
            os.close(ring.kick)
            ring.kick = -1

    def config(self) -> bytes:
        """Return struct virtio_blk_config, as far as its fields are offered."""
        head = struct.pack("<QIIHBBI", self.sectors, 32768, 126, 0, 0, 0, SECTOR)
        return (head + struct.pack("<BBHIB", 0, 0, 1, 1, self.writeback)).ljust(60, b"\0")

    # Memory

    def map_memory(self, payload: bytes, fds: list[int]) -> None:
        """Map what the frontend shares."""
        (count,) = struct.unpack_from("<I", payload)
        self.regions = []
        for number, fd in enumerate(fds[:count]):
            guest, size, user, offset = struct.unpack_from("<QQQQ", payload, 8 + 32 * number)
            self.regions.append(Region(guest, size, user, offset, fd))

    def user(self, address: int, size: int) -> memoryview:
        """Return memory by the frontend's own address."""
        for region in self.regions:
            if region.user <= address and address + size <= region.user + region.size:
                return region.at(address - region.user, size)
        panic(f"no region holds the ring at {address:#x}")

    def guest(self, address: int, size: int) -> list[memoryview]:
        """Return memory by guest physical address."""
        parts = []
        while size:
            for region in self.regions:
                if region.guest <= address < region.guest + region.size:
                    fits = min(size, region.guest + region.size - address)
                    parts.append(region.at(address - region.guest, fits))
                    address, size = address + fits, size - fits
                    break
            else:
                panic(f"no region holds the buffer at {address:#x}")
        return parts

    # The in-flight area

    def make_inflight(self, payload: bytes) -> tuple[bytes, list[int]]:
        """Make an area. As libvhost-user, it has it for itself only when it is sent back."""
        queues, entries = struct.unpack_from("<HH", payload, 16)
        each = (16 + 16 * entries + 63) // 64 * 64
        fd = os.memfd_create("inflight")
        os.ftruncate(fd, each * queues)
        return struct.pack("<QQHH4x", each * queues, 0, queues, entries), [fd]

    def map_inflight(self, payload: bytes, fds: list[int]) -> None:
        """Take an area."""
        size, offset, queues, entries = struct.unpack_from("<QQHH", payload)
        area = memoryview(mmap.mmap(fds[0], size + offset))[offset:]
        os.close(fds[0])
        each = (16 + 16 * entries + 63) // 64 * 64
        for number, ring in enumerate(self.rings[:queues]):
            ring.inflight = area[number * each : (number + 1) * each]
            struct.pack_into("<HH", ring.inflight, 8, 1, entries)

    def recover(self, ring: Ring) -> None:
        """Find what was in flight when another backend ended."""
        if ring.inflight is None:
            panic(f"queue {self.rings.index(ring)} starts without its in-flight area")
        used = u16(ring.areas[2], 2)
        if u16(ring.inflight, 14) != used:
            ring.inflight[16 + 16 * u16(ring.inflight, 12)] = 0
            struct.pack_into("<H", ring.inflight, 14, used)
        (entries,) = struct.unpack_from("<H", ring.inflight, 10)
        heads = range(min(ring.size, entries))
        ring.again = [head for head in heads if ring.inflight[16 + 16 * head]]
        ring.last = (used + len(ring.again)) % 65536

    # Rings

    def work(self, ring: Ring) -> None:
        """Serve all requests of a ring."""
        while ring.runs:
            table, available, used = ring.areas
            if ring.again:
                head = ring.again.pop(0)
            elif u16(available, 2) != ring.last:
                head = u16(available, 4 + 2 * (ring.last % ring.size))
                ring.last = (ring.last + 1) % 65536
            else:
                if self.features & EVENT_IDX:
                    struct.pack_into("<H", used, 4 + 8 * ring.size, ring.last)
                    if u16(available, 2) != ring.last:
                        continue
                return
            ring.mark(head, in_flight=True)
            length = self.serve(self.chain(table, head))
            struct.pack_into("<II", used, 4 + 8 * (ring.used_idx % ring.size), head, length)
            if ring.inflight is not None:
                struct.pack_into("<H", ring.inflight, 12, head)
            ring.used_idx = (ring.used_idx + 1) % 65536
            struct.pack_into("<H", used, 2, ring.used_idx)
            ring.mark(head, in_flight=False)
            if ring.inflight is not None:
                struct.pack_into("<H", ring.inflight, 14, ring.used_idx)
            self.notify(ring)

    def notify(self, ring: Ring) -> None:
        """Send a used buffer notification, where it is wanted."""
        _, available, _ = ring.areas
        old, ring.signalled = ring.signalled, ring.used_idx
        if self.features & EVENT_IDX:
            event = u16(available, 4 + 2 * ring.size)
            wanted = (ring.used_idx - event - 1) % 65536 < (ring.used_idx - old) % 65536
        else:
            wanted = not u16(available, 0) & 1
        if wanted and ring.call >= 0:
            os.write(ring.call, struct.pack("<Q", 1))

    def chain(self, table: memoryview, head: int) -> list[tuple[memoryview, bool]]:
        """Return the parts of a chain, and whether each is for the device to write."""
        parts: list[tuple[memoryview, bool]] = []
        index = head
        address, length, flags, following = struct.unpack_from("<QIHH", table, 16 * index)
        if flags & INDIRECT:
            table = memoryview(b"".join(self.guest(address, length)))
            index = 0
        while True:
            address, length, flags, following = struct.unpack_from("<QIHH", table, 16 * index)
            parts += [(part, bool(flags & WRITE)) for part in self.guest(address, length)]
            if not flags & NEXT:
                return parts
            index = following
            if len(parts) > 1024:
                panic("a looped chain")

    def serve(self, chain: list[tuple[memoryview, bool]]) -> int:
        """Serve a request; returns how many bytes were written."""
        readable = [part for part, writable in chain if not writable]
        writable = [part for part, writable in chain if writable]
        if sum(map(len, readable)) < 16 or not sum(map(len, writable)):
            panic("a request without its header or its status")
        kind, sector = struct.unpack_from("<I4xQ", b"".join(readable))
        readable = skip(readable, 16)
        status = next(part for part in reversed(writable) if len(part))[-1:]
        data = first(writable, sum(map(len, writable)) - 1)
        written = 0
        answer = OK
        if kind == IN:
            size = sum(map(len, data))
            if size % SECTOR or sector * SECTOR + size > self.sectors * SECTOR:
                answer = IOERR
            else:
                written = os.preadv(self.disk, data, sector * SECTOR) if size else 0
        elif kind == OUT:
            size = sum(map(len, readable))
            if size % SECTOR or sector * SECTOR + size > self.sectors * SECTOR:
                answer = IOERR
            elif size:
                os.pwritev(self.disk, readable, sector * SECTOR)
        elif kind == FLUSH:
            os.fdatasync(self.disk)
        elif kind == GET_ID:
            name = b"vhost_user_blk".ljust(20, b"\0")
            for part in first(data, len(name)):
                part[:], name = name[: len(part)], name[len(part) :]
                written += len(part)
        else:
            answer = UNSUPP
        status[0] = answer
        return written + 1


def skip(parts: list[memoryview], size: int) -> list[memoryview]:
    """Leave out the first bytes."""
    rest = []
    for part in parts:
        rest.append(part[min(size, len(part)) :])
        size -= min(size, len(part))
    return rest


def first(parts: list[memoryview], size: int) -> list[memoryview]:
    """Return the first bytes."""
    taken = []
    for part in parts:
        taken.append(part[:size])
        size -= len(taken[-1])
    return taken


def u16(area: memoryview, offset: int) -> int:
    """Return a little endian number."""
    return int.from_bytes(area[offset : offset + 2], "little")


def main() -> None:
    """Serve the image to the first frontend that comes."""
    image, path = map(Path, sys.argv[1:])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        peer, _ = listener.accept()
    path.unlink()
    with peer:
        Sample(image, peer).run()
    sys.stderr.write("the frontend left\n")


if __name__ == "__main__":
    main()
