"""Zoned block devices with a fault; the sound one is tests.conformance.zoned's."""

from tests.conformance.mutants import mutants
from tests.conformance.zoned import HostAwareBlk, Zone, ZonedBlk, build_zoned
from virtiopy.conformance.drivers.zones import ZoneState
from virtiopy.devices.blk import Blk, Request


class TakesAnyDriver(ZonedBlk):
    """Takes drivers that know no zones."""

    def accepts(self, driver_features: int) -> bool:
        return True


class ShowsItsZonesToAnybody(HostAwareBlk):
    """Has the fields of a zoned device for drivers that know no zones."""

    def config_space(self) -> bytes:
        return ZonedBlk.config_space(self)


class AppendsAllTheSame(HostAwareBlk):
    """Appends though max_append_sectors is 0."""

    def append(self, request: Request) -> int:
        return 8


class HasMoreZonesThanItSays(ZonedBlk):
    """Says that it has larger zones."""

    def config_space(self) -> bytes:
        config = bytearray(super().config_space())
        config[72] *= 2
        return bytes(config)


class HasNoLimit(ZonedBlk):
    """Opens zones without counting them."""

    def open_zone(self, zone: Zone, state: ZoneState) -> None:
        zone.state = state


class WritesAnywhere(ZonedBlk):
    """Moves the write pointer to where a write is."""

    def check_write(self, sector: int, sectors: int, *, append: bool = False) -> None:
        zone = self.zone_of(sector)
        if not append and zone.state in {ZoneState.EMPTY, ZoneState.IOPEN}:
            zone.write_pointer = sector
        super().check_write(sector, sectors, append=append)


class ForgetsWhereItAppended(ZonedBlk):
    """Has the zone's first sector in append_sector."""

    def append(self, request: Request) -> int:
        written = super().append(request)
        request.data_in[0][:8] = request.sector.to_bytes(8, "little")
        return written


class ReadsWhatWasThere(ZonedBlk):
    """Reads old data beyond the write pointer."""

    def read(self, request: Request) -> int:
        return Blk.execute(self, request)


MUTANTS = [
    *mutants(
        build_zoned,
        [
            ("5.2.5.2:8", TakesAnyDriver),
            ("5.2.5.2:10", HasMoreZonesThanItSays),
            ("5.2.5.2:12", HasNoLimit),
            ("5.2.6.2:22", HasNoLimit),
            ("5.2.6.2:26", HasNoLimit),
            ("5.2.6.2:29", ForgetsWhereItAppended),
            ("5.2.6.2:33", WritesAnywhere),
            ("5.2.6.2:36", ReadsWhatWasThere),
            ("5.2.6.2:37", ReadsWhatWasThere),
        ],
    ),
    *mutants(
        build_zoned,
        [
            ("5.2.5.2:7", ShowsItsZonesToAnybody),
            ("5.2.6.2:30", AppendsAllTheSame),
        ],
        HostAwareBlk,
    ),
]
