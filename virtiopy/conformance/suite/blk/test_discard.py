"""Block devices: discard, write zeroes and secure erase (5.2.6)."""

import pytest

from virtiopy.conformance.drivers.blk import (
    UNMAP,
    BlkDriver,
    Field,
    Status,
    Type,
    pattern,
    segment,
)
from virtiopy.conformance.report.difference import difference
from virtiopy.conformance.sessions.base import Session

DISCARD = "VIRTIO_BLK_F_DISCARD"
WRITE_ZEROES = "VIRTIO_BLK_F_WRITE_ZEROES"
SECURE_ERASE = "VIRTIO_BLK_F_SECURE_ERASE"

#: The commands, each with the field that says how many segments one may have.
COMMANDS = [
    pytest.param(
        Type.DISCARD, Field.max_discard_seg, marks=pytest.mark.feature(DISCARD), id="discard"
    ),
    pytest.param(
        Type.WRITE_ZEROES,
        Field.max_write_zeroes_seg,
        marks=pytest.mark.feature(WRITE_ZEROES),
        id="write zeroes",
    ),
    pytest.param(
        Type.SECURE_ERASE,
        Field.max_secure_erase_seg,
        marks=pytest.mark.feature(SECURE_ERASE),
        id="secure erase",
    ),
]


# Flags


@pytest.mark.clause("5.2.6.2:5")
@pytest.mark.parametrize("flags", [1 << 1, 1 << 2, 1 << 31, 1 << 31 | UNMAP])
@pytest.mark.parametrize(("command", "most"), COMMANDS)
def test_an_unknown_flag_is_unsupported(
    blk: BlkDriver, command: Type, most: Field, flags: int
) -> None:
    blk.start()
    data = segment(0, blk.discard_unit, flags)
    blk.do(blk.request(command, data=data, status=Status.UNSUPP))


@pytest.mark.clause("5.2.6.2:5")
@pytest.mark.parametrize(("command", "most"), COMMANDS)
def test_an_unknown_flag_of_the_second_segment_is_unsupported(
    blk: BlkDriver, command: Type, most: Field
) -> None:
    blk.start()
    blk.need_at_least(most, 2)
    unit = blk.discard_unit
    blk.need(2 * unit)
    data = segment(0, unit) + segment(unit, unit, 1 << 1)
    blk.do(blk.request(command, data=data, status=Status.UNSUPP))


@pytest.mark.clause("5.2.6.2:6")
@pytest.mark.feature(DISCARD)
def test_a_discard_with_the_unmap_flag_is_unsupported(blk: BlkDriver) -> None:
    blk.start()
    data = segment(0, blk.discard_unit, UNMAP)
    blk.do(blk.request(Type.DISCARD, data=data, status=Status.UNSUPP))


# What becomes of the sectors


def filled(blk: BlkDriver, sectors: int) -> bytes:
    """Write a pattern over the first sectors of the disk, and return it."""
    blk.need(sectors)
    content = pattern(sectors)
    blk.write(0, content)
    return content


@pytest.mark.clause("5.2.6.2:7")
@pytest.mark.feature(DISCARD)
def test_a_discard_leaves_the_sectors_around_it_alone(blk: BlkDriver) -> None:
    blk.start()
    unit = blk.discard_unit
    size = 512 * unit
    before = filled(blk, 3 * unit)
    blk.do(blk.request(Type.DISCARD, data=segment(unit, unit)))
    after = blk.read(0, 3 * unit)
    assert not difference(after[:size], before[:size])
    assert not difference(after[2 * size :], before[2 * size :])


@pytest.mark.clause("5.2.6.2:7")
@pytest.mark.feature(DISCARD)
def test_a_discard_of_a_single_block_leaves_the_blocks_around_it_alone(blk: BlkDriver) -> None:
    blk.start()
    block = blk.block
    size = 512 * block
    before = filled(blk, 3 * block)
    # It may be refused, where discard_sector_alignment is more.
    blk.ask(blk.request(Type.DISCARD, data=segment(block, block), status=None))
    after = blk.read(0, 3 * block)
    assert not difference(after[:size], before[:size])
    assert not difference(after[2 * size :], before[2 * size :])


@pytest.mark.clause("5.2.6.2:9")
@pytest.mark.feature(WRITE_ZEROES)
@pytest.mark.parametrize("flags", [0, UNMAP], ids=["without unmap", "with unmap"])
@pytest.mark.parametrize("blocks", [1, 8, 17])
def test_after_write_zeroes_the_sectors_read_as_zeroes(
    blk: BlkDriver, blocks: int, flags: int
) -> None:
    blk.start()
    sectors = blocks * blk.block
    blk.need_at_least(Field.max_write_zeroes_sectors, sectors)
    filled(blk, sectors + blk.block)
    blk.do(blk.request(Type.WRITE_ZEROES, data=segment(blk.block, sectors, flags)))
    assert not difference(blk.read(blk.block, sectors), bytes(512 * sectors))


@pytest.mark.clause("5.2.6.2:9")
@pytest.mark.feature(WRITE_ZEROES)
def test_write_zeroes_zeroes_every_segment(blk: BlkDriver) -> None:
    blk.start()
    blk.need_at_least(Field.max_write_zeroes_seg, 2)
    block = blk.block
    filled(blk, 5 * block)
    data = segment(3 * block, block) + segment(block, block, UNMAP)
    blk.do(blk.request(Type.WRITE_ZEROES, data=data))
    for sector in (block, 3 * block):
        assert not difference(blk.read(sector, block), bytes(512 * block))


@pytest.mark.clause("5.2.6.2:9")
@pytest.mark.feature(WRITE_ZEROES)
def test_write_zeroes_of_as_much_as_the_device_takes_at_once(blk: BlkDriver) -> None:
    blk.start()
    block = blk.block
    sectors = min(blk.field(Field.max_write_zeroes_sectors), blk.capacity) // block * block
    filled(blk, block)
    blk.write(sectors - block, pattern(block))
    blk.do(blk.request(Type.WRITE_ZEROES, data=segment(0, sectors)))
    assert not difference(blk.read(0, block), bytes(512 * block))
    assert not difference(blk.read(sectors - block, block), bytes(512 * block))


@pytest.mark.clause("5.2.6.2:8", "5.2.6.2:9")
@pytest.mark.feature(WRITE_ZEROES)
@pytest.mark.parametrize("flags", [0, UNMAP], ids=["without unmap", "with unmap"])
def test_write_zeroes_leaves_the_sectors_around_it_alone(blk: BlkDriver, flags: int) -> None:
    blk.start()
    block = blk.block
    size = 512 * block
    before = filled(blk, 3 * block)
    blk.do(blk.request(Type.WRITE_ZEROES, data=segment(block, block, flags)))
    after = blk.read(0, 3 * block)
    assert not difference(after[:size], before[:size])
    assert not difference(after[2 * size :], before[2 * size :])


# write_zeroes_may_unmap


@pytest.mark.clause("5.2.6.2:10")
@pytest.mark.feature(WRITE_ZEROES)
def test_write_zeroes_gives_storage_up_just_where_write_zeroes_may_unmap_says_so(
    session: Session, blk: BlkDriver
) -> None:
    disk = blk.disk
    blk.start()
    sectors = min(blk.field(Field.max_write_zeroes_sectors), blk.capacity)
    before = disk.allocated
    blk.do(blk.request(Type.WRITE_ZEROES, data=segment(0, sectors, UNMAP)))
    assert (disk.allocated < before) == bool(blk.field(Field.write_zeroes_may_unmap))
