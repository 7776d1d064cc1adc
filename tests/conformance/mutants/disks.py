"""Disks that say what is not so, or carry a request out that they should not: one fault each."""

import random
import struct
from collections.abc import Iterable, Iterator

from tests.conformance.mutants import Mutant
from tests.conformance.ramdisk import SECTOR, RamDisk, ReadOnlyDisk
from virtiopy.devices.blk import BlkFeature, RequestType, Status
from virtiopy.spec import feature_mask
from virtiopy.virtqueue.buffers import Buffers
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


CAPACITY, BEYOND = "5.2.4:1", "5.2.6:2"

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
        ReadOnlyDisk,
        [
            ("5.2.6.2:3", WritesThoughItSaysReadOnly),
            ("5.2.6.2:4", RefusesAndWrites),
            ("5.2.6.2:3", IsUnsupported),
        ],
    ),
]
