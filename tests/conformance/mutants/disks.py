"""Disks that lose data, or tell of it what is not so: one fault each, of each kind."""

import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import count

from tests.conformance.mutants import Mutant
from tests.conformance.ramdisk import SECTOR, LargeDisk, RamDisk, ReadOnlyDisk
from virtiopy.devices.blk import BlkFeature, RequestType, Status
from virtiopy.spec import feature_mask
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, split_at, total
from virtiopy.virtqueue.queue import Chain, Virtqueue

# What the disk says of its size (5.2.4)


class SaysBigEndian(RamDisk):
    """Has capacity the other way round."""

    def capacity_field(self) -> bytes:
        return struct.pack(">Q", self.capacity)


class SaysTwiceItsSize(RamDisk):
    """Has twice as many sectors by its capacity as it has."""

    def capacity_field(self) -> bytes:
        return struct.pack("<Q", 2 * self.capacity)


class SaysBytes(RamDisk):
    """Has its capacity in bytes."""

    def capacity_field(self) -> bytes:
        return struct.pack("<Q", SECTOR * self.capacity)


class RefusesItsLastSector(RamDisk):
    """Compares with `>=` where `>` belongs."""

    def is_beyond(self, sector: int, sectors: int) -> bool:
        return sector + sectors >= self.capacity


class HasNoFirstSector(RamDisk):
    """Keeps the first sector to itself."""

    def is_beyond(self, sector: int, sectors: int) -> bool:
        return sector == 0 or super().is_beyond(sector, sectors)


