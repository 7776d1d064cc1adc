"""The driver of the block device (5.2)."""

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.conformance.clauses.definitions import USED_LENGTH
from virtiopy.conformance.drivers.base import WHOLE, DeviceDriver, Framing, Request
from virtiopy.conformance.problems import NotApplicableError, StepError
from virtiopy.conformance.sessions.base import STALE, Session
from virtiopy.conformance.targets.disks import BlkHost
from virtiopy.spec import DeviceId

SECTOR = 512

#: Sectors of a request that takes long: 256 KiB.
LONG = 512

#: The first request queue (5.2.2).
REQUESTQ = 0

#: Of more request queues than this, which are all alike, only some are worked.
QUEUES_MAX = 8

HEADER_SIZE = ffi.sizeof("struct virtio_blk_outhdr")

#: Bytes of the device ID string (5.2.6).
ID_SIZE = 20


class Type(enum.IntEnum):
    """VIRTIO_BLK_T_* (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14


#: What only zoned devices know (5.2.6).
ZONE_TYPES = {
    "ZONE_APPEND": 15,
    "ZONE_REPORT": 16,
    "ZONE_OPEN": 18,
    "ZONE_CLOSE": 20,
    "ZONE_FINISH": 22,
    "ZONE_RESET": 24,
    "ZONE_RESET_ALL": 26,
}


class Status(enum.IntEnum):
    """VIRTIO_BLK_S_* (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


#: Beside those, of zoned devices: VIRTIO_BLK_S_ZONE_* (5.2.6).
ZONE_STATUS = range(3, 7)

ZONED = "VIRTIO_BLK_F_ZONED"

#: The device writes a status, and one that there is.
STATUS = "5.2.6:4"

#: What has the device serve a good request, by its type.
SERVED_BY: Mapping[int, str] = {
    Type.IN: "5.2.4:1",
    Type.OUT: "5.2.4:1",
    Type.FLUSH: "5.2.3:1",
    Type.DISCARD: "5.2.3:2",
    Type.WRITE_ZEROES: "5.2.3:3",
}


class Field(enum.Enum):
    """Fields of struct virtio_blk_config (5.2.4): offset and bytes."""

    capacity = 0, 8
    size_max = 8, 4
    seg_max = 12, 4
    blk_size = 20, 4
    writeback = 32, 1
    unused0 = 33, 1
    num_queues = 34, 2
    max_discard_sectors = 36, 4
    max_discard_seg = 40, 4
    discard_sector_alignment = 44, 4
    max_write_zeroes_sectors = 48, 4
    max_write_zeroes_seg = 52, 4
    write_zeroes_may_unmap = 56, 1
    unused1 = 57, 3
    max_secure_erase_sectors = 60, 4
    max_secure_erase_seg = 64, 4
    secure_erase_sector_alignment = 68, 4
    zone_sectors = 72, 4
    max_open_zones = 76, 4
    max_active_zones = 80, 4
    max_append_sectors = 84, 4
    write_granularity = 88, 4
    zoned_model = 92, 1


class Zoned(enum.IntEnum):
    """VIRTIO_BLK_Z_*: values of zoned_model (5.2.4)."""

    NONE = 0
    HM = 1
    HA = 2


#: Flags of a discard, write zeroes or secure erase segment (5.2.6).
UNMAP = 1


@dataclass(slots=True, frozen=True)
class Answer:
    """What came back: the status byte, the data before it, and the length in the used ring."""

    status: int
    data: bytes
    length: int


def _name(kind: int) -> str:
    return next((one.name for one in Type if one == kind), f"type {kind}")


def _status(status: int) -> str:
    return next((one.name for one in Status if one == status), str(status))


def header(kind: int, sector: int = 0) -> bytes:
    """Return the device-readable fields that begin a struct virtio_blk_req (5.2.6)."""
    return bytes(ffi.buffer(ffi.new("struct virtio_blk_outhdr *", (kind, 0, sector))))


def segment(sector: int, num_sectors: int, flags: int = 0) -> bytes:
    """Return a struct virtio_blk_discard_write_zeroes (5.2.6)."""
    fields = (sector, num_sectors, flags)
    return bytes(ffi.buffer(ffi.new("struct virtio_blk_discard_write_zeroes *", fields)))


class BlkDriver(DeviceDriver):
    """A driver that reads and writes a disk, whose content is lost."""

    device_id: ClassVar[DeviceId] = DeviceId.BLOCK
    name: ClassVar[str] = "blk"
    config_size = 8
    more_queues = "VIRTIO_BLK_F_MQ"  # 5.2.2

    understood = (
        "VIRTIO_BLK_F_SIZE_MAX",
        "VIRTIO_BLK_F_SEG_MAX",
        "VIRTIO_BLK_F_GEOMETRY",
        "VIRTIO_BLK_F_RO",
        "VIRTIO_BLK_F_BLK_SIZE",
        "VIRTIO_BLK_F_FLUSH",
        "VIRTIO_BLK_F_TOPOLOGY",
        "VIRTIO_BLK_F_CONFIG_WCE",
        "VIRTIO_BLK_F_MQ",
        "VIRTIO_BLK_F_DISCARD",
        "VIRTIO_BLK_F_WRITE_ZEROES",
        "VIRTIO_BLK_F_LIFETIME",
        "VIRTIO_BLK_F_SECURE_ERASE",
    )

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._sectors = count()

    def choose_queues(self, number: int) -> Iterable[int]:
        """Return the first queue, one in the middle and the last where there are many."""
        return range(number) if number <= QUEUES_MAX else (0, number // 2, number - 1)

    # Requests

    def request(
        self,
        kind: int,
        sector: int = 0,
        data: bytes = b"",
        room: int = 0,
        *,
        status: int | None = Status.OK,
        queue: int = REQUESTQ,
    ) -> Request:
        """Return a request, with `data` to write or `room` bytes to read.

        The answer has to have this `status`, and None takes any. One that is OK is to have a used
        length of all its room, and draws a remark if not.
        """

        def check(content: bytes, length: int) -> None:
            self._check_status(kind, sector, (len(data) or room) // SECTOR, content[-1], status)
            if content[-1] == Status.OK and length < room + 1:
                self.session.remark(
                    USED_LENGTH,
                    f"the used length of {_name(kind)} of {room} bytes and the status is {length}",
                )

        parts = self._parts(HEADER_SIZE, len(data)), self._parts(0, room)
        return Request(queue, header(kind, sector) + data, room + 1, check, parts=parts)

    def _parts(self, start: int, size: int) -> list[int]:
        """Return where the parts of a side begin: data behind its header, the status behind it."""
        segment = size
        if self.session.has("VIRTIO_BLK_F_SIZE_MAX"):
            segment = min(size, self.field(Field.size_max)) or size
        return [start, *range(start + segment, start + size, max(1, segment)), start + size]

    def _check_status(
        self, kind: int, sector: int, sectors: int, status: int, wanted: int | None
    ) -> None:
        what = f"{_name(kind)} of {sectors} sectors from {sector} on"
        if status == STALE:
            raise StepError(f"{what}: no status was written", STATUS)
        known = set(Status) | (set(ZONE_STATUS) if self.session.has(ZONED) else set())
        if status not in known:
            raise StepError(f"{what}: status {status} is none", STATUS)
        if wanted is None or status == wanted:
            return
        words = f"{what}: status {_status(status)}, not {_status(wanted)}"
        if wanted == Status.OK:
            raise StepError(words, SERVED_BY.get(kind))
        raise AssertionError(words)

    def good_request(self, queue: int = REQUESTQ) -> Request:
        """Return a read of one of the first 8 sectors."""
        return self.request(Type.IN, next(self._sectors) % 8, room=SECTOR, queue=queue)

    def long_request(self) -> Request:
        """Return a read of many sectors, in as many parts as the device takes at most."""
        sectors = min(self.capacity, LONG)
        if self.session.offers("VIRTIO_BLK_F_SIZE_MAX"):
            # 0, which lets no request be, is another statement's.
            sectors = min(sectors, self.field(Field.size_max) // SECTOR or sectors)
        return self.request(Type.IN, 0, room=sectors * SECTOR)

    def requests(self) -> list[Request]:
        """Return a read for each queue."""
        return [self.good_request(index) for index in self.session.queues]

    def telling_requests(self) -> list[Request]:
        """Return a write for each queue, where sector 0 can be written at any time."""
        if any(map(self.session.offers, ("VIRTIO_BLK_F_RO", "VIRTIO_BLK_F_ZONED"))):
            return []
        data = bytes(range(256)) * (SECTOR // 256)
        return [self.request(Type.OUT, 0, data, queue=index) for index in self.session.queues]

    def ask(self, request: Request, framing: Framing = WHOLE) -> Answer:
        """Send a request, and return what came back, whatever the status."""
        sent = self.send(request, framing)
        used = self.session.wait_for(request.queue, sent.head)
        content = self.check(sent, used)
        return Answer(content[-1], content[:-1], used.length)

    def read(self, sector: int, sectors: int = 1, framing: Framing = WHOLE) -> bytes:
        """Read sectors."""
        return self.do(self.request(Type.IN, sector, room=sectors * SECTOR), framing)[:-1]

    def write(self, sector: int, data: bytes, framing: Framing = WHOLE) -> None:
        """Write sectors."""
        self.do(self.request(Type.OUT, sector, data), framing)

    def flush(self) -> None:
        """Have what was written be stable."""
        self.do(self.request(Type.FLUSH))

    # The disk

    def field(self, field: Field) -> int:
        """Read a field of the configuration space."""
        return self.session.config(*field.value)

    def set_writeback(self, *, on: bool) -> None:
        """Choose the cache mode (5.2.5.1): CONFIG_WCE was negotiated."""
        self.session.write_config(Field.writeback.value[0], bytes([on]))

    @property
    def capacity(self) -> int:
        """Sectors of 512 bytes, as the configuration space says (5.2.4)."""
        return self.field(Field.capacity)

    @property
    def block(self) -> int:
        """Sectors that the device wants to be read and written at once: its blk_size (5.2.5)."""
        if not self.session.offers("VIRTIO_BLK_F_BLK_SIZE"):
            return 1
        return max(1, self.field(Field.blk_size) // SECTOR)

    @property
    def discard_unit(self) -> int:
        """Sectors that discards are best cut by: whole blocks, and discard_sector_alignment."""
        return math.lcm(self.block, max(1, self.field(Field.discard_sector_alignment)))

    def need(self, sectors: int) -> None:
        """Make the test not applicable on a disk of less than so many sectors."""
        if self.capacity < sectors:
            raise NotApplicableError(f"the disk has {self.capacity} sectors, and not {sectors}")

    def need_at_least(self, field: Field, least: int) -> None:
        """Make the test not applicable where the device takes less than that at once."""
        if (most := self.field(field)) < least:
            raise NotApplicableError(f"{field.name} is {most}, and not {least} or more")

    @property
    def disk(self) -> BlkHost:
        """The host's side of the disk; the test is not applicable where the suite has no hand."""
        if not isinstance(self.session.host, BlkHost):
            raise NotApplicableError("the suite cannot look at this backend's disk or change it")
        return self.session.host


def pattern(sectors: int, seed: int = 1) -> bytes:
    """Return what tells every sector from every other, and from those of another seed."""
    return b"".join(
        bytes([seed, 0xA5, *sector.to_bytes(6, "little")]) * 64 for sector in range(sectors)
    )
