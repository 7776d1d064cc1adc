"""Disks of the SCSI host device: each command, and what is wrong with one."""

import errno
import threading
from collections.abc import Iterator

import pytest

from tests.unit.blk.bench import FakeDisk, pattern
from tests.unit.scsi_bench import BLOCK, BLOCKS, DISK, Bench, Reply, illegal
from virtiopy.devices.scsi import ScsiDisk
from virtiopy.devices.scsi.command import Additional, SenseKey
from virtiopy.devices.scsi.requests import Response
from virtiopy.devices.scsi.sbc import (
    _PATTERN_BYTES,
    MAX_UNMAP_RANGES,
    MAX_WRITE_SAME_BYTES,
    Exclusion,
)
from virtiopy.memory import GuestMemory

CONTENT = pattern(BLOCKS)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with GuestMemory.allocate(8 << 20) as memory:
        bench = Bench(memory)
        bench.start()
        yield bench


def with_disk(
    memory: GuestMemory, disk: FakeDisk, *, writeback: bool = True, rotational: bool = True
) -> Bench:
    unit = ScsiDisk(disk, writeback=writeback, rotational=rotational)
    bench = Bench(memory, {DISK: unit})
    bench.disk = disk
    bench.start()
    return bench


def extent(opcode: int, start: int, count: int, flags: int = 0) -> bytes:
    """The CDB of a command with an address and a number of blocks, of any length."""
    big = int.to_bytes
    match opcode >> 5:
        case 0:
            return bytes([opcode]) + big(start, 3) + bytes([count & 0xFF, 0])
        case 1 | 2:
            return bytes([opcode, flags]) + big(start, 4) + b"\0" + big(count, 2) + b"\0"
        case 5:
            return bytes([opcode, flags]) + big(start, 4) + big(count, 4) + b"\0\0"
    return bytes([opcode, flags]) + big(start, 8) + big(count, 4) + b"\0\0"


READS = [0x08, 0x28, 0xA8, 0x88]
WRITES = [0x0A, 0x2A, 0xAA, 0x8A]


# Reading and writing


@pytest.mark.parametrize("opcode", READS)
def test_it_reads(bench: Bench, opcode: int) -> None:
    reply = bench.request(extent(opcode, 3, 2), room=2 * BLOCK)
    assert reply.good
    assert reply.data == CONTENT[3 * BLOCK : 5 * BLOCK]
    assert (reply.residual, reply.length) == (0, 108 + 2 * BLOCK)


@pytest.mark.parametrize("opcode", WRITES)
def test_it_writes(bench: Bench, opcode: int) -> None:
    data = pattern(2, seed=9)
    reply = bench.request(extent(opcode, 3, 2), data)
    assert reply.good
    assert (reply.residual, reply.length) == (0, 108)
    assert bench.disk.content[3 * BLOCK : 5 * BLOCK] == data
    assert bench.disk.calls == [("write", 3 * BLOCK, 2 * BLOCK, False)]


def test_no_count_of_the_shortest_commands_is_256_blocks(memory_of_a_mib: Bench) -> None:
    reply = memory_of_a_mib.request(extent(0x08, 0, 0), room=256 * BLOCK)
    assert reply.good
    assert len(reply.data) == 256 * BLOCK


@pytest.fixture
def memory_of_a_mib() -> Iterator[Bench]:
    disk = FakeDisk()
    disk.content = bytearray(pattern(512))
    disk.measure()
    with GuestMemory.allocate(8 << 20) as memory:
        yield with_disk(memory, disk)


@pytest.mark.parametrize("opcode", [0x28, 0xA8, 0x88])
def test_no_count_of_the_others_is_none(bench: Bench, opcode: int) -> None:
    reply = bench.request(extent(opcode, BLOCKS, 0), room=BLOCK)
    assert reply.good
    assert (reply.data, reply.residual) == (b"", BLOCK)


