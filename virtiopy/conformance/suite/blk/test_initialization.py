"""Block devices: features and the configuration space (5.2.5)."""

import pytest

from virtiopy.conformance.drivers.blk import ZONE_TYPES, BlkDriver, Field, Zoned
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
    assert session.offers(FLUSH)


@pytest.mark.clause("5.2.5.2:2")
@pytest.mark.feature(CONFIG_WCE)
def test_flush_is_offered_with_config_wce(session: Session, blk: BlkDriver) -> None:
    assert session.offers(FLUSH)


@pytest.mark.clause("5.2.5.2:3")
@pytest.mark.feature(CONFIG_WCE)
def test_writeback_starts_as_0_for_a_driver_that_cannot_flush(
    session: Session, blk: BlkDriver
) -> None:
    session.negotiate(without=[FLUSH])
    assert blk.field(Field.writeback) == 0


@pytest.mark.clause("5.2.5.2:3")
@pytest.mark.feature(CONFIG_WCE)
def test_writeback_starts_as_0_though_a_driver_before_that_could_flush_had_it_at_1(
    session: Session, blk: BlkDriver
) -> None:
    blk.start()
    blk.set_writeback(on=True)
    session.negotiate(without=[FLUSH])
    assert blk.field(Field.writeback) == 0


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
    assert (before, blk.field(field)) == (0, 0)


@pytest.mark.clause("5.2.5.2:5")
def test_only_a_zoned_device_offers_zoned(session: Session, blk: BlkDriver) -> None:
    if not session.offers(ZONED):
        return
    session.start([ZONED])
    if blk.field(Field.zoned_model) == Zoned.NONE:
        raise NotApplicableError("model is 0: a drive-managed device is not known by its zones")
    # A header of 64 bytes, and a zone of 64.
    report = blk.do(blk.request(ZONE_TYPES["ZONE_REPORT"], room=128))
    assert int.from_bytes(report[:8], "little") == 1


@pytest.mark.clause("5.2.5.2:6")
def test_a_legacy_device_does_not_offer_zoned(session: Session, blk: BlkDriver) -> None:
    assert session.offers("VIRTIO_F_VERSION_1") or not session.offers(ZONED)
