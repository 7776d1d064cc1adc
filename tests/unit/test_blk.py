"""The block device (5.2), driven over its registers by the driver side of virtio-mmio."""

import errno
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtiopy.devices.blk import Blk, BlkFeature, RequestType, Status
from virtiopy.devices.disk import Disk
from virtiopy.host.disk import DiskImage
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature, has_feature
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Interrupt, Register
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
F_CONFIG_WCE = BlkFeature.VIRTIO_BLK_F_CONFIG_WCE
F_DISCARD = BlkFeature.VIRTIO_BLK_F_DISCARD
F_WRITE_ZEROES = BlkFeature.VIRTIO_BLK_F_WRITE_ZEROES
F_INDIRECT = Feature.VIRTIO_F_INDIRECT_DESC

#: What is in device-writable buffers until the device writes them.
STALE = 0xEE

# struct virtio_blk_config (5.2.4): offset and size of each field
CAPACITY = (0, 8)
SIZE_MAX = (8, 4)
SEG_MAX = (12, 4)
GEOMETRY = (16, 4)
BLK_SIZE = (20, 4)
PHYSICAL_BLOCK_EXP = (24, 1)
ALIGNMENT_OFFSET = (25, 1)
MIN_IO_SIZE = (26, 2)
OPT_IO_SIZE = (28, 4)
WRITEBACK = (32, 1)
UNUSED_0 = (33, 1)
NUM_QUEUES = (34, 2)
MAX_DISCARD_SECTORS = (36, 4)
MAX_DISCARD_SEG = (40, 4)
DISCARD_SECTOR_ALIGNMENT = (44, 4)
MAX_WRITE_ZEROES_SECTORS = (48, 4)
MAX_WRITE_ZEROES_SEG = (52, 4)
WRITE_ZEROES_MAY_UNMAP = (56, 1)


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


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.img")


@pytest.fixture
def bench(image: Path) -> Iterator[Bench]:
    with DiskImage(image) as disk, bench_of(disk) as bench:
        bench.driver.start()
        yield bench


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk()


@pytest.fixture
def faked(disk: FakeDisk) -> Iterator[Bench]:
    """A device on `disk`, which is not started."""
    with bench_of(disk) as bench:
        yield bench


# Capacity (5.2.6.2)


def test_a_disk_that_grows_has_its_new_capacity_told_and_used(bench: Bench, image: Path) -> None:
    os.truncate(image, (SECTORS + 8) * SECTOR)
    bench.device.capacity_changed()
    assert bench.driver.read(Register.InterruptStatus) == Interrupt.CONFIG_CHANGE
    assert bench.config(CAPACITY) == SECTORS + 8
    assert bench.request(IN, SECTORS + 7, room=SECTOR) == Reply(SECTOR + 1, bytes(SECTOR), OK)


def test_nothing_is_read_beyond_the_end_of_a_disk_that_shrank(bench: Bench, image: Path) -> None:
    os.truncate(image, 8 * SECTOR)
    bench.device.capacity_changed()
    assert bench.config(CAPACITY) == 8
    assert bench.request(IN, 8, room=SECTOR).status == IOERR


# Requests (5.2.6)


def test_a_read_fills_the_buffer_with_the_sectors(bench: Bench) -> None:
    assert bench.request(IN, 3, room=2 * SECTOR) == Reply(
        2 * SECTOR + 1, pattern(SECTORS)[3 * SECTOR : 5 * SECTOR], OK
    )


def test_a_write_puts_the_data_into_the_image(bench: Bench, image: Path) -> None:
    assert bench.request(OUT, 60, pattern(4, seed=2)) == Reply(1, b"", OK)
    assert image.read_bytes() == pattern(60) + pattern(4, seed=2)


def test_what_was_written_is_read_back(bench: Bench) -> None:
    bench.request(OUT, 8, pattern(8, seed=2))
    assert bench.request(IN, 8, room=8 * SECTOR).data == pattern(8, seed=2)


@pytest.mark.parametrize(("kind", "room"), [(IN, SECTORS * SECTOR), (OUT, 0)])
def test_a_request_may_cover_the_whole_disk(bench: Bench, kind: int, room: int) -> None:
    data = b"" if room else pattern(SECTORS, seed=2)
    assert bench.request(kind, 0, data, room=room).status == OK


@pytest.mark.parametrize("kind", [IN, OUT])
@pytest.mark.parametrize("sector", [0, SECTORS])
def test_a_request_for_no_data_does_nothing(bench: Bench, kind: int, sector: int) -> None:
    assert bench.request(kind, sector) == Reply(1, b"", OK)


def test_a_flush_is_passed_to_the_disk(faked: Bench, disk: FakeDisk) -> None:
    faked.driver.start()
    assert faked.request(FLUSH) == Reply(1, b"", OK)
    assert disk.calls == [("flush",)]


def test_a_flush_with_data_is_a_flush(bench: Bench) -> None:
    assert bench.request(FLUSH, 7, b"superfluous", room=9) == Reply(10, bytes(9), OK)


