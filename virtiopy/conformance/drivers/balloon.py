"""The driver of the traditional memory balloon device (5.5)."""

import enum
from collections.abc import Iterable, Sequence
from itertools import count
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.conformance.drivers.base import WHOLE, DeviceDriver, Framing, Request, Sent
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.sessions.base import QUEUE_SIZE, FeatureLike, Session
from virtiopy.conformance.sessions.memory import SPARE
from virtiopy.conformance.targets.hosts import BalloonHost
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.driver import Piece

#: Bytes of a page of the balloon's (5.5.6).
PAGE = 4096

#: Page numbers of memory that nothing else is in.
FIRST_PFN, END_PFN = SPARE[0] // PAGE, SPARE[1] // PAGE


class Virtqueue(enum.IntEnum):
    """The virtqueues (5.5.2)."""

    inflateq = 0
    deflateq = 1
    statsq = 2
    free_page_vq = 3
    reporting_vq = 4


#: The virtqueues that only exist with a feature (5.5.2).
OPTIONAL_QUEUES = {
    Virtqueue.statsq: "VIRTIO_BALLOON_F_STATS_VQ",
    Virtqueue.free_page_vq: "VIRTIO_BALLOON_F_FREE_PAGE_HINT",
    Virtqueue.reporting_vq: "VIRTIO_BALLOON_F_PAGE_REPORTING",
}

#: Reserved values of free_page_hint_cmd_id (5.5.6.5).
CMD_ID_STOP = 0
CMD_ID_DONE = 1


class Field(enum.IntEnum):
    """The offsets of the fields of struct virtio_balloon_config, 4 bytes each (5.5.4)."""

    num_pages = 0
    actual = 4
    free_page_hint_cmd_id = 8
    poison_val = 12


def pfns(numbers: Sequence[int]) -> bytes:
    """Return an array of page numbers (5.5.6)."""
    return bytes(ffi.buffer(ffi.new("uint32_t[]", list(numbers))))


def statistics(values: dict[int, int]) -> bytes:
    """Return an array of struct virtio_balloon_stat (5.5.6.3), by tag."""
    size = ffi.sizeof("struct virtio_balloon_stat")
    array = ffi.new("struct virtio_balloon_stat[]", len(values))
    for entry, (tag, value) in zip(array, values.items(), strict=True):
        entry.tag, entry.val = tag, value
    return bytes(ffi.buffer(array)[: size * len(values)])


