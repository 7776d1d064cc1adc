"""The block device (5.2): malformed requests get a status wherever there is room for one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.blk.bench import (
    DISCARD,
    F_FLUSH,
    FLUSH,
    GET_ID,
    GET_LIFETIME,
    IN,
    IOERR,
    MAX_DISCARD_SECTORS,
    MAX_WRITE_ZEROES_SECTORS,
    OK,
    OUT,
    SECTOR,
    SECTORS,
    SECURE_ERASE,
    UNSUPP,
    WRITE_ZEROES,
    Bench,
    FakeDisk,
    Reply,
    bench_of,
    header,
    pattern,
    segment,
)
from virtiopy.devices.blk import RequestType, Status
from virtiopy.spec import DeviceStatus


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
