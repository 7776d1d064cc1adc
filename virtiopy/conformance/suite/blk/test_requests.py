"""Block devices: what becomes of requests, and of the capacity (5.2.6)."""

import pytest

from virtiopy.conformance.drivers.blk import (
    ID_SIZE,
    SECTOR,
    ZONE_TYPES,
    Answer,
    BlkDriver,
    Status,
    Type,
    pattern,
)
from virtiopy.conformance.problems import BlockedError, NotApplicableError
from virtiopy.conformance.report.difference import difference
from virtiopy.conformance.sessions.base import Session

RO = "VIRTIO_BLK_F_RO"


# The device ID string


def id_string(blk: BlkDriver, filling: int, room: int = ID_SIZE) -> Answer:
    """Ask for the ID, with a buffer full of a byte; not applicable where there is none."""
    request = blk.request(Type.GET_ID, room=room, status=None)
    sent = blk.place(request)
    for piece in sent.pieces:
        if piece.writable and piece.length == room:
            blk.session.memory.write(piece.address, bytes([filling]) * room)
    blk.offer(sent)
    used = blk.session.wait_for(request.queue, sent.head)
    content = blk.check(sent, used)
    # A device without an ID may say so; there is no feature bit.
    if content[-1] != Status.OK:
        raise NotApplicableError(f"the device has no ID: status {content[-1]}")
    return Answer(content[-1], content[:-1], used.length)


def unwritten(first: Answer, second: Answer) -> list[int]:
    """Return which bytes were not written: those that differ as their fillings do."""
    pairs = zip(first.data, second.data, strict=True)
    return [at for at, found in enumerate(pairs) if found == (0xEE, 0x11)]


@pytest.mark.clause("2.7.8.2:2")
def test_all_20_bytes_of_a_device_id_string_are_written_with_nul_after_its_end(
    blk: BlkDriver,
) -> None:
    blk.start()
    first, second = id_string(blk, 0xEE), id_string(blk, 0x11)
    left = [at for at in unwritten(first, second) if at < min(first.length, second.length)]
    assert not left, (
        f"the used length of the ID is {first.length}, and byte {left[0]} was not written"
    )


@pytest.mark.clause("5.2.6:3")
def test_a_device_id_string_is_ascii_and_padded_with_nul(blk: BlkDriver) -> None:
    blk.start()
    first, second = id_string(blk, 0xEE), id_string(blk, 0x11)
    if any(at < min(first.length, second.length) for at in unwritten(first, second)):
        raise BlockedError("2.7.8.2:2")
    words, _, padding = first.data.partition(b"\0")
    assert words.isascii(), f"the ID is {words!r}, and no ASCII"
    assert not any(padding), f"behind the ID and its NUL there is {padding!r}"


@pytest.mark.clause("5.2.6:3")
def test_a_device_id_string_is_the_same_each_time(session: Session, blk: BlkDriver) -> None:
    blk.start()
    first = id_string(blk, 0x11)
    blk.good()
    second = id_string(blk, 0x11)
    assert second.data == first.data, f"the ID was {first.data!r}, and is {second.data!r} then"
    session.reset()
    blk.start()
    third = id_string(blk, 0x11)
    assert third.data == first.data, f"the ID was {first.data!r}, and is {third.data!r} now"


@pytest.mark.clause("5.2.6:3")
def test_a_device_id_string_is_no_longer_than_20_bytes(blk: BlkDriver) -> None:
    blk.start()
    answer = id_string(blk, 0, room=64)
    behind = answer.data[ID_SIZE:]
    assert not any(behind), f"behind the 20 bytes of the ID there is {behind.rstrip(bytes(1))!r}"


# Capacity


def new_capacity(session: Session, blk: BlkDriver) -> int:
    """Start the device, have the host make its disk larger, and return how large."""
    disk = blk.disk
    blk.start()
    session.take_config_change()
    capacity = blk.capacity + 8 * blk.block
    disk.resize(capacity)
    return capacity


@pytest.mark.clause("5.2.4:1", "5.2.6.2:1")
def test_a_capacity_that_changes_is_the_one_that_requests_go_by(
    session: Session, blk: BlkDriver
) -> None:
    capacity = new_capacity(session, blk)
    session.wait("the new capacity", lambda: blk.capacity == capacity)
    blk.read(capacity - blk.block, blk.block)


@pytest.mark.clause("5.2.6.2:2")
def test_a_change_of_the_capacity_is_notified(session: Session, blk: BlkDriver) -> None:
    new_capacity(session, blk)
    session.wait("a configuration change notification", session.take_config_change)


# Read-only devices


@pytest.mark.clause("5.2.6.2:3")
@pytest.mark.feature(RO)
@pytest.mark.parametrize("accepted", [True, False], ids=["accepted", "not accepted"])
def test_a_write_to_a_read_only_device_is_an_error(blk: BlkDriver, *, accepted: bool) -> None:
    blk.start(without=[] if accepted else [RO])
    sectors = blk.block
    for sector in (0, sectors, blk.capacity - sectors):
        data = pattern(sectors, seed=sector & 0xFF)
        blk.do(blk.request(Type.OUT, sector, data, status=Status.IOERR))


@pytest.mark.clause("5.2.6.2:4")
@pytest.mark.feature(RO)
@pytest.mark.parametrize("accepted", [True, False], ids=["accepted", "not accepted"])
def test_a_write_to_a_read_only_device_changes_nothing(blk: BlkDriver, *, accepted: bool) -> None:
    blk.start(without=[] if accepted else [RO])
    sectors = blk.block
    before = blk.read(0, sectors)
    other = bytes(byte ^ 0xFF for byte in before)
    answer = blk.ask(blk.request(Type.OUT, 0, other, status=None))
    if answer.status == Status.OK:
        raise BlockedError("5.2.6.2:3")
    wrong = difference(blk.read(0, sectors), before)
    assert not wrong, f"the write failed and has changed the disk: {wrong}"


# Zone requests


@pytest.mark.clause("5.2.6.2:18")
@pytest.mark.parametrize("name", ZONE_TYPES)
@pytest.mark.parametrize("data", ["none", "to write", "to read"])
def test_zone_requests_are_unsupported_for_a_driver_without_zoned(
    session: Session, blk: BlkDriver, name: str, data: str
) -> None:
    # A host-managed device may not even take such a driver.
    if session.offers("VIRTIO_BLK_F_ZONED") and not session.accepts(
        session.wanted(None, without=["VIRTIO_BLK_F_ZONED"])
    ):
        return
    blk.start(without=["VIRTIO_BLK_F_ZONED"])
    payload = pattern(blk.block) if data == "to write" else b""
    room = SECTOR if data == "to read" else 0
    blk.do(blk.request(ZONE_TYPES[name], 0, payload, room, status=Status.UNSUPP))
