"""The block device (5.2).

A request's life is `parse`, `execute`, `complete`. What the driver got wrong is answered in the
status byte; only a chain without one goes back with nothing written.
"""

import contextlib
import enum
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.devices.base import Fact, VirtioDevice
from virtiopy.devices.batches import Batches
from virtiopy.devices.delegation import OpenWorker
from virtiopy.devices.disk import Disk
from virtiopy.devices.diskbacking import POLL_US, DiskBacking, FileDisk
from virtiopy.devices.rings import DelegatedRings
from virtiopy.errors import ConfigError
from virtiopy.spec import DeviceId, feature_mask, has_feature
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, split_at, total
from virtiopy.virtqueue.queue import Chain, Virtqueue

log = logging.getLogger(__name__)

#: The unit of `sector` and `capacity`, bytes, whatever blk_size says (5.2.4, 5.2.5).
SECTOR_SIZE = 512

#: Bytes of the device ID string (5.2.6).
ID_BYTES = 20

#: Limits of one discard or write zeroes segment, sectors, and of segments a request (5.2.4).
MAX_DISCARD_SECTORS = 1 << 22
MAX_DISCARD_SEG = 64
MAX_WRITE_ZEROES_SECTORS = 1 << 17
MAX_WRITE_ZEROES_SEG = 16

#: The largest segment of a data buffer that drivers are asked for, bytes (size_max).
SIZE_MAX = 1 << 20


class BlkFeature(enum.IntEnum):
    """Feature bits (5.2.3)."""

    VIRTIO_BLK_F_SIZE_MAX = 1
    VIRTIO_BLK_F_SEG_MAX = 2
    VIRTIO_BLK_F_GEOMETRY = 4
    VIRTIO_BLK_F_RO = 5
    VIRTIO_BLK_F_BLK_SIZE = 6
    VIRTIO_BLK_F_FLUSH = 9
    VIRTIO_BLK_F_TOPOLOGY = 10
    VIRTIO_BLK_F_CONFIG_WCE = 11
    VIRTIO_BLK_F_MQ = 12
    VIRTIO_BLK_F_DISCARD = 13
    VIRTIO_BLK_F_WRITE_ZEROES = 14
    VIRTIO_BLK_F_LIFETIME = 15
    VIRTIO_BLK_F_SECURE_ERASE = 16
    VIRTIO_BLK_F_ZONED = 17


class RequestType(enum.IntEnum):
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


#: Reads that a kick has served at once where the host has the data in memory, and how long they
#: may be, bytes: a worker costs more than they do. The others are left to workers, and the loop to
#: other devices.
CACHED_READS = 128
CACHED_READ_BYTES = 1 << 16

#: Flags of a discard or write zeroes segment (5.2.6).
FLAG_UNMAP = 1

_HEADER_SIZE = ffi.sizeof("struct virtio_blk_outhdr")
_SEGMENT_SIZE = ffi.sizeof("struct virtio_blk_discard_write_zeroes")
_ZEROES = bytes(1 << 16)
_CAPACITY_SIZE = ffi.sizeof("uint64_t")  # the first field
_WRITEBACK_OFFSET = ffi.offsetof("struct virtio_blk_config", "wce")


@dataclass(slots=True, frozen=True)
class Request:
    """struct virtio_blk_req (5.2.6), taken apart; `sector` is in 512-byte sectors."""

    type: int
    sector: int
    data_out: Buffers
    data_in: Buffers
    status: Buffers


@dataclass(slots=True, frozen=True)
class Segment:
    """struct virtio_blk_discard_write_zeroes (5.2.6), in 512-byte sectors."""

    sector: int
    num_sectors: int
    flags: int