def test_get_id_pads_the_device_id_string_with_nul(bench: Bench) -> None:
    assert bench.request(GET_ID, room=20) == Reply(21, b"virtiopy-0001\0\0\0\0\0\0\0", OK)


def test_a_device_id_string_of_20_bytes_has_no_nul(faked: Bench) -> None:
    faked.device.serial = b"12345678901234567890"
    faked.driver.start()
    assert faked.request(GET_ID, room=20).data == b"12345678901234567890"


@pytest.mark.parametrize("serial", ["123456789012345678901", "größer"])
def test_a_device_id_string_of_more_than_20_bytes_or_other_than_ascii_is_refused(
    disk: FakeDisk, serial: str
) -> None:
    with pytest.raises(ValueError, match=r"20 bytes|ascii"):
        Blk(disk, serial=serial)


def test_a_discard_deallocates_each_segment(faked: Bench, disk: FakeDisk) -> None:
    faked.driver.start()
    assert faked.request(DISCARD, data=segment(8, 16) + segment(32, 1)) == Reply(1, b"", OK)
    assert disk.calls == [("discard", 8 * 512, 16 * 512), ("discard", 32 * 512, 512)]


@pytest.mark.parametrize("flags", [0, 1])
def test_after_write_zeroes_each_segment_reads_as_zeroes(bench: Bench, flags: int) -> None:
    data = segment(1, 2, flags) + segment(8, 24, flags)
    assert bench.request(WRITE_ZEROES, data=data) == Reply(1, b"", OK)
    expected = bytearray(pattern(SECTORS))
    expected[SECTOR : 3 * SECTOR] = bytes(2 * SECTOR)
    expected[8 * SECTOR : 32 * SECTOR] = bytes(24 * SECTOR)
    assert bench.request(IN, room=SECTORS * SECTOR).data == expected


@pytest.mark.parametrize(("flags", "unmap"), [(0, False), (1, True)])
def test_the_unmap_flag_of_write_zeroes_is_passed_to_the_disk(
    faked: Bench, disk: FakeDisk, flags: int, unmap: bool
) -> None:
    faked.driver.start()
    faked.request(WRITE_ZEROES, data=segment(2, 4, flags))
    assert disk.calls == [("write_zeroes", 1024, 2048, unmap)]


@pytest.mark.parametrize(("kind", "flags"), [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)])
def test_a_segment_of_no_sectors_does_nothing(bench: Bench, kind: int, flags: int) -> None:
    data = segment(8, 0, flags) + segment(16, 0, flags)
    assert bench.request(kind, data=data) == Reply(1, b"", OK)
    assert bench.request(IN, room=SECTORS * SECTOR).data == pattern(SECTORS)


@pytest.mark.parametrize(
    ("kind", "field"), [(DISCARD, MAX_DISCARD_SEG), (WRITE_ZEROES, MAX_WRITE_ZEROES_SEG)]
)
def test_as_many_segments_as_the_configuration_says_are_taken(
    bench: Bench, kind: int, field: tuple[int, int]
) -> None:
    assert bench.request(kind, data=segment(0, 1) * bench.config(field)).status == OK


def test_the_reserved_field_of_the_header_is_ignored(bench: Bench) -> None:
    request = struct.pack("<IIQ", IN, 0xFFFF_FFFF, 0)
    assert bench.submit([request], [SECTOR, 1]).status == OK


def test_several_requests_are_served_at_one_kick_a_bad_one_among_them(bench: Bench) -> None:
    statuses = [
        bench.add([header(kind, sector)], [SECTOR, 1])[-1].address
        for kind, sector in ((IN, 0), (IN, SECTORS), (99, 0), (IN, 1))
    ]
    assert [used.length for used in bench.driver.collect(0)] == [SECTOR + 1] * 4
    assert [bench.memory.read(address, 1)[0] for address in statuses] == [OK, IOERR, UNSUPP, OK]


def test_a_served_request_raises_a_used_buffer_interrupt(bench: Bench) -> None:
    assert bench.works()
    assert bench.driver.interrupts() == Interrupt.USED_BUFFER


def test_a_chain_that_the_queue_rejects_raises_an_interrupt_too(bench: Bench) -> None:
    # Device-readable after device-writable (2.7.4.2)
    pieces = [Piece(bench.place(bytes(1)), 1, writable=True), Piece(bench.place(header(IN)), 16)]
    bench.driver.queues[0].add(pieces)
    assert [used.length for used in bench.driver.collect(0)] == [0]
    assert bench.driver.interrupts() == Interrupt.USED_BUFFER
    assert bench.works()


# Malformed requests: answered in the status byte wherever there is one (5.2.6.1, 5.2.6.2)


@dataclass(frozen=True)
class Malformed:
    """The pieces of a request, and the status that it deserves: None where there is no byte."""

    readable: Sequence[bytes]
    writable: Sequence[int]
    status: Status | None


def _one(kind: int, sector: int, data: bytes, room: int, status: Status) -> Malformed:
    return Malformed([header(kind, sector) + data], [room + 1], status)


