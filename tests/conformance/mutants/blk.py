"""Block devices with a fault."""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

from tests.conformance.faults import HostProxy, Proxy, faulty
from tests.conformance.mutants import Mutant, mutants
from virtiopy.conformance.targets.builders import build_blk, build_readonly_blk
from virtiopy.devices.base import DeviceHost
from virtiopy.devices.blk import (
    FLAG_UNMAP,
    ID_BYTES,
    SECTOR_SIZE,
    Blk,
    BlkFeature,
    Request,
    RequestError,
    RequestType,
    Status,
)
from virtiopy.devices.disk import Disk
from virtiopy.eventloop import EventLoop
from virtiopy.spec import feature_mask
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, total

#: struct virtio_blk_discard_write_zeroes (5.2.6), and where its flags are.
SEGMENT, FLAGS = 16, slice(12, 16)


class _Offering(Blk):
    """Offers more feature bits, or fewer."""

    more: ClassVar[Sequence[int]] = ()
    fewer: ClassVar[Sequence[int]] = ()

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        self.features = (self.features | feature_mask(self.more)) & ~feature_mask(self.fewer)
        super().attach(host, loop, may_block=may_block)


class _OnDisk(Blk):
    """Has a disk with a fault."""

    fault: ClassVar[type[Proxy]]

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        self.disk = faulty(self.disk, self.fault)
        super().attach(host, loop, may_block=may_block)


# Features and the configuration space (5.2.5.2)


class OffersNoFlush(_Offering):
    """Offers CONFIG_WCE without FLUSH."""

    fewer = (BlkFeature.VIRTIO_BLK_F_FLUSH,)


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


class OffersZoned(_Offering):
    """Says that it is host-managed, and knows no zones."""

    more = (BlkFeature.VIRTIO_BLK_F_ZONED,)

    def config_space(self) -> bytes:
        config = bytearray(super().config_space().ljust(96, b"\0"))
        config[92] = 1
        return bytes(config)


class LegacyTransport(MmioTransport):
    """Registers of a legacy device: there is no VERSION_1."""

    word = 0

    def write(self, offset: int, data: bytes) -> None:
        super().write(offset, data)
        if offset == Register.DeviceFeaturesSel:
            self.word = int.from_bytes(data, "little")

    def read(self, offset: int, size: int) -> bytes:
        value = super().read(offset, size)
        if offset == Register.DeviceFeatures and self.word == 1:
            return bytes([value[0] & ~1, *value[1:]])
        return value


# Requests (5.2.6.2)


class _SmallDisk(Proxy):
    """Does nothing beyond the size that it began with."""

    def __init__(self, real: Disk) -> None:
        super().__init__(real)
        self.first_size = real.size

    def check(self, offset: int, buffers: Buffers) -> None:
        if offset + total(buffers) > self.first_size:
            raise OSError(errno.EIO, "beyond what it was")

    def read_cached(self, offset: int, buffers: Buffers) -> bool:
        return False

    def read(self, offset: int, buffers: Buffers) -> None:
        self.check(offset, buffers)
        self.real.read(offset, buffers)

    def write(self, offset: int, buffers: Buffers, *, stable: bool = False) -> None:
        self.check(offset, buffers)
        self.real.write(offset, buffers, stable=stable)


class StaysSmall(_OnDisk):
    """Has a new capacity told, and does not use it."""

    fault = _SmallDisk


class _SilentHost(HostProxy):
    def config_changed(self, *, notify: bool = True) -> None:
        """Say nothing."""


class GrowsInSilence(Blk):
    """Has a new capacity, and does not say so."""

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        super().attach(faulty(host, _SilentHost), loop, may_block=may_block)


class TakesWritesInSilence(Blk):
    """Says that a write to a read-only disk was done."""

    def execute(self, request: Request) -> int:
        return 0 if request.type == RequestType.OUT else super().execute(request)


class WritesThoughReadOnly(_Offering):
    """Says that a disk is read-only, and has an error for a write, which is done."""

    more = (BlkFeature.VIRTIO_BLK_F_RO,)

    def execute(self, request: Request) -> int:
        done = super().execute(request)
        if request.type == RequestType.OUT:
            raise RequestError(Status.IOERR, "read-only")
        return done


class _Forgiving(Blk):
    """Does not look at flags of segments, of requests of these types."""

    types: ClassVar[Sequence[int]] = (RequestType.DISCARD, RequestType.WRITE_ZEROES)

    def forgiven(self, request: Request, number: int) -> int:
        """Return the flags of a segment that are not looked at."""
        known = FLAG_UNMAP if request.type == RequestType.WRITE_ZEROES else 0
        return 0xFFFF_FFFF & ~known

    def execute(self, request: Request) -> int:
        if request.type not in self.types:
            return super().execute(request)
        data = bytearray(gather(request.data_out))
        for number, start in enumerate(range(0, len(data), SEGMENT)):
            segment = memoryview(data)[start : start + SEGMENT]
            flags = int.from_bytes(segment[FLAGS], "little") & ~self.forgiven(request, number)
            scatter([segment[FLAGS]], flags.to_bytes(4, "little"))
        return super().execute(replace(request, data_out=[memoryview(data)]))


