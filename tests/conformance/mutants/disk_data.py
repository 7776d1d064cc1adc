"""Disks that lose data, or have it in the wrong place: one fault each, of each kind."""

import struct
from collections.abc import Sequence
from itertools import count

from tests.conformance.mutants.disks import disks
from tests.conformance.ramdisk import SECTOR, LargeDisk, RamDisk
from virtiopy.devices.blk import Status
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, split_at, total
from virtiopy.virtqueue.queue import Chain, Virtqueue

# Writes that are lost


class LosesEveryFifthWrite(RamDisk):
    """Says of every fifth write that it was done."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = count(1)

    def store(self, queue: int, sector: int, data: bytes) -> None:
        if next(self.writes) % 5:
            super().store(queue, sector, data)


class LosesOneWriteOfFifty(RamDisk):
    """Says of every fiftieth write that it was done."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = count(1)

    def store(self, queue: int, sector: int, data: bytes) -> None:
        if next(self.writes) % 50:
            super().store(queue, sector, data)


class LosesTheLastSector(RamDisk):
    """Writes all but the last sector of more than one."""

    def store(self, queue: int, sector: int, data: bytes) -> None:
        super().store(queue, sector, data if len(data) == SECTOR else data[:-SECTOR])


class LosesLongWrites(RamDisk):
    """Writes 64 KiB, and of more no more."""

    def store(self, queue: int, sector: int, data: bytes) -> None:
        super().store(queue, sector, data[: 1 << 16])


class LosesWhatIsOverwrittenInPart(RamDisk):
    """Has a cache by the first sector: a write into the middle of another's range is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[tuple[int, int], bytes] = {}

    def store(self, queue: int, sector: int, data: bytes) -> None:
        super().store(queue, sector, data)
        self.cache[sector, len(data) // SECTOR] = data

    def load(self, queue: int, sector: int, sectors: int) -> bytes:
        return self.cache.get((sector, sectors)) or super().load(queue, sector, sectors)

    def zero(self, kind: int, sector: int, sectors: int, *, unmap: bool) -> None:
        self.cache.clear()
        super().zero(kind, sector, sectors, unmap=unmap)


class KeepsWritesUntilAFlush(RamDisk):
    """Shows a write only after a flush."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[int, bytes]] = []

    def store(self, queue: int, sector: int, data: bytes) -> None:
        self.kept.append((sector, data))

    def flush(self) -> int:
        for sector, data in self.kept:
            super().store(0, sector, data)
        self.kept.clear()
        return Status.OK


class LosesTheLastWriteInAFlush(RamDisk):
    """Loses the last write to the flush after it."""

    def __init__(self) -> None:
        super().__init__()
        self.last: tuple[int, bytes] | None = None

    def store(self, queue: int, sector: int, data: bytes) -> None:
        self.last = sector, self.get(sector * SECTOR, len(data))
        super().store(queue, sector, data)

    def flush(self) -> int:
        if self.last is not None:
            super().store(0, *self.last)
            self.last = None
        return Status.OK


class ForgetsAtAReset(RamDisk):
    """Is empty after a reset."""

    def reset(self) -> None:
        super().reset()
        self.pages.clear()


class ForgetsWhatWasNotFlushed(RamDisk):
    """Takes a reset for a loss of power."""

    def __init__(self) -> None:
        super().__init__()
        self.safe: dict[int, bytearray] = {}

    def flush(self) -> int:
        self.safe = {page: bytearray(data) for page, data in self.pages.items()}
        return Status.OK

    def reset(self) -> None:
        super().reset()
        self.pages = {page: bytearray(data) for page, data in self.safe.items()}


class FlushLies(RamDisk):
    """Has the first flush in a session work, and takes a reset for a loss of power."""

    def __init__(self) -> None:
        super().__init__()
        self.safe: dict[int, bytearray] = {}
        self.flushes = 0

    def flush(self) -> int:
        self.flushes += 1
        if self.flushes == 1:
            self.safe = {page: bytearray(data) for page, data in self.pages.items()}
        return Status.OK

    def reset(self) -> None:
        super().reset()
        if self.flushes:
            self.pages = {page: bytearray(data) for page, data in self.safe.items()}


class ForgetsAtAQueueReset(RamDisk):
    """Is empty after a queue was reset."""

    def stop_queue(self, index: int) -> None:
        super().stop_queue(index)
        self.pages.clear()


class LosesWritesOfItsSecondQueue(RamDisk):
    """Says of every write by the second queue that it was done."""

    def store(self, queue: int, sector: int, data: bytes) -> None:
        if queue == 0:
            super().store(queue, sector, data)


