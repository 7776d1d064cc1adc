"""Balloon devices with a fault."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import ClassVar

from tests.conformance.faults import FaultyChain, HostProxy, MemoryProxy, QueueProxy, faulty
from tests.conformance.mutants import mutants, over_queue
from virtiopy.conformance.targets.builders import build_balloon
from virtiopy.devices.balloon import PAGE_SIZE, Balloon, BalloonFeature, BalloonQueue
from virtiopy.devices.base import DeviceHost
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import feature_mask, has_feature
from virtiopy.virtqueue.buffers import gather
from virtiopy.virtqueue.queue import Chain, QueueError, Virtqueue

#: Where poison_val is in struct virtio_balloon_config (5.5.4).
POISON_OFFSET = 12

INFLATEQ, DEFLATEQ = BalloonQueue.inflateq, BalloonQueue.deflateq
STATSQ, REPORTING_VQ = BalloonQueue.statsq, BalloonQueue.reporting_vq

TELL = BalloonFeature.VIRTIO_BALLOON_F_MUST_TELL_HOST
HINT = BalloonFeature.VIRTIO_BALLOON_F_FREE_PAGE_HINT


class ServesOnlyThoseWhoTell(Balloon):
    """Takes a driver without MUST_TELL_HOST, and then finds every request of its wrong."""

    def handle(self, queue: Virtqueue) -> None:
        if not has_feature(self.driver_features, TELL):
            raise QueueError("no MUST_TELL_HOST")
        super().handle(queue)


class _OnMemory(Balloon):
    """Has memory with a fault."""

    fault: ClassVar[type[MemoryProxy]]

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        super().attach(
            faulty(host, partial(HostProxy, memory=self.fault)), loop, may_block=may_block
        )


class _WideMemory(MemoryProxy):
    def discard(self, address: int, length: int) -> None:
        super().discard(address, length + PAGE_SIZE)


class DiscardsNeighbours(_OnMemory):
    """Gives the page after an inflated one back as well."""

    fault = _WideMemory


class _PossessiveMemory(MemoryProxy):
    def __init__(self, real: GuestMemory) -> None:
        super().__init__(real)
        self.given: list[tuple[int, int]] = []

    def discard(self, address: int, length: int) -> None:
        self.given.append((address, length))
        for one in self.given:
            super().discard(*one)


class KeepsPagesThatItWasGiven(_OnMemory):
    """Takes every page that it ever got for its own, and gives it back with the next ones."""

    fault = _PossessiveMemory


class _LateMemory(MemoryProxy):
    def __init__(self, real: GuestMemory) -> None:
        super().__init__(real)
        self.late: tuple[int, int] = (0, 0)

    def discard(self, address: int, length: int) -> None:
        super().discard(*self.late)
        self.late = address, length


class GivesPagesBackLate(_OnMemory):
    """Gives pages to the host when the next ones come, whether or not they are deflated."""

    fault = _LateMemory


# What the driver says, misread: struct virtio_balloon_stat (5.5.6.3)


def statistics(chain: Chain) -> list[tuple[int, bytes]]:
    """Return tags and values of a buffer."""
    data = gather(chain.readable)
    return [
        (int.from_bytes(data[at : at + 2], "little"), data[at + 2 : at + 10])
        for at in range(0, len(data), 10)
    ]


def misread(chain: Chain, entries: Iterable[tuple[int, bytes]]) -> FaultyChain:
    """Return a chain with these statistics in it."""
    data = b"".join(tag.to_bytes(2, "little") + value for tag, value in entries)
    return FaultyChain(chain, [memoryview(data)], chain.writable)


class KnowsNoStrangers(QueueProxy):
    """Stops at a statistic that it does not know."""

    def popped(self, chain: Chain) -> FaultyChain:
        entries = statistics(chain)
        return misread(chain, entries if all(tag < 10 for tag, _ in entries) else [])


class ReadsStatisticsInOrder(QueueProxy):
    """Takes the first statistic for SWAP_IN, the second for SWAP_OUT, and so on."""

    def popped(self, chain: Chain) -> FaultyChain:
        values = [value for _, value in statistics(chain)]
        return misread(chain, enumerate(values))


class KeepsItsFirstStatistics(QueueProxy):
    """Reads the first buffer of statistics again and again."""

    first: Sequence[tuple[int, bytes]] = ()

    def popped(self, chain: Chain) -> FaultyChain:
        self.first = self.first or statistics(chain)
        return misread(chain, self.first)


class HasStatisticsOf32Bits(QueueProxy):
    """Cuts values to 32 bits."""

    def popped(self, chain: Chain) -> FaultyChain:
        return misread(chain, [(tag, v[:4] + bytes(4)) for tag, v in statistics(chain)])


# What is in the balloon (5.5.6)


class LosesTheLastPage(QueueProxy):
    """Takes no notice of the last page of more than two."""

    def popped(self, chain: Chain) -> FaultyChain:
        data = gather(chain.readable)
        seen = data if len(data) <= 8 else data[:-4]
        return FaultyChain(chain, [memoryview(seen)], chain.writable)


class TakesEachRequestForAPage(QueueProxy):
    """Takes the first page of each request."""

    def popped(self, chain: Chain) -> FaultyChain:
        return FaultyChain(chain, [memoryview(gather(chain.readable)[:4])], chain.writable)


# Pages that the driver reports (5.5.6.7)


class RoundsReportsUp(QueueProxy):
    """Sees all from the first reported page to the last."""

    def popped(self, chain: Chain) -> FaultyChain:
        memory = self.memory
        places = [(memory.address_of(piece), len(piece)) for piece in chain.writable]
        start = min(address for address, _ in places)
        end = max(address + length for address, length in places)
        return FaultyChain(chain, chain.readable, memory.views(start, end - start))


class TakesNoHeedOfPoison(Balloon):
    """Has reported pages read as zeroes, whatever poison_val is."""

    def write_config(self, offset: int, data: bytes) -> bool:
        return offset == POISON_OFFSET or super().write_config(offset, data)


# Free page hints: no device here asks for any, so the sound one does, and lets them be


class WithHints(Balloon):
    """Asks for hints under command ID 2, and is done when the driver stops."""

    def __init__(self, **options: bool) -> None:
        super().__init__(**options)
        self.features |= feature_mask([HINT])
        self.command_id = 2
        #: The pages that were hinted, and the command ID that they came under.
        self.hinted: list[tuple[int, int]] = []
        self.round = 0

    def config_space(self) -> bytes:
        config = super().config_space()
        return config[:8] + self.command_id.to_bytes(4, "little") + config[12:]

    def handle(self, queue: Virtqueue) -> None:
        if queue.index != 3:
            super().handle(queue)
            return
        more = True
        while more:
            for chain in queue.pop_many():
                self.take(chain)
                queue.push(chain, 0)
            self.notify(queue)
            more = queue.enable_kicks()

    def take(self, chain: Chain) -> None:
        """Take a command ID or hints."""
        if chain.readable:
            self.round = int.from_bytes(b"".join(map(bytes, chain.readable)), "little")
            if self.round == 0:
                self.stopped()
        for piece in chain.writable:
            self.hint(self.host.memory.address_of(piece), len(piece))

    def hint(self, address: int, length: int) -> None:
        """Take a hint; nothing is made of it."""

    def stopped(self) -> None:
        """Have no more need of the pages."""
        self.command_id = 1


class TakesAnyHint(WithHints):
    """Takes hints under whatever command ID."""

    def hint(self, address: int, length: int) -> None:
        self.host.memory.discard(address, length)


class ForgetsWhatWasWritten(WithHints):
    """Gives hinted pages back when the round ends, though the guest may have written to them."""

    def hint(self, address: int, length: int) -> None:
        self.hinted.append((address, length))

    def stopped(self) -> None:
        for address, length in self.hinted:
            self.host.memory.discard(address, length)
        super().stopped()


class ChangesPagesWhenDone(WithHints):
    """Gives hinted pages back again and again after it has said that it is done."""

    def hint(self, address: int, length: int) -> None:
        self.hinted.append((address, length))

    def stopped(self) -> None:
        super().stopped()
        assert self.loop is not None
        self.loop.call_soon(self.begin, "hints")

    def begin(self) -> None:
        """Start, on the loop's thread."""
        assert self.loop is not None
        self.loop.call_later(0.001, self.discard, "hints", every=True)

    def discard(self) -> None:
        """Give the pages back."""
        for address, length in self.hinted:
            self.host.memory.discard(address, length)