def _segments(kind: int, data: bytes, status: Status) -> Malformed:
    return _one(kind, 0, data, 0, status)


MALFORMED = {
    "no header": Malformed([], [SECTOR, 1], IOERR),
    "header of 1 byte": Malformed([b"\0"], [SECTOR, 1], IOERR),
    "header of 15 bytes": Malformed([header(IN)[:15]], [SECTOR, 1], IOERR),
    "header of 15 one-byte pieces": Malformed([b"\0"] * 15, [SECTOR, 1], IOERR),
    "no status byte after a write": Malformed([header(OUT), pattern(1, seed=2)], [], None),
    "no status byte after a flush": Malformed([header(FLUSH)], [], None),
    "no status byte and no header": Malformed([b"\0"], [], None),
    "status in a readable buffer": Malformed([header(OUT), pattern(1, seed=2), b"\xee"], [], None),
    "empty writable buffer for the status": Malformed([header(FLUSH)], [0], None),
    "read without room for the status": Malformed([header(IN)], [SECTOR], IOERR),
    "write with the status among the data": Malformed(
        [header(OUT), pattern(1, seed=2), b"\xee"], [1], IOERR
    ),
    "read of 1 byte": _one(IN, 0, b"", 1, IOERR),
    "read of 511 bytes": _one(IN, 0, b"", 511, IOERR),
    "read of 513 bytes": _one(IN, 0, b"", 513, IOERR),
    "write of 511 bytes": _one(OUT, 0, bytes(511), 0, IOERR),
    "write of 513 bytes": _one(OUT, 0, bytes(513), 0, IOERR),
    "read at capacity": _one(IN, SECTORS, b"", SECTOR, IOERR),
    "read over the end": _one(IN, SECTORS - 1, b"", 2 * SECTOR, IOERR),
    "read far beyond capacity": _one(IN, 1 << 40, b"", SECTOR, IOERR),
    "read whose offset in bytes is 2^64": _one(IN, 1 << 55, b"", SECTOR, IOERR),
    "read whose end in sectors is 2^64": _one(IN, (1 << 64) - 1, b"", SECTOR, IOERR),
    "read that ends past 2^64 sectors": _one(IN, (1 << 64) - 1, b"", 2 * SECTOR, IOERR),
    "empty read beyond capacity": _one(IN, SECTORS + 1, b"", 0, IOERR),
    "large read beyond capacity": _one(IN, SECTORS, b"", 300 * SECTOR, IOERR),
    "write at capacity": _one(OUT, SECTORS, bytes(SECTOR), 0, IOERR),
    "write over the end": _one(OUT, SECTORS - 1, bytes(2 * SECTOR), 0, IOERR),
    "write whose offset in bytes is 2^64": _one(OUT, 1 << 55, bytes(SECTOR), 0, IOERR),
    "write whose end in sectors is 2^64": _one(OUT, (1 << 64) - 1, bytes(SECTOR), 0, IOERR),
    "GET_ID with no room": _one(GET_ID, 0, b"", 0, IOERR),
    "GET_ID with room for 19 bytes": _one(GET_ID, 0, b"", 19, IOERR),
    "GET_ID with room for 21 bytes": _one(GET_ID, 0, b"", 21, IOERR),
    "GET_LIFETIME, which is not offered": _one(GET_LIFETIME, 0, b"", 6, UNSUPP),
    "SECURE_ERASE, which is not offered": _segments(SECURE_ERASE, segment(0, 8), UNSUPP),
    "ZONE_APPEND, which is not offered": _one(15, 0, bytes(SECTOR), 8, UNSUPP),
    "ZONE_REPORT, which is not offered": _one(16, 0, b"", SECTOR, UNSUPP),
    "legacy SCSI command": _one(2, 0, b"", SECTOR, UNSUPP),
    "type 2^32 - 1": _one(0xFFFF_FFFF, 0, b"", SECTOR, UNSUPP),
    "discard with unmap": _segments(DISCARD, segment(0, 8, 1), UNSUPP),
    "discard with an unknown flag": _segments(DISCARD, segment(0, 8, 2), UNSUPP),
    "discard with the highest flag": _segments(DISCARD, segment(0, 8, 1 << 31), UNSUPP),
    "discard with a flag in its second segment": _segments(
        DISCARD, segment(0, 8) + segment(8, 8, 1), UNSUPP
    ),
    "discard with an unknown flag beyond capacity": _segments(
        DISCARD, segment(SECTORS, 8) + segment(0, 8, 2), UNSUPP
    ),
    "discard of no segment": _segments(DISCARD, b"", IOERR),
    "discard of a partial segment": _segments(DISCARD, segment(0, 8)[:15], IOERR),
    "discard of a segment and a part": _segments(DISCARD, segment(0, 8) + b"\0", IOERR),
    "discard of too many segments": _segments(DISCARD, segment(0, 1) * 65, IOERR),
    "discard of too many sectors": _segments(DISCARD, segment(0, (1 << 22) + 1), IOERR),
    "discard beyond capacity": _segments(DISCARD, segment(SECTORS - 1, 2), IOERR),
    "discard beyond capacity in its second segment": _segments(
        DISCARD, segment(0, 8) + segment(SECTORS, 1), IOERR
    ),
    "discard at the last sector number": _segments(DISCARD, segment((1 << 64) - 1, 1), IOERR),
    "write zeroes with an unknown flag": _segments(WRITE_ZEROES, segment(0, 8, 2), UNSUPP),
    "write zeroes with unmap and an unknown flag": _segments(
        WRITE_ZEROES, segment(0, 8, 3), UNSUPP
    ),
    "write zeroes with an unknown flag in its second segment": _segments(
        WRITE_ZEROES, segment(0, 8) + segment(8, 8, 1 << 31), UNSUPP
    ),
    "write zeroes of no segment": _segments(WRITE_ZEROES, b"", IOERR),
    "write zeroes of a partial segment": _segments(WRITE_ZEROES, segment(0, 8)[:15], IOERR),
    "write zeroes of too many segments": _segments(WRITE_ZEROES, segment(0, 1) * 17, IOERR),
    "write zeroes of too many sectors": _segments(WRITE_ZEROES, segment(0, (1 << 17) + 1), IOERR),
    "write zeroes beyond capacity": _segments(WRITE_ZEROES, segment(SECTORS - 1, 2), IOERR),
    "write zeroes beyond capacity in its second segment": _segments(
        WRITE_ZEROES, segment(0, 8) + segment(SECTORS, 1), IOERR
    ),
    "write zeroes at the last sector number": _segments(
        WRITE_ZEROES, segment((1 << 64) - 1, 1), IOERR
    ),
}
malformed_requests = pytest.mark.parametrize("bad", MALFORMED.values(), ids=MALFORMED)


