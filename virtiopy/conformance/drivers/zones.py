"""The zones of a zoned block device, as its driver has them (5.2.6)."""

import enum
from dataclasses import dataclass

from virtiopy.conformance.drivers.blk import (
    SECTOR,
    ZONE_TYPES,
    Answer,
    BlkDriver,
    Field,
    Status,
    Type,
    Zoned,
    pattern,
)
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.spec import Feature

ZONED = "VIRTIO_BLK_F_ZONED"

#: Bytes of the header of a zone report, and of a zone in it.
_HEADER = 64
_DESCRIPTOR = 64

#: Sectors of the largest zone that is written as a whole.
_SMALL = 4096

#: How many zones one request reports.
_ZONES = 16


class ZoneStatus(enum.IntEnum):
    """VIRTIO_BLK_S_ZONE_*."""

    INVALID_CMD = 3
    UNALIGNED_WP = 4
    OPEN_RESOURCE = 5
    ACTIVE_RESOURCE = 6


#: What a request gets that needs more open or active zones than there may be.
NO_RESOURCE = {ZoneStatus.OPEN_RESOURCE, ZoneStatus.ACTIVE_RESOURCE}


class ZoneType(enum.IntEnum):
    """VIRTIO_BLK_ZT_*."""

    CONV = 1
    SWR = 2
    SWP = 3


class ZoneState(enum.IntEnum):
    """VIRTIO_BLK_ZS_*."""

    NOT_WP = 0
    EMPTY = 1
    IOPEN = 2
    EOPEN = 3
    CLOSED = 4
    RDONLY = 13
    FULL = 14
    OFFLINE = 15


#: States that take one of the open zones, and of the active ones, that there may be.
OPEN = {ZoneState.IOPEN, ZoneState.EOPEN}
ACTIVE = {*OPEN, ZoneState.CLOSED}


@dataclass(slots=True, frozen=True)
class Zone:
    """struct virtio_blk_zone_descriptor; in sectors."""

    capacity: int
    start: int
    write_pointer: int
    type: int
    state: int

    @classmethod
    def parse(cls, data: bytes) -> "Zone":
        """Read one."""
        capacity, start, pointer = (
            int.from_bytes(data[at : at + 8], "little") for at in (0, 8, 16)
        )
        return cls(capacity, start, pointer, data[24], data[25])


class Zones:
    """The zones of a device that is started with ZONED, and whose zones are all reset."""

    def __init__(self, blk: BlkDriver) -> None:
        self.blk = blk
        session = blk.session
        accepted = session.offered & session.understood
        bits = [bit for bit in range(accepted.bit_length()) if accepted >> bit & 1]
        session.start([*bits, ZONED, Feature.VIRTIO_F_VERSION_1])
        if self.model == Zoned.NONE:
            raise NotApplicableError("the device is drive-managed: it has no zones to work with")
        self.manage("RESET_ALL", 0)

    @property
    def model(self) -> int:
        """VIRTIO_BLK_Z_*."""
        return self.blk.field(Field.zoned_model)

    @property
    def size(self) -> int:
        """Sectors from one zone to the next."""
        return self.blk.field(Field.zone_sectors)

    @property
    def granule(self) -> int:
        """Sectors that writes have to be multiples of."""
        return max(1, self.blk.field(Field.write_granularity) // SECTOR)

    def report(self, sector: int = 0, count: int = _ZONES) -> list[Zone]:
        """Return up to `count` zones, from that of a sector on."""
        room = _HEADER + _DESCRIPTOR * count
        data = self.blk.do(self.blk.request(ZONE_TYPES["ZONE_REPORT"], sector, room=room))
        number = int.from_bytes(data[:8], "little")
        assert number <= count, f"{number} zones where there is room for {count}"
        starts = range(_HEADER, _HEADER + _DESCRIPTOR * number, _DESCRIPTOR)
        return [Zone.parse(data[start : start + _DESCRIPTOR]) for start in starts]

    def all(self) -> list[Zone]:
        """Return every zone."""
        zones: list[Zone] = []
        while more := self.report(len(zones) * self.size):
            zones += more
            if len(zones) * self.size >= self.blk.capacity:
                break
        return zones

    def now(self, zone: Zone) -> Zone:
        """Return what a zone is now."""
        return self.report(zone.start, 1)[0]

    def pick(
        self, kind: ZoneType | None = None, state: ZoneState | None = None, count: int = 1
    ) -> list[Zone]:
        """Return `count` zones of a type or state; not applicable where there are not so many.

        Without a state they are empty, or conventional.
        """
        states = {ZoneState.NOT_WP, ZoneState.EMPTY} if state is None else {state}
        found = [zone for zone in self.all() if zone.state in states and kind in {None, zone.type}]
        if len(found) < count:
            words = [one.name for one in (kind, state) if one is not None]
            raise NotApplicableError(f"the device has no {count} zones that are {words}")
        return found[:count]

    def sequential(self, count: int = 1) -> list[Zone]:
        """Return empty zones that have a write pointer."""
        kind = ZoneType.SWR if self.model == Zoned.HM else ZoneType.SWP
        return self.pick(kind, count=count)

    def need_small(self, zone: Zone) -> None:
        """Make the test not applicable to zones too large to be written at once."""
        if self.size > _SMALL:
            raise NotApplicableError(f"a zone of {zone.capacity} sectors is too large to fill here")

    # Requests

    def manage(self, name: str, sector: int, status: int | None = 0) -> int:
        """Do ZONE_`name` at a sector; returns the status, which has to be this, or any for None."""
        request = self.blk.request(ZONE_TYPES[f"ZONE_{name}"], sector, status=status)
        return self.blk.ask(request).status

    def write(self, sector: int, sectors: int) -> int:
        """Write a pattern; returns the status."""
        return self.blk.ask(
            self.blk.request(Type.OUT, sector, pattern(sectors), status=None)
        ).status

    def read(self, sector: int, sectors: int) -> Answer:
        """Read; returns the answer, whatever it is."""
        return self.blk.ask(self.blk.request(Type.IN, sector, room=sectors * SECTOR, status=None))

    def append(self, sector: int, sectors: int) -> tuple[int, int]:
        """Append a pattern to a zone; returns the status and append_sector."""
        kind = ZONE_TYPES["ZONE_APPEND"]
        answer = self.blk.ask(self.blk.request(kind, sector, pattern(sectors), room=8, status=None))
        return answer.status, int.from_bytes(answer.data, "little")

    @property
    def append_limit(self) -> int:
        """Sectors that one append may have; not applicable where there is no append."""
        if not (limit := self.blk.field(Field.max_append_sectors)):
            raise NotApplicableError("max_append_sectors is 0: there is no zone append")
        return limit

    def fill_limit(self, field: Field) -> Zone:
        """Open as many zones as there may be, and return one more that is empty.

        With max_active_zones they are closed again, each with something in it.
        """
        if not (limit := self.blk.field(field)):
            raise NotApplicableError(f"{field.name} is 0: there is no limit")
        *zones, other = self.sequential(limit + 1)
        for zone in zones:
            if field is Field.max_open_zones:
                self.manage("OPEN", zone.start)
            else:
                status = self.write(zone.start, self.granule)
                assert status == Status.OK, f"a write to an empty zone has status {status}"
                self.manage("CLOSE", zone.start)
        return other
