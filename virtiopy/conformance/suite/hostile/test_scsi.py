"""Requests that no driver may make of a SCSI host device (5.6.6)."""

from virtiopy._native import ffi
from virtiopy.conformance.drivers.scsi import CONTROLQ, EVENTQ, REQUESTQ, ScsiDriver, lun_field
from virtiopy.conformance.hostile.acts import Act, chain, on_queues
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.memory import SPARE
from virtiopy.conformance.suite.hostile.cases import each
from virtiopy.virtqueue.driver import Piece

#: Bytes of an answer with its sense data, as long as the driver does not change that.
ANSWER = 108

#: 8 MiB that nothing else is in.
HUGE = SPARE[1] - SPARE[0]

UNIT = lun_field(0, 0)


def header(cdb: str, lun: bytes = UNIT) -> bytes:
    """Return the device-readable part of a request, of 51 bytes."""
    fields = ffi.new("struct virtio_scsi_cmd_req *")
    fields.lun, fields.tag = lun, 7
    fields.cdb = bytes.fromhex(cdb).ljust(32, b"\0")
    return bytes(ffi.buffer(fields))


def function(subtype: int, lun: bytes = UNIT, kind: int = 0) -> bytes:
    """Return the device-readable part of a task management function."""
    fields = ffi.new("struct virtio_scsi_ctrl_tmf_req *")
    fields.type, fields.subtype, fields.lun = kind, subtype, lun
    return bytes(ffi.buffer(fields))


TUR = "00" * 6
READ, WRITE = "28000000000000000100", "2a000000000000000100"
#: Of all blocks that the command can name.
READ_ALL, WRITE_ALL = "88000000000000000000ffffffff0000", "8a000000000000000000ffffffff0000"
READ_LAST = "8800ffffffffffffffff000000020000"
WRITE_SAME_ALL = "93080000000000000000ffffffff0000"
UNMAP, COMPARE_AND_WRITE = "42000000000000ffff00", "89000000000000000000000000ff0000"
MODE_SELECT = "5510000000000000ff00"

REQUESTS = (
    Act("request-of-18-bytes", "5.6.6.1", chain(header(TUR)[:18], ANSWER)),
    Act("request-of-50-bytes", "5.6.6.1", chain(header(TUR)[:50], ANSWER)),
    Act("no-request", "5.6.6.1", chain(ANSWER)),
    Act("no-answer", "5.6.6.1", chain(header(TUR))),
    Act("answer-of-11-bytes", "5.6.6.1", chain(header(TUR), 11)),
    Act("answer-without-sense", "5.6.6.1", chain(header(TUR), 12)),
    Act("answer-a-byte-short", "5.6.6.1", chain(header(TUR), ANSWER - 1)),
    Act("lun-of-zeroes", "5.6.6.1", chain(header(TUR, bytes(8)), ANSWER)),
    Act("lun-of-ones", "5.6.6.1", chain(header(TUR, b"\xff" * 8), ANSWER)),
    Act("target-that-is-none", "5.6.6.1", chain(header(TUR, lun_field(255, 0)), ANSWER)),
    Act("unit-that-is-none", "5.6.6.1", chain(header(TUR, lun_field(0, 16383)), ANSWER)),
    Act("command-ff", "5.6.6.1", chain(header("ff" * 32), ANSWER + 512)),
    Act("command-7f", "5.6.6.1", chain(header("7f" + "ff" * 31), b"x" * 512, ANSWER)),
    Act("read-with-data-to-write", "5.6.6.1", chain(header(READ), b"x" * 512, ANSWER)),
    Act("write-with-room-to-read", "5.6.6.1", chain(header(WRITE), ANSWER + 512)),
    Act("both-ways", "5.6.6.1", chain(header(READ), b"x" * 512, ANSWER + 512)),
    Act("read-of-half-a-block", "5.6.6.1", chain(header(READ), ANSWER + 256)),
    Act("write-of-half-a-block", "5.6.6.1", chain(header(WRITE), b"x" * 256, ANSWER)),
    Act("read-of-2-tib", "5.6.6.1", chain(header(READ_ALL), ANSWER + 512)),
    Act("write-of-2-tib", "5.6.6.1", chain(header(WRITE_ALL), b"x" * 512, ANSWER)),
    Act("read-that-wraps", "5.6.6.1", chain(header(READ_LAST), ANSWER + 1024)),
    Act("write-same-of-2-tib", "5.6.6.1", chain(header(WRITE_SAME_ALL), b"x" * 512, ANSWER)),
    Act("unmap-of-ones", "5.6.6.1", chain(header(UNMAP), b"\xff" * 0xFFFF, ANSWER)),
    Act("unmap-of-nothing", "5.6.6.1", chain(header(UNMAP), ANSWER)),
    Act("compare-with-too-little", "5.6.6.1", chain(header(COMPARE_AND_WRITE), b"x", ANSWER)),
    Act("mode-select-of-ones", "5.6.6.1", chain(header(MODE_SELECT), b"\xff" * 255, ANSWER)),
    Act(
        "huge-read",
        "5.6.6.1",
        chain(header(READ_ALL), ANSWER, Piece(SPARE[0], HUGE, writable=True)),
    ),
    Act("huge-write", "5.6.6.1", chain(header(WRITE_ALL), Piece(SPARE[0], HUGE), ANSWER)),
)

FUNCTIONS = (
    Act("function-without-response", "5.6.6.2", chain(function(0))),
    Act("function-of-23-bytes", "5.6.6.2", chain(function(0)[:23], 1)),
    Act("function-that-is-none", "5.6.6.2", chain(function(99), 1)),
    Act("type-that-is-none", "5.6.6.2", chain(function(0, kind=99), 5)),
    Act("type-alone", "5.6.6.2", chain(bytes(4), 1)),
    Act("nothing-to-read", "5.6.6.2", chain(1)),
    Act("lun-of-ones", "5.6.6.2", chain(function(5, b"\xff" * 8), 1)),
    Act("target-that-is-none", "5.6.6.2", chain(function(4, lun_field(255, 0)), 1)),
    Act("query-with-little-room", "5.6.6.2", chain(function(0, kind=1), 4)),
    Act("reset-with-much-room", "5.6.6.2", chain(function(5), 4096)),
)

BUFFERS = (
    Act("event-to-read", "5.6.6.3", chain(b"event")),
    Act("event-in-a-byte", "5.6.6.3", chain(1)),
    Act("event-in-much", "5.6.6.3", chain(Piece(SPARE[0], HUGE, writable=True))),
)


@each("act", REQUESTS)
def test_a_request_that_no_driver_may_make(
    act: Act, session: Session, scsi: ScsiDriver, judge: Judge
) -> None:
    on_queues(act, [REQUESTQ], session, scsi, judge)


@each("act", FUNCTIONS)
def test_a_function_that_no_driver_may_ask_for(
    act: Act, session: Session, scsi: ScsiDriver, judge: Judge
) -> None:
    on_queues(act, [CONTROLQ], session, scsi, judge)


@each("act", BUFFERS)
def test_a_buffer_for_events_that_no_driver_may_give(
    act: Act, session: Session, scsi: ScsiDriver, judge: Judge
) -> None:
    on_queues(act, [EVENTQ], session, scsi, judge)
