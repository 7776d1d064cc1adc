"""Block devices: which writes survive a crash (5.2.6.2), and how worn the storage is."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.blk import BlkDriver, Field, Type, pattern

FLUSH = "VIRTIO_BLK_F_FLUSH"
CONFIG_WCE = "VIRTIO_BLK_F_CONFIG_WCE"
LIFETIME = "VIRTIO_BLK_F_LIFETIME"
RO = "VIRTIO_BLK_F_RO"

#: The greatest values that are not reserved (5.2.6).
PRE_EOL_INFO_URGENT = 3
LIFETIME_EXCEEDED = 11


def write_survives(blk: BlkDriver) -> bool:
    """Write, and say whether that survives a crash of the host's as soon as it is completed."""
    data = pattern(blk.block)
    blk.write(blk.block, data)
    return blk.disk.after_crash(blk.block, blk.block) == data


@pytest.mark.clause("5.2.6.2:13")
@pytest.mark.feature(FLUSH)
@pytest.mark.unless_feature(RO)
def test_a_flush_makes_completed_writes_stable(blk: BlkDriver) -> None:
    disk = blk.disk
    blk.start()
    block = blk.block
    blk.write(0, pattern(block))
    blk.write(2 * block, pattern(block, seed=2))
    blk.flush()
    same(disk.after_crash(0, block), pattern(block), "after a crash, behind the flush")
    after = disk.after_crash(2 * block, block)
    same(after, pattern(block, seed=2), "after a crash, behind the flush")


@pytest.mark.clause("5.2.6.2:13")
@pytest.mark.feature(FLUSH)
@pytest.mark.unless_feature(RO)
def test_each_write_is_stable_for_a_driver_without_flush_and_config_wce(blk: BlkDriver) -> None:
    blk.start(without=[FLUSH, CONFIG_WCE])
    assert write_survives(blk), "a write that was completed is lost by a crash"


@pytest.mark.clause("5.2.6.2:13")
@pytest.mark.feature(CONFIG_WCE)
@pytest.mark.unless_feature(RO)
@pytest.mark.parametrize("without", [[], [FLUSH]], ids=["with flush", "without flush"])
def test_each_write_is_stable_while_writeback_is_0(blk: BlkDriver, without: list[str]) -> None:
    blk.start(without=without)
    blk.set_writeback(on=False)
    same(blk.field(Field.writeback), 0, "writeback")
    assert write_survives(blk), "a write that was completed is lost by a crash"


@pytest.mark.clause("5.2.6.2:13")
@pytest.mark.feature(CONFIG_WCE)
@pytest.mark.unless_feature(RO)
def test_each_write_is_stable_again_when_writeback_is_set_to_1_and_to_0(blk: BlkDriver) -> None:
    blk.start()
    blk.set_writeback(on=True)
    blk.write(0, pattern(blk.block))
    blk.set_writeback(on=False)
    assert write_survives(blk), "a write that was completed is lost by a crash"


@pytest.mark.clause("5.2.6.2:13")
@pytest.mark.feature(CONFIG_WCE)
@pytest.mark.unless_feature(RO)
def test_each_write_is_stable_where_writeback_starts_as_0(blk: BlkDriver) -> None:
    blk.start(without=[FLUSH])
    assert write_survives(blk), "a write that was completed is lost by a crash"


# Lifetime


def lifetime(blk: BlkDriver) -> list[int]:
    """Return the fields of struct virtio_blk_lifetime (5.2.6)."""
    data = blk.do(blk.request(Type.GET_LIFETIME, room=6))
    return [int.from_bytes(data[start : start + 2], "little") for start in (0, 2, 4)]


@pytest.mark.clause("5.2.6.2:16")
@pytest.mark.feature(LIFETIME)
def test_a_device_with_lifetime_metrics_tells_at_least_one(blk: BlkDriver) -> None:
    blk.start()
    assert any(lifetime(blk)), "every lifetime metric is 0, which is undefined"


@pytest.mark.clause("5.2.6.2:17")
@pytest.mark.feature(LIFETIME)
def test_no_lifetime_metric_has_a_reserved_value(blk: BlkDriver) -> None:
    blk.start()
    pre_eol_info, *estimates = lifetime(blk)
    assert pre_eol_info <= PRE_EOL_INFO_URGENT, f"pre_eol_info is {pre_eol_info}"
    assert max(estimates) <= LIFETIME_EXCEEDED, f"the lifetime estimates are {estimates}"
