"""Work on a block device, every byte of it held against the model of its disk (5.2.6)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from virtiopy.conformance.drivers.base import WHOLE, Framing, Request
from virtiopy.conformance.drivers.blk import (
    REQUESTQ,
    SECTOR,
    UNMAP,
    BlkDriver,
    Field,
    Status,
    Type,
    segment,
)
from virtiopy.conformance.models.disk import ModelDisk, Read, Write
from virtiopy.conformance.problems import NotApplicableError, StepError
from virtiopy.virtqueue.driver import Allocator

#: The statement that data is about.
DATA = "5.2.6:1"

#: The most bytes that one request of random work has.
REQUEST_MAX = 1 << 20

#: Guest memory that requests in flight together share, bytes; it is used again and again.
_ARENA = 8 << 20

#: Lengths, in blocks, at which disks have been known to go wrong: about powers of two.
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)
LONG_LENGTHS = (511, 512, 513, 1023, 1024, 1025, 2047, 2048)


class DataError(StepError):
    """A sector has not what it should have: `wanted`."""

    def __init__(self, words: str, wanted: bytes) -> None:
        super().__init__(words, DATA)
        self.wanted = wanted


@dataclass(slots=True, frozen=True)
class Job:
    """A request, and what the model has to do with it."""

    request: Request
    reads: Read | None = None
    writes: Write | None = None


class DiskWork:
    """Requests of a driver, and the model that its disk is held against."""

    def __init__(self, blk: BlkDriver) -> None:
        self.blk = blk
        self.model = ModelDisk()
        start = blk.session.allocator.take(_ARENA, 4096)
        self._arena = start, start + _ARENA
        #: Sectors that everything is a multiple of.
        self.block = blk.block
        #: Sectors that the disk had when the work began.
        self.capacity = blk.capacity
        if self.capacity < self.block:
            raise NotApplicableError(f"the disk has {self.capacity} sectors")
        #: Sectors that one request may have.
        self.longest = self._longest()

    def _longest(self) -> int:
        blk = self.blk
        most = REQUEST_MAX // SECTOR
        if blk.session.has("VIRTIO_BLK_F_SIZE_MAX"):
            segments = 1
            if blk.session.has("VIRTIO_BLK_F_SEG_MAX"):
                segments = max(1, blk.field(Field.seg_max))
            most = min(most, segments * blk.field(Field.size_max) // SECTOR)
        return max(self.block, min(most, self.capacity) // self.block * self.block)

    def area(self, most: int) -> range:
        """Return the first sectors of the disk, up to so many."""
        return range(max(self.block, min(most, self.capacity) // self.block * self.block))

    def lengths(self) -> list[int]:
        """Return lengths of requests, in sectors: from a block to the longest."""
        longest = self.longest
        found = {self.block * length for length in (*LENGTHS, *LONG_LENGTHS)}
        return sorted({length for length in found if length < longest} | {longest})

    # Jobs

    def read(self, sector: int, sectors: int, queue: int = REQUESTQ) -> Job:
        """Return a read."""
        request = self.blk.request(Type.IN, sector, room=sectors * SECTOR, queue=queue)
        return Job(request, reads=self.model.read(sector, sectors))

    def write(self, sector: int, sectors: int, queue: int = REQUESTQ) -> Job:
        """Return a write of what no sector has had before."""
        write = self.model.write(sector, sectors)
        data = b"".join(content for content in write.contents if content is not None)
        self.model.begin(write)
        return Job(self.blk.request(Type.OUT, sector, data, queue=queue), writes=write)

    def flush(self, queue: int = REQUESTQ) -> Job:
        """Return a flush."""
        return Job(self.blk.request(Type.FLUSH, queue=queue))

    def discard(self, sector: int, sectors: int, queue: int = REQUESTQ) -> Job:
        """Return a discard of one segment."""
        write = self.model.discard(sector, sectors)
        self.model.begin(write)
        data = segment(sector, sectors)
        return Job(self.blk.request(Type.DISCARD, data=data, queue=queue), writes=write)

    def zeroes(
        self, sector: int, sectors: int, queue: int = REQUESTQ, *, unmap: bool = False
    ) -> Job:
        """Return a write zeroes request of one segment."""
        write = self.model.zeroes(sector, sectors)
        self.model.begin(write)
        data = segment(sector, sectors, UNMAP if unmap else 0)
        return Job(self.blk.request(Type.WRITE_ZEROES, data=data, queue=queue), writes=write)

    def unmap(self, sector: int, sectors: int, queue: int = REQUESTQ) -> Job:
        """Return a write zeroes request of one segment that allows it to be unmapped."""
        return self.zeroes(sector, sectors, queue, unmap=True)

    # Doing them

    def do(self, *jobs: Job, framing: Framing = WHOLE) -> None:
        """Have jobs done together: all that there is room for, before the first is waited for."""
        session = self.blk.session
        outer = session.allocator
        session.allocator = Allocator(*self._arena)
        try:
            left = list(jobs)
            while left:
                sent = self.blk.place_some((job.request for job in left), framing)
                for queue in dict.fromkeys(one.request.queue for one in sent):
                    self.blk.offer(*(one for one in sent if one.request.queue == queue))
                for job, one in zip(left, sent, strict=False):
                    self.finish(job, self.blk.finish(one))
                del left[: len(sent)]
        finally:
            session.allocator = outer

    def finish(self, job: Job, content: bytes) -> None:
        """Hold a job's answer, which is OK, against the model."""
        if job.writes is not None:
            self.model.end(job.writes)
        if (read := job.reads) is None:
            return
        if (wrong := self.model.complete(read, content[:-1])) is not None:
            what = f"a read of {read.count} sectors from {read.sector} on"
            raise DataError(f"{what}: {wrong.words}", wrong.wanted)

    def check(self, sector: int, sectors: int, queue: int = REQUESTQ) -> None:
        """Read sectors, however many, and hold them against the model."""
        longest = self.longest
        for start in range(sector, sector + sectors, longest):
            self.do(self.read(start, min(longest, sector + sectors - start), queue))

    def refused(self, job: Job) -> bool:
        """Have a job done that may be answered with an error; says whether it was."""
        answer = self.blk.ask(job.request)
        if answer.status == Status.OK:
            self.finish(job, answer.data + bytes([answer.status]))
            return False
        if job.writes is not None:
            self.model.fail(job.writes)
        return True

    # Random work

    def random(
        self,
        random: Random,
        *,
        area: range,
        together: int = 1,
        queues: Sequence[int] = (REQUESTQ,),
        kinds: Sequence[str] = ("write", "read", "read"),
        unit: int = 1,
        longest: int | None = None,
    ) -> Iterator[list[Job]]:
        """Yield batches of jobs without end: up to `together` in one, on sectors of `area`.

        `kinds` are names of this class's methods, each as likely as it is often there. What is
        neither read nor written is a multiple of `unit` sectors, and has `longest` at most.
        """
        lengths = [one for one in self.lengths() if one <= len(area)]
        while True:
            budget = _ARENA // 2
            batch = []
            for _ in range(random.randint(1, together)):
                length = self._length(random, lengths, budget)
                sector = self._sector(random, area, length)
                kind = random.choice(kinds)
                queue = random.choice(queues)
                if kind == "flush":
                    batch.append(self.flush(queue))
                    continue
                if kind not in {"read", "write"}:
                    length = max(1, min(length, longest or length) // unit) * unit
                    sector = min(sector, area.stop - length) // unit * unit
                batch.append(getattr(self, kind)(sector, length, queue))
                budget -= length * SECTOR
                if budget < SECTOR * self.block:
                    break
            yield batch

    def _length(self, random: Random, lengths: Sequence[int], budget: int) -> int:
        # Short ones more often: there are most of them, and they meet at their ends.
        short = lengths[: max(1, len(lengths) // 2)]
        length = random.choice(short if random.random() < 0.7 else lengths)
        return min(length, max(self.block, budget // SECTOR // self.block * self.block))

    def _sector(self, random: Random, area: range, length: int) -> int:
        last = area.stop - length
        ends = (area.start, last, area.start + self.block, last - self.block)
        at_an_end = random.random() < 0.15
        sector = random.choice(ends) if at_an_end else random.randint(area.start, last)
        sector = min(max(sector, area.start), last)
        return sector // self.block * self.block


def take(batches: Iterable[list[Job]], number: int) -> Iterator[list[Job]]:
    """Yield so many batches."""
    return islice(batches, number)
