"""Balloon devices: pages that go into the balloon, and that come out of it (5.5.6)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.balloon import BalloonDriver
from virtiopy.conformance.effort import Effort
from virtiopy.conformance.models.balloonwork import BalloonWork
from virtiopy.conformance.sessions.base import Session

MUST_TELL_HOST = "VIRTIO_BALLOON_F_MUST_TELL_HOST"

#: Pages that a host may have as one, and no guest knows of: 2 MiB.
HUGE_PAGE = 512


@pytest.mark.clause("2.6:1", "5.5.3.2:1")
@pytest.mark.feature(MUST_TELL_HOST)
def test_a_driver_without_must_tell_host_is_refused_or_served(
    session: Session, balloon: BalloonDriver
) -> None:
    if session.accepts(session.wanted(None, without=[MUST_TELL_HOST])):
        balloon.start(without=[MUST_TELL_HOST])
        balloon.good()


@pytest.mark.clause("5.5.6:1", "5.5.6.2:1", "5.5.6.2:2")
def test_pages_that_were_not_named_keep_what_is_in_them(balloon: BalloonDriver) -> None:
    balloon.start()
    first, second, third = balloon.fresh_pfns(3)
    before = [balloon.fill(pfn, pfn) for pfn in (first, third)]
    balloon.inflate(second)
    balloon.deflate(second)
    for pfn, content in zip((first, third), before, strict=True):
        same(balloon.page(pfn), content, f"page {pfn}")


def accepts_driver_that_does_not_tell(session: Session) -> bool:
    """Say whether the device works for a driver without MUST_TELL_HOST (5.5.3.2)."""
    return session.accepts(session.wanted(None, without=[MUST_TELL_HOST]))


@pytest.mark.clause("5.5.6:1", "5.5.6.2:1")
def test_a_page_is_left_alone_from_the_end_of_its_inflation_on(
    session: Session, balloon: BalloonDriver
) -> None:
    if not accepts_driver_that_does_not_tell(session):
        return
    balloon.start(without=[MUST_TELL_HOST])
    pfn = balloon.fresh_pfn()
    balloon.inflate(pfn)
    # That it is in use again is not told in time, as it may (5.5.6.1).
    content = balloon.fill(pfn, 0x1234_5678)
    session.never("a page of the guest's was changed", lambda: balloon.page(pfn) != content)
    balloon.deflate(pfn)
    balloon.good()
    same(balloon.page(pfn), content, f"page {pfn}")


@pytest.mark.clause("5.5.6:1", "5.5.6.2:1")
def test_a_page_in_use_again_is_left_alone_when_its_neighbours_go_into_the_balloon(
    session: Session, balloon: BalloonDriver
) -> None:
    if not accepts_driver_that_does_not_tell(session):
        return
    balloon.start(without=[MUST_TELL_HOST])
    pages = balloon.fresh_pfns(2 * HUGE_PAGE)
    used = pages[HUGE_PAGE]
    balloon.inflate(used)
    content = balloon.fill(used, 0x1234_5678)
    for start in range(0, len(pages), 64):
        balloon.inflate(*(pfn for pfn in pages[start : start + 64] if pfn != used))
    same(balloon.page(used), content, f"page {used}")


@pytest.mark.clause("5.5.6:1", "5.5.6.2:2")
@pytest.mark.feature(MUST_TELL_HOST)
def test_a_page_is_left_alone_from_the_end_of_its_deflation_on(
    session: Session, balloon: BalloonDriver
) -> None:
    balloon.start()
    pfn = balloon.fresh_pfn()
    balloon.inflate(pfn)
    balloon.deflate(pfn)
    content = balloon.fill(pfn, 0x1234_5678)
    session.never("a page of the guest's was changed", lambda: balloon.page(pfn) != content)
    balloon.good()
    same(balloon.page(pfn), content, f"page {pfn}")


@pytest.mark.clause("5.5.6:1", "5.5.6.2:2")
@pytest.mark.feature(MUST_TELL_HOST)
def test_a_deflated_page_is_left_alone_when_its_neighbours_go_into_the_balloon(
    balloon: BalloonDriver,
) -> None:
    balloon.start()
    pages = balloon.fresh_pfns(2 * HUGE_PAGE)
    used = pages[HUGE_PAGE]
    balloon.inflate(used)
    balloon.deflate(used)
    content = balloon.fill(used, 0x1234_5678)
    for start in range(0, len(pages), 64):
        balloon.inflate(*(pfn for pfn in pages[start : start + 64] if pfn != used))
    same(balloon.page(used), content, f"page {used}")


# Many pages, in and out


@pytest.mark.clause("5.5.6:1")
def test_pages_outside_keep_what_is_in_them_while_others_go_in_and_come_out(
    balloon: BalloonDriver, effort: Effort
) -> None:
    balloon.start()
    for random in effort.rounds():
        work = BalloonWork(balloon, random)
        for _ in range(12):
            work.round()
            work.check_pages()


@pytest.mark.clause("5.5.6:2")
def test_the_host_counts_the_pages_that_are_in_the_balloon(
    balloon: BalloonDriver, effort: Effort
) -> None:
    _ = balloon.balloon_host
    for random in effort.rounds():
        balloon.start()
        work = BalloonWork(balloon, random)
        for _ in range(12):
            work.round()
            work.check_count()
