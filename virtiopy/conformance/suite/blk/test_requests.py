"""Block devices: what becomes of requests, and of the capacity (5.2.6)."""

import pytest

from virtiopy.conformance.drivers.blk import (
    ID_SIZE,
    SECTOR,
    ZONE_TYPES,
    BlkDriver,
    Status,
    Type,
    pattern,
)
from virtiopy.conformance.report.difference import difference
from virtiopy.conformance.sessions.base import Session

RO = "VIRTIO_BLK_F_RO"


@pytest.mark.unless_feature(RO)
def test_what_was_written_is_read_back(blk: BlkDriver) -> None:
    blk.start()
    size = 3 * blk.block
    blk.need(2 * size)
    blk.write(blk.block, pattern(size))
    assert not difference(blk.read(blk.block, size), pattern(size))


@pytest.mark.clause("2.7.8.2:2")
def test_all_20_bytes_of_a_device_id_string_are_written_with_nul_after_its_end(
    blk: BlkDriver,
) -> None:
    blk.start()
    answer = blk.ask(blk.request(Type.GET_ID, room=ID_SIZE, status=None))
    # A device without an ID may say so; there is no feature bit.
    if answer.status == Status.OK:
        words, _, padding = answer.data.partition(b"\0")
        assert words.isascii()
        assert not any(padding), f"of the {answer.length} bytes used some were not written"


# Capacity


def new_capacity(session: Session, blk: BlkDriver) -> int:
    """Start the device, have the host make its disk larger, and return how large."""
    disk = blk.disk
    blk.start()
    session.take_config_change()
    capacity = blk.capacity + 8 * blk.block
    disk.resize(capacity)
    return capacity


@pytest.mark.clause("5.2.6.2:1")
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
        blk.do(blk.request(Type.OUT, sector, pattern(sectors), status=Status.IOERR))


@pytest.mark.clause("5.2.6.2:4")
@pytest.mark.feature(RO)
@pytest.mark.parametrize("accepted", [True, False], ids=["accepted", "not accepted"])
def test_a_write_to_a_read_only_device_changes_nothing(blk: BlkDriver, *, accepted: bool) -> None:
    blk.start(without=[] if accepted else [RO])
    sectors = blk.block
    before = blk.read(0, sectors)
    other = bytes(byte ^ 0xFF for byte in before)
    blk.ask(blk.request(Type.OUT, 0, other, status=None))
    assert not difference(blk.read(0, sectors), before)


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
