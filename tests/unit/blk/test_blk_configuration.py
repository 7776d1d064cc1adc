"""The block device (5.2): configuration space (5.2.4)."""

import pytest

from tests.unit.blk.bench import (
    CAPACITY,
    F_DISCARD,
    F_WRITE_ZEROES,
    MAX_DISCARD_SECTORS,
    MAX_DISCARD_SEG,
    MAX_WRITE_ZEROES_SECTORS,
    MAX_WRITE_ZEROES_SEG,
    NUM_QUEUES,
    SECTOR,
    SECTORS,
    WRITEBACK,
    Bench,
    FakeDisk,
    bench_of,
)
from virtiopy.spec import has_feature

SIZE_MAX = (8, 4)
SEG_MAX = (12, 4)
GEOMETRY = (16, 4)
BLK_SIZE = (20, 4)
PHYSICAL_BLOCK_EXP = (24, 1)
ALIGNMENT_OFFSET = (25, 1)
MIN_IO_SIZE = (26, 2)
OPT_IO_SIZE = (28, 4)
UNUSED_0 = (33, 1)
DISCARD_SECTOR_ALIGNMENT = (44, 4)
WRITE_ZEROES_MAY_UNMAP = (56, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (CAPACITY, SECTORS),
        (SIZE_MAX, 1 << 20),
        (SEG_MAX, 254),
        (GEOMETRY, 0),
        (BLK_SIZE, 512),
        (PHYSICAL_BLOCK_EXP, 3),
        (ALIGNMENT_OFFSET, 0),
        (MIN_IO_SIZE, 1),
        (OPT_IO_SIZE, 0),
        (WRITEBACK, 1),
        (UNUSED_0, 0),
        (NUM_QUEUES, 1),
        (MAX_DISCARD_SECTORS, 1 << 22),
        (MAX_DISCARD_SEG, 64),
        (DISCARD_SECTOR_ALIGNMENT, 8),
        (MAX_WRITE_ZEROES_SECTORS, 1 << 17),
        (MAX_WRITE_ZEROES_SEG, 16),
        (WRITE_ZEROES_MAY_UNMAP, 1),
    ],
)
def test_the_configuration_has_the_layout_of_the_specification(
    faked: Bench, field: tuple[int, int], value: int
) -> None:
    assert faked.config(field) == value


def test_padding_and_what_is_not_offered_is_zero(faked: Bench) -> None:
    # unused1, secure erase, zoned: 57 to 96
    assert {faked.driver.read_config(offset, 1) for offset in range(57, 96)} == {0}


def test_a_capacity_of_more_than_32_bits_is_shown_whole(disk: FakeDisk) -> None:
    disk.size = SECTOR * 0x1_2345_6789
    with bench_of(disk) as bench:
        assert bench.config(CAPACITY) == 0x1_2345_6789


@pytest.mark.parametrize(
    ("alignment", "physical", "expected"),
    [(1, 512, (512, 0)), (512, 4096, (512, 3)), (4096, 4096, (4096, 0)), (4096, 512, (4096, 0))],
)
def test_block_sizes_are_those_of_the_disk(
    disk: FakeDisk, alignment: int, physical: int, expected: tuple[int, int]
) -> None:
    disk.alignment, disk.physical_block_size = alignment, physical
    with bench_of(disk) as bench:
        assert (bench.config(BLK_SIZE), bench.config(PHYSICAL_BLOCK_EXP)) == expected


def test_a_disk_without_holes_takes_no_discards_and_unmaps_nothing() -> None:
    with bench_of(FakeDisk(can_punch_holes=False)) as bench:
        offered = bench.driver.offered_features()
        assert not has_feature(offered, F_DISCARD)
        assert has_feature(offered, F_WRITE_ZEROES)
        assert bench.config(MAX_DISCARD_SECTORS) == bench.config(WRITE_ZEROES_MAY_UNMAP) == 0


@pytest.mark.parametrize(("queue_size", "seg_max"), [(256, 254), (4, 2), (2, 1), (1, 1)])
def test_seg_max_leaves_room_for_header_and_status(
    disk: FakeDisk, queue_size: int, seg_max: int
) -> None:
    with bench_of(disk, queue_size=queue_size) as bench:
        assert bench.config(SEG_MAX) == seg_max
