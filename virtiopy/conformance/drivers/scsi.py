"""The driver of the SCSI host device (5.6)."""

import enum
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.conformance.drivers.base import WHOLE, DeviceDriver, Framing, Request
from virtiopy.conformance.problems import NotApplicableError, StepError
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.targets.scsi import ScsiHost
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.driver import Piece

#: The queues (5.6.2).
CONTROLQ, EVENTQ, REQUESTQ = 0, 1, 2

#: Bytes of a request before its CDB, and of its answer before the sense data (5.6.6.1).
HEADER_SIZE = ffi.offsetof("struct virtio_scsi_cmd_req", "cdb")
ANSWER_SIZE = ffi.offsetof("struct virtio_scsi_cmd_resp", "sense")

#: Bytes of an event (5.6.6.3).
EVENT_SIZE = ffi.sizeof("struct virtio_scsi_event")

#: The fields of the configuration space that a driver can change (5.6.4).
SENSE_SIZE_AT = ffi.offsetof("struct virtio_scsi_config", "sense_size")
CDB_SIZE_AT = ffi.offsetof("struct virtio_scsi_config", "cdb_size")
MAX_LUN_AT = ffi.offsetof("struct virtio_scsi_config", "max_lun")
FIELD_SIZE = ffi.sizeof("uint32_t")
SENSE_SIZE, CDB_SIZE = 96, 32

#: A list of 4 KiB has room for 511 LUNs.
LIST_SIZE = 4096


class Response(enum.IntEnum):
    """VIRTIO_SCSI_S_* (5.6.6.1, 5.6.6.2)."""

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