@malformed_requests
def test_a_malformed_request_is_answered_with_its_status_and_no_data(
    bench: Bench, bad: Malformed
) -> None:
    room = sum(bad.writable)
    expected = Reply(0, b"", -1) if bad.status is None else Reply(room, bytes(room - 1), bad.status)
    assert bench.submit(bad.readable, bad.writable) == expected


@malformed_requests
def test_a_malformed_request_leaves_the_disk_as_it_was(
    bench: Bench, bad: Malformed, image: Path
) -> None:
    bench.submit(bad.readable, bad.writable)
    assert image.read_bytes() == pattern(SECTORS)


@malformed_requests
def test_after_a_malformed_request_the_device_serves_the_next(bench: Bench, bad: Malformed) -> None:
    bench.submit(bad.readable, bad.writable)
    assert bench.works()
    assert bench.driver.status & DeviceStatus.DEVICE_NEEDS_RESET == 0


def test_segments_are_checked_against_their_maximum_not_only_the_capacity(disk: FakeDisk) -> None:
    disk.size = 1 << 40
    with bench_of(disk) as bench:
        bench.driver.start()
        for kind, field in (
            (DISCARD, MAX_DISCARD_SECTORS),
            (WRITE_ZEROES, MAX_WRITE_ZEROES_SECTORS),
        ):
            most = bench.config(field)
            replies = [bench.request(kind, data=segment(0, count)) for count in (most, most + 1)]
            assert [reply.status for reply in replies] == [OK, IOERR]
            disk.content.clear()


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_what_was_not_negotiated_is_unsupported(
    faked: Bench, disk: FakeDisk, kind: RequestType
) -> None:
    faked.driver.start([F_FLUSH])
    assert faked.request(kind, data=segment(0, 8)) == Reply(1, b"", UNSUPP)
    assert disk.calls == []


# Read-only disks (5.2.6.2)


@pytest.fixture
def readonly(image: Path) -> Iterator[Bench]:
    with DiskImage(image, readonly=True) as disk, bench_of(disk) as bench:
        bench.driver.start()
        yield bench


def test_a_read_only_disk_is_announced_and_neither_discard_nor_write_zeroes_is(
    readonly: Bench,
) -> None:
    offered = readonly.driver.offered_features()
    bits = (BlkFeature.VIRTIO_BLK_F_RO, F_DISCARD, F_WRITE_ZEROES)
    assert [has_feature(offered, bit) for bit in bits] == [True, False, False]


def test_a_disk_that_can_be_written_is_not_announced_as_read_only(bench: Bench) -> None:
    assert not has_feature(bench.driver.offered_features(), BlkFeature.VIRTIO_BLK_F_RO)


@pytest.mark.parametrize("accepted", [[], [BlkFeature.VIRTIO_BLK_F_RO]])
def test_a_write_to_a_read_only_disk_fails_whether_or_not_the_driver_knows(
    readonly: Bench, image: Path, accepted: list[int]
) -> None:
    readonly.driver.start(accepted)
    assert readonly.request(OUT, 0, pattern(1, seed=2)) == Reply(1, b"", IOERR)
    assert image.read_bytes() == pattern(SECTORS)