def test_what_a_buffer_has_beyond_the_command_is_residual(bench: Bench) -> None:
    reply = bench.request(extent(0x28, 0, 1), room=3 * BLOCK)
    assert (len(reply.data), reply.residual) == (BLOCK, 2 * BLOCK)
    reply = bench.request(extent(0x2A, 0, 1), bytes(3 * BLOCK))
    assert (reply.good, reply.residual) == (True, 2 * BLOCK)
    assert bench.disk.content == bytes(BLOCK) + CONTENT[BLOCK:]


@pytest.mark.parametrize("opcode", [*READS, *WRITES])
@pytest.mark.parametrize(("start", "count"), [(BLOCKS - 1, 2), (BLOCKS, 1), (0x1FFFFF, 1)])
def test_a_range_beyond_the_end_is_refused(
    bench: Bench, opcode: int, start: int, count: int
) -> None:
    if opcode in READS:
        reply = bench.request(extent(opcode, start, count), room=count * BLOCK)
    else:
        reply = bench.request(extent(opcode, start, count), bytes(count * BLOCK))
    assert reply.why == illegal(Additional.LBA_OUT_OF_RANGE)
    assert reply.residual == count * BLOCK
    assert bench.disk.content == CONTENT


def test_addresses_of_64_bits_do_not_wrap(bench: Bench) -> None:
    reply = bench.request(extent(0x88, (1 << 64) - 1, 2), room=2 * BLOCK)
    assert reply.why == illegal(Additional.LBA_OUT_OF_RANGE)


@pytest.mark.parametrize(
    ("cdb", "data", "room"),
    [
        (extent(0x28, 0, 2), b"", BLOCK),
        (extent(0x28, 0, 1), bytes(BLOCK), 0),
        (extent(0x28, 0, 1), b"", 0),
        (extent(0x2A, 0, 2), bytes(BLOCK), 0),
        (extent(0x2A, 0, 1), b"", BLOCK),
        (bytes.fromhex("120000002500"), b"", 36),
        (bytes.fromhex("42000000000000001800"), b"", 24),
    ],
    ids=["read", "read-out", "read-none", "write", "write-in", "inquiry", "unmap-in"],
)
def test_data_that_the_buffers_have_no_room_for_is_an_overrun(
    bench: Bench, cdb: bytes, data: bytes, room: int
) -> None:
    reply = bench.request(cdb, data, room=room)
    assert reply.response == Response.OVERRUN
    assert reply.residual == len(data) + room
    assert reply.data == b""
    assert bench.disk.content == CONTENT


def test_data_in_both_directions_is_a_failure(bench: Bench) -> None:
    reply = bench.request(extent(0x28, 0, 1), bytes(BLOCK), room=BLOCK)
    assert reply.response == Response.FAILURE
    assert bench.disk.calls == []


@pytest.mark.parametrize("opcode", [0x2A, 0xAA, 0x8A])
def test_a_write_with_fua_is_stable(bench: Bench, opcode: int) -> None:
    bench.request(extent(opcode, 0, 1, flags=8), bytes(BLOCK))
    assert bench.disk.calls == [("write", 0, BLOCK, True)]


def test_every_write_of_a_writethrough_disk_is_stable() -> None:
    with GuestMemory.allocate(8 << 20) as memory:
        bench = with_disk(memory, FakeDisk(), writeback=False)
        bench.request(extent(0x2A, 0, 1), bytes(BLOCK))
        assert bench.disk.calls == [("write", 0, BLOCK, True)]


@pytest.mark.parametrize("opcode", [0x35, 0x91])
def test_it_flushes(bench: Bench, opcode: int) -> None:
    assert bench.request(extent(opcode, 0, 0)).good
    assert bench.disk.calls == [("flush",)]


@pytest.mark.parametrize(
    ("cdb", "data"),
    [
        (extent(0x2A, 0, 1), bytes(BLOCK)),
        (extent(0x0A, 0, 1), bytes(BLOCK)),
        (extent(0x41, 0, 1), bytes(BLOCK)),
        (bytes.fromhex("42000000000000000000"), b""),
        (bytes.fromhex("8900" + "00" * 11 + "010000"), bytes(2 * BLOCK)),
    ],
)
def test_a_disk_for_reading_alone_is_not_written(cdb: bytes, data: bytes) -> None:
    with GuestMemory.allocate(8 << 20) as memory:
        bench = with_disk(memory, FakeDisk(readonly=True))
        reply = bench.request(cdb, data)
        assert reply.why == (SenseKey.DATA_PROTECT, Additional.WRITE_PROTECTED)
        assert bench.disk.calls == []
        assert bench.request("1a003f00ff00", room=255).data[2] & 0x80


