"""Block devices with a fault."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from tests.conformance.mutants import Mutant, mutants
from virtiopy.conformance.targets.builders import (
    build_blk,
    build_readonly_blk,
)
from virtiopy.devices.blk import (
    FLAG_UNMAP,
    ID_BYTES,
    SECTOR_SIZE,
    Blk,
    BlkFeature,
    Request,
    RequestError,
    Segment,
    Status,
)
from virtiopy.spec import feature_mask
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.buffers import Buffers, scatter, total

# Features and the configuration space (5.2.5.2)


class OffersNoFlush(Blk):
    """Offers CONFIG_WCE without FLUSH."""

    def _offer(self, num_queues: int) -> int:
        return super()._offer(num_queues) & ~feature_mask([BlkFeature.VIRTIO_BLK_F_FLUSH])


class KeepsWriteback(Blk):
    """Leaves writeback as it is, whether or not the driver can flush."""

    def negotiated(self, driver_features: int) -> None:
        self.driver_features = driver_features


class HasStalePadding(Blk):
    """Leaves what it likes in unused1."""

    def config_space(self) -> bytes:
        config = bytearray(super().config_space())
        config[58] = 0xEE
        return bytes(config)


class OffersZoned(Blk):
    """Says that it is host-managed, and knows no zones."""

    def _offer(self, num_queues: int) -> int:
        return super()._offer(num_queues) | feature_mask([BlkFeature.VIRTIO_BLK_F_ZONED])

    def config_space(self) -> bytes:
        config = bytearray(super().config_space().ljust(96, b"\0"))
        config[92] = 1
        return bytes(config)


class LegacyTransport(MmioTransport):
    """Registers of a legacy device: there is no VERSION_1."""

    def read(self, offset: int, size: int) -> bytes:
        value = super().read(offset, size)
        if offset == Register.DeviceFeatures and self._device_features_sel == 1:
            return bytes([value[0] & ~1, *value[1:]])
        return value


# Requests (5.2.6.2)


class StaysSmall(Blk):
    """Has a new capacity told, and does not use it."""

    def _check_range(self, sector: int, num_sectors: int) -> None:
        if sector + num_sectors > 4096:
            raise RequestError(Status.IOERR, "beyond what it was")


class GrowsInSilence(Blk):
    """Has a new capacity, and does not say so."""

    def capacity_changed(self) -> None:
        self.disk.measure()
        self._config[:8] = (self.disk.size // SECTOR_SIZE).to_bytes(8, "little")


class TakesWritesInSilence(Blk):
    """Says that a write to a read-only disk was done."""

    def _out(self, request: Request) -> int:
        return 0


class WritesThoughReadOnly(Blk):
    """Says that a disk is read-only, and has an error for a write, which is done."""

    def _offer(self, num_queues: int) -> int:
        return super()._offer(num_queues) | feature_mask([BlkFeature.VIRTIO_BLK_F_RO])

    def _out(self, request: Request) -> int:
        super()._out(request)
        raise RequestError(Status.IOERR, "read-only")


class KnowsAllFlags(Blk):
    """Does not look at the flags of segments."""

    def _segments(
        self, request: Request, most: int, most_sectors: int, *, known_flags: int
    ) -> list[Segment]:
        return super()._segments(request, most, most_sectors, known_flags=0xFFFF_FFFF)


class LooksAtTheFirstSegment(Blk):
    """Looks at the flags of the first segment alone."""

    def _segments(
        self, request: Request, most: int, most_sectors: int, *, known_flags: int
    ) -> list[Segment]:
        segments = super()._segments(request, most, most_sectors, known_flags=0xFFFF_FFFF)
        if segments[0].flags & ~known_flags:
            raise RequestError(Status.UNSUPP, "a flag")
        return segments


class DiscardsWithUnmap(Blk):
    """Takes the unmap flag of a discard."""

    def _segments(
        self, request: Request, most: int, most_sectors: int, *, known_flags: int
    ) -> list[Segment]:
        known = known_flags | FLAG_UNMAP
        return super()._segments(request, most, most_sectors, known_flags=known)


class DiscardsTooMuch(Blk):
    """Discards the sector after the segment as well."""

    def _discard(self, request: Request) -> int:
        segments = self._segments(request, 64, 1 << 22, known_flags=0)
        for one in segments:
            self.disk.write_zeroes(
                one.sector * SECTOR_SIZE, (one.num_sectors + 1) * SECTOR_SIZE, unmap=True
            )
        return 0


class ZeroesTooMuch(Blk):
    """Zeroes the whole 4 KiB that a segment is in, with unmap."""

    def _write_zeroes(self, request: Request) -> int:
        for one in self._segments(request, 16, 1 << 17, known_flags=FLAG_UNMAP):
            start = one.sector // 8 * 8
            end = -(-(one.sector + one.num_sectors) // 8) * 8
            unmap = bool(one.flags & FLAG_UNMAP)
            if not unmap:
                start, end = one.sector, one.sector + one.num_sectors
            self.disk.write_zeroes(start * SECTOR_SIZE, (end - start) * SECTOR_SIZE, unmap=unmap)
        return 0


class ZeroesNothingWithUnmap(Blk):
    """Takes write zeroes with unmap for a discard, which may do nothing."""

    def _write_zeroes(self, request: Request) -> int:
        segments = self._segments(request, 16, 1 << 17, known_flags=FLAG_UNMAP)
        if any(one.flags & FLAG_UNMAP for one in segments):
            return 0
        return super()._write_zeroes(request)


class SaysThatItNeverUnmaps(Blk):
    """Gives storage up, and says that it does not."""

    def config_space(self) -> bytes:
        config = bytearray(super().config_space())
        config[56] = 0
        return bytes(config)


class FlushesNothing(Blk):
    """Completes a flush at once."""

    def _flush(self, request: Request) -> int:
        return 0


class IsNeverWritethrough(Blk):
    """Leaves every write to a flush, whatever writeback says."""

    def _out(self, request: Request) -> int:
        self._check_writable()
        offset = self._check_data(request.sector, total(request.data_out))
        self.disk.write(offset, request.data_out)
        return 0


class KnowsSomeZoneRequests(Blk):
    """Resets zones that it does not have."""

    def execute(self, request: Request) -> int:
        return 0 if request.type == 24 else super().execute(request)


class WritesLessThanItSays(Blk):
    """Leaves what is after the end of its ID as it was."""

    def _get_id(self, request: Request) -> int:
        scatter(request.data_in, self.serial + b"\0")
        return ID_BYTES


# Lifetime metrics: no disk here has any, so the sound device has them made up


class WithLifetime(Blk):
    """Has lifetime metrics: pre_eol_info and both estimates."""

    metrics: ClassVar[Mapping[str, int]] = {"pre_eol_info": 1, "typ_a": 2, "typ_b": 11}

    def _offer(self, num_queues: int) -> int:
        return super()._offer(num_queues) | feature_mask([BlkFeature.VIRTIO_BLK_F_LIFETIME])

    def execute(self, request: Request) -> int:
        return self._lifetime(request.data_in) if request.type == 10 else super().execute(request)

    def _lifetime(self, data: Buffers) -> int:
        return scatter(data, b"".join(n.to_bytes(2, "little") for n in self.metrics.values()))


class HasNoLifetime(WithLifetime):
    """Offers metrics that it cannot tell."""

    metrics: ClassVar[Mapping[str, int]] = {"pre_eol_info": 0, "typ_a": 0, "typ_b": 0}


class RefusesLifetime(WithLifetime):
    """Offers metrics, and does not know the request."""

    def _lifetime(self, data: Buffers) -> int:
        raise RequestError(Status.UNSUPP, "GET_LIFETIME")


class HasReservedLifetime(WithLifetime):
    """Says how worn it is in percent."""

    metrics: ClassVar[Mapping[str, int]] = {"pre_eol_info": 1, "typ_a": 2, "typ_b": 12}


MUTANTS = [
    *mutants(
        build_blk,
        [
            ("5.2.5.2:1", OffersNoFlush),
            ("5.2.5.2:2", OffersNoFlush),
            ("5.2.5.2:3", KeepsWriteback),
            ("5.2.5.2:4", HasStalePadding),
            ("5.2.5.2:5", OffersZoned),
            ("5.2.6.2:1", StaysSmall),
            ("5.2.6.2:2", GrowsInSilence),
            ("5.2.6.2:5", KnowsAllFlags),
            ("5.2.6.2:5", LooksAtTheFirstSegment),
            ("5.2.6.2:6", DiscardsWithUnmap),
            ("5.2.6.2:7", DiscardsTooMuch),
            ("5.2.6.2:8", ZeroesTooMuch),
            ("5.2.6.2:9", ZeroesNothingWithUnmap),
            ("5.2.6.2:10", SaysThatItNeverUnmaps),
            ("5.2.6.2:13", FlushesNothing),
            ("5.2.6.2:13", IsNeverWritethrough),
            ("5.2.6.2:18", KnowsSomeZoneRequests),
            ("2.7.8.2:2", WritesLessThanItSays),
        ],
    ),
    *mutants(
        build_readonly_blk,
        [("5.2.6.2:3", TakesWritesInSilence)],
    ),
    Mutant(
        "WritesThoughReadOnly",
        "5.2.6.2:4",
        broken=partial(build_blk, WritesThoughReadOnly),
        sound=build_readonly_blk,
    ),
    Mutant(
        "OffersZoned",
        "5.2.5.2:6",
        broken=partial(build_blk, OffersZoned),
        sound=build_blk,
        transport=LegacyTransport,
    ),
    *mutants(
        build_blk,
        [
            ("5.2.6.2:16", HasNoLifetime),
            ("5.2.6.2:16", RefusesLifetime),
            ("5.2.6.2:17", HasReservedLifetime),
        ],
        WithLifetime,
    ),
]