def test_a_write_does_not_get_as_far_as_a_read_only_disk() -> None:
    disk = FakeDisk(readonly=True)
    with bench_of(disk) as bench:
        bench.driver.start()
        assert bench.request(OUT, 0, pattern(1, seed=2)).status == IOERR
    assert disk.calls == []


def test_a_read_only_disk_can_be_read_and_flushed(readonly: Bench) -> None:
    assert readonly.request(IN, 1, room=SECTOR).data == pattern(2)[SECTOR:]
    assert readonly.request(FLUSH).status == OK


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_a_read_only_disk_supports_neither_discard_nor_write_zeroes(
    readonly: Bench, image: Path, kind: RequestType
) -> None:
    assert readonly.request(kind, data=segment(0, 8)).status == UNSUPP
    assert image.read_bytes() == pattern(SECTORS)


# What the host cannot do


FAILING = {
    "read": (IN, b"", 4 * SECTOR),
    "write": (OUT, pattern(2, seed=2), 0),
    "flush": (FLUSH, b"", 0),
    "discard": (DISCARD, segment(0, 8), 0),
    "write zeroes": (WRITE_ZEROES, segment(0, 8), 0),
}
failing_requests = pytest.mark.parametrize("request_", FAILING.values(), ids=FAILING)


@failing_requests
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_of_the_host_is_an_i_o_error_and_no_stale_byte_is_left(
    faked: Bench, disk: FakeDisk, request_: tuple[int, bytes, int], number: int
) -> None:
    kind, data, room = request_
    faked.driver.start()
    disk.error = OSError(number, "for the test")
    assert faked.request(kind, 0, data, room=room) == Reply(room + 1, bytes(room), IOERR)


@failing_requests
def test_after_an_error_of_the_host_the_device_works(
    faked: Bench, disk: FakeDisk, request_: tuple[int, bytes, int]
) -> None:
    kind, data, room = request_
    faked.driver.start()
    disk.error = OSError(errno.EIO, "for the test")
    faked.request(kind, 0, data, room=room)
    disk.error = None
    assert faked.request(kind, 0, data, room=room).status == OK


def test_an_image_that_became_short_is_an_i_o_error(bench: Bench, image: Path) -> None:
    with image.open("r+b") as stream:
        stream.truncate(SECTOR)
    assert bench.request(IN, 0, room=2 * SECTOR) == Reply(2 * SECTOR + 1, bytes(2 * SECTOR), IOERR)
    assert bench.request(IN, 0, room=SECTOR).status == OK


# Message framing (2.7.4): where a request is cut means nothing


@dataclass(frozen=True)
class Cut:
    """A request, where both its sides are cut, and how many pieces go without indirection."""

    kind: int
    sector: int
    data: bytes
    room: int
    readable_cuts: tuple[int, ...]
    writable_cuts: tuple[int, ...]
    direct: int

    def readable(self) -> list[bytes]:
        whole = header(self.kind, self.sector) + self.data
        ends = sorted(min(cut, len(whole)) for cut in self.readable_cuts)
        return [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]

    def writable(self) -> list[int]:
        ends = sorted(min(cut, self.room + 1) for cut in self.writable_cuts)
        return [b - a for a, b in zip([0, *ends], [*ends, self.room + 1], strict=True)]


#: Most cuts fall where headers, sectors and status bytes meet, or one byte beside.
cuts = st.lists(
    st.one_of(
        st.integers(0, 33),
        st.builds(lambda n, d: max(0, n * SECTOR + d), st.integers(0, 4), st.integers(-1, 17)),
        st.integers(0, 5 * SECTOR),
    ),
    max_size=20,
).map(tuple)
sectors = st.one_of(st.integers(0, SECTORS + 2), st.just((1 << 64) - 1))
lengths = st.one_of(st.integers(0, 4).map(lambda n: n * SECTOR), st.integers(0, 4 * SECTOR))
payloads = st.builds(
    lambda length, seed: (pattern(5, seed) + bytes(SECTOR))[:length], lengths, st.integers(2, 999)
)
segment_lists = st.lists(
    st.builds(segment, sectors, st.integers(0, 8), st.sampled_from([0, 0, 0, 1, 2])), max_size=3
).map(b"".join)
ways_to_cut = {"readable_cuts": cuts, "writable_cuts": cuts, "direct": st.integers(0, 50)}
requests = st.one_of(
    st.builds(Cut, st.just(IN), sectors, st.just(b""), st.one_of(lengths, lengths), **ways_to_cut),
    st.builds(Cut, st.just(OUT), sectors, payloads, st.just(0), **ways_to_cut),
    st.builds(
        Cut,
        st.sampled_from([DISCARD, WRITE_ZEROES, WRITE_ZEROES]),
        st.just(0),
        segment_lists,
        st.just(0),
        **ways_to_cut,
    ),
    st.builds(
        Cut,
        st.sampled_from([FLUSH, GET_ID, GET_LIFETIME, SECURE_ERASE, 99]),
        st.just(0),
        payloads,
        st.sampled_from([0, 20, 20, 20, 512]),
        **ways_to_cut,
    ),
)