class Status(enum.IntEnum):
    """Status codes (SAM-5, 5.3.1)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class Function(enum.IntEnum):
    """VIRTIO_SCSI_T_TMF_* (5.6.6.2)."""

    ABORT_TASK = 0
    ABORT_TASK_SET = 1
    I_T_NEXUS_RESET = 4
    LOGICAL_UNIT_RESET = 5


TEST_UNIT_READY = bytes(6)
INQUIRY_SIZE = 36
INQUIRY = bytes([0x12, 0, 0, 0, INQUIRY_SIZE, 0])


@dataclass(slots=True, frozen=True)
class Answer:
    """What came back of a request."""

    response: int
    status: int
    residual: int
    sense: bytes
    data: bytes

    @property
    def good(self) -> bool:
        """Whether the command was done."""
        return (self.response, self.status) == (Response.OK, Status.GOOD)


@dataclass(slots=True, frozen=True)
class Event:
    """struct virtio_scsi_event (5.6.6.3)."""

    event: int
    lun: bytes
    reason: int


@dataclass(slots=True, frozen=True)
class Offered:
    """A buffer for an event, and the head of its chain."""

    head: int
    piece: Piece


def lun_field(target: int, lun: int) -> bytes:
    """Return the `lun` field of a logical unit (5.6.6.1), by flat space addressing."""
    return bytes([1, target, 0x40 | lun >> 8, lun & 0xFF]) + bytes(4)


def parse_answer(content: bytes, sense_size: int) -> Answer:
    """Take the device-writable part of a request apart."""
    fields = ffi.new("struct virtio_scsi_cmd_resp *")
    ffi.buffer(fields)[:ANSWER_SIZE] = content[:ANSWER_SIZE]
    assert fields.sense_len <= sense_size, (
        f"sense_len is {fields.sense_len}, of a buffer of {sense_size} (5.6.4)"
    )
    sense = content[ANSWER_SIZE : ANSWER_SIZE + fields.sense_len]
    data = content[ANSWER_SIZE + sense_size :]
    return Answer(fields.response, fields.status, fields.resid, sense, data)


class ScsiDriver(DeviceDriver):
    """A driver that finds a logical unit, and sends it commands."""

    device_id: ClassVar[DeviceId] = DeviceId.SCSI_HOST
    name: ClassVar[str] = "scsi"
    understood = ("VIRTIO_SCSI_F_HOTPLUG", "VIRTIO_SCSI_F_CHANGE")
    main_queue = REQUESTQ
    config_size = MAX_LUN_AT + FIELD_SIZE
    queues = REQUESTQ + 1

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._ids = count(1)

    @property
    def scsi_host(self) -> ScsiHost:
        """The host's side; not applicable where the suite has no hand in it."""
        host = self.session.host
        if not isinstance(host, ScsiHost):
            raise NotApplicableError("the suite has no hand in the host's side of this device")
        return host

    @property
    def sizes(self) -> tuple[int, int]:
        """The bytes of a CDB and of sense data, as the device says now."""
        config = self.session.config
        return config(CDB_SIZE_AT, FIELD_SIZE), config(SENSE_SIZE_AT, FIELD_SIZE)

    # Requests

    def request(
        self,
        cdb: bytes,
        *,
        lun: bytes = lun_field(0, 0),
        data: bytes = b"",
        room: int = 0,
        tag: int | None = None,
        queue: int = REQUESTQ,
    ) -> Request:
        """Return a request, whose answer has to be one that there is (5.6.6.1)."""
        cdb_size, sense_size = self.sizes
        fields = ffi.new("struct virtio_scsi_cmd_req *")
        fields.lun, fields.tag = lun, next(self._ids) if tag is None else tag
        head = bytes(ffi.buffer(fields, HEADER_SIZE)) + cdb.ljust(cdb_size, b"\0")

        def check(content: bytes, length: int) -> None:
            answer = parse_answer(content, sense_size)
            assert length >= ANSWER_SIZE, f"the used length is {length}, less than the answer's"
            assert answer.response in set(Response), f"response {answer.response} (5.6.6.1)"
            if answer.response == Response.OK:
                assert answer.status in set(Status), f"status {answer.status:#x} (5.6.6.1)"

        head_room = ANSWER_SIZE + sense_size
        parts = ([len(head)], [head_room])
        return Request(queue, head + data, head_room + room, check, parts=parts)

    def good_request(self) -> Request:
        """Return an INQUIRY: any unit answers it, also where there is none."""
        request = self.request(INQUIRY, room=INQUIRY_SIZE)
        _, sense_size = self.sizes

        def check(content: bytes, length: int) -> None:
            request.check(content, length)
            answer = parse_answer(content, sense_size)
            assert answer.good, f"INQUIRY has response {answer.response}, status {answer.status:#x}"
            assert length == len(content) - answer.residual, (
                f"the used length is {length}, with {answer.residual} of {len(content)} residual"
            )

        return Request(request.queue, request.readable, request.room, check, parts=request.parts)

    def ask(self, request: Request, framing: Framing = WHOLE) -> Answer:
        """Send a request, and return its answer."""
        _, sense_size = self.sizes
        return parse_answer(self.do(request, framing), sense_size)

    def ready(self) -> None:
        """Have a logical unit tell all that is new to the driver."""
        for _ in range(16):
            if self.ask(self.request(TEST_UNIT_READY)).good:
                return
        raise StepError("logical unit 0 of target 0 does not become ready")

    # The control queue

    def function(self, subtype: int, lun: bytes = lun_field(0, 0), tag: int = 0) -> Request:
        """Return a task management function; its answer is its last byte."""
        fields = ffi.new("struct virtio_scsi_ctrl_tmf_req *")
        fields.subtype, fields.lun, fields.tag = subtype, lun, tag

        def check(content: bytes, length: int) -> None:
            assert length == 1, f"the used length of a function is {length}"

        return Request(CONTROLQ, bytes(ffi.buffer(fields)), 1, check)

    # Events

    def offer_event(self, size: int = EVENT_SIZE) -> Offered:
        """Give the device a buffer for an event."""
        piece = self.session.room(size)
        queue = self.session.queues[EVENTQ]
        head = queue.place([piece])
        queue.make_available(head)
        self.session.kick(EVENTQ)
        return Offered(head, piece)

    def take_event(self, offered: Offered) -> Event:
        """Wait until that buffer was used; return the event in it."""
        self.session.wait_for(EVENTQ, offered.head)
        content = self.session.content(offered.piece)
        fields = ffi.from_buffer("struct virtio_scsi_event *", content)
        return Event(fields.event, bytes(fields.lun), fields.reason)