class KnowsAllFlags(_Forgiving):
    """Does not look at the flags of segments."""


class LooksAtTheFirstSegment(_Forgiving):
    """Looks at the flags of the first segment alone."""

    def forgiven(self, request: Request, number: int) -> int:
        return super().forgiven(request, number) if number else 0


class DiscardsWithUnmap(_Forgiving):
    """Takes the unmap flag of a discard."""

    types = (RequestType.DISCARD,)

    def forgiven(self, request: Request, number: int) -> int:
        return FLAG_UNMAP


class _GreedyDisk(Proxy):
    def discard(self, offset: int, length: int) -> None:
        self.real.write_zeroes(offset, length + SECTOR_SIZE, unmap=True)


class DiscardsTooMuch(_OnDisk):
    """Discards the sector after the segment as well."""

    fault = _GreedyDisk


class _CoarseDisk(Proxy):
    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        end = offset + length
        if unmap:
            offset, end = offset // 4096 * 4096, -(-end // 4096) * 4096
        self.real.write_zeroes(offset, end - offset, unmap=unmap)


class ZeroesTooMuch(_OnDisk):
    """Zeroes the whole 4 KiB that a segment is in, with unmap."""

    fault = _CoarseDisk


class _IdleDisk(Proxy):
    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        if not unmap:
            self.real.write_zeroes(offset, length, unmap=unmap)


class ZeroesNothingWithUnmap(_OnDisk):
    """Takes write zeroes with unmap for a discard, which may do nothing."""

    fault = _IdleDisk


class SaysThatItNeverUnmaps(Blk):
    """Gives storage up, and says that it does not."""

    def config_space(self) -> bytes:
        config = bytearray(super().config_space())
        config[56] = 0
        return bytes(config)


class _VolatileDisk(Proxy):
    def flush(self) -> None:
        """Leave what was written where it is."""


class FlushesNothing(_OnDisk):
    """Completes a flush at once."""

    fault = _VolatileDisk


class _LazyDisk(Proxy):
    def write(self, offset: int, buffers: Buffers, *, stable: bool = False) -> None:
        self.real.write(offset, buffers)


class IsNeverWritethrough(_OnDisk):
    """Leaves every write to a flush, whatever writeback says."""

    fault = _LazyDisk


class KnowsSomeZoneRequests(Blk):
    """Resets zones that it does not have."""

    def execute(self, request: Request) -> int:
        return 0 if request.type == 24 else super().execute(request)


class WritesLessThanItSays(Blk):
    """Leaves what is after the end of its ID as it was."""

    def execute(self, request: Request) -> int:
        if request.type != RequestType.GET_ID:
            return super().execute(request)
        scatter(request.data_in, self.serial + b"\0")
        return ID_BYTES


# Lifetime metrics: no disk here has any, so the sound device has them made up


class WithLifetime(_Offering):
    """Has lifetime metrics: pre_eol_info and both estimates."""

    more = (BlkFeature.VIRTIO_BLK_F_LIFETIME,)
    metrics: ClassVar[Mapping[str, int]] = {"pre_eol_info": 1, "typ_a": 2, "typ_b": 11}

    def execute(self, request: Request) -> int:
        if request.type != RequestType.GET_LIFETIME:
            return super().execute(request)
        return self.lifetime(request.data_in)

    def lifetime(self, data: Buffers) -> int:
        return scatter(data, b"".join(n.to_bytes(2, "little") for n in self.metrics.values()))


class HasNoLifetime(WithLifetime):
    """Offers metrics that it cannot tell."""

    metrics: ClassVar[Mapping[str, int]] = {"pre_eol_info": 0, "typ_a": 0, "typ_b": 0}


class RefusesLifetime(WithLifetime):
    """Offers metrics, and does not know the request."""

    def lifetime(self, data: Buffers) -> int:
        raise RequestError(Status.UNSUPP, "GET_LIFETIME")


class HasReservedLifetime(WithLifetime):
    """Says how worn it is in percent."""

    metrics: ClassVar[Mapping[str, int]] = {"pre_eol_info": 1, "typ_a": 2, "typ_b": 12}


MUTANTS = [
    *mutants(
        build_blk,
        [
            ("5.2.5.2:2", OffersNoFlush),
            ("5.2.5.2:3", KeepsWriteback),
            ("5.2.5.2:4", HasStalePadding),
            ("5.2.5.2:5", OffersZoned),
            ("5.2.4:1", StaysSmall),
            ("5.2.6.2:2", GrowsInSilence),
            ("5.2.6.2:5", KnowsAllFlags),
            ("5.2.6.2:5", LooksAtTheFirstSegment),
            ("5.2.6.2:6", DiscardsWithUnmap),
            ("5.2.6:5", DiscardsTooMuch),
            ("5.2.6:5", ZeroesTooMuch),
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
