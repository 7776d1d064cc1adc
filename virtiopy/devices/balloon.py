"""The traditional memory balloon device (5.5).

Pages that the driver puts into the balloon, and free ones that it reports, are given back to the
host. They need nothing done to return: the guest touches them, and they are new pages of zeroes.
"""

import enum
import logging
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.devices.base import (
    CommandArguments,
    DeviceCommand,
    DeviceHost,
    Fact,
    VirtioDevice,
)
from virtiopy.errors import ConfigError, DriverError
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId, feature_mask, has_feature
from virtiopy.virtqueue.buffers import gather, split_at
from virtiopy.virtqueue.queue import BATCH, Chain, Virtqueue, batches_of_a_turn

log = logging.getLogger(__name__)

#: Bytes of a page of the balloon's, whatever the guest's and the host's are (5.5.6).
PAGE_SIZE = 4096

QUEUE_SIZE = 128

#: Page numbers that one request may have; a driver with more to say says it in several.
REQUEST_PFNS = 1 << 15

#: Requests that are worked off together, so that what they share is done once.
BATCH_REQUESTS = 8

#: Statistics that one buffer may have.
REQUEST_STATISTICS = 256


class BalloonFeature(enum.IntEnum):
    """Feature bits (5.5.3)."""

    VIRTIO_BALLOON_F_MUST_TELL_HOST = 0
    VIRTIO_BALLOON_F_STATS_VQ = 1
    VIRTIO_BALLOON_F_DEFLATE_ON_OOM = 2
    VIRTIO_BALLOON_F_FREE_PAGE_HINT = 3
    VIRTIO_BALLOON_F_PAGE_POISON = 4
    VIRTIO_BALLOON_F_PAGE_REPORTING = 5


class BalloonQueue(enum.IntEnum):
    """The virtqueues (5.5.2)."""

    inflateq = 0
    deflateq = 1
    statsq = 2
    free_page_vq = 3
    reporting_vq = 4


#: The virtqueues that only exist when a feature is negotiated (5.5.2).
OPTIONAL_QUEUES = {
    BalloonQueue.statsq: BalloonFeature.VIRTIO_BALLOON_F_STATS_VQ,
    BalloonQueue.free_page_vq: BalloonFeature.VIRTIO_BALLOON_F_FREE_PAGE_HINT,
    BalloonQueue.reporting_vq: BalloonFeature.VIRTIO_BALLOON_F_PAGE_REPORTING,
}


class Statistic(enum.IntEnum):
    """VIRTIO_BALLOON_S_*: memory in bytes, else how often something happened (5.5.6.4)."""

    SWAP_IN = 0
    SWAP_OUT = 1
    MAJFLT = 2
    MINFLT = 3
    MEMFREE = 4
    MEMTOT = 5
    AVAIL = 6
    CACHES = 7
    HTLB_PGALLOC = 8
    HTLB_PGFAIL = 9


class Ignored(enum.StrEnum):
    """Why a part of what the driver sent was ignored."""

    NOT_MEMORY = "not memory"
    REPEATED = "repeated"
    NOT_IN_BALLOON = "not in the balloon"
    MALFORMED = "malformed"


class Owner(enum.IntEnum):
    """Who has a page; a byte for each page of the guest's addresses."""

    NEITHER = 0
    GUEST = 1
    BALLOON = 2


_PFN_SIZE = ffi.sizeof("uint32_t")
_STATISTIC_SIZE = ffi.sizeof("struct virtio_balloon_stat")
_ACTUAL_OFFSET = ffi.offsetof("struct virtio_balloon_config", "actual")
_POISON_OFFSET = ffi.offsetof("struct virtio_balloon_config", "poison_val")
_STATISTICS = {int(statistic): statistic.name for statistic in Statistic}


def _set_target(device: VirtioDevice, arguments: CommandArguments) -> Mapping[str, Fact]:
    assert isinstance(device, Balloon)
    target = arguments.size("target")
    device.set_target(target)
    return {"target": target}


