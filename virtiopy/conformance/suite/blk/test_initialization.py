"""Block devices: features and the configuration space (5.2.5)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.blk import SECTOR, ZONE_TYPES, BlkDriver, Field, Zoned
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.sessions.base import Session

FLUSH = "VIRTIO_BLK_F_FLUSH"
CONFIG_WCE = "VIRTIO_BLK_F_CONFIG_WCE"
ZONED = "VIRTIO_BLK_F_ZONED"

#: Features with fields that lie in the configuration space from unused1 on, and before it.
BEYOND_UNUSED1 = (
    "VIRTIO_BLK_F_WRITE_ZEROES",
    "VIRTIO_BLK_F_SECURE_ERASE",
    ZONED,
)
BEYOND_UNUSED0 = (*BEYOND_UNUSED1, CONFIG_WCE, "VIRTIO_BLK_F_MQ", "VIRTIO_BLK_F_DISCARD")


@pytest.mark.clause("5.2.5.2:1")
def test_flush_is_offered(session: Session, blk: BlkDriver) -> None:
    assert session.offers(FLUSH), "VIRTIO_BLK_F_FLUSH was not offered"


@pytest.mark.clause("5.2.5.2:2")
@pytest.mark.feature(CONFIG_WCE)
def test_flush_is_offered_with_config_wce(session: Session, blk: BlkDriver) -> None:
    assert session.offers(FLUSH), "VIRTIO_BLK_F_FLUSH was not offered"


@pytest.mark.clause("5.2.5.2:3")
@pytest.mark.feature(CONFIG_WCE)
def test_writeback_starts_as_0_for_a_driver_that_cannot_flush(
    session: Session, blk: BlkDriver
) -> None:
    session.negotiate(without=[FLUSH])
    same(blk.field(Field.writeback), 0, "writeback")


@pytest.mark.clause("5.2.5.2:3")
@pytest.mark.feature(CONFIG_WCE)
def test_writeback_starts_as_0_though_a_driver_before_that_could_flush_had_it_at_1(
    session: Session, blk: BlkDriver
) -> None:
    blk.start()
    blk.set_writeback(on=True)
    session.negotiate(without=[FLUSH])
    same(blk.field(Field.writeback), 0, "writeback")


@pytest.mark.clause("5.2.5.2:4")
@pytest.mark.parametrize(
    ("field", "features"),
    [(Field.unused0, BEYOND_UNUSED0), (Field.unused1, BEYOND_UNUSED1)],
    ids=["unused0", "unused1"],
)
def test_padding_is_0(
    session: Session, blk: BlkDriver, field: Field, features: tuple[str, ...]
) -> None:
    # Where none is offered the configuration space may end before the field.
    if not any(session.offers(feature) for feature in features):
        raise NotApplicableError(f"{' or '.join(features)} was not offered")
    before = blk.field(field)
    blk.start()
    same((before, blk.field(field)), (0, 0), f"{field.name} before FEATURES_OK and after")


@pytest.mark.clause("5.2.5.2:5")
def test_only_a_zoned_device_offers_zoned(session: Session, blk: BlkDriver) -> None:
    if not session.offers(ZONED):
        return
    session.start([ZONED])
    if blk.field(Field.zoned_model) == Zoned.NONE:
        raise NotApplicableError("model is 0: a drive-managed device is not known by its zones")
    # A header of 64 bytes, and a zone of 64.
    report = blk.do(blk.request(ZONE_TYPES["ZONE_REPORT"], room=128))
    same(int.from_bytes(report[:8], "little"), 1, "the number of zones reported")


@pytest.mark.clause("5.2.5.2:6")
def test_a_legacy_device_does_not_offer_zoned(session: Session, blk: BlkDriver) -> None:
    legacy = not session.offers("VIRTIO_F_VERSION_1")
    assert not (legacy and session.offers(ZONED)), "ZONED was offered without VERSION_1"


# Fields that belong together (5.2.4)


@pytest.mark.clause("5.2.4:2")
@pytest.mark.feature("VIRTIO_BLK_F_MQ")
def test_there_are_as_many_queues_as_num_queues_says(session: Session, blk: BlkDriver) -> None:
    blk.start()
    number = blk.field(Field.num_queues)
    assert number, "num_queues is 0"
    assert session.queue_size_max(number - 1), (
        f"num_queues is {number}, and there is no queue {number - 1}"
    )
    assert not session.queue_size_max(number), f"num_queues is {number}, and there are more"


@pytest.mark.clause("5.2.4:2")
@pytest.mark.feature("VIRTIO_BLK_F_BLK_SIZE")
def test_blk_size_is_of_whole_sectors(blk: BlkDriver) -> None:
    blk.start()
    size = blk.field(Field.blk_size)
    assert size, "blk_size is 0"
    assert size % SECTOR == 0, f"blk_size is {size}, and no multiple of {SECTOR}"


@pytest.mark.clause("5.2.4:2")
@pytest.mark.parametrize(
    "field",
    [
        pytest.param(field, marks=pytest.mark.feature(feature), id=field.name)
        for feature, field in (
            ("VIRTIO_BLK_F_SIZE_MAX", Field.size_max),
            ("VIRTIO_BLK_F_SEG_MAX", Field.seg_max),
            ("VIRTIO_BLK_F_DISCARD", Field.max_discard_sectors),
            ("VIRTIO_BLK_F_DISCARD", Field.max_discard_seg),
            ("VIRTIO_BLK_F_WRITE_ZEROES", Field.max_write_zeroes_sectors),
            ("VIRTIO_BLK_F_WRITE_ZEROES", Field.max_write_zeroes_seg),
            ("VIRTIO_BLK_F_SECURE_ERASE", Field.max_secure_erase_sectors),
            ("VIRTIO_BLK_F_SECURE_ERASE", Field.max_secure_erase_seg),
        )
    ],
)
def test_a_limit_lets_requests_be(blk: BlkDriver, field: Field) -> None:
    blk.start()
    assert blk.field(field), f"{field.name} is 0: no such request can be made"


@pytest.mark.clause("5.2.6.2:2")
def test_the_capacity_stays_without_a_notification(session: Session, blk: BlkDriver) -> None:
    blk.start()
    session.take_config_change()
    before = blk.capacity
    for _ in range(100):
        blk.good()
    after = blk.capacity
    assert after == before or session.take_config_change(), (
        f"capacity was {before} and is {after}, without a configuration change notification"
    )
