"""A disk in memory, as an author of a backend's first one is: small, plain, and sound.

It keeps to the specification; mutants/disks.py and disk_data.py have what goes wrong with such a
disk. What they override is here in small pieces.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import ClassVar

from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.blk import BlkFeature, RequestType, Status
from virtiopy.spec import DeviceId, feature_mask
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, split_at, total
from virtiopy.virtqueue.queue import Chain, Virtqueue

SECTOR = 512
PAGE = 4096

Bit = BlkFeature


class RamDisk(VirtioDevice):
    """A disk of `sectors` sectors; pages of 4 KiB that were never written take no memory."""

    device_id = DeviceId.BLOCK
    feature_bits = BlkFeature
    queue_sizes: Sequence[int] = (128, 128)
    features = feature_mask(
        [
            Bit.VIRTIO_BLK_F_FLUSH,
            Bit.VIRTIO_BLK_F_MQ,
            Bit.VIRTIO_BLK_F_DISCARD,
            Bit.VIRTIO_BLK_F_WRITE_ZEROES,
            Bit.VIRTIO_BLK_F_BLK_SIZE,
        ]
    )
    sectors: ClassVar[int] = 2048
    serial: ClassVar[bytes] = b"ram disk"

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[int, bytearray] = {}
        self.capacity = self.sectors

    def config_space(self) -> bytes:
        config = bytearray(60)
        config[0:8] = self.capacity_field()
        config[20:24] = struct.pack("<I", SECTOR)
        config[34:36] = struct.pack("<H", len(self.queue_sizes))
        config[36:56] = struct.pack("<IIIII", 1 << 16, 8, 1, 1 << 16, 8)
        config[56] = 1
        return bytes(config)

    def capacity_field(self) -> bytes:
        return struct.pack("<Q", self.capacity)

    # Requests

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        data_in, status = split_at(chain.writable, total(chain.writable) - 1)
        header, data_out = split_at(chain.readable, 16)
        if total(header) < 16 or not status:
            return 0
        kind, _, sector = struct.unpack("<IIQ", gather(header))
        code = self.execute(queue.index, kind, sector, data_out, data_in)
        if code is not None:
            scatter(status, bytes([code]))
        if code != Status.OK:
            scatter(data_in, bytes(total(data_in)))
        return self.used_length(total(chain.writable))

    def used_length(self, room: int) -> int:
        return room

    def execute(
        self, queue: int, kind: int, sector: int, data_out: Buffers, data_in: Buffers
    ) -> int | None:
        if kind == RequestType.IN:
            return self.do_read(queue, sector, data_in)
        if kind == RequestType.OUT:
            return self.do_write(queue, sector, data_out)
        if kind == RequestType.FLUSH:
            return self.flush()
        if kind == RequestType.GET_ID:
            scatter(data_in, self.identity()[: total(data_in)])
            return Status.OK
        if kind in {RequestType.DISCARD, RequestType.WRITE_ZEROES}:
            return self.do_segments(kind, gather(data_out))
        return Status.UNSUPP

    def do_read(self, queue: int, sector: int, data_in: Buffers) -> int:
        size = total(data_in)
        if size % SECTOR or self.is_beyond(sector, size // SECTOR):
            return Status.IOERR
        scatter(data_in, self.load(queue, sector, size // SECTOR).ljust(size, b"\0"))
        return Status.OK

    def do_write(self, queue: int, sector: int, data_out: Buffers) -> int:
        data = gather(data_out)
        if len(data) % SECTOR or self.is_beyond(sector, len(data) // SECTOR):
            return Status.IOERR
        self.store(queue, sector, data)
        return Status.OK

    def do_segments(self, kind: int, data: bytes) -> int:
        known = 1 if kind == RequestType.WRITE_ZEROES else 0
        segments = list(self.segments(data))
        if not segments or len(data) % 16 or len(segments) > 8:
            return Status.IOERR
        if any(flags & ~known for _, _, flags in segments):
            return Status.UNSUPP
        if any(self.is_beyond(sector, sectors) for sector, sectors, _ in segments):
            return Status.IOERR
        for sector, sectors, flags in segments:
            self.zero(kind, sector, sectors, unmap=bool(flags))
        return Status.OK

    def segments(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        for at in range(0, len(data) - 15, 16):
            yield struct.unpack_from("<QII", data, at)

    def is_beyond(self, sector: int, sectors: int) -> bool:
        return sector + sectors > self.capacity

    def identity(self) -> bytes:
        return self.serial.ljust(20, b"\0")

    def flush(self) -> int:
        return Status.OK

    # Sectors

    def load(self, queue: int, sector: int, sectors: int) -> bytes:
        return self.get(sector * SECTOR, sectors * SECTOR)

    def store(self, queue: int, sector: int, data: bytes) -> None:
        self.put(sector * SECTOR, data)

    def zero(self, kind: int, sector: int, sectors: int, *, unmap: bool) -> None:
        self.put(sector * SECTOR, bytes(sectors * SECTOR))

    # Bytes

    def get(self, offset: int, size: int) -> bytes:
        data = b"".join(
            bytes(self.pages.get(page, bytes(PAGE)))
            for page in range(offset // PAGE, -(-(offset + size) // PAGE))
        )
        return data[offset % PAGE : offset % PAGE + size]

    def put(self, offset: int, data: bytes) -> None:
        left = memoryview(data)
        while left:
            start = offset % PAGE
            part = left[: PAGE - start]
            page = self.pages.setdefault(offset // PAGE, bytearray(PAGE))
            page[start : start + len(part)] = part
            offset += len(part)
            left = left[len(part) :]


class LargeDisk(RamDisk):
    """A disk of 4 TiB and some: its last sectors have numbers of more than 32 bits."""

    sectors = (1 << 33) + 64


class ReadOnlyDisk(RamDisk):
    """A disk that can only be read."""

    features = RamDisk.features & ~feature_mask(
        [Bit.VIRTIO_BLK_F_DISCARD, Bit.VIRTIO_BLK_F_WRITE_ZEROES]
    ) | feature_mask([Bit.VIRTIO_BLK_F_RO])

    def do_write(self, queue: int, sector: int, data_out: Buffers) -> int:
        return Status.IOERR