@dataclass(slots=True, eq=False)
class _Batch:
    """Requests of one queue that a worker serves together."""

    virtqueue: BalloonQueue
    queue: Virtqueue
    chains: Sequence[Chain]
    finished: threading.Event = field(default_factory=threading.Event)


class Balloon(VirtioDevice):
    """A balloon that asks the driver for `target` bytes of the guest's memory.

    The driver is asked for its statistics every `statistics_interval` seconds, or never for 0.
    With `deflate_on_oom` it may take pages back that the host has not given (5.5.6.1). Raises
    ConfigError for a target that the guest's memory cannot meet.
    """

    device_id: ClassVar[DeviceId] = DeviceId.BALLOON
    feature_bits = BalloonFeature
    commands = MappingProxyType(
        {"balloon": DeviceCommand("Set the target of a balloon.", ("target",), _set_target)}
    )

    # There is no free_page_vq. Linux numbers the queues that there are without gaps, so what is
    # reporting_vq to it may be queue 3, or 2.
    queue_sizes = (QUEUE_SIZE,) * len(BalloonQueue)

    def __init__(
        self,
        *,
        target: int = 0,
        statistics_interval: float = 0,
        deflate_on_oom: bool = False,
    ) -> None:
        super().__init__()
        features = [
            BalloonFeature.VIRTIO_BALLOON_F_MUST_TELL_HOST,
            BalloonFeature.VIRTIO_BALLOON_F_STATS_VQ,
            BalloonFeature.VIRTIO_BALLOON_F_PAGE_POISON,
            BalloonFeature.VIRTIO_BALLOON_F_PAGE_REPORTING,
        ]
        if deflate_on_oom:
            features.append(BalloonFeature.VIRTIO_BALLOON_F_DEFLATE_ON_OOM)
        self.features = feature_mask(features)
        self.target = target
        self.statistics_interval = statistics_interval
        #: Pages given back to the host, and pages that it would not take, since the start.
        self.discarded = 0
        self.kept = 0
        #: What was ignored since the start: pages, and malformed requests.
        self.ignored: Counter[Ignored] = Counter()
        self._memory: GuestMemory
        self._batch: _Batch | None = None
        self._forget_driver()

    def _forget_driver(self) -> None:
        #: Bytes in the balloon as the driver says, and as its requests do.
        self.actual = 0
        self.ballooned = 0
        #: The driver's latest statistics, by name.
        self.statistics: dict[str, int] = {}
        self._poison_value = 0
        self._started = False
        self._virtqueues: dict[int, BalloonQueue] = {}
        self._owners = bytearray()
        self._statistics_buffer: tuple[Virtqueue, Chain] | None = None

    # The host's side: these are called from any thread

    def set_target(self, target: int) -> None:
        """Ask the driver for `target` bytes in all. Raises ConfigError."""
        with self.lock:
            self._check_target(target)
            self.target = target
            self.host.config_changed()

    def _check_target(self, target: int) -> None:
        if target < 0 or target % PAGE_SIZE:
            raise ConfigError(
                f"A balloon's target cannot be {target} bytes: give a multiple of {PAGE_SIZE}."
            )
        if target > self._memory.size:
            raise ConfigError(
                f"A balloon's target of {target} bytes is more than the guest's memory: "
                f"give at most {self._memory.size}."
            )

    def request_statistics(self) -> None:
        """Ask the driver for new statistics; does nothing while an answer is due (5.5.6.3)."""
        with self.lock:
            if self._statistics_buffer is not None:
                queue, chain = self._statistics_buffer
                self._statistics_buffer = None
                queue.push(chain, 0)
                self.notify(queue)

    def facts(self) -> Mapping[str, Fact]:
        """Tell sizes in bytes, what was ignored, and the driver's statistics."""
        return {
            "target": self.target,
            "actual": self.actual,
            "ballooned": self.ballooned,
            "discarded": self.discarded * PAGE_SIZE,
            "kept": self.kept * PAGE_SIZE,
            "ignored": {str(reason): number for reason, number in dict(self.ignored).items()},
            "statistics": dict(self.statistics),
        }

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        """Take the transport, and ask for statistics by its loop. Raises ConfigError."""
        super().attach(host, loop, may_block=may_block)
        self._memory = host.memory
        self._check_target(self.target)
        if loop is not None and self.statistics_interval:
            loop.call_soon(lambda: self._poll_statistics(loop), "balloon")

    def _poll_statistics(self, loop: EventLoop) -> None:
        seconds, name = self.statistics_interval, "balloon statistics"
        loop.call_later(seconds, self.request_statistics, name, every=True)

    # Configuration space (5.5.4)

    def config_space(self) -> bytes:
        """Return struct virtio_balloon_config."""
        config = ffi.new("struct virtio_balloon_config *")
        config.num_pages = self.target // PAGE_SIZE
        config.actual = self.actual // PAGE_SIZE
        config.poison_val = self._poison_value
        return bytes(ffi.buffer(config))

    def write_config(self, offset: int, data: bytes) -> bool:
        """Take `actual`, and `poison_val` before DRIVER_OK (5.5.6.6.1)."""
        value = int.from_bytes(data, "little")
        if len(data) != 4:
            log.debug("balloon: write of %d bytes to the configuration space", len(data))
        elif offset == _ACTUAL_OFFSET:
            self.actual = value * PAGE_SIZE
            return True
        elif offset == _POISON_OFFSET and not self._started:
            self._poison_value = value
            return True
        return False

    # Life

    def activate(self, queues: Mapping[int, Virtqueue]) -> None:
        """Start with every page in the guest's hands."""
        super().activate(queues)
        self._started = True
        self._find_queues()
        for start, end in self._memory.ranges:
            # Grown to the end of the range, which leaves a hole before it to neither.
            self._owners.extend(bytes(start // PAGE_SIZE - len(self._owners)))
            self._owners.extend(bytes([Owner.GUEST]) * ((end - start) // PAGE_SIZE))

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Take a queue, which may say how the driver counts."""
        super().start_queue(index, queue)
        self._find_queues()

    def stop_queue(self, index: int) -> None:
        """Forget a queue and its buffers; the worker's are waited for."""
        self._drain()
        super().stop_queue(index)
        if self._statistics_buffer is not None and self._statistics_buffer[0].index == index:
            self._statistics_buffer = None

    def reset(self) -> None:
        """Forget the driver; the target stays the host's, all pages are the guest's."""
        self._drain()
        super().reset()
        self._forget_driver()

    def _drain(self) -> None:
        """Wait until no worker touches a buffer any more (2.4.1, 2.6.1.1.1)."""
        if self._batch is not None:
            self._batch.finished.wait()

    def _find_queues(self) -> None:
        """Tell which queue is which: by 5.5.2, or counted without gaps, as Linux and QEMU do."""
        existing = [
            queue
            for queue in BalloonQueue
            if queue not in OPTIONAL_QUEUES
            or has_feature(self.driver_features, OPTIONAL_QUEUES[queue])
        ]
        if all(queue in self.queues for queue in existing if queue in OPTIONAL_QUEUES):
            self._virtqueues = {int(queue): queue for queue in existing}
        else:
            self._virtqueues = dict(enumerate(existing))

    # Kicks: pages are given back in place, or where the caller may not wait, by a worker

    def handle(self, queue: Virtqueue) -> None:
        """Serve what is available. Raises QueueError."""
        virtqueue = self._virtqueues.get(queue.index)
        if virtqueue is BalloonQueue.statsq:
            self._take_statistics(queue)
        elif virtqueue is not None and self._batch is None:
            self._serve_batches(virtqueue, queue)

    def _serve_batches(self, virtqueue: BalloonQueue, queue: Virtqueue) -> None:
        for _ in batches_of_a_turn():
            queue.disable_kicks()
            chains = queue.pop_many(BATCH_REQUESTS)
            self.notify(queue)
            if not chains:
                if not queue.enable_kicks():
                    return
                continue
            batch = _Batch(virtqueue, queue, chains)
            if not self.may_block and self.loop is not None:
                self._start(batch, self.loop)
                return
            self._execute(batch)
            self._complete(batch)
        self.handle_soon(queue)

    def _start(self, batch: _Batch, loop: EventLoop) -> None:
        """Have a worker serve a batch; there is one at a time, so requests stay in order."""

        def work() -> None:
            try:
                self._execute(batch)
            finally:
                batch.finished.set()

        def done() -> None:
            with self.lock:
                self._batch = None
                # A queue that was reset meanwhile has no use for its buffers (2.6.1.1.1).
                if self.queues.get(batch.queue.index) is batch.queue:
                    self._complete(batch)
                try:
                    for queue in self.queues.values():
                        self.handle(queue)
                except DriverError as error:
                    self.host.needs_reset(str(error))

        self._batch = batch
        loop.run_blocking(work, done, "balloon requests")

    # Requests: parse, execute, complete (5.5.6)

    def _execute(self, batch: _Batch) -> None:
        if batch.virtqueue is BalloonQueue.inflateq:
            self._inflate(batch.chains)
        elif batch.virtqueue is BalloonQueue.deflateq:
            self._deflate(batch.chains)
        elif batch.virtqueue is BalloonQueue.reporting_vq:
            self._report(batch.chains)

    def _complete(self, batch: _Batch) -> None:
        batch.queue.push_many((chain, 0) for chain in batch.chains)
        self.notify(batch.queue)

    def _parse(self, chains: Iterable[Chain]) -> list[int]:
        """Read the page numbers of several requests."""
        pfns: list[int] = []
        for chain in chains:
            array, rest = split_at(chain.readable, REQUEST_PFNS * _PFN_SIZE)
            data = gather(array)
            if rest or len(data) % _PFN_SIZE or chain.writable:
                self.ignored[Ignored.MALFORMED] += 1
            pfns.extend(ffi.from_buffer("uint32_t[]", data))
        return pfns

    def _take_pages(self, pfns: Sequence[int], owner: Owner, otherwise: Ignored) -> list[int]:
        """Sort the page numbers, and leave out what is not `owner`'s, and why."""
        unique = sorted(set(pfns))
        known = unique[: bisect_left(unique, len(self._owners))]
        pages = [pfn for pfn in known if self._owners[pfn] == owner]
        memory = sum(self._owners[pfn] != Owner.NEITHER for pfn in known)
        self._ignore(Ignored.REPEATED, len(pfns) - len(unique))
        self._ignore(Ignored.NOT_MEMORY, len(unique) - memory)
        self._ignore(otherwise, memory - len(pages))
        return pages

    def _ignore(self, reason: Ignored, number: int) -> None:
        if number:
            self.ignored[reason] += number
            log.info("balloon: %d pages ignored: %s", number, reason)

    def _give(self, pages: Iterable[int], owner: Owner) -> None:
        for first, length in runs(pages):
            self._owners[first : first + length] = bytes([owner]) * length

    def _inflate(self, chains: Iterable[Chain]) -> None:
        pages = self._take_pages(self._parse(chains), Owner.GUEST, Ignored.REPEATED)
        self._give(pages, Owner.BALLOON)
        self.ballooned += len(pages) * PAGE_SIZE
        size = self._memory.granule
        for first, length in runs(self._whole_blocks(pages, size // PAGE_SIZE)):
            self._discard(first * size, length * size)

    def _deflate(self, chains: Iterable[Chain]) -> None:
        pages = self._take_pages(self._parse(chains), Owner.BALLOON, Ignored.NOT_IN_BALLOON)
        self._give(pages, Owner.GUEST)
        self.ballooned -= len(pages) * PAGE_SIZE

    def _whole_blocks(self, pages: Sequence[int], block: int) -> Sequence[int]:
        """Return the blocks of `block` pages that `pages` completed in the balloon.

        Without MUST_TELL_HOST the pages of requests that were acknowledged may be in use again,
        with no word of it: a block is then whole within this batch or never (5.5.6.2).
        """
        if block == 1:
            return pages
        if has_feature(self.driver_features, BalloonFeature.VIRTIO_BALLOON_F_MUST_TELL_HOST):
            whole = bytes([Owner.BALLOON]) * block
            touched = sorted({pfn // block for pfn in pages})
            return [n for n in touched if self._owners[n * block : (n + 1) * block] == whole]
        pages_of = Counter(pfn // block for pfn in pages)
        return [number for number, present in pages_of.items() if present == block]

    def _report(self, chains: Iterable[Chain]) -> None:
        """Give reported free memory back (5.5.6.7), in whole blocks of the host's."""
        poisoned = has_feature(self.driver_features, BalloonFeature.VIRTIO_BALLOON_F_PAGE_POISON)
        size = self._memory.granule
        for start, end in self._reported_ranges(chains):
            first, last = -(-start // size) * size, end // size * size
            if first >= last:
                continue
            if poisoned and self._poison_value:
                # It must read as poison_val, and what the host gives anew is zero (5.5.6.7.2).
                self.kept += (last - first) // PAGE_SIZE
            else:
                self._discard(first, last - first)

    def _reported_ranges(self, chains: Iterable[Chain]) -> Iterator[tuple[int, int]]:
        """Put neighbours together: guest physical addresses [start, end), ascending."""
        pieces = [piece for chain in chains for piece in chain.writable]
        starts = ((self._memory.address_of(piece), len(piece)) for piece in pieces)
        start = end = 0
        for address, length in sorted(starts):
            if address > end:
                yield start, end
                start = end = address
            end = max(end, address + length)
        yield start, end

    def _discard(self, address: int, length: int) -> None:
        try:
            self._memory.discard(address, length)
        except OSError as error:
            log.warning("balloon: the host does not take memory back: %s", error)
            self.kept += length // PAGE_SIZE
        else:
            self.discarded += length // PAGE_SIZE

    # Statistics (5.5.6.3)

    def _take_statistics(self, queue: Virtqueue) -> None:
        """Read the statistics of a buffer, and hold it until the next ones are asked for."""
        for _ in batches_of_a_turn():
            queue.disable_kicks()
            chains = queue.pop_many(BATCH)
            for chain in chains:
                # Of more buffers than the one that there may be (5.5.6.3.1) the latest counts.
                self.request_statistics()
                self.statistics = self._parse_statistics(chain)
                self._statistics_buffer = queue, chain
            self.notify(queue)
            if not chains and not queue.enable_kicks():
                return
        self.handle_soon(queue)

    def _parse_statistics(self, chain: Chain) -> dict[str, int]:
        array, rest = split_at(chain.readable, REQUEST_STATISTICS * _STATISTIC_SIZE)
        data = gather(array)
        # The text asks for a multiple of 6 bytes (5.5.6.3.1), but an entry has 10.
        if rest or len(data) % _STATISTIC_SIZE or chain.writable:
            self.ignored[Ignored.MALFORMED] += 1
        entries = ffi.from_buffer("struct virtio_balloon_stat[]", data)
        # Tags that are not known are ignored (5.5.6.3.2).
        return {_STATISTICS[e.tag]: e.val for e in entries if e.tag in _STATISTICS}


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Put ascending numbers into runs without gaps: the first, and how many."""
    first = length = 0
    for number in numbers:
        if number == first + length:
            length += 1
            continue
        if length:
            yield first, length
        first, length = number, 1
    if length:
        yield first, length
