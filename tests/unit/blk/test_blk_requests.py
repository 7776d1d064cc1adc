"""The block device (5.2): capacity and requests (5.2.6)."""

import os
import struct
from pathlib import Path

import pytest

from tests.unit.blk.bench import (
    CAPACITY,
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    MAX_DISCARD_SEG,
    MAX_WRITE_ZEROES_SEG,
    OK,
    OUT,
    SECTOR,
    SECTORS,
    UNSUPP,
    WRITE_ZEROES,
    Bench,
    FakeDisk,
    Reply,
    header,
    pattern,
    segment,
)
from virtiopy.devices.blk import Blk
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.driver import Piece

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