@pytest.mark.parametrize(
    ("number", "write", "why"),
    [
        (errno.EIO, False, (SenseKey.MEDIUM_ERROR, Additional.UNRECOVERED_READ_ERROR)),
        (errno.EIO, True, (SenseKey.MEDIUM_ERROR, Additional.WRITE_ERROR)),
        (errno.ENOSPC, True, (SenseKey.DATA_PROTECT, Additional.SPACE_ALLOCATION_FAILED)),
    ],
)
def test_the_hosts_errors_are_a_disks(
    bench: Bench, number: int, write: bool, why: tuple[int, int]
) -> None:
    bench.disk.error = OSError(number, "no")
    if write:
        reply = bench.request(extent(0x2A, 0, 1), bytes(BLOCK))
    else:
        reply = bench.request(extent(0x28, 0, 1), room=BLOCK)
    assert reply.why == why
    assert (reply.residual, reply.length) == (BLOCK, 108)


# Comparing


@pytest.mark.parametrize("opcode", [0x2F, 0x8F])
def test_blocks_are_verified(bench: Bench, opcode: int) -> None:
    same = CONTENT[BLOCK : 3 * BLOCK]
    assert bench.request(extent(opcode, 1, 2)).good
    assert bench.request(extent(opcode, 1, 2, flags=2), same).good
    wrong = same[:700] + b"x" + same[701:]
    reply = bench.request(extent(opcode, 1, 2, flags=2), wrong)
    assert reply.why == (SenseKey.MISCOMPARE, Additional.MISCOMPARE_DURING_VERIFY)
    # INFORMATION is where they differ.
    assert reply.sense[0] & 0x80
    assert int.from_bytes(reply.sense[3:7]) == 700
    reply = bench.request(extent(opcode, 1, 1, flags=6), CONTENT[BLOCK : 2 * BLOCK])
    assert reply.good
    assert bench.request(extent(opcode, 1, 2, flags=6), CONTENT[:BLOCK]).why[0] == (
        SenseKey.MISCOMPARE
    )
    assert bench.request(extent(opcode, 1, 1, flags=4)).why == illegal(
        Additional.INVALID_FIELD_IN_CDB
    )


