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
from virtiopy.conformance.effort import Effort
from virtiopy.conformance.models.disk import ZEROES
from virtiopy.conformance.models.diskwork import DATA, DataError, DiskWork, take
from virtiopy.conformance.problems import BrokenError
from virtiopy.conformance.report.difference import difference
from virtiopy.conformance.sessions.base import Session

DISCARD = "VIRTIO_BLK_F_DISCARD"
WRITE_ZEROES = "VIRTIO_BLK_F_WRITE_ZEROES"
SECURE_ERASE = "VIRTIO_BLK_F_SECURE_ERASE"

writable = pytest.mark.unless_feature("VIRTIO_BLK_F_RO", "VIRTIO_BLK_F_ZONED")

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


# They are carried out (5.2.3)


@pytest.mark.clause("5.2.3:2")
@pytest.mark.feature(DISCARD)
@writable
def test_discards_within_the_limits_are_carried_out(blk: BlkDriver) -> None:
    blk.start()
    unit = blk.discard_unit
    blk.need(unit)
    most = min(blk.field(Field.max_discard_sectors), blk.capacity) // unit * unit
    lengths = {unit, 2 * unit, most} if most >= 2 * unit else {unit}
    for sectors in sorted(lengths):
        last = (blk.capacity - sectors) // unit * unit
        for sector in sorted({0, last}):
            blk.do(blk.request(Type.DISCARD, data=segment(sector, sectors)))
    segments = min(blk.field(Field.max_discard_seg), blk.capacity // unit, 16)
    data = b"".join(segment(number * unit, unit) for number in range(segments))
    blk.do(blk.request(Type.DISCARD, data=data))


@pytest.mark.clause("5.2.3:3")
@pytest.mark.feature(WRITE_ZEROES)
@writable
@pytest.mark.parametrize("flags", [0, UNMAP], ids=["without unmap", "with unmap"])
def test_write_zeroes_within_the_limits_are_carried_out(blk: BlkDriver, flags: int) -> None:
    blk.start()
    block = blk.block
    blk.need(block)
    most = min(blk.field(Field.max_write_zeroes_sectors), blk.capacity) // block * block
    for sectors in sorted({block, min(most, 2 * block), most}):
        last = (blk.capacity - sectors) // block * block
        for sector in sorted({0, last}):
            blk.do(blk.request(Type.WRITE_ZEROES, data=segment(sector, sectors, flags)))
    segments = min(blk.field(Field.max_write_zeroes_seg), blk.capacity // block, 16)
    data = b"".join(segment(number * block, block, flags) for number in range(segments))
    blk.do(blk.request(Type.WRITE_ZEROES, data=data))


# What becomes of the sectors


def filled(blk: BlkDriver, sectors: int) -> bytes:
    """Write a pattern over the first sectors of the disk, see it there, and return it."""
    blk.need(sectors)
    content = pattern(sectors)
    blk.write(0, content)
    if wrong := difference(blk.read(0, sectors), content):
        raise BrokenError(f"what was written is not read: {wrong}", DATA)
    return content


def same(found: bytes, expected: bytes, what: str) -> None:
    """See that sectors hold what they have to."""
    wrong = difference(found, expected)
    assert not wrong, f"{what}: {wrong}"


@pytest.mark.clause("5.2.6:5", "5.2.6.2:7")
@writable
@pytest.mark.feature(DISCARD)
def test_a_discard_leaves_the_sectors_around_it_alone(blk: BlkDriver) -> None:
    blk.start()
    unit = blk.discard_unit
    size = 512 * unit
    before = filled(blk, 3 * unit)
    blk.do(blk.request(Type.DISCARD, data=segment(unit, unit)))
    after = blk.read(0, 3 * unit)
    same(after[:size], before[:size], "the sectors before are changed")
    same(after[2 * size :], before[2 * size :], "the sectors behind are changed")


@pytest.mark.clause("5.2.6:5", "5.2.6.2:7")
@writable
@pytest.mark.feature(DISCARD)
def test_a_discard_of_a_single_block_leaves_the_blocks_around_it_alone(blk: BlkDriver) -> None:
    blk.start()
    block = blk.block
    size = 512 * block
    before = filled(blk, 3 * block)
    # It may be refused, where discard_sector_alignment is more.
    blk.ask(blk.request(Type.DISCARD, data=segment(block, block), status=None))
    after = blk.read(0, 3 * block)
    same(after[:size], before[:size], "the sectors before are changed")
    same(after[2 * size :], before[2 * size :], "the sectors behind are changed")


@pytest.mark.clause("5.2.6.2:9")
@writable
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
    same(blk.read(blk.block, sectors), bytes(512 * sectors), "no zeroes")


@pytest.mark.clause("5.2.6.2:9")
@writable
@pytest.mark.feature(WRITE_ZEROES)
def test_write_zeroes_zeroes_every_segment(blk: BlkDriver) -> None:
    blk.start()
    blk.need_at_least(Field.max_write_zeroes_seg, 2)
    block = blk.block
    filled(blk, 5 * block)
    data = segment(3 * block, block) + segment(block, block, UNMAP)
    blk.do(blk.request(Type.WRITE_ZEROES, data=data))
    for sector in (block, 3 * block):
        same(blk.read(sector, block), bytes(512 * block), f"no zeroes from sector {sector} on")


@pytest.mark.clause("5.2.6.2:9")
@writable
@pytest.mark.feature(WRITE_ZEROES)
def test_write_zeroes_of_as_much_as_the_device_takes_at_once(blk: BlkDriver) -> None:
    blk.start()
    block = blk.block
    sectors = min(blk.field(Field.max_write_zeroes_sectors), blk.capacity) // block * block
    filled(blk, block)
    blk.write(sectors - block, pattern(block))
    blk.do(blk.request(Type.WRITE_ZEROES, data=segment(0, sectors)))
    for sector in (0, sectors - block):
        same(blk.read(sector, block), bytes(512 * block), f"no zeroes from sector {sector} on")


@pytest.mark.clause("5.2.6:5", "5.2.6.2:8")
@writable
@pytest.mark.feature(WRITE_ZEROES)
@pytest.mark.parametrize("flags", [0, UNMAP], ids=["without unmap", "with unmap"])
def test_write_zeroes_leaves_the_sectors_around_it_alone(blk: BlkDriver, flags: int) -> None:
    blk.start()
    block = blk.block
    size = 512 * block
    before = filled(blk, 3 * block)
    blk.do(blk.request(Type.WRITE_ZEROES, data=segment(block, block, flags)))
    after = blk.read(0, 3 * block)
    same(after[:size], before[:size], "the sectors before are changed")
    same(after[2 * size :], before[2 * size :], "the sectors behind are changed")


# Among reads and writes, at random


def work_with(blk: BlkDriver, effort: Effort, kind: str) -> None:
    """Write, read, and do what `kind` says, all of it held against a model of the disk."""
    try:
        do_work_with(blk, effort, kind)
    except DataError as error:
        if kind == "discard":
            raise
        # A sector of the segment, or one beside it.
        clause = "5.2.6.2:9" if error.wanted == ZEROES else "5.2.6:5"
        raise BrokenError(str(error), clause) from error


def do_work_with(blk: BlkDriver, effort: Effort, kind: str) -> None:
    blk.start()
    work = DiskWork(blk)
    unit = blk.discard_unit if kind == "discard" else blk.block
    blk.need(8 * unit)
    most = range(min(256 * unit, blk.capacity) // unit * unit)
    field = Field.max_discard_sectors if kind == "discard" else Field.max_write_zeroes_sectors
    longest = blk.field(field)
    kinds = ("write", "read", kind)
    for random in effort.rounds():
        batches = work.random(random, area=most, kinds=kinds, unit=unit, longest=longest)
        for batch in take(batches, 120):
            work.do(*batch)
    work.check(0, most.stop)


@pytest.mark.clause("5.2.6:5", "5.2.6.2:7")
@pytest.mark.feature(DISCARD)
@writable
def test_discards_among_reads_and_writes_change_no_sector_but_theirs(
    blk: BlkDriver, effort: Effort
) -> None:
    work_with(blk, effort, "discard")


@pytest.mark.clause("5.2.6.2:9")
@pytest.mark.feature(WRITE_ZEROES)
@writable
def test_write_zeroes_among_reads_and_writes_zero_their_sectors(
    blk: BlkDriver, effort: Effort
) -> None:
    work_with(blk, effort, "zeroes")


@pytest.mark.clause("5.2.6:5", "5.2.6.2:8")
@pytest.mark.feature(WRITE_ZEROES)
@writable
def test_write_zeroes_with_unmap_among_reads_and_writes_change_no_sector_but_theirs(
    blk: BlkDriver, effort: Effort
) -> None:
    work_with(blk, effort, "unmap")


@pytest.mark.clause("5.2.6:2")
@writable
@pytest.mark.parametrize(("command", "most"), COMMANDS)
def test_a_command_that_reaches_beyond_the_end_is_an_error(
    blk: BlkDriver, command: Type, most: Field
) -> None:
    blk.start()
    unit = blk.discard_unit
    blk.need(4 * unit)
    before = filled(blk, 4 * unit)
    end = blk.capacity // unit * unit
    for sector, sectors in (
        (end, unit),
        (end - unit, 2 * unit),
        ((1 << 32) // unit * unit, unit),
        ((1 << 55) // unit * unit, unit),
        (((1 << 64) - 1) // unit * unit, unit),
        ((1 << 64) - unit, 2 * unit),
    ):
        if sector + sectors <= blk.capacity:
            continue
        data = segment(sector, sectors)
        answer = blk.ask(blk.request(command, data=data, status=None))
        assert answer.status != Status.OK, (
            f"{command.name} of {sectors} sectors from {sector} on was OK, on a disk of "
            f"{blk.capacity}"
        )
        same(blk.read(0, 4 * unit), before, f"{command.name} beyond the end changed the disk")


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
    gives_up = disk.allocated < before
    says = blk.field(Field.write_zeroes_may_unmap)
    assert gives_up == bool(says), (
        f"write_zeroes_may_unmap is {says}, and storage was {'' if gives_up else 'not '}given up"
    )