def expect(content: bytearray, request: Cut) -> Reply:
    """Do to `content` what the specification says, and say what it answers (5.2.6)."""
    data, status = bytes(request.room), OK
    if request.kind in (IN, OUT):
        length = request.room if request.kind == IN else len(request.data)
        start, end = request.sector * SECTOR, request.sector * SECTOR + length
        if length % SECTOR or end > len(content):
            status = IOERR
        elif request.kind == IN:
            data = bytes(content[start:end])
        else:
            content[start:end] = request.data
    elif request.kind in (DISCARD, WRITE_ZEROES):
        segments = list(struct.iter_unpack("<QII", request.data))
        known_flags = 1 if request.kind == WRITE_ZEROES else 0
        if any(flags & ~known_flags for _, _, flags in segments):
            status = UNSUPP
        elif not segments or any(start + count > SECTORS for start, count, _ in segments):
            status = IOERR
        else:
            # A discarded range may read as anything; in a file it is a hole.
            for start, count, _ in segments:
                content[start * SECTOR : (start + count) * SECTOR] = bytes(count * SECTOR)
    elif request.kind == GET_ID:
        status = OK if request.room == 20 else IOERR
        data = SERIAL.encode().ljust(20, b"\0") if status == OK else data
    elif request.kind != FLUSH:
        status = UNSUPP
    return Reply(request.room + 1, data, status)


@pytest.fixture(scope="module")
def shared_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("framing") / "disk.img"


@given(st.lists(requests, min_size=1, max_size=6))
def test_requests_do_the_same_however_they_are_cut(shared_image: Path, script: list[Cut]) -> None:
    model = bytearray(pattern(SECTORS))
    with DiskImage(make_image(shared_image)) as disk, bench_of(disk) as bench:
        bench.driver.start()
        for request in script:
            readable, writable = request.readable(), request.writable()
            direct = min(request.direct, len(readable) + len(writable))
            reply = bench.submit(readable, writable, direct=direct)
            assert reply == expect(model, request)
        assert shared_image.read_bytes() == model


def test_a_request_may_come_in_one_byte_pieces(bench: Bench) -> None:
    whole = header(GET_ID)
    reply = bench.submit([whole[i : i + 1] for i in range(16)], [1] * 21)
    assert reply == Reply(21, SERIAL.encode().ljust(20, b"\0"), OK)


def test_header_and_data_may_share_a_piece(bench: Bench, image: Path) -> None:
    assert bench.submit([header(OUT) + pattern(1, seed=2)], [1]).status == OK
    assert image.read_bytes()[:SECTOR] == pattern(1, seed=2)


def test_data_and_status_may_share_a_piece(bench: Bench) -> None:
    assert bench.submit([header(IN)], [SECTOR + 1]) == Reply(SECTOR + 1, pattern(1), OK)


def test_a_request_may_be_all_in_an_indirect_table(bench: Bench) -> None:
    assert bench.submit([header(IN)], [SECTOR, 1], direct=0).data == pattern(1)


# Cache modes (5.2.5, 5.2.6.2)


def _is_stable(bench: Bench) -> bool:
    """Write a sector, and say whether the disk was asked to make it stable at once."""
    disk = bench.device.disk
    assert isinstance(disk, FakeDisk)
    assert bench.request(OUT, 0, pattern(1)).status == OK
    name, _, _, stable = disk.calls[-1]
    assert name == "write"
    return bool(stable)


def test_flush_and_config_wce_are_offered(faked: Bench) -> None:
    offered = faked.driver.offered_features()
    assert has_feature(offered, F_FLUSH)
    assert has_feature(offered, F_CONFIG_WCE)


@pytest.mark.parametrize(
    ("features", "stable"),
    [([], True), ([F_FLUSH], False), ([F_CONFIG_WCE], True), ([F_FLUSH, F_CONFIG_WCE], False)],
    ids=["neither", "FLUSH", "CONFIG_WCE", "both"],
)
def test_whether_writes_are_stable_follows_from_what_was_negotiated(
    faked: Bench, features: list[int], stable: bool
) -> None:
    faked.driver.start(features)
    assert _is_stable(faked) is stable


@pytest.mark.parametrize("features", [[], [F_FLUSH], [F_CONFIG_WCE], [F_FLUSH, F_CONFIG_WCE]])
def test_a_writethrough_device_has_every_write_stable_whatever_was_negotiated(
    disk: FakeDisk, features: list[int]
) -> None:
    with bench_of(disk, writeback=False) as bench:
        bench.driver.start(features)
        assert _is_stable(bench)


@pytest.mark.parametrize(
    ("features", "writeback"), [([F_CONFIG_WCE], 0), ([F_CONFIG_WCE, F_FLUSH], 1)]
)
def test_writeback_reads_as_negotiated_between_features_ok_and_driver_ok(
    faked: Bench, features: list[int], writeback: int
) -> None:
    faked.driver.negotiate(features)
    assert faked.config(WRITEBACK) == writeback


