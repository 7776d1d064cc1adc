"""Requests of the request queues (5.6.6.1): taken apart, and answered."""

import enum
from dataclasses import dataclass

from virtiopy._native import ffi
from virtiopy.devices.scsi.command import NO_SENSE, Command, ScsiStatus, Sense
from virtiopy.errors import DriverError
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, split_at, total
from virtiopy.virtqueue.queue import Chain

_CDB_OFFSET = ffi.offsetof("struct virtio_scsi_cmd_req", "cdb")
#: Bytes of an answer before its sense data.
ANSWER_SIZE = ffi.offsetof("struct virtio_scsi_cmd_resp", "sense")
_TAG_OFFSET = ffi.offsetof("struct virtio_scsi_cmd_req", "tag")
_TASK_SIZE = ffi.offsetof("struct virtio_scsi_cmd_req", "task_attr")


class Response(enum.IntEnum):
    """VIRTIO_SCSI_S_* of requests and of task management functions (5.6.6.1, 5.6.6.2)."""

    OK = 0
    OVERRUN = 1
    ABORTED = 2
    BAD_TARGET = 3
    RESET = 4
    BUSY = 5
    TRANSPORT_FAILURE = 6
    TARGET_FAILURE = 7
    NEXUS_FAILURE = 8
    FAILURE = 9
    FUNCTION_SUCCEEDED = 10
    FUNCTION_REJECTED = 11
    INCORRECT_LUN = 12


#: What a task management function is answered that did what it is for.
FUNCTION_COMPLETE = Response.OK


class RequestError(DriverError):
    """A request that no answer can be given to: it has no room for one."""


@dataclass(slots=True, frozen=True)
class Sizes:
    """Bytes of a CDB and of sense data in requests, as the driver set them (5.6.4)."""

    cdb: int
    sense: int


@dataclass(slots=True, frozen=True)
class Request:
    """struct virtio_scsi_req_cmd (5.6.6.1), taken apart; `command` is None where it is cut short.

    `answer` is the room for what comes before the data-in buffer.
    """

    lun: bytes
    tag: int
    command: Command | None
    answer: Buffers


@dataclass(slots=True, frozen=True)
class Outcome:
    """How a request ends; `transferred` bytes of its data went where they should."""

    response: Response
    transferred: int = 0
    status: ScsiStatus = ScsiStatus.GOOD
    sense: Sense = NO_SENSE


def parse_request(chain: Chain, sizes: Sizes) -> Request:
    """Take a request apart by bytes (2.7.4); raises RequestError."""
    answer, data_in = split_at(chain.writable, ANSWER_SIZE + sizes.sense)
    room = total(answer)
    if room < ANSWER_SIZE:
        raise RequestError("a request without room for its response (5.6.6.1)")
    head, data_out = split_at(chain.readable, _CDB_OFFSET + sizes.cdb)
    fields = gather(head)
    if len(fields) < _CDB_OFFSET + sizes.cdb or room < ANSWER_SIZE + sizes.sense:
        return Request(fields[:8].ljust(8, b"\0"), 0, None, answer)
    tag = int.from_bytes(fields[_TAG_OFFSET:_TASK_SIZE], "little")
    return Request(fields[:8], tag, Command(fields[_CDB_OFFSET:], data_out, data_in), answer)


def task_of(chain: Chain) -> tuple[bytes, int] | None:
    """Return the `lun` field and the tag of a request; None for one that is cut short."""
    fields = gather(split_at(chain.readable, _TASK_SIZE)[0])
    if len(fields) < _TASK_SIZE:
        return None
    return fields[:_TAG_OFFSET], int.from_bytes(fields[_TAG_OFFSET:], "little")


def complete(chain: Chain, request: Request, outcome: Outcome) -> int:
    """Write the answer; returns the bytes written, from the first writable one on."""
    room = total(request.answer)
    sense = b""
    if outcome.status == ScsiStatus.CHECK_CONDITION:
        sense = outcome.sense.fixed()[: room - ANSWER_SIZE]
    # data_length - number_of_transferred_bytes (5.6.6.1).
    residual, read = 0, 0
    if request.command is not None:
        data_in, data_out = total(request.command.data_in), total(request.command.data_out)
        residual = data_in + data_out - outcome.transferred
        read = outcome.transferred if data_in else 0
    fields = ffi.new("struct virtio_scsi_cmd_resp *")
    fields.sense_len = len(sense)
    fields.resid = min(residual, 0xFFFFFFFF)
    fields.status = outcome.status
    fields.response = outcome.response
    head = bytes(ffi.buffer(fields, ANSWER_SIZE))
    scatter(request.answer, (head + sense).ljust(room, b"\0"))
    return room + read