class HasADiskForEachQueue(RamDisk):
    """Has another disk behind its second queue."""

    def load(self, queue: int, sector: int, sectors: int) -> bytes:
        return super().load(queue, sector + queue * (1 << 40), sectors)

    def store(self, queue: int, sector: int, data: bytes) -> None:
        super().store(queue, sector + queue * (1 << 40), data)


# Data in the wrong place


class CutsSectorsTo16Bits(LargeDisk):
    """Has a number of 16 bits somewhere on the way."""

    def load(self, queue: int, sector: int, sectors: int) -> bytes:
        return super().load(queue, sector & 0xFFFF, sectors)

    def store(self, queue: int, sector: int, data: bytes) -> None:
        super().store(queue, sector & 0xFFFF, data)


class ReadsWrapAt4GiB(LargeDisk):
    """Reads at an offset of 32 bits."""

    def load(self, queue: int, sector: int, sectors: int) -> bytes:
        return self.get(sector * SECTOR & 0xFFFF_FFFF, sectors * SECTOR)


class WrapsAt2TiB(LargeDisk):
    """Works with sectors of 32 bits."""

    def load(self, queue: int, sector: int, sectors: int) -> bytes:
        return super().load(queue, sector & 0xFFFF_FFFF, sectors)

    def store(self, queue: int, sector: int, data: bytes) -> None:
        super().store(queue, sector & 0xFFFF_FFFF, data)


class HasSignedSectors(LargeDisk):
    """Takes sectors from 2^31 on for negative ones, of which it makes 0."""

    def load(self, queue: int, sector: int, sectors: int) -> bytes:
        return super().load(queue, 0 if sector & 1 << 31 else sector, sectors)

    def store(self, queue: int, sector: int, data: bytes) -> None:
        super().store(queue, 0 if sector & 1 << 31 else sector, data)


