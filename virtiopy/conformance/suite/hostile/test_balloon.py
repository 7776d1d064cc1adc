"""What no driver may tell a balloon (5.5.6)."""

import pytest

from virtiopy.conformance.drivers.balloon import PAGE, BalloonDriver, Field, Virtqueue, pfns
from virtiopy.conformance.hostile.acts import Act, Stage, chain, on_queues
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.memory import END, HOLE
from virtiopy.conformance.suite.hostile.cases import each
from virtiopy.virtqueue.driver import Piece

MAX_PFN = 0xFFFF_FFFF


def own_rings(stage: Stage) -> None:
    """Put every page into the balloon that the queue is in, and what tells it."""
    first = stage.queue.areas.descriptor // PAGE
    chain(pfns(range(first, first + 8)))(stage)


def reported_rings(stage: Stage) -> None:
    """Report the queue's own pages as free."""
    page = stage.queue.areas.descriptor // PAGE * PAGE
    chain(Piece(page, 4 * PAGE, writable=True))(stage)


PAGES = (
    Act("pfn-ffffffff", "5.5.6", chain(pfns([MAX_PFN]))),
    Act("pfn-behind-memory", "5.5.6", chain(pfns([END // PAGE, END // PAGE + 1]))),
    Act("pfn-in-hole", "5.5.6", chain(pfns([HOLE // PAGE]))),
    Act("pfns-around-the-hole", "5.5.6", chain(pfns([HOLE // PAGE - 1, HOLE // PAGE]))),
    Act("a-pfn-over-and-over", "5.5.6", chain(pfns([0x2800] * 500))),
    Act("ten-thousand-pfns", "5.5.6", chain(pfns(range(MAX_PFN - 10000, MAX_PFN)))),
    Act("no-pfn", "5.5.6", chain(0)),
    Act("three-bytes", "5.5.6", chain(b"\x00\x28\x00")),
    Act("a-pfn-and-a-half", "5.5.6", chain(pfns([0x2801]) + b"\x00\x28")),
    Act("room-to-write", "5.5.6", chain(pfns([0x2802]), 64)),
    Act("the-queue's-own-pages", "5.5.6", own_rings, ruinous=True),
)

STATISTICS = (
    Act("half-a-statistic", "5.5.6.3", chain(b"\x00\x00\x01\x02\x03")),
    Act("unknown-statistics", "5.5.6.3", chain(b"\xff" * 100)),
    Act("statistics-of-64-kib", "5.5.6.3", chain(bytes(1 << 16))),
    Act("no-statistics", "5.5.6.3", chain(0)),
)

REPORTS = (
    Act("report-of-part-of-a-page", "5.5.6.7", chain(100)),
    Act("report-of-nothing", "5.5.6.7", chain(0)),
    Act("report-to-read", "5.5.6.7", chain(bytes(PAGE))),
    Act("report-of-the-queue's-own-pages", "5.5.6.7", reported_rings, ruinous=True),
)


@each("act", PAGES)
def test_pages_that_no_driver_may_put_in_or_take_out(
    act: Act, session: Session, balloon: BalloonDriver, judge: Judge
) -> None:
    on_queues(act, [Virtqueue.inflateq, Virtqueue.deflateq], session, balloon, judge)


@pytest.mark.feature("VIRTIO_BALLOON_F_STATS_VQ")
@each("act", STATISTICS)
def test_statistics_that_no_driver_may_give(
    act: Act, session: Session, balloon: BalloonDriver, judge: Judge
) -> None:
    on_queues(act, [balloon.index_of(Virtqueue.statsq)], session, balloon, judge)


@pytest.mark.feature("VIRTIO_BALLOON_F_PAGE_REPORTING")
@each("act", REPORTS)
def test_pages_that_no_driver_may_report(
    act: Act, session: Session, balloon: BalloonDriver, judge: Judge
) -> None:
    on_queues(act, [balloon.index_of(Virtqueue.reporting_vq)], session, balloon, judge)


def test_a_balloon_that_says_to_hold_more_than_there_is(
    balloon: BalloonDriver, judge: Judge
) -> None:
    judge.check(lambda: balloon.set_field(Field.actual, MAX_PFN))