class RepeatsItsCommandId(WithHints):
    """Goes through its command IDs by itself, and begins again."""

    def config_space(self) -> bytes:
        if self.round:
            self.command_id = 2 + (self.command_id - 1) % 3
        return super().config_space()


MUTANTS = [
    *mutants(
        build_balloon,
        [
            ("5.5.3.2:1", ServesOnlyThoseWhoTell),
            ("5.5.6.2:1", DiscardsNeighbours),
            ("5.5.6.2:1", KeepsPagesThatItWasGiven),
            ("5.5.6.2:2", GivesPagesBackLate),
            ("5.5.6.7.2:1", GivesPagesBackLate),
            ("5.5.6.7.2:2", TakesNoHeedOfPoison),
        ],
    ),
    *mutants(
        build_balloon,
        [
            ("5.5.6.5.2:2", RepeatsItsCommandId),
            ("5.5.6.5.2:3", TakesAnyHint),
            ("5.5.6.5.2:4", ForgetsWhatWasWritten),
            ("5.5.6.5.2:5", ChangesPagesWhenDone),
        ],
        WithHints,
    ),
    *over_queue(
        STATSQ,
        build_balloon,
        [
            ("5.5.6.3.2:1", KnowsNoStrangers),
            ("5.5.6.3.2:2", ReadsStatisticsInOrder),
            ("5.5.6.3:1", KeepsItsFirstStatistics),
            ("5.5.6.3:1", HasStatisticsOf32Bits),
        ],
    ),
    *over_queue(
        INFLATEQ,
        build_balloon,
        [("5.5.6:2", LosesTheLastPage), ("5.5.6:2", TakesEachRequestForAPage)],
    ),
    *over_queue(DEFLATEQ, build_balloon, [("5.5.6:2", LosesTheLastPage)]),
    *over_queue(REPORTING_VQ, build_balloon, [("5.5.6.7.2:1", RoundsReportsUp)]),
]