def test_a_writethrough_device_reads_0_in_writeback_from_the_first_on(disk: FakeDisk) -> None:
    with bench_of(disk, writeback=False) as bench:
        assert bench.config(WRITEBACK) == 0
        bench.driver.negotiate([F_CONFIG_WCE, F_FLUSH])
        assert bench.config(WRITEBACK) == 0


def test_the_driver_switches_the_cache_mode_by_writing_writeback(faked: Bench) -> None:
    faked.driver.start([F_CONFIG_WCE, F_FLUSH])
    seen = []
    for value in (0, 1, 0):
        faked.set_writeback(value)
        seen.append((faked.config(WRITEBACK), _is_stable(faked)))
    assert seen == [(0, True), (1, False), (0, True)]


def test_a_driver_without_flush_may_switch_to_writeback(faked: Bench) -> None:
    faked.driver.start([F_CONFIG_WCE])
    faked.set_writeback(1)
    assert (faked.config(WRITEBACK), _is_stable(faked)) == (1, False)


def test_any_value_but_0_in_writeback_reads_as_1(faked: Bench) -> None:
    faked.driver.start([F_CONFIG_WCE, F_FLUSH])
    faked.set_writeback(0)
    faked.set_writeback(0x80)
    assert faked.config(WRITEBACK) == 1


def test_writeback_cannot_be_written_unless_config_wce_was_negotiated(faked: Bench) -> None:
    faked.driver.start([F_FLUSH])
    faked.set_writeback(0)
    assert (faked.config(WRITEBACK), _is_stable(faked)) == (1, False)


def test_writeback_cannot_be_written_before_features_ok(faked: Bench) -> None:
    faked.set_writeback(0)
    assert faked.config(WRITEBACK) == 1


def test_a_reset_brings_the_first_cache_mode_back(faked: Bench) -> None:
    faked.driver.start([F_CONFIG_WCE, F_FLUSH])
    faked.set_writeback(0)
    faked.driver.reset()
    assert faked.config(WRITEBACK) == 1
    faked.set_writeback(0)
    assert faked.config(WRITEBACK) == 1


def test_a_driver_without_flush_does_not_bind_the_next_one(faked: Bench) -> None:
    faked.driver.start([])
    faked.driver.start([F_FLUSH])
    assert not _is_stable(faked)


def test_every_byte_of_the_configuration_but_writeback_is_read_only(faked: Bench) -> None:
    faked.driver.start()
    before = faked.device.config_space()
    for offset in range(len(before)):
        for size in (1, 2, 4):
            for data in (b"\0" * size, b"\xff" * size):
                if (offset, size) != WRITEBACK:
                    faked.transport.write(0x100 + offset, data)
                    assert faked.device.config_space() == before


@pytest.mark.parametrize(("kind", "name"), [(DISCARD, "discard"), (WRITE_ZEROES, "write_zeroes")])
@pytest.mark.parametrize(
    ("writeback", "flushes"), [(0, ["flush"]), (1, [])], ids=["writethrough", "writeback"]
)
def test_discards_and_zeroes_are_committed_at_once_in_writethrough_mode_alone(
    kind: int, name: str, writeback: int, flushes: list[str]
) -> None:
    disk = FakeDisk()
    with bench_of(disk) as bench:
        bench.driver.start([F_CONFIG_WCE, F_FLUSH, F_DISCARD, F_WRITE_ZEROES])
        bench.set_writeback(writeback)
        assert bench.request(kind, data=segment(0, 1) + segment(8, 1)).status == OK
    assert [call[0] for call in disk.calls] == [name, name, *flushes]


# A request is complete only when the disk is done with it (5.2.6.2)


@pytest.mark.parametrize(
    ("kind", "data", "calls"),
    [
        (FLUSH, b"", ["flush"]),
        (OUT, pattern(1), ["write"]),
        (WRITE_ZEROES, segment(0, 1), ["write_zeroes", "flush"]),
        (DISCARD, segment(0, 1), ["discard", "flush"]),
    ],
)
def test_the_disk_is_done_before_status_and_used_ring_say_so(
    faked: Bench, disk: FakeDisk, kind: int, data: bytes, calls: list[str]
) -> None:
    faked.driver.start([F_CONFIG_WCE, F_FLUSH, F_DISCARD, F_WRITE_ZEROES])
    faked.set_writeback(0)
    pieces = faked.add([header(kind) + data], [1])
    queue = faked.driver.queues[0]

    def see() -> tuple[int, int]:
        return faked.memory.read(pieces[-1].address, 1)[0], queue.used.idx

    disk.observe = see
    faked.driver.kick(0)
    assert [call[0] for call in disk.calls] == calls
    assert disk.observed == [(STALE, 0)] * len(calls)
    assert see() == (OK, 1)


def test_a_flush_covers_every_write_that_was_completed_before_it(
    faked: Bench, disk: FakeDisk
) -> None:
    faked.driver.start([F_FLUSH])
    for sector in range(3):
        faked.request(OUT, sector, pattern(1))
    faked.request(FLUSH)
    assert [call[0] for call in disk.calls] == ["write"] * 3 + ["flush"]


