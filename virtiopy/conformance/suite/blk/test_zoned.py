"""Zoned block devices (5.2.5.2, 5.2.6.2)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.blk import (
    SECTOR,
    BlkDriver,
    Field,
    Status,
    Type,
    Zoned,
    pattern,
    segment,
)
from virtiopy.conformance.drivers.zones import (
    ACTIVE,
    NO_RESOURCE,
    OPEN,
    ZONED,
    Zones,
    ZoneState,
    ZoneStatus,
    ZoneType,
)
from virtiopy.conformance.problems import NotApplicableError, about
from virtiopy.conformance.sessions.base import Session

SECURE_ERASE = "VIRTIO_BLK_F_SECURE_ERASE"

INVALID_CMD = ZoneStatus.INVALID_CMD

pytestmark = pytest.mark.feature(ZONED)

#: Where struct virtio_blk_zoned_characteristics is, and its bytes (5.2.4).
CHARACTERISTICS = (72, 24)


# Features and the configuration space


#: What is compared.
WRITE, READ, APPEND = (f"the status of the {word}" for word in ("write", "read", "append"))
APPENDED = "the status and the sector of the append"


def accepts_driver_without_zoned(session: Session) -> bool:
    """Say whether a driver that knows no zones may set FEATURES_OK."""
    return session.accepts(session.wanted(None, without=[ZONED]))


@pytest.mark.clause("5.2.5.2:7")
def test_without_zoned_its_fields_are_0_and_the_device_works(
    session: Session, blk: BlkDriver
) -> None:
    session.start([ZONED])
    if blk.field(Field.zoned_model) == Zoned.HM:
        raise NotApplicableError("the device is host-managed")
    blk.start(without=[ZONED])
    same(session.read_config(*CHARACTERISTICS), bytes(CHARACTERISTICS[1]), "zoned")
    blk.good()


@pytest.mark.clause("5.2.5.2:8")
def test_a_host_managed_device_refuses_a_driver_without_zoned(
    session: Session, blk: BlkDriver
) -> None:
    session.start([ZONED])
    if blk.field(Field.zoned_model) != Zoned.HM:
        raise NotApplicableError("the device is not host-managed")
    assert not accepts_driver_without_zoned(session), "FEATURES_OK stays set without ZONED"


@pytest.mark.clause("5.2.5.2:9")
def test_model_is_that_of_the_zones_that_are_reported(session: Session, blk: BlkDriver) -> None:
    session.start([ZONED])
    model = blk.field(Field.zoned_model)
    assert model in set(Zoned), f"model is {model}"
    if model != Zoned.NONE:
        foreign = ZoneType.SWP if model == Zoned.HM else ZoneType.SWR
        types = {zone.type for zone in Zones(blk).all()}
        assert foreign not in types, f"model is {model}, and there are zones of type {foreign}"


@pytest.mark.clause("5.2.5.2:10", "5.2.5.2:11")
def test_zones_are_zone_sectors_apart_up_to_the_capacity(blk: BlkDriver) -> None:
    zones = Zones(blk)
    found = zones.all()
    with about("5.2.5.2:10"):
        starts = list(range(0, blk.capacity, zones.size))
        same([zone.start for zone in found], starts, "where zones begin")
    with about("5.2.5.2:11"):
        longest = max(zone.capacity for zone in found)
        assert longest <= zones.size, f"a zone has {longest} sectors, zone_sectors is {zones.size}"


@pytest.mark.clause("5.2.5.2:12", "5.2.6.2:22")
def test_no_more_zones_than_max_open_zones_can_be_opened(blk: BlkDriver) -> None:
    zones = Zones(blk)
    other = zones.fill_limit(Field.max_open_zones)
    status = zones.manage("OPEN", other.start, None)
    assert status in NO_RESOURCE, f"opening a zone too many has status {status}"
    same(zones.now(other).state, ZoneState.EMPTY, "the zone's state")


@pytest.mark.clause("5.2.5.2:13", "5.2.6.2:22")
def test_no_more_zones_than_max_active_zones_can_be_active(blk: BlkDriver) -> None:
    zones = Zones(blk)
    other = zones.fill_limit(Field.max_active_zones)
    status = zones.manage("OPEN", other.start, None)
    assert status in NO_RESOURCE, f"opening a zone too many has status {status}"
    same(zones.now(other).state, ZoneState.EMPTY, "the zone's state")


@pytest.mark.clause("5.2.5.2:14")
def test_as_much_as_max_append_sectors_can_be_appended(blk: BlkDriver) -> None:
    zones = Zones(blk)
    [zone] = zones.sequential()
    same(
        zones.append(zone.start, min(zones.append_limit, zone.capacity))[0],
        Status.OK,
        APPEND,
    )


@pytest.mark.clause("5.2.5.2:15")
@pytest.mark.feature("VIRTIO_BLK_F_SEG_MAX", "VIRTIO_BLK_F_SIZE_MAX")
def test_max_append_sectors_is_no_more_than_all_segments_take(blk: BlkDriver) -> None:
    limit = Zones(blk).append_limit
    most = blk.field(Field.seg_max) * blk.field(Field.size_max)
    assert limit * SECTOR <= most, f"{limit} sectors are more than all segments take, {most} bytes"


@pytest.mark.clause("5.2.5.2:16", "5.2.6.2:30")
def test_with_max_append_sectors_0_an_append_is_unsupported(blk: BlkDriver) -> None:
    zones = Zones(blk)
    if blk.field(Field.max_append_sectors):
        raise NotApplicableError("max_append_sectors is not 0")
    [zone] = zones.sequential()
    same(zones.append(zone.start, zones.granule)[0], Status.UNSUPP, APPEND)


@pytest.mark.clause("5.2.5.2:17")
def test_writes_of_write_granularity_are_taken(blk: BlkDriver) -> None:
    zones = Zones(blk)
    granularity = blk.field(Field.write_granularity)
    assert granularity, "write_granularity is 0"
    same(granularity % SECTOR, 0, f"write_granularity {granularity} modulo 512")
    [zone] = zones.sequential()
    for sector in range(zone.start, zone.start + 3 * zones.granule, zones.granule):
        same(zones.write(sector, zones.granule), Status.OK, WRITE)


@pytest.mark.clause("5.2.5.2:18")
def test_padding_after_model_is_0(session: Session, blk: BlkDriver) -> None:
    Zones(blk)
    same(session.read_config(93, 3), bytes(3), "unused2")


# Zone management


@pytest.mark.clause("5.2.6.2:19")
@pytest.mark.parametrize("name", ["OPEN", "CLOSE", "FINISH", "RESET"])
def test_a_conventional_zone_is_not_managed(blk: BlkDriver, name: str) -> None:
    zones = Zones(blk)
    [zone] = zones.pick(ZoneType.CONV)
    zones.manage(name, zone.start, INVALID_CMD)


@pytest.mark.clause("5.2.6.2:21")
def test_a_full_zone_is_not_opened(blk: BlkDriver) -> None:
    zones = Zones(blk)
    [zone] = zones.sequential()
    zones.manage("OPEN", zone.start)
    zones.manage("FINISH", zone.start)
    zones.manage("OPEN", zone.start, INVALID_CMD)


@pytest.mark.clause("5.2.6.2:23")
def test_an_empty_zone_is_not_closed(blk: BlkDriver) -> None:
    zones = Zones(blk)
    [zone] = zones.sequential()
    zones.manage("CLOSE", zone.start, INVALID_CMD)


@pytest.mark.clause("5.2.6.2:24", "5.2.6.2:25")
@pytest.mark.parametrize("name", ["FINISH", "RESET"])
@pytest.mark.parametrize("state", [ZoneState.RDONLY, ZoneState.OFFLINE], ids=["rdonly", "offline"])
def test_a_zone_that_is_out_of_use_stays_as_it_is(
    blk: BlkDriver, name: str, state: ZoneState
) -> None:
    zones = Zones(blk)
    [zone] = zones.pick(state=state)
    zones.manage(name, zone.start, INVALID_CMD)
    same(zones.now(zone).state, state, "the zone's state")


# Writes and appends


@pytest.mark.clause("5.2.6.2:20")
def test_nothing_is_appended_to_a_conventional_zone(blk: BlkDriver) -> None:
    zones = Zones(blk)
    _ = zones.append_limit  # not applicable without appends
    [zone] = zones.pick(ZoneType.CONV)
    same(zones.append(zone.start, zones.granule)[0], INVALID_CMD, APPEND)


@pytest.mark.clause("5.2.6.2:26")
def test_a_write_does_not_open_a_zone_too_many(blk: BlkDriver) -> None:
    zones = Zones(blk)
    other = zones.fill_limit(Field.max_open_zones)
    if other.type != ZoneType.SWR:
        raise NotApplicableError("the device has no sequential write required zone")
    status = zones.write(other.start, zones.granule)
    assert status in NO_RESOURCE, f"a write beyond the limit of zones has status {status}"


@pytest.mark.clause("5.2.5.2:12", "5.2.6.2:34")
def test_however_many_zones_are_written_to_no_more_are_open_than_may_be(blk: BlkDriver) -> None:
    zones = Zones(blk)
    most = blk.field(Field.max_open_zones)
    most_active = blk.field(Field.max_active_zones)
    for zone in zones.sequential(5):
        zones.write(zone.start, zones.granule)
    states = [zone.state for zone in zones.all()]
    opened = sum(state in OPEN for state in states)
    active = sum(state in ACTIVE for state in states)
    assert opened <= (most or len(states)), f"{opened} zones are open, of {most}"
    assert active <= (most_active or len(states)), f"{active} zones are active, of {most_active}"


@pytest.mark.clause("5.2.6.2:27")
def test_an_append_names_a_zone_by_its_first_sector(blk: BlkDriver) -> None:
    zones = Zones(blk)
    _ = zones.append_limit  # not applicable without appends
    [zone] = zones.pick(ZoneType.SWR)
    same(
        zones.append(zone.start + zones.granule, zones.granule)[0],
        INVALID_CMD,
        APPEND,
    )


@pytest.mark.clause("5.2.6.2:28")
def test_a_zone_takes_no_more_than_its_capacity(blk: BlkDriver) -> None:
    zones = Zones(blk)
    [zone] = zones.pick(ZoneType.SWR)
    zones.need_small(zone)
    same(zones.write(zone.start, zones.granule), Status.OK, WRITE)
    same(
        zones.write(zone.start + zones.granule, zone.capacity),
        INVALID_CMD,
        WRITE,
    )


@pytest.mark.clause("5.2.6.2:29")
def test_an_append_says_where_its_data_is(blk: BlkDriver) -> None:
    zones = Zones(blk)
    _ = zones.append_limit  # not applicable without appends
    [zone] = zones.pick(ZoneType.SWR)
    for sector in (zone.start, zone.start + zones.granule):
        same(
            zones.append(zone.start, zones.granule),
            (Status.OK, sector),
            APPENDED,
        )
        same(zones.read(sector, zones.granule).data, pattern(zones.granule), "what was appended")


@pytest.mark.clause("5.2.6.2:31")
def test_no_more_than_max_append_sectors_is_appended(blk: BlkDriver) -> None:
    zones = Zones(blk)
    limit = zones.append_limit
    [zone] = zones.sequential()
    same(zones.append(zone.start, limit + zones.granule)[0], INVALID_CMD, APPEND)


@pytest.mark.clause("5.2.6.2:32")
def test_no_read_reaches_from_a_zone_into_the_next(blk: BlkDriver) -> None:
    zones = Zones(blk)
    [zone] = zones.pick(ZoneType.SWR)
    granule = zones.granule
    sector = zone.start + zones.size - granule
    same(zones.read(sector, 2 * granule).status, INVALID_CMD, READ)


@pytest.mark.clause("5.2.6.2:32")
def test_no_write_reaches_from_a_zone_into_the_next(blk: BlkDriver) -> None:
    zones = Zones(blk)
    [zone] = zones.pick(ZoneType.SWR)
    zones.need_small(zone)
    rest = zones.granule
    same(zones.write(zone.start, zone.capacity - rest), Status.OK, WRITE)
    beyond = zones.size - zone.capacity + zones.granule
    same(
        zones.write(zone.start + zone.capacity - rest, rest + beyond),
        INVALID_CMD,
        WRITE,
    )


@pytest.mark.clause("5.2.6.2:33")
def test_a_write_begins_at_the_write_pointer(blk: BlkDriver) -> None:
    zones = Zones(blk)
    [zone] = zones.pick(ZoneType.SWR)
    same(
        zones.write(zone.start + zones.granule, zones.granule),
        ZoneStatus.UNALIGNED_WP,
        WRITE,
    )
    same(zones.write(zone.start, zones.granule), Status.OK, WRITE)
    same(zones.write(zone.start, zones.granule), ZoneStatus.UNALIGNED_WP, WRITE)


@pytest.mark.clause("5.2.6.2:35")
def test_nothing_is_written_to_a_read_only_zone(blk: BlkDriver) -> None:
    zones = Zones(blk)
    [zone] = zones.pick(state=ZoneState.RDONLY)
    same(zones.write(zone.start, zones.granule), INVALID_CMD, WRITE)


@pytest.mark.clause("5.2.6.2:36")
def test_nothing_is_done_in_an_offline_zone(blk: BlkDriver) -> None:
    zones = Zones(blk)
    [zone] = zones.pick(state=ZoneState.OFFLINE)
    same(zones.write(zone.start, zones.granule), INVALID_CMD, WRITE)
    same(zones.read(zone.start, zones.granule).status, INVALID_CMD, READ)
    zones.manage("OPEN", zone.start, INVALID_CMD)


# Unwritten data


@pytest.mark.clause("5.2.6.2:37", "5.2.6.2:38")
def test_what_was_written_before_a_reset_is_not_read_after_it(blk: BlkDriver) -> None:
    zones = Zones(blk)
    [zone] = zones.sequential()
    same(zones.write(zone.start, zones.granule), Status.OK, WRITE)
    zones.manage("RESET", zone.start)
    first = zones.read(zone.start, zones.granule)
    second = zones.read(zone.start + zones.granule, zones.granule)
    # All sectors have the device's pattern, or none can be read.
    same(second.status == Status.OK, first.status == Status.OK, "whether the second is read")
    if first.status == Status.OK:
        same(second.data, first.data, "another pattern")
        assert first.data != pattern(zones.granule), "what was written before the reset is read"


# Secure erase


@pytest.mark.clause("5.2.6.2:39")
@pytest.mark.feature(SECURE_ERASE)
def test_secure_erase_sector_alignment_is_whole_zones(blk: BlkDriver) -> None:
    zones = Zones(blk)
    alignment = blk.field(Field.secure_erase_sector_alignment)
    assert alignment, "secure_erase_sector_alignment is 0"
    same(alignment % zones.size, 0, f"secure_erase_sector_alignment {alignment} modulo a zone")


@pytest.mark.clause("5.2.6.2:40")
@pytest.mark.feature(SECURE_ERASE)
def test_less_than_a_zone_is_not_erased(blk: BlkDriver) -> None:
    zones = Zones(blk)
    [zone] = zones.sequential()
    data = segment(zone.start, zones.granule)
    request = blk.request(Type.SECURE_ERASE, data=data, status=None)
    assert blk.ask(request).status != Status.OK, "less than a zone was erased"


@pytest.mark.clause("5.2.6.2:41")
@pytest.mark.feature(SECURE_ERASE)
def test_a_secure_erase_resets_its_zones(blk: BlkDriver) -> None:
    zones = Zones(blk)
    [zone] = zones.sequential()
    same(zones.write(zone.start, zones.granule), Status.OK, WRITE)
    length = max(zones.size, blk.field(Field.secure_erase_sector_alignment))
    blk.do(blk.request(Type.SECURE_ERASE, data=segment(zone.start, length)))
    after = zones.now(zone)
    wanted = ZoneState.EMPTY, zone.start
    same((after.state, after.write_pointer), wanted, "the zone's state and write pointer")