def test_more_is_verified_than_is_held_in_memory_at_a_time() -> None:
    disk = FakeDisk()
    size = 3 * _PATTERN_BYTES
    disk.content = bytearray(CONTENT[:BLOCK] * (size // BLOCK))
    disk.measure()
    with GuestMemory.allocate(8 << 20) as memory:
        bench = with_disk(memory, disk)
        cdb = extent(0x8F, 0, size // BLOCK, flags=6)
        assert bench.request(cdb, CONTENT[:BLOCK]).good
        assert {call[2] for call in disk.calls} == {_PATTERN_BYTES}
        disk.content[-1] ^= 1
        reply = bench.request(cdb, CONTENT[:BLOCK])
        assert int.from_bytes(reply.sense[3:7]) == size - 1
        reply = bench.request(extent(0x8F, 0, size // BLOCK, flags=2), CONTENT[:BLOCK] * 6144)
        assert int.from_bytes(reply.sense[3:7]) == size - 1


def test_no_more_blocks_are_compared_with_one_than_are_set_by_one() -> None:
    disk = FakeDisk()
    disk.size = 1 << 40
    with GuestMemory.allocate(8 << 20) as memory:
        bench = with_disk(memory, disk)
        cdb = extent(0x8F, 0, MAX_WRITE_SAME_BYTES // BLOCK + 1, flags=6)
        assert bench.request(cdb, bytes(BLOCK)).why == illegal(Additional.INVALID_FIELD_IN_CDB)
        assert disk.calls == []


def compare_and_write(start: int, count: int) -> bytes:
    return b"\x89\0" + start.to_bytes(8) + bytes([0, 0, 0, count, 0, 0])


def test_blocks_are_written_where_they_are_as_expected(bench: Bench) -> None:
    new = pattern(2, seed=5)
    data = CONTENT[4 * BLOCK : 6 * BLOCK] + new
    assert bench.request(compare_and_write(4, 2), data).good
    assert bench.disk.content[4 * BLOCK : 6 * BLOCK] == new
    reply = bench.request(compare_and_write(4, 2), data)
    assert reply.why == (SenseKey.MISCOMPARE, Additional.MISCOMPARE_DURING_VERIFY)
    assert bench.disk.content[4 * BLOCK : 6 * BLOCK] == new


def test_what_is_alone_is_alone() -> None:
    exclusion = Exclusion()
    order: list[str] = []
    with exclusion.shared():
        alone = threading.Thread(target=lambda: _note(exclusion, order))
        alone.start()
        order.append("shared")
    alone.join()
    assert order == ["shared", "alone"]
    with exclusion.shared(), exclusion.shared():
        pass


def _note(exclusion: Exclusion, order: list[str]) -> None:
    with exclusion.alone():
        order.append("alone")


# Deallocating and setting


def unmap_list(*ranges: tuple[int, int]) -> bytes:
    body = b"".join(start.to_bytes(8) + count.to_bytes(4) + bytes(4) for start, count in ranges)
    return (len(body) + 6).to_bytes(2) + len(body).to_bytes(2) + bytes(4) + body


def unmap(bench: Bench, parameters: bytes) -> Reply:
    return bench.request(b"\x42" + bytes(6) + len(parameters).to_bytes(2) + b"\0", parameters)


def test_ranges_are_unmapped(bench: Bench) -> None:
    assert unmap(bench, unmap_list((0, 8), (16, 4))).good
    assert bench.disk.calls == [("discard", 0, 8 * BLOCK), ("discard", 16 * BLOCK, 4 * BLOCK)]


def test_no_range_is_unmapped_where_one_is_wrong(bench: Bench) -> None:
    reply = unmap(bench, unmap_list((0, 8), (BLOCKS - 1, 2)))
    assert reply.why == illegal(Additional.LBA_OUT_OF_RANGE)
    assert bench.disk.calls == []


def test_more_ranges_than_there_may_be_are_refused(bench: Bench) -> None:
    reply = unmap(bench, unmap_list(*[(0, 1)] * (MAX_UNMAP_RANGES + 1)))
    assert reply.why == illegal(Additional.INVALID_FIELD_IN_PARAMETER_LIST)


def test_an_unmap_list_is_taken_as_far_as_it_is_there(bench: Bench) -> None:
    assert unmap(bench, b"").good
    assert unmap(bench, bytes(7)).why == illegal(Additional.PARAMETER_LIST_LENGTH_ERROR)
    assert unmap(bench, unmap_list((0, 8), (16, 4))[:-1]).good
    assert bench.disk.calls == [("discard", 0, 8 * BLOCK)]


@pytest.mark.parametrize("opcode", [0x41, 0x93])
def test_blocks_are_set(bench: Bench, opcode: int) -> None:
    block = pattern(1, seed=3)
    assert bench.request(extent(opcode, 2, 4), block).good
    assert bench.disk.content == CONTENT[: 2 * BLOCK] + block * 4 + CONTENT[6 * BLOCK :]


@pytest.mark.parametrize("opcode", [0x41, 0x93])
@pytest.mark.parametrize("may_unmap", [True, False])
def test_blocks_of_zeroes_may_be_deallocated(bench: Bench, opcode: int, may_unmap: bool) -> None:
    flags = 8 if may_unmap else 0
    assert bench.request(extent(opcode, 2, 4, flags=flags), bytes(BLOCK)).good
    assert bench.disk.calls == [("write_zeroes", 2 * BLOCK, 4 * BLOCK, may_unmap)]


@pytest.mark.parametrize("count", [0, MAX_WRITE_SAME_BYTES // BLOCK + 1])
def test_as_many_blocks_as_cannot_be_set_at_a_time_are_refused(bench: Bench, count: int) -> None:
    reply = bench.request(extent(0x93, 0, count), bytes(BLOCK))
    assert reply.why == illegal(Additional.INVALID_FIELD_IN_CDB)
    # The field pointer, into the CDB.
    assert reply.sense[15:18] == bytes([0xC0, 0, 10])


# What it is


def test_it_tells_its_capacity(bench: Bench) -> None:
    expected = (BLOCKS - 1).to_bytes(4) + BLOCK.to_bytes(4)
    assert bench.request("25000000000000000000", room=8).data == expected
    data = bench.request("9e10" + "00" * 8 + "000000200000", room=32).data
    assert data[:12] == (BLOCKS - 1).to_bytes(8) + BLOCK.to_bytes(4)
    # 8 logical blocks in a physical one; blocks can be unmapped.
    assert data[13:16] == bytes([3, 0x80, 0])


def test_a_disk_of_more_than_2_tib_says_so() -> None:
    disk = FakeDisk()
    disk.size = 3 << 40
    with GuestMemory.allocate(8 << 20) as memory:
        bench = with_disk(memory, disk)
        assert bench.request("25000000000000000000", room=8).data[:4] == b"\xff" * 4
        data = bench.request("9e10" + "00" * 8 + "000000200000", room=32).data
        assert int.from_bytes(data[:8]) == (3 << 40) // BLOCK - 1


def vpd(bench: Bench, page: int) -> bytes:
    data = bench.request(bytes([0x12, 1, page, 0, 255, 0]), room=255).data
    assert data[1] == page
    assert int.from_bytes(data[2:4]) == len(data) - 4
    return data[4:]


def test_it_has_the_pages_of_a_disk(bench: Bench) -> None:
    assert list(vpd(bench, 0)) == [0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2]
    assert vpd(bench, 0x80) == b"S1"
    limits = vpd(bench, 0xB0)
    assert len(limits) == 60
    assert int.from_bytes(limits[20:24]) == MAX_UNMAP_RANGES
    assert int.from_bytes(limits[32:40]) == MAX_WRITE_SAME_BYTES // BLOCK
    assert vpd(bench, 0xB1)[:2] == b"\0\0"
    assert vpd(bench, 0xB2)[1] == 0xE0


def test_its_designators_name_it_and_no_other(bench: Bench) -> None:
    page, designators = vpd(bench, 0x83), []
    while page:
        length = page[3]
        designators.append((page[0], page[1], page[4 : 4 + length]))
        page = page[4 + length :]
    [(code, kind, name), (naa_code, naa_kind, naa)] = designators
    assert (code, kind) == (2, 1)
    assert name == b"VIRTIOPYDISK            S1"
    assert (naa_code, naa_kind, naa[0] >> 4, len(naa)) == (1, 3, 3, 8)


def test_a_disk_that_does_not_rotate_says_so() -> None:
    with GuestMemory.allocate(8 << 20) as memory:
        bench = with_disk(memory, FakeDisk(), rotational=False)
        assert vpd(bench, 0xB1)[:2] == b"\0\1"


def test_a_disk_that_cannot_unmap_says_so() -> None:
    with GuestMemory.allocate(8 << 20) as memory:
        bench = with_disk(memory, FakeDisk(can_punch_holes=False))
        assert vpd(bench, 0xB0)[16:24] == bytes(8)
        assert vpd(bench, 0xB2)[1] == 0


def test_a_disk_without_a_serial_number_has_no_page_of_one() -> None:
    with GuestMemory.allocate(8 << 20) as memory:
        bench = with_disk(memory, FakeDisk())
        assert 0x80 not in vpd(bench, 0)
        reply = bench.request("120180000400", room=4)
        assert reply.why == illegal(Additional.INVALID_FIELD_IN_CDB)


# Modes


def caching(bench: Bench, control: int = 0) -> int:
    data = bench.request(bytes([0x1A, 8, control << 6 | 8, 0, 255, 0]), room=255).data
    assert data[:1] == bytes([len(data) - 1])
    assert data[4:6] == bytes([8, 18])
    return data[6]


def test_the_cache_mode_is_read_and_changed(bench: Bench) -> None:
    assert (caching(bench), caching(bench, 1), caching(bench, 2)) == (4, 4, 4)
    off = bytes(4) + bytes([8, 18]) + bytes(18)
    assert bench.request(b"\x15\x10\0\0\x18\0", off).good
    assert (caching(bench), caching(bench, 2)) == (0, 4)
    assert bench.disk.calls == [("flush",)]
    bench.request(extent(0x2A, 0, 1), bytes(BLOCK))
    assert bench.disk.calls[-1] == ("write", 0, BLOCK, True)
    bench.driver.reset()
    bench.start()
    assert caching(bench) == 4


def test_pages_of_the_longer_command(bench: Bench) -> None:
    data = bench.request("5a103f000000000" + "0ff00", room=255).data
    assert int.from_bytes(data[:2]) == len(data) - 2
    # The block descriptor is the long one: blocks, and bytes of each.
    assert (data[4], data[7]) == (1, 16)
    assert int.from_bytes(data[8:16]) == BLOCKS
    assert int.from_bytes(data[20:24]) == BLOCK
    codes, rest = [], data[24:]
    while rest:
        codes.append(rest[0])
        rest = rest[2 + rest[1] :]
    assert codes == [0x01, 0x08, 0x0A]


@pytest.mark.parametrize(
    ("parameters", "additional"),
    [
        (bytes(3), Additional.PARAMETER_LIST_LENGTH_ERROR),
        (bytes(4) + bytes([8, 18]) + bytes(17), Additional.PARAMETER_LIST_LENGTH_ERROR),
        (bytes(4) + bytes([8]), Additional.PARAMETER_LIST_LENGTH_ERROR),
        (bytes([0, 0, 0, 8]) + bytes(8), Additional.INVALID_FIELD_IN_PARAMETER_LIST),
        (bytes(4) + bytes([8, 18, 1]) + bytes(17), Additional.INVALID_FIELD_IN_PARAMETER_LIST),
        (bytes(4) + bytes([8, 1, 0]), Additional.INVALID_FIELD_IN_PARAMETER_LIST),
        (bytes(4) + bytes([0x1C, 0]), Additional.INVALID_FIELD_IN_PARAMETER_LIST),
    ],
    ids=["header", "page", "page-header", "blocks", "bit", "short", "unknown"],
)
def test_what_cannot_be_changed_is_refused(
    bench: Bench, parameters: bytes, additional: Additional
) -> None:
    reply = bench.request(bytes([0x15, 0x10, 0, 0, len(parameters), 0]), parameters)
    assert reply.why == illegal(additional)
    assert caching(bench) == 4


@pytest.mark.parametrize(
    ("cdb", "additional"),
    [
        ("1a00c800ff00", Additional.SAVING_PARAMETERS_NOT_SUPPORTED),
        ("1a001c00ff00", Additional.INVALID_FIELD_IN_CDB),
        ("1a000801ff00", Additional.INVALID_FIELD_IN_CDB),
    ],
)
def test_pages_that_are_not_there_are_refused(
    bench: Bench, cdb: str, additional: Additional
) -> None:
    assert bench.request(cdb, room=255).why == illegal(additional)


# START STOP UNIT


def test_a_stopped_disk_is_not_used_until_it_is_started(bench: Bench) -> None:
    assert bench.request("1b0000000000").good
    assert bench.disk.calls == [("flush",)]
    stopped = (SenseKey.NOT_READY, Additional.INITIALIZING_COMMAND_REQUIRED)
    assert bench.request("000000000000").why == stopped
    assert bench.request(extent(0x28, 0, 1), room=BLOCK).why == stopped
    assert bench.request(extent(0x2A, 0, 1), bytes(BLOCK)).why == stopped
    assert bench.request("1b0000000100").good
    assert bench.request(extent(0x28, 0, 1), room=BLOCK).good


@pytest.mark.parametrize("bits", ["02", "03", "10"])
def test_a_disk_has_no_tray_and_no_power_conditions(bench: Bench, bits: str) -> None:
    assert bench.request(f"1b000000{bits}00").why == illegal(Additional.INVALID_FIELD_IN_CDB)
