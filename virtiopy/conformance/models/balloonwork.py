"""Work on a balloon device, and the model of what is in the balloon (5.5.6)."""

from random import Random

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.balloon import PAGE, BalloonDriver
from virtiopy.conformance.problems import BrokenError, about
from virtiopy.conformance.report.difference import difference

#: What the host counts in the balloon, and what becomes of pages that are not in it.
HELD, KEPT = "5.5.6:2", "5.5.6:1"

#: How many pages the work is on.
PAGES = 96


class BalloonWork:
    """Pages that go into the balloon and come out of it."""

    def __init__(self, balloon: BalloonDriver, random: Random) -> None:
        self._balloon = balloon
        self._random = random
        self._pages = balloon.fresh_pfns(PAGES)
        self._inside: set[int] = set()
        self._words = 0
        self._contents = {pfn: self._write(pfn) for pfn in self._pages}

    def _write(self, pfn: int) -> bytes:
        self._words += 1
        return self._balloon.fill(pfn, pfn << 16 | self._words & 0xFFFF)

    def round(self) -> None:
        """Put some pages in and take others out, in requests that are in flight together."""
        random, balloon = self._random, self._balloon
        outside = [pfn for pfn in self._pages if pfn not in self._inside]
        going_in = random.sample(outside, random.randint(0, min(24, len(outside))))
        inside = sorted(self._inside)
        coming_out = random.sample(inside, random.randint(0, len(inside)))
        sent = [balloon.place(balloon.inflation(*some)) for some in self._cut(going_in)]
        if sent:
            balloon.offer(*sent)
        taken = [balloon.place(balloon.deflation(*some)) for some in self._cut(coming_out)]
        if taken:
            balloon.offer(*taken)
        for one in [*sent, *taken]:
            balloon.finish(one)
        self._inside = self._inside - set(coming_out) | set(going_in)
        for pfn in coming_out:
            self._contents[pfn] = self._write(pfn)

    def _cut(self, pages: list[int]) -> list[list[int]]:
        """Cut pages into what a request has each."""
        cut = []
        while pages:
            size = self._random.choice((1, 1, 2, 3, 8))
            cut.append(pages[:size])
            pages = pages[size:]
        return cut

    def check_pages(self) -> None:
        """See that pages that are not in the balloon keep what is in them."""
        for pfn in self._pages:
            if pfn in self._inside:
                continue
            if wrong := difference(self._balloon.page(pfn), self._contents[pfn]):
                raise BrokenError(f"page {pfn}, which is not in the balloon: {wrong}", KEPT)

    def check_count(self) -> None:
        """See that the host counts the pages in the balloon."""
        with about(HELD):
            found = self._balloon.balloon_host.ballooned
            same(found, PAGE * len(self._inside), "what the host counts in the balloon, in bytes,")
