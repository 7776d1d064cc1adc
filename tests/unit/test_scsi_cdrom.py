"""CD-ROMs of the SCSI host device: a disc of one session with one data track."""

from collections.abc import Iterator

import pytest

from tests.unit.blk.bench import SECTORS, pattern
from tests.unit.scsi_bench import Bench, Reply, illegal, lun_field
from virtiopy.devices.scsi.command import Additional, SenseKey
from virtiopy.memory import GuestMemory

CONTENT = pattern(SECTORS)
BLOCK = 2048
BLOCKS = len(CONTENT) // BLOCK
TUR = "000000000000"
NO_DISC = (SenseKey.NOT_READY, Additional.MEDIUM_NOT_PRESENT)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with GuestMemory.allocate(8 << 20) as memory:
        bench = Bench(memory)
        bench.start()
        yield bench


def ask(bench: Bench, cdb: str | bytes, room: int = 0) -> Reply:
    return bench.request(cdb, room=room, lun=lun_field(0, 1))


@pytest.mark.parametrize("cdb", ["28000000000300000200", "a80000000003000000020000"])
def test_it_reads_blocks_of_2048_bytes(bench: Bench, cdb: str) -> None:
    reply = ask(bench, cdb, 2 * BLOCK)
    assert reply.good
    assert reply.data == CONTENT[3 * BLOCK : 5 * BLOCK]


def test_a_last_block_that_is_not_whole_ends_in_zeroes(bench: Bench) -> None:
    bench.disc.content = bytearray(CONTENT[: -BLOCK + 512])
    bench.disc.measure()
    cdb = bytes([0x28, 0]) + (BLOCKS - 2).to_bytes(4) + bytes([0, 0, 2, 0])
    reply = ask(bench, cdb, 2 * BLOCK)
    assert reply.data == CONTENT[-2 * BLOCK : -BLOCK + 512] + bytes(BLOCK - 512)


def test_blocks_beyond_the_end_are_refused(bench: Bench) -> None:
    cdb = bytes([0x28, 0]) + BLOCKS.to_bytes(4) + bytes([0, 0, 1, 0])
    assert ask(bench, cdb, BLOCK).why == illegal(Additional.LBA_OUT_OF_RANGE)


def test_it_cannot_be_written(bench: Bench) -> None:
    reply = bench.request(b"\x2a" + bytes(9), bytes(BLOCK), lun=lun_field(0, 1))
    assert reply.why == illegal(Additional.INVALID_COMMAND_OPERATION_CODE)


def test_it_tells_its_capacity(bench: Bench) -> None:
    data = ask(bench, "25000000000000000000", 8).data
    assert data == (BLOCKS - 1).to_bytes(4) + BLOCK.to_bytes(4)


def test_its_table_of_contents_has_one_track(bench: Bench) -> None:
    data = ask(bench, "43000000000000006400", 100).data
    assert data == bytes([0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xAA, 0]) + (
        BLOCKS.to_bytes(4)
    )
    # In minutes, seconds and frames, from 2 seconds on; of the lead-out alone.
    data = ask(bench, "4302000000 00aa006400", 100).data
    assert data == bytes([0, 10, 1, 1, 0, 0x14, 0xAA, 0, 0, 0, 2, BLOCKS])
    # The last session.
    assert ask(bench, "43000100000000006400", 100).data == bytes([0, 10, 1, 1, 0, 0x14, 1]) + (
        bytes(5)
    )
    for cdb in ("43000000000002006400", "43000200000000006400"):
        assert ask(bench, cdb, 100).why == illegal(Additional.INVALID_FIELD_IN_CDB)


def test_its_disc_is_finished(bench: Bench) -> None:
    data = ask(bench, "51000000000000002200", 34).data
    assert data[:7] == bytes([0, 32, 0x0E, 1, 1, 1, 1])
    assert ask(bench, "51010000000000002200", 34).why == illegal(Additional.INVALID_FIELD_IN_CDB)


def features(bench: Bench, kind: int, first: int = 0) -> list[int]:
    cdb = bytes([0x46, kind]) + first.to_bytes(2) + bytes([0, 0, 0, 1, 0, 0])
    data = ask(bench, cdb, 256).data
    assert int.from_bytes(data[:4]) == len(data) - 4
    found, rest = [], data[8:]
    while rest:
        found.append(int.from_bytes(rest[:2]))
        rest = rest[4 + rest[3] :]
    return found


def test_its_features_are_those_of_a_drive_with_a_disc(bench: Bench) -> None:
    assert features(bench, 0) == [0x00, 0x01, 0x03, 0x10, 0x1E]
    assert features(bench, 0, 0x10) == [0x10, 0x1E]
    assert features(bench, 2, 0x10) == [0x10]
    assert features(bench, 2, 0x11) == []
    assert ask(bench, "4603000000000000ff00", 255).why == illegal(Additional.INVALID_FIELD_IN_CDB)
    ask(bench, "1b0000000200")
    assert features(bench, 1) == [0x00, 0x01, 0x03]


def event(bench: Bench) -> bytes:
    return ask(bench, "4a010000100000000800", 8).data


def test_the_disc_is_ejected_and_loaded(bench: Bench) -> None:
    assert event(bench) == bytes([0, 6, 4, 0x10, 0, 2, 0, 0])
    assert ask(bench, "1b0000000200").good
    for cdb in (TUR, "25000000000000000000", "28000000000000000100"):
        assert ask(bench, cdb, BLOCK).why == NO_DISC
    assert event(bench) == bytes([0, 6, 4, 0x10, 3, 1, 0, 0])
    assert bench.device.facts()["units"] == {"0:0": len(CONTENT), "0:1": 0}
    assert ask(bench, "1b0000000300").good
    assert ask(bench, TUR).why == (SenseKey.UNIT_ATTENTION, Additional.MEDIUM_MAY_HAVE_CHANGED)
    assert ask(bench, TUR).good
    assert event(bench)[4:6] == bytes([2, 2])
    assert event(bench)[4] == 0


def test_a_locked_tray_does_not_open_until_it_is_unlocked(bench: Bench) -> None:
    assert ask(bench, "1e0000000100").good
    assert ask(bench, "1b0000000200").why == illegal(Additional.MEDIUM_REMOVAL_PREVENTED)
    assert ask(bench, TUR).good
    assert ask(bench, "5a082a00000000ff" + "ff00", 0xFFFF).data[8 + 6] & 2
    bench.driver.reset()
    bench.start()
    assert ask(bench, "1b0000000200").good


def test_events_of_other_classes_there_are_none(bench: Bench) -> None:
    assert ask(bench, "4a010000020000000800", 8).data == bytes([0, 2, 0x80, 0x10])
    # It cannot wait for one.
    assert ask(bench, "4a000000100000000800", 8).why == illegal(Additional.INVALID_FIELD_IN_CDB)


@pytest.mark.parametrize("field", ["10", "30"])
def test_a_drive_has_no_power_conditions(bench: Bench, field: str) -> None:
    reply = ask(bench, f"1b000000{field}00")
    assert reply.why == illegal(Additional.INVALID_FIELD_IN_CDB)