class ShrinksInSilence(RamDisk):
    """Has fewer sectors after some requests, and does not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        self.requests += 1
        return super().serve(queue, chain)

    def capacity_field(self) -> bytes:
        return struct.pack("<Q", self.capacity - (8 if self.requests > 60 else 0))


class CountsItsQueuesWrong(RamDisk):
    """Has a queue less than num_queues says."""

    def config_space(self) -> bytes:
        config = bytearray(super().config_space())
        config[34] += 1
        return bytes(config)


class HasBlocksOfNothing(RamDisk):
    """Leaves blk_size 0, which it offers."""

    def config_space(self) -> bytes:
        config = bytearray(super().config_space())
        config[20:24] = bytes(4)
        return bytes(config)


class HasOddBlocks(RamDisk):
    """Has blocks of 520 bytes."""

    def config_space(self) -> bytes:
        config = bytearray(super().config_space())
        config[20:24] = struct.pack("<I", 520)
        return bytes(config)


class MayDiscardNothing(RamDisk):
    """Offers discards, and allows none."""

    def config_space(self) -> bytes:
        config = bytearray(super().config_space())
        config[36:40] = bytes(4)
        return bytes(config)


# Beyond the end (5.2.6)


class ReadsOneSectorMore(RamDisk):
    """Reads one sector beyond its end."""

    def do_read(self, queue: int, sector: int, data_in: Buffers) -> int:
        self.capacity += 1
        try:
            return super().do_read(queue, sector, data_in)
        finally:
            self.capacity -= 1


class WritesOneSectorMore(RamDisk):
    """Writes one sector beyond its end."""

    def do_write(self, queue: int, sector: int, data_out: Buffers) -> int:
        self.capacity += 1
        try:
            return super().do_write(queue, sector, data_out)
        finally:
            self.capacity -= 1


class HasNoEnd(RamDisk):
    """Takes every sector."""

    def is_beyond(self, sector: int, sectors: int) -> bool:
        return False


class GoesRound(RamDisk):
    """Goes on with its first sector behind its last."""

    def is_beyond(self, sector: int, sectors: int) -> bool:
        return False

    def load(self, queue: int, sector: int, sectors: int) -> bytes:
        return b"".join(
            super(GoesRound, self).load(queue, (sector + one) % self.capacity, 1)
            for one in range(sectors)
        )

    def store(self, queue: int, sector: int, data: bytes) -> None:
        for at in range(0, len(data), SECTOR):
            place = (sector + at // SECTOR) % self.capacity
            super().store(queue, place, data[at : at + SECTOR])


class ChecksTheFirstSectorOnly(RamDisk):
    """Looks at where a request begins, and not at where it ends."""

    def is_beyond(self, sector: int, sectors: int) -> bool:
        return sector >= self.capacity


class ChecksAfterTheOverflow(RamDisk):
    """Adds in 64 bits."""

    def is_beyond(self, sector: int, sectors: int) -> bool:
        return (sector + sectors) % (1 << 64) > self.capacity


class ChecksIn32Bits(RamDisk):
    """Cuts sectors down to 32 bits before it compares, and works with that."""

    def execute(
        self, queue: int, kind: int, sector: int, data_out: Buffers, data_in: Buffers
    ) -> int | None:
        return super().execute(queue, kind, sector % (1 << 32), data_out, data_in)


class ZeroesBeyondItsEnd(RamDisk):
    """Does not look where discards and write zeroes end."""

    def do_segments(self, kind: int, data: bytes) -> int:
        before, self.capacity = self.capacity, 1 << 65
        try:
            segments = [one for one in self.segments(data) if one[0] + one[1] <= before]
            if not segments and data:
                return Status.OK
            return super().do_segments(kind, data)
        finally:
            self.capacity = before


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


# Flushes, discards, write zeroes


class RefusesFlush(RamDisk):
    """Offers FLUSH, and does not know the request."""

    def flush(self) -> int:
        return Status.UNSUPP


class RefusesDiscard(RamDisk):
    """Offers DISCARD, and does not know the request."""

    def do_segments(self, kind: int, data: bytes) -> int:
        code = super().do_segments(kind, data)
        return Status.IOERR if kind == RequestType.DISCARD and code == Status.OK else code


class TakesOneSegmentOnly(RamDisk):
    """Names eight segments as its limit, and takes one."""

    def do_segments(self, kind: int, data: bytes) -> int:
        code = super().do_segments(kind, data)
        many = kind == RequestType.WRITE_ZEROES and len(data) > 32
        return Status.IOERR if many and code == Status.OK else code


class DiscardZeroesTheNeighbours(RamDisk):
    """Discards whole pages, which the segment only begins and ends in."""

    def zero(self, kind: int, sector: int, sectors: int, *, unmap: bool) -> None:
        if kind == RequestType.DISCARD:
            end = min(-(-(sector + sectors) // 8) * 8, self.capacity)
            sector = sector // 8 * 8
            sectors = end - sector
        super().zero(kind, sector, sectors, unmap=unmap)


class ZeroesOneSector(RamDisk):
    """Takes no notice of num_sectors in write zeroes."""

    def zero(self, kind: int, sector: int, sectors: int, *, unmap: bool) -> None:
        super().zero(kind, sector, min(sectors, 1) if kind == 13 else sectors, unmap=unmap)


class ZeroesOneSectorMore(RamDisk):
    """Zeroes the sector behind the segment, too."""

    def zero(self, kind: int, sector: int, sectors: int, *, unmap: bool) -> None:
        more = kind == 13 and not self.is_beyond(sector, sectors + 1)
        super().zero(kind, sector, sectors + more, unmap=unmap)


class FillsWithOnes(RamDisk):
    """Has 0xff in what was zeroed."""

    def zero(self, kind: int, sector: int, sectors: int, *, unmap: bool) -> None:
        self.put(sector * SECTOR, b"\xff" * (sectors * SECTOR))


# The device ID string, statuses, lengths


class HasALongIdentity(RamDisk):
    """Writes all of an ID of more than 20 bytes."""

    serial = b"a string of more than 20 bytes"


class HasNoEndOfItsIdentity(RamDisk):
    """Has what it likes behind the ID and its NUL."""

    def identity(self) -> bytes:
        return (self.serial + b"\0").ljust(20, b"x")


class HasAnIdentityInUtf8(RamDisk):
    """Has letters that are not in ASCII."""

    serial = "Plätte".encode()


class ChangesItsIdentity(RamDisk):
    """Makes an ID up each time."""

    def identity(self) -> bytes:
        return random.randbytes(10).hex().encode()


class WritesNoStatus(RamDisk):
    """Leaves the status of a flush as it was."""

    def execute(
        self, queue: int, kind: int, sector: int, data_out: Buffers, data_in: Buffers
    ) -> int | None:
        code = super().execute(queue, kind, sector, data_out, data_in)
        return None if kind == RequestType.FLUSH else code


class HasErrno(RamDisk):
    """Answers with an error number of its own."""

    def do_read(self, queue: int, sector: int, data_in: Buffers) -> int:
        return 22 if self.is_beyond(sector, 0) else super().do_read(queue, sector, data_in)


class HasUsedLengthOne(RamDisk):
    """Counts the status, and not the data."""

    def used_length(self, room: int) -> int:
        return 1


# Read-only disks


class WritesThoughItSaysReadOnly(ReadOnlyDisk):
    """Offers RO, and writes."""

    def do_write(self, queue: int, sector: int, data_out: Buffers) -> int:
        return RamDisk.do_write(self, queue, sector, data_out)


class RefusesAndWrites(ReadOnlyDisk):
    """Answers a write with an error, and does it."""

    def do_write(self, queue: int, sector: int, data_out: Buffers) -> int:
        RamDisk.do_write(self, queue, sector, data_out)
        return Status.IOERR


class IsUnsupported(ReadOnlyDisk):
    """Says of a write that it is unsupported."""

    def do_write(self, queue: int, sector: int, data_out: Buffers) -> int:
        return Status.UNSUPP


class WithoutFlush(RamDisk):
    """Offers no FLUSH."""

    features = RamDisk.features & ~feature_mask([BlkFeature.VIRTIO_BLK_F_FLUSH])


def disks(sound: type[RamDisk], broken: Iterable[tuple[str, type[RamDisk]]]) -> Iterator[Mutant]:
    """Yield a mutant for each statement and class that breaks it."""
    for clause, kind in broken:
        yield Mutant(kind.__name__, clause, kind, sound)


CAPACITY, BEYOND, DATA, FRAMING = "5.2.4:1", "5.2.6:2", "5.2.6:1", "2.7.4.1:1"

MUTANTS = [
    *disks(
        RamDisk,
        [
            (CAPACITY, SaysBigEndian),
            (CAPACITY, SaysTwiceItsSize),
            (CAPACITY, SaysBytes),
            (CAPACITY, RefusesItsLastSector),
            (CAPACITY, HasNoFirstSector),
            ("5.2.6.2:2", ShrinksInSilence),
            ("5.2.4:2", CountsItsQueuesWrong),
            ("5.2.4:2", HasBlocksOfNothing),
            ("5.2.4:2", HasOddBlocks),
            ("5.2.4:2", MayDiscardNothing),
            (BEYOND, ReadsOneSectorMore),
            (BEYOND, WritesOneSectorMore),
            (BEYOND, HasNoEnd),
            (BEYOND, GoesRound),
            (BEYOND, ChecksTheFirstSectorOnly),
            (BEYOND, ChecksAfterTheOverflow),
            (BEYOND, ChecksIn32Bits),
            (BEYOND, ZeroesBeyondItsEnd),
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
            ("5.2.3:1", RefusesFlush),
            ("5.2.3:2", RefusesDiscard),
            ("5.2.3:3", TakesOneSegmentOnly),
            ("5.2.6:5", DiscardZeroesTheNeighbours),
            ("5.2.6.2:9", ZeroesOneSector),
            ("5.2.6:5", ZeroesOneSectorMore),
            ("5.2.6.2:9", FillsWithOnes),
            ("5.2.6:3", HasALongIdentity),
            ("5.2.6:3", HasNoEndOfItsIdentity),
            ("5.2.6:3", HasAnIdentityInUtf8),
            ("5.2.6:3", ChangesItsIdentity),
            ("5.2.6:4", WritesNoStatus),
            ("5.2.6:4", HasErrno),
            ("2.6:2", HasUsedLengthOne),
            ("5.2.5.2:1", WithoutFlush),
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
    *disks(
        ReadOnlyDisk,
        [
            ("5.2.6.2:3", WritesThoughItSaysReadOnly),
            ("5.2.6.2:4", RefusesAndWrites),
            ("5.2.6.2:3", IsUnsupported),
        ],
    ),
]
