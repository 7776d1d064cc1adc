"""Block devices: what is written is read, byte for byte, whatever the way there (5.2.4, 5.2.6)."""

from collections.abc import Callable, Iterable
from random import Random

import pytest

from virtiopy.conformance.drivers.base import Framing
from virtiopy.conformance.drivers.blk import (
    REQUESTQ,
    SECTOR,
    BlkDriver,
    Field,
    Status,
    Type,
    pattern,
)
from virtiopy.conformance.effort import Effort
from virtiopy.conformance.models.diskwork import DiskWork, take
from virtiopy.conformance.problems import BlockedError, NotApplicableError
from virtiopy.conformance.sessions.base import Session
from virtiopy.spec import Feature

RO = "VIRTIO_BLK_F_RO"
ZONED = "VIRTIO_BLK_F_ZONED"
FLUSH = "VIRTIO_BLK_F_FLUSH"

writable = pytest.mark.unless_feature(RO, ZONED)

#: A disk of no more sectors than this is looked at from end to end.
SMALL = 8192

#: How many sectors from one end to the other are looked at one by one.
SOME = 256

#: Sectors that random work is on, where there are so many: few, so that requests meet.
AREA = 2048


def places(work: DiskWork) -> list[int]:
    """Return blocks of a disk: the first and last, and those about each power of two."""
    block, end = work.block, work.capacity
    found = {0, block, end // 2, end - block, end - 2 * block}
    for power in range(end.bit_length()):
        found |= {(1 << power) - block, 1 << power, (1 << power) + block}
    return sorted({at // block * block for at in found if 0 <= at <= end - block})


# Statuses


@pytest.mark.clause("5.2.6:4")
@pytest.mark.parametrize(
    "kind", [Type.IN, Type.OUT, Type.FLUSH, Type.GET_ID, Type.DISCARD, 3, 0xFFFF_FFFF]
)
def test_each_request_has_its_status_written(session: Session, blk: BlkDriver, kind: int) -> None:
    blk.start()
    data = pattern(blk.block) if kind == Type.OUT else b""
    room = SECTOR * blk.block if kind == Type.IN else 0
    for _ in range(3):
        blk.ask(blk.request(kind, data=data, room=room, status=None))


@pytest.mark.clause("5.2.6:4")
@pytest.mark.parametrize("kind", [Type.IN, Type.OUT])
def test_a_request_at_and_beyond_the_end_has_its_status_written(blk: BlkDriver, kind: Type) -> None:
    blk.start()
    end = blk.field(Field.capacity)
    data = pattern(blk.block) if kind == Type.OUT else b""
    room = SECTOR * blk.block if kind == Type.IN else 0
    for sector in (end - blk.block, end, end + blk.block, 1 << 55):
        blk.ask(blk.request(kind, sector, data, room, status=None))


# As many sectors as capacity says


@pytest.mark.clause("5.2.4:1")
def test_every_sector_below_the_capacity_can_be_read(blk: BlkDriver) -> None:
    blk.start()
    work = DiskWork(blk)
    if work.capacity <= SMALL:
        work.check(0, work.capacity)
    for sector in places(work):
        work.do(work.read(sector, work.block))


@pytest.mark.clause("5.2.4:1")
@writable
def test_every_sector_below_the_capacity_can_be_written(blk: BlkDriver) -> None:
    blk.start()
    work = DiskWork(blk)
    for sector in places(work):
        work.do(work.write(sector, work.block))


# Data


@pytest.mark.clause("5.2.6:1")
def test_a_disk_reads_the_same_twice_in_pieces_of_any_length(blk: BlkDriver) -> None:
    blk.start()
    work = DiskWork(blk)
    most = work.area(AREA)
    for length in work.lengths():
        for start in range(0, min(most.stop, 4 * length) - length + 1, length):
            work.do(work.read(start, length))


@pytest.mark.clause("5.2.6:1")
@writable
def test_what_was_written_is_read_back(blk: BlkDriver) -> None:
    blk.start()
    work = DiskWork(blk)
    for length in work.lengths():
        for start in (0, work.block, (work.capacity - length) // work.block * work.block):
            if start + length <= work.capacity:
                work.do(work.write(start, length))
                work.do(work.read(start, length))


@pytest.mark.clause("5.2.6:1")
@writable
def test_a_write_changes_its_own_sectors_and_no_others(blk: BlkDriver) -> None:
    blk.start()
    work = DiskWork(blk)
    for length in work.lengths():
        around = length + 2 * work.block
        if around > work.capacity:
            break
        work.check(0, around)
        work.do(work.write(work.block, length))
        work.check(0, around)


@pytest.mark.clause("5.2.6:1")
@writable
def test_each_sector_of_the_disk_is_another(blk: BlkDriver) -> None:
    """Sectors whose numbers are cut off, wrap or have their sign changed are one and the same."""
    blk.start()
    work = DiskWork(blk)
    blocks = work.capacity // work.block
    some = range(0, blocks, max(1, blocks // SOME))
    sectors = sorted({*places(work), *(place * work.block for place in some)})
    for at in range(0, len(sectors), 16):
        work.do(*(work.write(sector, work.block) for sector in sectors[at : at + 16]))
    for at in range(0, len(sectors), 16):
        work.do(*(work.read(sector, work.block) for sector in sectors[at : at + 16]))


@pytest.mark.clause("5.2.6:1")
@writable
def test_random_reads_and_writes_one_by_one(blk: BlkDriver, effort: Effort) -> None:
    blk.start()
    work = DiskWork(blk)
    for random in effort.rounds():
        for batch in take(work.random(random, area=work.area(AREA)), 150):
            work.do(*batch)
    work.check(0, work.area(AREA).stop)


@pytest.mark.clause("5.2.6:1")
@writable
def test_random_reads_and_writes_of_the_whole_disk(blk: BlkDriver, effort: Effort) -> None:
    blk.start()
    work = DiskWork(blk)
    for random in effort.rounds():
        for batch in take(work.random(random, area=work.area(work.capacity), together=4), 25):
            work.do(*batch)


@pytest.mark.clause("5.2.6:1")
@writable
def test_random_reads_and_writes_in_flight_together(blk: BlkDriver, effort: Effort) -> None:
    blk.start()
    work = DiskWork(blk)
    for random in effort.rounds():
        for batch in take(work.random(random, area=work.area(AREA), together=16), 30):
            work.do(*batch)
    work.check(0, work.area(AREA).stop)


@pytest.mark.clause("5.2.6:1")
@writable
def test_reads_in_flight_together_each_have_their_own_sectors(blk: BlkDriver) -> None:
    blk.start()
    work = DiskWork(blk)
    block = work.block
    most = min(16, work.capacity // block)
    work.do(*(work.write(place * block, block) for place in range(most)))
    for step in (1, 3, 5, 7):
        work.do(*(work.read(place * step % most * block, block) for place in range(most)))


@pytest.mark.clause("5.2.6:1")
@writable
def test_writes_that_overlap_leave_the_last(blk: BlkDriver) -> None:
    blk.start()
    work = DiskWork(blk)
    block = work.block
    most = min(16, work.capacity // block)
    for length in range(1, most + 1):
        for start in range(most - length + 1):
            work.do(work.write(start * block, length * block))
        work.do(work.read(0, most * block))


@pytest.mark.clause("5.2.6:1")
@writable
def test_writes_that_overlap_in_flight_leave_one_of_them(blk: BlkDriver) -> None:
    blk.start()
    work = DiskWork(blk)
    block = work.block
    most = min(16, work.capacity // block)
    for shift in (1, 2, 3):
        spans = [(start, min(4, most - start)) for start in range(0, most, shift)]
        work.do(*(work.write(start * block, length * block) for start, length in spans[:16]))
        work.check(0, most * block)
        work.check(0, most * block)


@pytest.mark.clause("5.2.6:1")
@writable
@pytest.mark.feature(FLUSH)
def test_a_flush_among_reads_and_writes_changes_no_data(blk: BlkDriver, effort: Effort) -> None:
    blk.start()
    work = DiskWork(blk)
    kinds = ("write", "read", "flush")
    for random in effort.rounds():
        for batch in take(work.random(random, area=work.area(64), together=4, kinds=kinds), 30):
            work.do(*batch)
    work.check(0, work.area(64).stop)


# After what leaves the disk as it was


def start_again(session: Session, blk: BlkDriver) -> None:
    blk.start()


def reset_queue(session: Session, blk: BlkDriver) -> None:
    if not session.has(Feature.VIRTIO_F_RING_RESET):
        raise NotApplicableError("VIRTIO_F_RING_RESET was not negotiated")
    session.reset_queue(blk.main_queue)
    session.set_up_queue(blk.main_queue)


def reconnect(session: Session, blk: BlkDriver) -> None:
    session.reconnect()


AGAIN: Iterable[Callable[[Session, BlkDriver], None]] = (start_again, reset_queue, reconnect)


@pytest.mark.clause("5.2.6:1")
@writable
@pytest.mark.parametrize("again", AGAIN, ids=["reset", "queue reset", "reconnection"])
@pytest.mark.parametrize("flushed", [False, True], ids=["not flushed", "flushed"])
def test_data_is_still_there(
    session: Session,
    blk: BlkDriver,
    again: Callable[[Session, BlkDriver], None],
    *,
    flushed: bool,
) -> None:
    if flushed:
        session.require(FLUSH)
    blk.start()
    work = DiskWork(blk)
    most = work.area(256).stop
    random = Random(1)
    for _ in range(3):
        for batch in take(work.random(random, area=range(most), kinds=("write",)), 10):
            work.do(*batch)
        if flushed:
            work.do(work.flush())
        again(session, blk)
        work.check(0, most)


@pytest.mark.clause("5.2.6:1")
@writable
def test_writes_that_a_reset_cuts_off_are_done_or_not(session: Session, blk: BlkDriver) -> None:
    blk.start()
    work = DiskWork(blk)
    most = work.area(64).stop
    random = Random(2)
    for batch in take(work.random(random, area=range(most), together=8, kinds=("write",)), 6):
        work.check(0, most)
        for sent in blk.place_some(job.request for job in batch):
            blk.offer(sent)
        session.reset()
        work.model.cut_off()
        blk.start()
        work.check(0, most)
        work.check(0, most)


# Several queues


@pytest.mark.clause("5.2.2:1")
@writable
def test_what_one_queue_writes_every_other_reads(session: Session, blk: BlkDriver) -> None:
    blk.start()
    queues = sample(session)
    work = DiskWork(blk)
    block = work.block
    for number, one in enumerate(queues):
        place = number % 4 * block
        work.do(work.write(place, block, one))
        for other in queues:
            work.do(work.read(place, block, other))


@pytest.mark.clause("5.2.2:1")
@writable
def test_random_reads_and_writes_by_several_queues(
    session: Session, blk: BlkDriver, effort: Effort
) -> None:
    blk.start()
    queues = sample(session)
    work = DiskWork(blk)
    for random in effort.rounds():
        jobs = work.random(random, area=work.area(128), together=12, queues=queues)
        for batch in take(jobs, 30):
            work.do(*batch)
    work.check(0, work.area(128).stop)


def sample(session: Session) -> list[int]:
    """Return the first queue, one in the middle, and the last."""
    queues = sorted(session.queues)
    if len(queues) < 2:
        raise NotApplicableError("the device has one request queue")
    return sorted({queues[0], queues[len(queues) // 2], queues[-1]})


# Several descriptors


@pytest.mark.clause("2.7.4.1:1")
@writable
@pytest.mark.parametrize("direct", [None, 0], ids=["direct", "indirect"])
def test_data_is_the_same_in_any_framing(
    session: Session, blk: BlkDriver, direct: int | None
) -> None:
    if direct is not None:
        session.require("VIRTIO_F_INDIRECT_DESC")
    blk.start()
    work = DiskWork(blk)
    size = 8 * SECTOR * work.block
    if work.capacity * SECTOR < size:
        raise NotApplicableError(f"the disk has {work.capacity} sectors")
    # No chain is longer than the queue (2.7.5.3.1), which some devices have short.
    room = session.queues[REQUESTQ].size - len(("header", "data", "status"))
    for cuts in (cuts for cuts in framings(size) if len(cuts) <= room):
        # The data of a write is behind the header's 16 bytes.
        behind = [16, *(16 + cut for cut in cuts)]
        work.do(work.write(0, size // SECTOR), framing=Framing(behind, None, direct))
        work.check(0, size // SECTOR)
        work.do(work.write(0, size // SECTOR))
        work.do(work.read(0, size // SECTOR), framing=Framing(None, [*cuts, size], direct))


def framings(size: int) -> list[list[int]]:
    """Return where data is cut: at sectors and elsewhere, in the middle and at both ends."""
    return [
        list(range(SECTOR, size, SECTOR)),
        [SECTOR],
        [size - SECTOR],
        [size // 2],
        [1],
        [size - 1],
        [100, 512, 513, 1000],
        [511, 512, 1535, 1537],
        list(range(200, size, 200)),
    ]


# Beyond the end


def beyond(blk: BlkDriver) -> list[tuple[int, int]]:
    """Return ranges that reach beyond the last sector: the first, and how many."""
    end, block = blk.capacity, blk.block
    found = [(end, block), (end + block, block), (end + 1000 * block, block)]
    found += [(end - block, 2 * block), (end - block, 8 * block)] if end >= block else []
    # Where a sector's number, or its offset in bytes, is cut off or changes its sign.
    for power in (22, 23, 31, 32, 54, 55, 63):
        found += [(sector, block) for sector in (1 << power, (1 << power) + block)]
    last = (1 << 64) // block * block - block
    found += [(last, block), (last, 2 * block), ((1 << 63) - block, 2 * block)]
    return [(sector, sectors) for sector, sectors in found if sector + sectors > end]


@pytest.mark.clause("5.2.6:2")
def test_a_read_that_reaches_beyond_the_end_is_an_error(blk: BlkDriver) -> None:
    blk.start()
    for sector, sectors in beyond(blk):
        answer = blk.ask(blk.request(Type.IN, sector, room=sectors * SECTOR, status=None))
        assert answer.status != Status.OK, (
            f"a read of {sectors} sectors from {sector} on was OK, on a disk of {blk.capacity}"
        )


@pytest.mark.clause("5.2.6:2")
@writable
def test_a_write_that_reaches_beyond_the_end_is_an_error_and_changes_nothing(
    blk: BlkDriver,
) -> None:
    blk.start()
    work = DiskWork(blk)
    end = work.area(64).stop
    work.check(0, end)
    for sector, sectors in beyond(blk):
        request = blk.request(Type.OUT, sector, pattern(sectors), status=None)
        answer = blk.ask(request)
        assert answer.status != Status.OK, (
            f"a write of {sectors} sectors from {sector} on was OK, on a disk of {blk.capacity}"
        )
        # Its first sectors may be written, where those are the disk's.
        if sector < blk.capacity:
            continue
        work.check(0, end)


# Flushes


@pytest.mark.clause("5.2.3:1")
@pytest.mark.feature(FLUSH)
def test_a_flush_is_carried_out(blk: BlkDriver) -> None:
    blk.start()
    work = DiskWork(blk)
    work.do(work.flush())
    work.do(work.flush(), work.flush())
    work.do(work.read(0, blk.block))


# What a read-only disk has


@pytest.mark.clause("5.2.6.2:4")
@pytest.mark.feature(RO)
def test_nothing_that_was_tried_changes_a_read_only_disk(blk: BlkDriver) -> None:
    blk.start()
    work = DiskWork(blk)
    most = work.area(64).stop
    work.check(0, most)
    for length in work.lengths():
        if length <= most:
            answer = blk.ask(blk.request(Type.OUT, 0, pattern(length, seed=7), status=None))
            if answer.status == Status.OK:
                raise BlockedError("5.2.6.2:3")
            work.check(0, most)