class AlignsReads(RamDisk):
    """Reads from the start of the 4 KiB that a sector is in, where more than that is read."""

    def load(self, queue: int, sector: int, sectors: int) -> bytes:
        return super().load(queue, sector // 8 * 8 if sectors > 8 else sector, sectors)


class WritesWholePages(RamDisk):
    """Fills the 4 KiB that a write ends in with zeroes."""

    def store(self, queue: int, sector: int, data: bytes) -> None:
        rest = -(sector * SECTOR + len(data)) % 4096
        room = (self.capacity - sector) * SECTOR
        super().store(queue, sector, (data + bytes(rest))[:room])


class FlipsABit(RamDisk):
    """Reads a bit wrong, once in a hundred sectors."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = count(1)

    def load(self, queue: int, sector: int, sectors: int) -> bytes:
        data = bytearray(super().load(queue, sector, sectors))
        if next(self.reads) % 100 == 0:
            data[-1] ^= 1
        return bytes(data)


class ReadsShort(RamDisk):
    """Reads 64 KiB, and says of more that it was read."""

    def do_read(self, queue: int, sector: int, data_in: Buffers) -> int:
        size = total(data_in)
        if size % SECTOR or self.is_beyond(sector, size // SECTOR):
            return Status.IOERR
        scatter(data_in, self.load(queue, sector, size // SECTOR)[: 1 << 16])
        return Status.OK


class ReadsShortAndSaysSo(ReadsShort):
    """Reads 64 KiB, says OK, and has a used length of just that."""

    def used_length(self, room: int) -> int:
        return min(room, (1 << 16) + 1)


class SharesABuffer(RamDisk):
    """Has one buffer for all that is in flight: reads come with the data of the last."""

    def handle(self, queue: Virtqueue) -> None:
        while True:
            while chains := queue.pop_many():
                done = [(chain, self.serve(queue, chain)) for chain in chains]
                reads = [chain for chain in chains if self.is_read(chain)]
                for chain in reads[:-1]:
                    data, _ = split_at(chain.writable, total(chain.writable) - 1)
                    last, _ = split_at(reads[-1].writable, total(reads[-1].writable) - 1)
                    if total(last) == total(data):
                        scatter(data, gather(last))
                queue.push_many(done)
                self.notify(queue)
            self.notify(queue)
            if not queue.enable_kicks():
                return

    def is_read(self, chain: Chain) -> bool:
        return gather(chain.readable)[:4] == bytes(4) and total(chain.writable) > 1


class SwapsWritesInFlight(RamDisk):
    """Writes the data of one request to the sectors of the next in flight, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: dict[bytes, bytes] = {}

    def handle(self, queue: Virtqueue) -> None:
        while True:
            while chains := queue.pop_many():
                self.swap(chains)
                queue.push_many([(chain, self.serve(queue, chain)) for chain in chains])
                self.notify(queue)
            self.notify(queue)
            if not queue.enable_kicks():
                return

    def swap(self, chains: Sequence[Chain]) -> None:
        writes = [chain for chain in chains if gather(chain.readable)[:1] == b"\1"]
        for first, second in zip(writes[::2], writes[1::2], strict=False):
            if total(first.readable) == total(second.readable):
                one, other = gather(first.readable)[:16], gather(second.readable)[:16]
                self.pending |= {one: other, other: one}

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        header, data = split_at(chain.readable, 16)
        other = self.pending.pop(gather(header), None)
        if other is None:
            return super().serve(queue, chain)
        sector = struct.unpack("<IIQ", other)[2]
        if self.is_beyond(sector, total(data) // SECTOR):
            return super().serve(queue, chain)
        self.store(queue.index, sector, gather(data))
        scatter(chain.writable, b"\0")
        return 1


# Requests in several descriptors


class TakesTheFirstSegmentOfAWrite(RamDisk):
    """Writes what is in the first buffer behind the header's."""

    def do_write(self, queue: int, sector: int, data_out: Buffers) -> int:
        return super().do_write(queue, sector, data_out[:1])


class FillsTheFirstSegmentOfARead(RamDisk):
    """Fills the first buffer of a read."""

    def do_read(self, queue: int, sector: int, data_in: Buffers) -> int:
        return super().do_read(queue, sector, data_in[:1])


class IsOffByOneAtSegments(RamDisk):
    """Leaves a byte out where a buffer begins."""

    def do_write(self, queue: int, sector: int, data_out: Buffers) -> int:
        if len(data_out) < 2:
            return super().do_write(queue, sector, data_out)
        data = b"".join(b"\0" + bytes(piece[1:]) for piece in data_out)
        return super().do_write(queue, sector, [memoryview(data)])


class RoundsSegmentsDown(RamDisk):
    """Writes the whole sectors of each buffer, one buffer after the other."""

    def do_write(self, queue: int, sector: int, data_out: Buffers) -> int:
        if len(data_out) < 2:
            return super().do_write(queue, sector, data_out)
        for piece in data_out:
            whole = len(piece) // SECTOR * SECTOR
            if self.is_beyond(sector, whole // SECTOR):
                return Status.IOERR
            self.store(queue, sector, bytes(piece[:whole]))
            sector += -(-len(piece) // SECTOR)
        return Status.OK


class TearsAcrossSegments(RamDisk):
    """Loses the last buffer of three and more."""

    def do_write(self, queue: int, sector: int, data_out: Buffers) -> int:
        if len(data_out) < 3:
            return super().do_write(queue, sector, data_out)
        data = gather(data_out)
        if len(data) % SECTOR or self.is_beyond(sector, len(data) // SECTOR):
            return Status.IOERR
        kept = len(data) - len(data_out[-1])
        before = self.load(queue, sector, len(data) // SECTOR)
        self.store(queue, sector, data[:kept] + before[kept:])
        return Status.OK


DATA, FRAMING = "5.2.6:1", "2.7.4.1:1"

MUTANTS = [
    *disks(
        RamDisk,
        [
            (DATA, LosesEveryFifthWrite),
            (DATA, LosesOneWriteOfFifty),
            (DATA, LosesTheLastSector),
            (DATA, LosesLongWrites),
            (DATA, LosesWhatIsOverwrittenInPart),
            (DATA, KeepsWritesUntilAFlush),
            (DATA, LosesTheLastWriteInAFlush),
            (DATA, ForgetsAtAReset),
            (DATA, ForgetsWhatWasNotFlushed),
            (DATA, FlushLies),
            (DATA, ForgetsAtAQueueReset),
            ("5.2.2:1", LosesWritesOfItsSecondQueue),
            ("5.2.2:1", HasADiskForEachQueue),
            (DATA, AlignsReads),
            (DATA, WritesWholePages),
            (DATA, FlipsABit),
            (DATA, ReadsShort),
            (DATA, ReadsShortAndSaysSo),
            (DATA, SharesABuffer),
            (DATA, SwapsWritesInFlight),
            (FRAMING, TakesTheFirstSegmentOfAWrite),
            (FRAMING, FillsTheFirstSegmentOfARead),
            (FRAMING, IsOffByOneAtSegments),
            (FRAMING, RoundsSegmentsDown),
            (FRAMING, TearsAcrossSegments),
        ],
    ),
    *disks(
        LargeDisk,
        [
            (DATA, CutsSectorsTo16Bits),
            (DATA, ReadsWrapAt4GiB),
            (DATA, WrapsAt2TiB),
            (DATA, HasSignedSectors),
        ],
    ),
]
