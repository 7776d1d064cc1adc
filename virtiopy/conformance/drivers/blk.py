"""The driver of the block device (5.2)."""

import enum
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.conformance.drivers.base import WHOLE, DeviceDriver, Framing, Request
from virtiopy.conformance.hosts import BlkHost
from virtiopy.conformance.session import Session
from virtiopy.spec import DeviceId

SECTOR = 512

#: The first request queue (5.2.2).
REQUESTQ = 0

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


class Status(enum.IntEnum):
    """VIRTIO_BLK_S_* (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


@dataclass(slots=True, frozen=True)
class Answer:
    """What came back: the status byte, the data before it, and the length in the used ring."""

    status: int
    data: bytes
    length: int


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

        The answer has to have this `status`, and None takes any. One that is OK has written all
        its room.
        """

        def check(content: bytes, length: int) -> None:
            if status is not None:
                assert content[-1] == status, f"status {content[-1]}, not {status}"
            if content[-1] == Status.OK:
                assert length == room + 1, f"{length} bytes written, of {room} and the status"

        return Request(queue, header(kind, sector) + data, room + 1, check)

    def good_request(self, queue: int = REQUESTQ) -> Request:
        """Return a read of one of the first 8 sectors."""
        return self.request(Type.IN, next(self._sectors) % 8, room=SECTOR, queue=queue)

    def requests(self) -> list[Request]:
        """Return a read for each queue."""
        return [self.good_request(index) for index in self.session.queues]

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

    @property
    def capacity(self) -> int:
        """Sectors of 512 bytes, as the configuration space says (5.2.4)."""
        return self.session.config(0, 8)

    @property
    def disk(self) -> BlkHost | None:
        """The host's side of the disk, where the suite has it."""
        return self.session.host if isinstance(self.session.host, BlkHost) else None
