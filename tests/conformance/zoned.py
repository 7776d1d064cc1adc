"""A host-managed zoned block device (5.2), made of a disk in memory: no device here is zoned.

It is what the tests of zoned devices are tried on.
"""

import struct
from dataclasses import dataclass

from tests.conformance.faults import Proxy, faulty
from virtiopy.conformance.drivers.blk import SECTOR, ZONE_TYPES, Zoned
from virtiopy.conformance.drivers.zones import ACTIVE, OPEN, ZoneState, ZoneStatus, ZoneType
from virtiopy.conformance.targets.builders import Rig
from virtiopy.conformance.targets.disks import BlkHost
from virtiopy.devices.blk import Blk, BlkFeature, Request, RequestError, RequestType, Status
from virtiopy.devices.disk import Disk
from virtiopy.spec import feature_mask, has_feature
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, total

ZONED = BlkFeature.VIRTIO_BLK_F_ZONED

NAMES = {kind: name.removeprefix("ZONE_") for name, kind in ZONE_TYPES.items()}


class ZoneError(Exception):
    """A request that is answered with a status of zoned devices."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


INVALID = ZoneError(ZoneStatus.INVALID_CMD)


@dataclass
class Zone:
    start: int
    type: ZoneType
    state: ZoneState
    write_pointer: int


class UncachedDisk(Proxy):
    """A disk that has nothing in memory: `execute` looks at every read."""

    def read_cached(self, offset: int, buffers: Buffers) -> bool:
        return False


class ZonedBlk(Blk):
    """64 zones of 64 sectors, all but the first two to be written in sequence.

    Zone 2 can only be read, zone 3 is offline.
    """

    model = Zoned.HM
    sequential = ZoneType.SWR
    size = 64
    capacity = 56
    max_open = 3
    max_active = 4
    max_append = 16

    def __init__(self, disk: Disk) -> None:
        super().__init__(faulty(disk, UncachedDisk))
        self.features |= feature_mask([ZONED, BlkFeature.VIRTIO_BLK_F_SECURE_ERASE])
        self.forget()

    def forget(self) -> None:
        """Have all zones as they were at first."""
        self.zones = [
            Zone(start, self.sequential, ZoneState.EMPTY, start)
            for start in range(0, self.disk.size // SECTOR, self.size)
        ]
        for zone in self.zones[:2]:
            zone.type, zone.state = ZoneType.CONV, ZoneState.NOT_WP
        self.zones[2].state = ZoneState.RDONLY
        self.zones[3].state = ZoneState.OFFLINE

    def accepts(self, driver_features: int) -> bool:
        return has_feature(driver_features, ZONED)

    def config_space(self) -> bytes:
        limits = self.size, self.max_open, self.max_active, self.max_append, SECTOR, self.model
        erase = 1 << 20, 1, self.size
        return super().config_space()[:60] + struct.pack("<3I5IB3x", *erase, *limits)

    # Requests

    def execute(self, request: Request) -> int:
        try:
            if (name := NAMES.get(request.type)) is not None:
                return self.zone_request(name, request)
            if request.type == RequestType.SECURE_ERASE:
                return self.erase(request)
            if request.type == RequestType.OUT:
                self.check_write(request.sector, total(request.data_out) // SECTOR)
            if request.type == RequestType.IN:
                return self.read(request)
        except ZoneError as error:
            raise RequestError(error.status, "zones") from error  # type: ignore[arg-type]
        return super().execute(request)

    def zone_of(self, sector: int, *, first: bool = False) -> Zone:
        if sector // self.size >= len(self.zones) or (first and sector % self.size):
            raise INVALID
        return self.zones[sector // self.size]

    def zone_request(self, name: str, request: Request) -> int:
        if name == "REPORT":
            return self.report(request)
        if name == "APPEND":
            return self.append(request)
        if name == "RESET_ALL":
            for zone in self.zones:
                if zone.state in {*ACTIVE, ZoneState.FULL}:
                    self.reset_zone(zone)
            return 0
        zone = self.zone_of(request.sector, first=True)
        if zone.state in {ZoneState.NOT_WP, ZoneState.RDONLY, ZoneState.OFFLINE}:
            raise INVALID
        if name == "RESET":
            self.reset_zone(zone)
        elif name == "FINISH":
            zone.state = ZoneState.FULL
        elif name == "OPEN":
            if zone.state is ZoneState.FULL:
                raise INVALID
            self.open_zone(zone, ZoneState.EOPEN)
        elif name == "CLOSE":
            if zone.state not in ACTIVE:
                raise INVALID
            written = zone.write_pointer > zone.start
            zone.state = ZoneState.CLOSED if written else ZoneState.EMPTY
        return 0

    def reset_zone(self, zone: Zone) -> None:
        zone.state, zone.write_pointer = ZoneState.EMPTY, zone.start

    def open_zone(self, zone: Zone, state: ZoneState) -> None:
        if zone.state in OPEN:
            zone.state = max(zone.state, state)
            return
        if zone.state not in ACTIVE and self.count(ACTIVE) >= self.max_active:
            raise ZoneError(ZoneStatus.ACTIVE_RESOURCE)
        if self.count(OPEN) >= self.max_open:
            other = next((one for one in self.zones if one.state is ZoneState.IOPEN), None)
            if other is None:
                raise ZoneError(ZoneStatus.OPEN_RESOURCE)
            other.state = ZoneState.CLOSED
        zone.state = state

    def count(self, states: set[ZoneState]) -> int:
        return sum(zone.state in states for zone in self.zones)

    def report(self, request: Request) -> int:
        first = request.sector // self.size
        most = (total(request.data_in) - 64) // 64
        zones = self.zones[first : first + most]
        data = struct.pack("<Q56x", len(zones)) + b"".join(
            struct.pack(
                "<QQQBB38x", self.capacity, zone.start, zone.write_pointer, zone.type, zone.state
            )
            for zone in zones
        )
        return scatter(request.data_in, data)

    def check_write(self, sector: int, sectors: int, *, append: bool = False) -> None:
        """See that a write may be done, and move the write pointer."""
        zone = self.zone_of(sector)
        if zone.state in {ZoneState.RDONLY, ZoneState.OFFLINE}:
            raise INVALID
        if zone.type is ZoneType.CONV:
            return
        sector = zone.write_pointer if append else sector
        if sector + sectors > zone.start + self.capacity:
            raise INVALID
        if sector != zone.write_pointer and zone.type is ZoneType.SWR:
            raise ZoneError(ZoneStatus.UNALIGNED_WP)
        self.open_zone(zone, ZoneState.IOPEN)
        zone.write_pointer = max(zone.write_pointer, sector + sectors)
        if zone.write_pointer == zone.start + self.capacity:
            zone.state = ZoneState.FULL

    def append(self, request: Request) -> int:
        sectors = total(request.data_out) // SECTOR
        if not self.max_append:
            raise RequestError(Status.UNSUPP, "append")
        zone = self.zone_of(request.sector, first=True)
        if zone.type is ZoneType.CONV or sectors > self.max_append:
            raise INVALID
        at = zone.write_pointer
        self.check_write(zone.start, sectors, append=True)
        self.disk.write(at * SECTOR, [memoryview(gather(request.data_out))])
        return scatter(request.data_in, at.to_bytes(8, "little"))

    def read(self, request: Request) -> int:
        sectors = total(request.data_in) // SECTOR
        zone = self.zone_of(request.sector)
        if zone.state is ZoneState.OFFLINE:
            raise INVALID
        if zone.type is ZoneType.CONV or not sectors:
            return super().execute(request)
        if request.sector + sectors > zone.start + self.size:
            raise INVALID
        super().execute(request)
        data = bytearray(gather(request.data_in))
        written = max(0, zone.write_pointer - request.sector) * SECTOR
        data[written:] = b"\x77" * len(data[written:])
        return scatter(request.data_in, bytes(data))

    def erase(self, request: Request) -> int:
        sector, sectors, flags = struct.unpack("<QII", gather(request.data_out)[:16])
        if flags:
            raise RequestError(Status.UNSUPP, "flags")
        if sectors % self.size:
            raise INVALID
        for start in range(sector, sector + sectors, self.size):
            self.reset_zone(self.zone_of(start, first=True))
        return 0


class HostAwareBlk(ZonedBlk):
    """Zones that may be written in any order, and not appended to; no driver has to know them."""

    model = Zoned.HA
    sequential = ZoneType.SWP
    max_append = 0

    def accepts(self, driver_features: int) -> bool:
        return True

    def config_space(self) -> bytes:
        config = super().config_space()
        return config if has_feature(self.driver_features, ZONED) else config[:72] + bytes(24)


def build_host_aware() -> Rig:
    """Make a host-aware device."""
    return build_zoned(HostAwareBlk)


def build_zoned(kind: type[ZonedBlk] = ZonedBlk) -> Rig:
    """Make a zoned device, for tests of its own: they are those that negotiate ZONED."""
    host = BlkHost()
    device = kind(host.open())
    host.attach(device)
    return Rig(device, host)