# Configuration space (5.2.4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (CAPACITY, SECTORS),
        (SIZE_MAX, 1 << 20),
        (SEG_MAX, 254),
        (GEOMETRY, 0),
        (BLK_SIZE, 512),
        (PHYSICAL_BLOCK_EXP, 3),
        (ALIGNMENT_OFFSET, 0),
        (MIN_IO_SIZE, 1),
        (OPT_IO_SIZE, 0),
        (WRITEBACK, 1),
        (UNUSED_0, 0),
        (NUM_QUEUES, 1),
        (MAX_DISCARD_SECTORS, 1 << 22),
        (MAX_DISCARD_SEG, 64),
        (DISCARD_SECTOR_ALIGNMENT, 8),
        (MAX_WRITE_ZEROES_SECTORS, 1 << 17),
        (MAX_WRITE_ZEROES_SEG, 16),
        (WRITE_ZEROES_MAY_UNMAP, 1),
    ],
)
def test_the_configuration_has_the_layout_of_the_specification(
    faked: Bench, field: tuple[int, int], value: int
) -> None:
    assert faked.config(field) == value


def test_padding_and_what_is_not_offered_is_zero(faked: Bench) -> None:
    # unused1, secure erase, zoned: 57 to 96
    assert {faked.driver.read_config(offset, 1) for offset in range(57, 96)} == {0}


def test_a_capacity_of_more_than_32_bits_is_shown_whole(disk: FakeDisk) -> None:
    disk.size = SECTOR * 0x1_2345_6789
    with bench_of(disk) as bench:
        assert bench.config(CAPACITY) == 0x1_2345_6789


@pytest.mark.parametrize(
    ("alignment", "physical", "expected"),
    [(1, 512, (512, 0)), (512, 4096, (512, 3)), (4096, 4096, (4096, 0)), (4096, 512, (4096, 0))],
)
def test_block_sizes_are_those_of_the_disk(
    disk: FakeDisk, alignment: int, physical: int, expected: tuple[int, int]
) -> None:
    disk.alignment, disk.physical_block_size = alignment, physical
    with bench_of(disk) as bench:
        assert (bench.config(BLK_SIZE), bench.config(PHYSICAL_BLOCK_EXP)) == expected


def test_a_disk_without_holes_takes_no_discards_and_unmaps_nothing() -> None:
    with bench_of(FakeDisk(can_punch_holes=False)) as bench:
        offered = bench.driver.offered_features()
        assert not has_feature(offered, F_DISCARD)
        assert has_feature(offered, F_WRITE_ZEROES)
        assert bench.config(MAX_DISCARD_SECTORS) == bench.config(WRITE_ZEROES_MAY_UNMAP) == 0


@pytest.mark.parametrize(("queue_size", "seg_max"), [(256, 254), (4, 2), (2, 1), (1, 1)])
def test_seg_max_leaves_room_for_header_and_status(
    disk: FakeDisk, queue_size: int, seg_max: int
) -> None:
    with bench_of(disk, queue_size=queue_size) as bench:
        assert bench.config(SEG_MAX) == seg_max


# Several queues (5.2.2)


def test_several_queues_are_offered_and_each_is_served(disk: FakeDisk) -> None:
    with bench_of(disk, num_queues=4) as bench:
        bench.driver.start()
        assert has_feature(bench.driver.features, BlkFeature.VIRTIO_BLK_F_MQ)
        assert bench.config(NUM_QUEUES) == len(bench.driver.queues) == 4
        for queue in (3, 1, 0, 2):
            reply = bench.request(IN, queue, room=SECTOR, queue=queue)
            assert reply.data == pattern(SECTORS)[queue * SECTOR : (queue + 1) * SECTOR]


def test_what_one_queue_wrote_another_reads(disk: FakeDisk) -> None:
    with bench_of(disk, num_queues=4) as bench:
        bench.driver.start()
        bench.request(OUT, 5, pattern(1, seed=2), queue=3)
        assert bench.request(IN, 5, room=SECTOR, queue=1).data == pattern(1, seed=2)


def test_two_queues_are_several(disk: FakeDisk) -> None:
    with bench_of(disk, num_queues=2) as bench:
        assert has_feature(bench.driver.offered_features(), BlkFeature.VIRTIO_BLK_F_MQ)


def test_a_single_queue_does_not_offer_multiqueue(faked: Bench) -> None:
    assert not has_feature(faked.driver.offered_features(), BlkFeature.VIRTIO_BLK_F_MQ)


# The device's life


def test_the_device_serves_the_next_driver_after_a_reset(bench: Bench) -> None:
    bench.request(OUT, 0, pattern(1, seed=2))
    bench.driver.start()
    assert bench.request(IN, 0, room=SECTOR) == Reply(SECTOR + 1, pattern(1, seed=2), OK)


def test_closing_the_device_closes_the_disk(faked: Bench, disk: FakeDisk) -> None:
    faked.device.close()
    assert disk.closed
