"""SCSI host devices: their sizes, and the answers to requests (5.6.4, 5.6.6.1)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.scsi import (
    CDB_SIZE,
    CDB_SIZE_AT,
    FIELD_SIZE,
    INQUIRY,
    INQUIRY_SIZE,
    SENSE_SIZE,
    SENSE_SIZE_AT,
    TEST_UNIT_READY,
    Response,
    ScsiDriver,
    Status,
    lun_field,
)
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.sessions.base import Session
from virtiopy.transport.driver import MmioDriver

#: A command that no device has: its group is the vendors'.
NO_COMMAND = b"\xff"

#: A REPORT LUNS with room for so many bytes.
LUNS_SIZE = 1024
REPORT_LUNS = bytes([0xA0, *bytes(5)]) + LUNS_SIZE.to_bytes(4) + bytes(2)


@pytest.mark.clause("5.6.4.2:1")
def test_a_reset_brings_the_sizes_back(
    session: Session, scsi: ScsiDriver, registers: MmioDriver
) -> None:
    scsi.start()
    same(scsi.sizes, (CDB_SIZE, SENSE_SIZE), "cdb_size and sense_size at first")
    for at, value in ((SENSE_SIZE_AT, 252), (CDB_SIZE_AT, 64)):
        session.write_config(at, value.to_bytes(FIELD_SIZE, "little"))
    session.reset()
    same(scsi.sizes, (CDB_SIZE, SENSE_SIZE), "cdb_size and sense_size after a reset")


@pytest.mark.clause("5.6.4.2:1")
def test_a_reset_brings_the_layout_of_requests_back(session: Session, scsi: ScsiDriver) -> None:
    scsi.start()
    session.write_config(SENSE_SIZE_AT, (252).to_bytes(FIELD_SIZE, "little"))
    scsi.good()
    scsi.start()
    scsi.good()


@pytest.mark.clause("5.6.6.1.1:1")
def test_a_command_that_is_done_is_good(scsi: ScsiDriver) -> None:
    scsi.start()
    answer = scsi.ask(scsi.request(INQUIRY, room=INQUIRY_SIZE))
    same((answer.response, answer.status), (Response.OK, Status.GOOD), "response and status")
    same(answer.residual, 0, "the residual of an INQUIRY that fills its buffer")
    assert answer.data[4] >= INQUIRY_SIZE - 5, f"{answer.data[4]} bytes of INQUIRY data follow"


@pytest.mark.clause("5.6.6.1.1:1")
def test_a_command_that_is_refused_has_check_condition_and_says_why(scsi: ScsiDriver) -> None:
    scsi.start()
    scsi.ready()
    answer = scsi.ask(scsi.request(NO_COMMAND))
    same(answer.response, Response.OK, "the response to a command that there is not")
    same(answer.status, Status.CHECK_CONDITION, "its status")
    assert len(answer.sense) >= 8, f"{len(answer.sense)} bytes of sense data"
    key = answer.sense[1 if answer.sense[0] & 0x7F >= 0x72 else 2] & 0xF
    same(key, 5, "the sense key, ILLEGAL REQUEST")


@pytest.mark.clause("5.6.6.1.1:1")
def test_what_was_not_transferred_is_residual(scsi: ScsiDriver) -> None:
    scsi.start()
    answer = scsi.ask(scsi.request(REPORT_LUNS, room=LUNS_SIZE))
    same((answer.response, answer.status), (Response.OK, Status.GOOD), "response and status")
    listed = 8 + int.from_bytes(answer.data[:4])
    same(answer.residual, LUNS_SIZE - listed, f"the residual of a list of {listed} bytes")


@pytest.mark.clause("5.6.6.1.1:2")
@pytest.mark.parametrize("field", [lun_field(0, 0), lun_field(0, 1)], ids=["lun0", "lun1"])
def test_a_target_that_is_there_is_no_bad_one(scsi: ScsiDriver, field: bytes) -> None:
    scsi.start()
    # Where it has no such unit, INQUIRY says so.
    answer = scsi.ask(scsi.request(INQUIRY, room=INQUIRY_SIZE, lun=field))
    same(answer.response, Response.OK, "the response of target 0")


@pytest.mark.clause("5.6.6.1.1:2")
def test_a_target_that_is_not_there_is_a_bad_one(scsi: ScsiDriver) -> None:
    scsi.start()
    for target in range(255, 0, -1):
        answer = scsi.ask(scsi.request(INQUIRY, room=INQUIRY_SIZE, lun=lun_field(target, 0)))
        if answer.response != Response.OK:
            break
    else:
        raise NotApplicableError("the device has all 256 targets")
    same(answer.response, Response.BAD_TARGET, f"the response of target {target}, which is none")
    same(answer.residual, INQUIRY_SIZE, "and the residual")


@pytest.mark.clause("5.6.6.1.1:2")
@pytest.mark.parametrize(
    ("data", "room"),
    [(b"", INQUIRY_SIZE - 1), (b"", 0), (bytes(INQUIRY_SIZE), 0)],
    ids=["short", "none", "other-way"],
)
def test_more_data_than_the_buffers_have_is_an_overrun(
    scsi: ScsiDriver, data: bytes, room: int
) -> None:
    scsi.start()
    answer = scsi.ask(scsi.request(INQUIRY, data=data, room=room))
    same(answer.response, Response.OVERRUN, f"the response to INQUIRY of {INQUIRY_SIZE} bytes")


@pytest.mark.clause("5.6.6.1.1:2")
def test_data_both_ways_is_a_failure(scsi: ScsiDriver) -> None:
    scsi.start(without=["VIRTIO_SCSI_F_INOUT"])
    answer = scsi.ask(scsi.request(INQUIRY, data=bytes(36), room=INQUIRY_SIZE))
    same(answer.response, Response.FAILURE, "the response without VIRTIO_SCSI_F_INOUT")


@pytest.mark.clause("5.6.6.1.1:2")
def test_the_device_goes_on_after_each_fault(scsi: ScsiDriver) -> None:
    scsi.start()
    scsi.ready()
    for request in (
        scsi.request(NO_COMMAND),
        scsi.request(INQUIRY, room=1),
        scsi.request(INQUIRY, data=bytes(36), room=36),
        scsi.request(INQUIRY, lun=bytes(8), room=36),
    ):
        scsi.ask(request)
        same(scsi.ask(scsi.request(TEST_UNIT_READY)).good, True, "TEST UNIT READY after it")
