"""Requests of a block device's driver, held against 5.2."""

from typing import ClassVar

from virtiopy.check.fields import FIELDS, feature_bit
from virtiopy.check.judge import DeviceJudge
from virtiopy.check.requests import JudgedDevice, RequestJudge, head_of, number
from virtiopy.devices.blk import ID_BYTES, SECTOR_SIZE, RequestType
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.buffers import gather, split_at, total
from virtiopy.virtqueue.queue import Chain, Virtqueue

#: Bytes of the header, of a segment, and of the status (5.2.6).
_HEADER = 16
_SEGMENT = 16
_STATUS = 1
_UNMAP = 1

_OFFSETS = {field.name: field.offset for field in FIELDS[DeviceId.BLOCK]}

#: Of the requests with segments: the field of their most, and the statement.
_SEGMENTS_MOST = {
    RequestType.DISCARD: ("max_discard_seg", "5.2.6.1:9"),
    RequestType.SECURE_ERASE: ("max_secure_erase_seg", "5.2.6.1:10"),
    RequestType.WRITE_ZEROES: ("max_write_zeroes_seg", "5.2.6.1:11"),
}


class BlkJudge(RequestJudge):
    """Judges requests of a block device's driver."""

    device_id: ClassVar[DeviceId] = DeviceId.BLOCK

    def __init__(self, judge: DeviceJudge, device: JudgedDevice) -> None:
        super().__init__(judge, device)
        self._flushed = self._could_flush = self._wrote = False

    def request(self, queue: Virtqueue, chain: Chain) -> None:
        """Judge one request."""
        header = head_of(chain, _HEADER)
        if len(header) < _HEADER:
            return
        kind, sector = number(header, 0, 4), number(header, 8, 8)
        out = total(chain.readable) - _HEADER
        data = out or max(0, total(chain.writable) - _STATUS)
        if kind in (RequestType.IN, RequestType.OUT):
            self._transfer(RequestType(kind), sector, data)
        elif kind == RequestType.FLUSH:
            self._flush(sector, data)
        elif kind == RequestType.GET_ID:
            self._judge.check(
                "5.2.6.1:8", data == ID_BYTES, f"VIRTIO_BLK_T_GET_ID with {data} bytes of data"
            )
        elif kind in _SEGMENTS_MOST:
            self._segments(RequestType(kind), chain, data)

    def _transfer(self, kind: RequestType, sector: int, data: int) -> None:
        self._wrote |= kind is RequestType.OUT
        self._judge.check(
            "5.2.6.1:6", data % SECTOR_SIZE == 0, f"VIRTIO_BLK_T_{kind.name} of {data} bytes"
        )
        capacity = self.config(_OFFSETS["capacity"], 8)
        if capacity is None:
            return
        sectors = -(-data // SECTOR_SIZE)
        self._judge.check(
            "5.2.6.1:2",
            sector + sectors <= capacity,
            f"VIRTIO_BLK_T_{kind.name} of {sectors} sectors at {sector}; capacity is {capacity}",
        )

    def _flush(self, sector: int, data: int) -> None:
        self._flushed = True
        self._judge.check("5.2.6.1:4", sector == 0, f"VIRTIO_BLK_T_FLUSH with sector {sector}")
        self._judge.check("5.2.6.1:5", data == 0, f"VIRTIO_BLK_T_FLUSH with {data} bytes of data")

    def _segments(self, kind: RequestType, chain: Chain, data: int) -> None:
        name = f"VIRTIO_BLK_T_{kind.name}"
        whole = self._judge.check(
            "5.2.6.1:7",
            data > 0 and data % _SEGMENT == 0,
            f"{name} with {data} bytes of data; a segment has {_SEGMENT}",
        )
        if not whole:
            return
        field, statement = _SEGMENTS_MOST[kind]
        most, count = self.config(_OFFSETS[field], 4), data // _SEGMENT
        if most is None:
            return
        self._judge.check(
            statement, count <= most, f"{name} with {count} segments; {field} is {most}"
        )
        if kind is not RequestType.DISCARD or count > most:
            return
        segments = gather(split_at(split_at(chain.readable, _HEADER)[1], data)[0])
        flags = [number(segments, at + 12, 4) for at in range(0, data, _SEGMENT)]
        self._judge.check(
            "5.2.6.1:14",
            not any(one & _UNMAP for one in flags),
            "VIRTIO_BLK_T_DISCARD with the unmap bit",
        )

    def finish(self, *, by_driver: bool) -> None:
        """Take note of a life in which the driver could have flushed what it wrote."""
        self._could_flush |= self._wrote and self.accepted(feature_bit("VIRTIO_BLK_F_FLUSH"))
        self._wrote = False

    def conclude(self) -> None:
        """Judge whether a driver that took VIRTIO_BLK_F_FLUSH, and wrote, has ever flushed."""
        if self._flushed:
            self._judge.kept("5.2.5.1:1")
        elif self._could_flush:
            self._judge.broke(
                "5.2.5.1:1",
                "the driver accepts VIRTIO_BLK_F_FLUSH, writes, and never sends a flush",
            )