class BalloonDriver(DeviceDriver):
    """A driver that puts pages of SPARE memory into the balloon, and takes them out again."""

    device_id: ClassVar[DeviceId] = DeviceId.BALLOON
    name: ClassVar[str] = "balloon"
    config_size = 8
    queues = 2  # 5.5.2

    understood = (
        "VIRTIO_BALLOON_F_MUST_TELL_HOST",
        "VIRTIO_BALLOON_F_STATS_VQ",
        "VIRTIO_BALLOON_F_DEFLATE_ON_OOM",
        "VIRTIO_BALLOON_F_FREE_PAGE_HINT",
        "VIRTIO_BALLOON_F_PAGE_POISON",
        "VIRTIO_BALLOON_F_PAGE_REPORTING",
    )

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._next_page = count()
        self._indexes = {queue: int(queue) for queue in Virtqueue}

    def start(
        self,
        features: Iterable[FeatureLike] | None = None,
        *,
        without: Iterable[FeatureLike] = (),
        queue_size: int | None = None,
        poison: int | None = None,
    ) -> None:
        """Bring the device up; with PAGE_POISON free pages are filled with `poison` (5.5.5)."""
        session = self.session
        session.negotiate(features, without=without)
        self._find_queues()
        for index in self._indexes.values():
            most = session.queue_size_max(index)
            session.set_up_queue(index, min(most, queue_size or QUEUE_SIZE))
        if poison is not None:
            self.set_field(Field.poison_val, poison)
        session.driver_ok()

    def _find_queues(self) -> None:
        """Find the queues by their numbers in 5.5.2, or counted without gaps, as Linux does."""
        existing = [
            queue
            for queue in Virtqueue
            if queue not in OPTIONAL_QUEUES or self.session.has(OPTIONAL_QUEUES[queue])
        ]
        if all(self.session.queue_size_max(queue) for queue in existing):
            self._indexes = {queue: int(queue) for queue in existing}
        else:
            self._indexes = {queue: index for index, queue in enumerate(existing)}

    def index_of(self, queue: Virtqueue) -> int:
        """Return the index of a virtqueue, which exists with what was negotiated."""
        return self._indexes[queue]

    # Pages

    def fresh_pfn(self) -> int:
        """Return the number of a page that was not in the balloon yet, or long ago."""
        return FIRST_PFN + next(self._next_page) % (END_PFN - FIRST_PFN)

    def fresh_pfns(self, number: int) -> list[int]:
        """Return the numbers of so many pages, one after the other."""
        while (first := self.fresh_pfn()) + number > END_PFN:
            pass
        return [first, *(self.fresh_pfn() for _ in range(number - 1))]

    def fill(self, pfn: int, word: int) -> bytes:
        """Write a word all over a page, and return what is in it then."""
        content = word.to_bytes(4, "little") * (PAGE // 4)
        self.session.memory.write(pfn * PAGE, content)
        return content

    def page(self, pfn: int) -> bytes:
        """Return what is in a page."""
        return bytes(self.session.memory.read(pfn * PAGE, PAGE))

    # Requests

    def _request(self, queue: int, readable: bytes) -> Request:
        def check(content: bytes, length: int) -> None:
            assert length == 0, f"{length} bytes written to a buffer with no room"

        return Request(queue, readable, 0, check)

    def inflation(self, *numbers: int) -> Request:
        """Return a request to put pages into the balloon."""
        return self._request(Virtqueue.inflateq, pfns(numbers))

    def deflation(self, *numbers: int) -> Request:
        """Return a request to take pages out of the balloon."""
        return self._request(Virtqueue.deflateq, pfns(numbers))

    def good_request(self) -> Request:
        """Return a request to put a page into the balloon."""
        return self.inflation(self.fresh_pfn())

    def requests(self) -> list[Request]:
        """Return requests to put a page in, and to take it out."""
        pfn = self.fresh_pfn()
        return [self.inflation(pfn), self.deflation(pfn)]

    def inflate(self, *numbers: int, framing: Framing = WHOLE) -> None:
        """Put pages into the balloon."""
        self.do(self.inflation(*numbers), framing)

    def deflate(self, *numbers: int, framing: Framing = WHOLE) -> None:
        """Take pages out of the balloon."""
        self.do(self.deflation(*numbers), framing)

    def supply_statistics(self, values: dict[int, int], framing: Framing = WHOLE) -> int:
        """Give the device a buffer of statistics, which it keeps; returns the head (5.5.6.3)."""
        request = self._request(self.index_of(Virtqueue.statsq), statistics(values))
        return self.send(request, framing).head

    def report(self, *ranges: tuple[int, int], queue: Virtqueue = Virtqueue.reporting_vq) -> None:
        """Report free pages in one request (5.5.6.7): the first page's number, and how many.

        Or give them as hints, by the free_page_vq (5.5.6.5).
        """
        index = self.index_of(queue)
        pieces = [Piece(pfn * PAGE, number * PAGE, writable=True) for pfn, number in ranges]
        room = sum(piece.length for piece in pieces)
        # The driver is not to look at what was written: the length may be 0 or all of it.
        request = Request(index, b"", room, lambda content, length: None)
        sent = Sent(request, self.session.queues[index].place(pieces), pieces)
        self.offer(sent)
        self.finish(sent)

    def command(self, command_id: int) -> None:
        """Begin or end a round of free page hints (5.5.6.5)."""
        self.do(self._request(self.index_of(Virtqueue.free_page_vq), pfns([command_id])))

    def field(self, field: Field) -> int:
        """Read a field of the configuration space."""
        return self.session.config(field, 4)

    def set_field(self, field: Field, value: int) -> None:
        """Write a field of the configuration space."""
        self.session.write_config(field, value.to_bytes(4, "little"))

    @property
    def balloon_host(self) -> BalloonHost:
        """The host's side; the test is not applicable where the suite has no hand in it."""
        if not isinstance(self.session.host, BalloonHost):
            raise NotApplicableError("the suite cannot ask this backend for memory or statistics")
        return self.session.host
