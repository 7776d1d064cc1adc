"""What the tests of the block device share."""

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from virtiopy.devices.blk import Blk, BlkFeature, RequestType, Status
from virtiopy.devices.disk import Disk
from virtiopy.memory import GuestMemory
from virtiopy.spec import Feature
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, total
from virtiopy.virtqueue.driver import Allocator, Piece

MEMORY_SIZE = 8 << 20
SECTOR = 512
SECTORS = 64
SERIAL = "virtiopy-0001"
IN, OUT, FLUSH = RequestType.IN, RequestType.OUT, RequestType.FLUSH
GET_ID, GET_LIFETIME = RequestType.GET_ID, RequestType.GET_LIFETIME
DISCARD, WRITE_ZEROES = RequestType.DISCARD, RequestType.WRITE_ZEROES
SECURE_ERASE = RequestType.SECURE_ERASE
OK, IOERR, UNSUPP = Status.OK, Status.IOERR, Status.UNSUPP
F_FLUSH = BlkFeature.VIRTIO_BLK_F_FLUSH
F_DISCARD = BlkFeature.VIRTIO_BLK_F_DISCARD
F_WRITE_ZEROES = BlkFeature.VIRTIO_BLK_F_WRITE_ZEROES
F_INDIRECT = Feature.VIRTIO_F_INDIRECT_DESC
#: What is in device-writable buffers until the device writes them.
STALE = 0xEE
# struct virtio_blk_config (5.2.4): offset and size of each field
CAPACITY = (0, 8)
WRITEBACK = (32, 1)
NUM_QUEUES = (34, 2)
MAX_DISCARD_SECTORS = (36, 4)
MAX_DISCARD_SEG = (40, 4)
MAX_WRITE_ZEROES_SECTORS = (48, 4)
MAX_WRITE_ZEROES_SEG = (52, 4)


def header(kind: int, sector: int = 0) -> bytes:
    """The first three fields of struct virtio_blk_req (5.2.6)."""
    return struct.pack("<IIQ", kind, 0, sector)


def segment(sector: int, num_sectors: int, flags: int = 0) -> bytes:
    """struct virtio_blk_discard_write_zeroes (5.2.6)."""
    return struct.pack("<QII", sector, num_sectors, flags)


def pattern(sectors: int, seed: int = 1) -> bytes:
    """Bytes that tell every sector from every other."""
    return b"".join(struct.pack("<HH", seed, sector) * (SECTOR // 4) for sector in range(sectors))


class FakeDisk:
    """A disk in memory, which records what is asked of it and fails when told to."""

    alignment = 1
    physical_block_size = 4096

    def __init__(self, *, readonly: bool = False, can_punch_holes: bool = True) -> None:
        self.content = bytearray(pattern(SECTORS))
        self.size = len(self.content)
        self.readonly = readonly
        self.can_punch_holes = can_punch_holes
        self.calls: list[tuple[object, ...]] = []
        self.error: OSError | None = None
        self.observe: Callable[[], object] = lambda: None
        self.observed: list[object] = []
        self.closed = False

    def _begin(self, *call: object) -> None:
        self.calls.append(call)
        self.observed.append(self.observe())
        if self.error is not None:
            raise self.error

    def measure(self) -> None:
        self.size = len(self.content)

    def read_cached(self, offset: int, buffers: Buffers) -> bool:
        return False

    def read(self, offset: int, buffers: Buffers) -> None:
        if self.error is not None:
            # Half of it arrives before the error does.
            scatter(buffers, bytes(self.content[offset : offset + total(buffers) // 2]))
        self._begin("read", offset, total(buffers))
        scatter(buffers, bytes(self.content[offset : offset + total(buffers)]))

    def write(self, offset: int, buffers: Buffers, *, stable: bool = False) -> None:
        self._begin("write", offset, total(buffers), stable)
        self.content[offset : offset + total(buffers)] = gather(buffers)

    def flush(self) -> None:
        self._begin("flush")

    def discard(self, offset: int, length: int) -> None:
        self._begin("discard", offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self._begin("write_zeroes", offset, length, unmap)
        self.content[offset : offset + length] = bytes(length)

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class Reply:
    """What the driver finds when a request is done."""

    length: int
    data: bytes
    status: int


@dataclass
class Bench:
    """A block device and its driver."""

    memory: GuestMemory
    device: Blk
    transport: MmioTransport
    driver: MmioDriver

    def place(self, data: bytes) -> int:
        address = self.driver.allocator.take(max(1, len(data)))
        self.memory.write(address, data)
        return address

    def add(
        self,
        readable: Sequence[bytes],
        writable: Sequence[int],
        *,
        queue: int = 0,
        direct: int | None = None,
    ) -> list[Piece]:
        """Make a request of these pieces available, the first `direct` without indirection."""
        pieces = [Piece(self.place(data), len(data)) for data in readable]
        pieces += [Piece(self.place(bytes([STALE]) * n), n, writable=True) for n in writable]
        table = self.driver.allocator.take(16 * len(pieces), 16)
        self.driver.queues[queue].add(pieces, direct=direct, table=table)
        return pieces

    def submit(
        self,
        readable: Sequence[bytes],
        writable: Sequence[int],
        *,
        queue: int = 0,
        direct: int | None = None,
    ) -> Reply:
        """Make a request, kick, and take it back; without writable bytes its status is -1."""
        pieces = self.add(readable, writable, queue=queue, direct=direct)
        [used] = self.driver.collect(queue)
        written = b"".join(self.memory.read(p.address, p.length) for p in pieces if p.writable)
        return Reply(used.length, written[:-1], written[-1] if written else -1)

    def request(
        self, kind: int, sector: int = 0, data: bytes = b"", *, room: int = 0, queue: int = 0
    ) -> Reply:
        """Submit a well-framed request with `data` to read or `room` to write for the device."""
        readable = [header(kind, sector), data] if data else [header(kind, sector)]
        return self.submit(readable, [room, 1] if room else [1], queue=queue)

    def works(self) -> bool:
        """Say whether a good request is served."""
        return self.request(GET_ID, room=20) == Reply(21, SERIAL.encode().ljust(20, b"\0"), OK)

    def config(self, field: tuple[int, int]) -> int:
        return self.driver.read_config(*field)

    def set_writeback(self, value: int) -> None:
        self.driver.write_config(*WRITEBACK, value)


@contextmanager
def bench_of(
    disk: Disk, *, num_queues: int = 1, writeback: bool = True, queue_size: int = 256
) -> Iterator[Bench]:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        device = Blk(
            disk,
            serial=SERIAL,
            num_queues=num_queues,
            writeback=writeback,
            queue_size=queue_size,
        )
        transport = MmioTransport(device, memory, LevelInterrupt(lambda level: None))
        driver = MmioDriver(transport, memory, Allocator(0x1000, MEMORY_SIZE))
        yield Bench(memory, device, transport, driver)


def make_image(path: Path) -> Path:
    path.write_bytes(pattern(SECTORS))
    return path


sectors = st.one_of(st.integers(0, SECTORS + 2), st.just((1 << 64) - 1))