class RequestError(Exception):
    """A request that is answered with `status` instead of OK."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Blk(VirtioDevice):
    """A block device on `disk`.

    `serial` is its device ID string, up to 20 ASCII characters. With `writeback` completed
    writes may stay volatile until a flush; without, each is stable when it completes.
    `num_queues` request queues have `queue_size` entries each. Another worker of them is to have
    `threads` threads, which poll for `poll_us` microseconds at most before they sleep.
    """

    device_id: ClassVar[DeviceId] = DeviceId.BLOCK
    serves_legacy_drivers = True
    workers: ClassVar[frozenset[str]] = frozenset({"native"})
    feature_bits = BlkFeature

    def __init__(
        self,
        disk: Disk,
        *,
        serial: str = "",
        writeback: bool = True,
        num_queues: int = 1,
        queue_size: int = 256,
        threads: int = 1,
        poll_us: int = POLL_US,
    ) -> None:
        super().__init__()
        self.disk = disk
        self.serial = serial.encode("ascii")
        if len(self.serial) > ID_BYTES:
            raise ValueError(f"the device ID string has more than {ID_BYTES} bytes")
        self.queue_sizes = [queue_size] * num_queues
        self.features = self._offer(num_queues)
        self._initial_writeback = writeback
        self._batches = Batches(self, self.serve)
        self._rings = DelegatedRings(self, self._serve_at_once)
        self._threads = threads
        self._poll_us = poll_us
        self._config = self._initial_config(num_queues, queue_size)
        self._commands: Mapping[int, Callable[[Request], int]] = {
            RequestType.IN: self._in,
            RequestType.OUT: self._out,
            RequestType.FLUSH: self._flush,
            RequestType.GET_ID: self._get_id,
            RequestType.DISCARD: self._discard,
            RequestType.WRITE_ZEROES: self._write_zeroes,
        }

    def _offer(self, num_queues: int) -> int:
        features = [
            BlkFeature.VIRTIO_BLK_F_SIZE_MAX,
            BlkFeature.VIRTIO_BLK_F_SEG_MAX,
            BlkFeature.VIRTIO_BLK_F_BLK_SIZE,
            BlkFeature.VIRTIO_BLK_F_TOPOLOGY,
            BlkFeature.VIRTIO_BLK_F_FLUSH,
            BlkFeature.VIRTIO_BLK_F_CONFIG_WCE,
        ]
        if num_queues > 1:
            features.append(BlkFeature.VIRTIO_BLK_F_MQ)
        if self.disk.readonly:
            features.append(BlkFeature.VIRTIO_BLK_F_RO)
        else:
            features.append(BlkFeature.VIRTIO_BLK_F_WRITE_ZEROES)
            if self.disk.can_punch_holes:
                features.append(BlkFeature.VIRTIO_BLK_F_DISCARD)
        return feature_mask(features)

    # Configuration space (5.2.4)

    def _initial_config(self, num_queues: int, queue_size: int) -> bytearray:
        config = ffi.new("struct virtio_blk_config *")
        block = max(SECTOR_SIZE, self.disk.alignment)
        physical = max(block, self.disk.physical_block_size)
        config.capacity = self.disk.size // SECTOR_SIZE
        config.size_max = SIZE_MAX
        # A request has a header and a status besides its data.
        config.seg_max = max(1, queue_size - 2)
        config.blk_size = block
        config.physical_block_exp = (physical // block).bit_length() - 1
        config.min_io_size = 1
        config.wce = self._initial_writeback
        config.num_queues = num_queues
        if has_feature(self.features, BlkFeature.VIRTIO_BLK_F_DISCARD):
            config.max_discard_sectors = MAX_DISCARD_SECTORS
            config.max_discard_seg = MAX_DISCARD_SEG
            config.discard_sector_alignment = physical // SECTOR_SIZE
        if has_feature(self.features, BlkFeature.VIRTIO_BLK_F_WRITE_ZEROES):
            config.max_write_zeroes_sectors = MAX_WRITE_ZEROES_SECTORS
            config.max_write_zeroes_seg = MAX_WRITE_ZEROES_SEG
            config.write_zeroes_may_unmap = self.disk.can_punch_holes
        return bytearray(ffi.buffer(config))

    def capacity_changed(self) -> None:
        """Take the size that the disk has now, and tell the driver (5.2.6.2); from any thread."""
        with self.lock:
            self.disk.measure()
            capacity = self.disk.size // SECTOR_SIZE
            self._config[:_CAPACITY_SIZE] = capacity.to_bytes(_CAPACITY_SIZE, "little")
            self._rings.refresh()
            self.host.config_changed()

    def config_space(self) -> bytes:
        """Return struct virtio_blk_config."""
        return bytes(self._config)

    def write_config(self, offset: int, data: bytes) -> bool:
        """Take a new cache mode in `writeback` (5.2.5); nothing else can be written."""
        negotiated = has_feature(self.driver_features, BlkFeature.VIRTIO_BLK_F_CONFIG_WCE)
        if offset != _WRITEBACK_OFFSET or len(data) != 1 or not negotiated:
            return False
        self.writeback = bool(data[0])
        return True

    @property
    def writeback(self) -> bool:
        """Whether completed writes may be volatile until a flush (5.2.6.2)."""
        return bool(self._config[_WRITEBACK_OFFSET])

    @writeback.setter
    def writeback(self, value: bool) -> None:
        self._config[_WRITEBACK_OFFSET] = value
        self._rings.refresh()

    def negotiated(self, driver_features: int) -> None:
        """Take the cache mode that the negotiated features ask for."""
        super().negotiated(driver_features)
        if not has_feature(driver_features, BlkFeature.VIRTIO_BLK_F_FLUSH):
            # A driver that cannot flush has every write stable (5.2.5.2, 5.2.6.2).
            self.writeback = False

    def reset(self) -> None:
        """Forget the driver and its cache mode."""
        self._rings.abandon_all()
        self._batches.drain()
        super().reset()
        self.writeback = self._initial_writeback

    def halt(self) -> None:
        """Stop work on all queues until a reset."""
        super().halt()
        self._rings.abandon_all()

    def close(self) -> None:
        """Close the disk."""
        self._rings.close()
        self.disk.close()

    # Its queues, and another worker of them

    def activate(self, queues: Mapping[int, Virtqueue]) -> None:
        """Start; delegate the queues where there is another worker."""
        super().activate(queues)
        self.refusal = None
        self._rings.delegate_all()

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Take a queue that the driver enables while the device runs."""
        super().start_queue(index, queue)
        self._rings.delegate(index)

    def stop_queue(self, index: int) -> None:
        """Forget a queue; what the workers have of it is waited for."""
        self._rings.abandon(index)
        self._batches.drain()
        super().stop_queue(index)

    def settle(self, index: int) -> None:
        """Reclaim a queue, and complete what the workers have of it."""
        self._rings.reclaim(index)
        self._batches.settle(index)

    def undelegated(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Have the device itself have a queue meanwhile."""
        return self._rings.undelegated(index)

    def delegate(self, open_worker: OpenWorker) -> None:
        """Have another worker work the queues; raises ConfigError for a disk that is no file."""
        with self.lock:
            self.refusal = None
            if self._rings.is_open:
                self._rings.close()
            if not isinstance(self.disk, FileDisk):
                raise ConfigError(
                    "This disk is not one file, so that only the device can work its rings: leave "
                    "it in the mode that it is in."
                )
            backing = DiskBacking(self, self.disk, self._threads, self._poll_us)
            self._rings.open(open_worker, backing)
            for index in self.queues:
                # Nothing may be in flight then.
                self._batches.settle(index)
            self._rings.delegate_all()

    def reclaim(self) -> None:
        """Have the device work all its queues again."""
        with self.lock:
            self.refusal = None
            self._rings.close()

    def facts(self) -> Mapping[str, Fact]:
        """Tell who works the queues."""
        return {
            "queues_delegated": self._rings.delegated,
            **({"delegation_refused": self.refusal} if self.refusal else {}),
        }

    def _serve_at_once(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        queue.push_many([(chain, self.serve(queue, chain)) for chain in chains])
        self.notify(queue)

    # Kicks: in place, or where the caller may not wait, by the loop's workers

    def handle(self, queue: Virtqueue) -> None:
        """Serve every available request, at once or on a worker thread. Raises QueueError."""
        if self.may_block or self.loop is None:
            super().handle(queue)
            return
        self._batches.work(queue, self._read_cached, CACHED_READS, self.loop)

    def _read_cached(self, chain: Chain) -> int | None:
        data_in, status = split_at(chain.writable, total(chain.writable) - 1)
        length = total(data_in)
        try:
            request = self.parse(chain.readable, data_in, status)
            if request.type != RequestType.IN or not status or length > CACHED_READ_BYTES:
                return None
            if not self.disk.read_cached(self._check_data(request.sector, length), data_in):
                return None
        except RequestError:
            return None  # The worker answers it.
        return self.complete(data_in, length, status, Status.OK)

    # A request: parse, execute, complete (5.2.6)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        """Serve one request; returns the bytes written: the data's and the status byte."""
        data_in, status = split_at(chain.writable, total(chain.writable) - 1)
        if not status:
            log.warning("queue %d: a request without a status byte (5.2.6)", queue.index)
            return 0
        try:
            request = self.parse(chain.readable, data_in, status)
            written = self.execute(request)
        except RequestError as error:
            log.info("queue %d: request refused: %s", queue.index, error)
            return self.complete(data_in, 0, status, error.status)
        return self.complete(data_in, written, status, Status.OK)

    def parse(self, readable: Buffers, data_in: Buffers, status: Buffers) -> Request:
        """Read the header; where it ends and data begins is not a matter of framing (2.7.4)."""
        header, data_out = split_at(readable, _HEADER_SIZE)
        fields = gather(header)
        if len(fields) < _HEADER_SIZE:
            raise RequestError(Status.IOERR, "a header of less than 16 bytes")
        view = ffi.from_buffer("struct virtio_blk_outhdr *", fields)
        return Request(view.type, view.sector, data_out, data_in, status)

    def execute(self, request: Request) -> int:
        """Do what is asked for; returns the bytes of data_in that were written."""
        command = self._commands.get(request.type)
        if command is None:
            raise RequestError(Status.UNSUPP, f"request type {request.type}")
        try:
            return command(request)
        except OSError as error:
            raise RequestError(Status.IOERR, f"the host's disk: {error}") from error

    def complete(self, data_in: Buffers, written: int, status: Buffers, value: Status) -> int:
        """Write the status byte; returns the bytes written, from the first on.

        The status comes last, and a driver may ignore what lies past the length in the used ring
        (2.7.8.3). So bytes of data that were not written become zeroes.
        """
        _, unwritten = split_at(data_in, written)
        for piece in unwritten:
            for start in range(0, len(piece), len(_ZEROES)):
                part = piece[start : start + len(_ZEROES)]
                part[:] = _ZEROES[: len(part)]
        scatter(status, bytes([value]))
        return total(data_in) + 1

    # The commands

    def _in(self, request: Request) -> int:
        length = total(request.data_in)
        self.disk.read(self._check_data(request.sector, length), request.data_in)
        return length

    def _out(self, request: Request) -> int:
        self._check_writable()
        offset = self._check_data(request.sector, total(request.data_out))
        self.disk.write(offset, request.data_out, stable=not self.writeback)
        return 0

    def _flush(self, request: Request) -> int:
        self.disk.flush()
        return 0

    def _get_id(self, request: Request) -> int:
        if total(request.data_in) != ID_BYTES:
            raise RequestError(Status.IOERR, f"GET_ID with no room for {ID_BYTES} bytes")
        return scatter(request.data_in, self.serial.ljust(ID_BYTES, b"\0"))

    def _discard(self, request: Request) -> int:
        self._check_negotiated(BlkFeature.VIRTIO_BLK_F_DISCARD)
        segments = self._segments(request, MAX_DISCARD_SEG, MAX_DISCARD_SECTORS, known_flags=0)
        for segment in segments:
            self.disk.discard(segment.sector * SECTOR_SIZE, segment.num_sectors * SECTOR_SIZE)
        self._commit()
        return 0

    def _write_zeroes(self, request: Request) -> int:
        self._check_negotiated(BlkFeature.VIRTIO_BLK_F_WRITE_ZEROES)
        segments = self._segments(
            request, MAX_WRITE_ZEROES_SEG, MAX_WRITE_ZEROES_SECTORS, known_flags=FLAG_UNMAP
        )
        for segment in segments:
            self.disk.write_zeroes(
                segment.sector * SECTOR_SIZE,
                segment.num_sectors * SECTOR_SIZE,
                unmap=bool(segment.flags & FLAG_UNMAP),
            )
        self._commit()
        return 0

    def _segments(
        self, request: Request, most: int, most_sectors: int, *, known_flags: int
    ) -> list[Segment]:
        """Read and check every segment, before anything is done to any."""
        count, rest = divmod(total(request.data_out), _SEGMENT_SIZE)
        if rest or not 1 <= count <= most:
            raise RequestError(Status.IOERR, f"{total(request.data_out)} bytes of segments")
        data = gather(request.data_out)
        array = ffi.from_buffer("struct virtio_blk_discard_write_zeroes[]", data)
        segments = [Segment(item.sector, item.num_sectors, item.flags) for item in array]
        for segment in segments:
            if segment.flags & ~known_flags:
                raise RequestError(Status.UNSUPP, f"segment flags {segment.flags:#x}")
        for segment in segments:
            if segment.num_sectors > most_sectors:
                raise RequestError(Status.IOERR, f"a segment of {segment.num_sectors} sectors")
            self._check_range(segment.sector, segment.num_sectors)
        return segments

    def _commit(self) -> None:
        if not self.writeback:
            self.disk.flush()

    # Checks (5.2.6.1, 5.2.6.2)

    def _check_data(self, sector: int, length: int) -> int:
        """Return the offset in bytes of `length` bytes of data at `sector`."""
        if length % SECTOR_SIZE:
            raise RequestError(Status.IOERR, f"data of {length} bytes, no multiple of 512")
        self._check_range(sector, length // SECTOR_SIZE)
        return sector * SECTOR_SIZE

    def _check_range(self, sector: int, num_sectors: int) -> None:
        if sector + num_sectors > self.disk.size // SECTOR_SIZE:
            raise RequestError(
                Status.IOERR, f"{num_sectors} sectors at {sector} are beyond capacity"
            )

    def _check_writable(self) -> None:
        if self.disk.readonly:
            raise RequestError(Status.IOERR, "a write to a read-only disk")

    def _check_negotiated(self, feature: BlkFeature) -> None:
        if not has_feature(self.driver_features, feature):
            raise RequestError(Status.UNSUPP, f"{feature.name} was not negotiated")
