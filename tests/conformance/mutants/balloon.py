"""Balloon devices with a fault."""

from collections.abc import Iterable, Iterator, Sequence

from tests.conformance.mutants import mutants
from virtiopy.conformance.targets.builders import build_balloon
from virtiopy.devices.balloon import PAGE_SIZE, Balloon, BalloonFeature, Ignored, Owner
from virtiopy.spec import feature_mask, has_feature
from virtiopy.virtqueue.queue import Chain, QueueError, Virtqueue

TELL = BalloonFeature.VIRTIO_BALLOON_F_MUST_TELL_HOST
HINT = BalloonFeature.VIRTIO_BALLOON_F_FREE_PAGE_HINT


class ServesOnlyThoseWhoTell(Balloon):
    """Takes a driver without MUST_TELL_HOST, and then finds every request of its wrong."""

    def handle(self, queue: Virtqueue) -> None:
        if not has_feature(self.driver_features, TELL):
            raise QueueError("no MUST_TELL_HOST")
        super().handle(queue)


class DiscardsNeighbours(Balloon):
    """Gives the page after an inflated one back as well."""

    def _inflate(self, chains: Iterable[Chain]) -> None:
        pfns = self._parse(chains)
        for pfn in pfns:
            self._discard(pfn * PAGE_SIZE, 2 * PAGE_SIZE)


class KeepsPagesThatItWasGiven(Balloon):
    """Takes every page that it ever got for its own, and gives it back with the next ones."""

    def _inflate(self, chains: Iterable[Chain]) -> None:
        pages = self._take_pages(self._parse(chains), Owner.GUEST, Ignored.REPEATED)
        self._give(pages, Owner.BALLOON)
        for pfn, owner in enumerate(self._owners):
            if owner == Owner.BALLOON:
                self._discard(pfn * PAGE_SIZE, PAGE_SIZE)


class GivesPagesBackLate(Balloon):
    """Gives pages to the host when the next request comes, whether or not they are deflated."""

    late: Sequence[int] = ()

    def _inflate(self, chains: Iterable[Chain]) -> None:
        for pfn in self.late:
            self._discard(pfn * PAGE_SIZE, PAGE_SIZE)
        self.late = self._parse(chains)


class KnowsNoStrangers(Balloon):
    """Stops at a statistic that it does not know."""

    def _parse_statistics(self, chain: Chain) -> dict[str, int]:
        data = b"".join(bytes(piece) for piece in chain.readable)
        tags = [int.from_bytes(data[at : at + 2], "little") for at in range(0, len(data), 10)]
        return super()._parse_statistics(chain) if max(tags) < 10 else {}


class ReadsStatisticsInOrder(Balloon):
    """Takes the first statistic for SWAP_IN, the second for SWAP_OUT, and so on."""

    def _parse_statistics(self, chain: Chain) -> dict[str, int]:
        found = super()._parse_statistics(chain)
        data = b"".join(bytes(piece) for piece in chain.readable)
        values = [
            int.from_bytes(data[at + 2 : at + 10], "little") for at in range(0, len(data), 10)
        ]
        names = [name for name in ("SWAP_IN", "SWAP_OUT", "MEMFREE", "MEMTOT") if name in found]
        return found | dict(zip(names, values, strict=False))


class GivesReportedPagesBackLate(Balloon):
    """Gives reported pages to the host when the next are reported."""

    late: Sequence[tuple[int, int]] = ()

    def _reported_ranges(self, chains: Iterable[Chain]) -> Iterator[tuple[int, int]]:
        yield from self.late
        self.late = list(super()._reported_ranges(chains))


class RoundsReportsUp(Balloon):
    """Gives all back from the first reported page to the last."""

    def _reported_ranges(self, chains: Iterable[Chain]) -> Iterator[tuple[int, int]]:
        ranges = [one for one in super()._reported_ranges(chains) if one != (0, 0)]
        yield min(start for start, _ in ranges), max(end for _, end in ranges)


class TakesNoHeedOfPoison(Balloon):
    """Has reported pages read as zeroes, whatever poison_val is."""

    def _report(self, chains: Iterable[Chain]) -> None:
        for start, end in self._reported_ranges(chains):
            if start < end:
                self._discard(start, end - start)


# Free page hints: no device here asks for any, so the sound one does, and lets them be


class WithHints(Balloon):
    """Asks for hints under command ID 2, and is done when the driver stops."""

    def __init__(self, **options: bool) -> None:
        super().__init__(**options)
        self.features |= feature_mask([HINT])
        self.command_id = 2
        #: The pages that were hinted, and the command ID that they came under.
        self.hinted: list[tuple[int, int]] = []
        self._round = 0

    def config_space(self) -> bytes:
        config = super().config_space()
        return config[:8] + self.command_id.to_bytes(4, "little") + config[12:]

    def handle(self, queue: Virtqueue) -> None:
        if queue.index != 3:
            super().handle(queue)
            return
        for chain in queue.pop_many():
            self.take(chain)
            queue.push(chain, 0)
        self.notify(queue)
        queue.enable_kicks()

    def take(self, chain: Chain) -> None:
        """Take a command ID or hints."""
        if chain.readable:
            self._round = int.from_bytes(b"".join(map(bytes, chain.readable)), "little")
            if self._round == 0:
                self.stopped()
        for piece in chain.writable:
            self.hint(self._memory.address_of(piece), len(piece))

    def hint(self, address: int, length: int) -> None:
        """Take a hint; nothing is made of it."""

    def stopped(self) -> None:
        """Have no more need of the pages."""
        self.command_id = 1


class TakesAnyHint(WithHints):
    """Takes hints under whatever command ID."""

    def hint(self, address: int, length: int) -> None:
        self._discard(address, length)


class ForgetsWhatWasWritten(WithHints):
    """Gives hinted pages back when the round ends, though the guest may have written to them."""

    def hint(self, address: int, length: int) -> None:
        self.hinted.append((address, length))

    def stopped(self) -> None:
        for address, length in self.hinted:
            self._discard(address, length)
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
            self._discard(address, length)


class RepeatsItsCommandId(WithHints):
    """Goes through its command IDs by itself, and begins again."""

    def config_space(self) -> bytes:
        if self._round:
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
            ("5.5.6.3.2:1", KnowsNoStrangers),
            ("5.5.6.3.2:2", ReadsStatisticsInOrder),
            ("5.5.6.7.2:1", GivesReportedPagesBackLate),
            ("5.5.6.7.2:1", RoundsReportsUp),
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
]
