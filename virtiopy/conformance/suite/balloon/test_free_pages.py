"""Balloon devices: free page hints and free page reports (5.5.6.5 to 5.5.6.7)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.balloon import (
    CMD_ID_DONE,
    CMD_ID_STOP,
    BalloonDriver,
    Field,
    Virtqueue,
)
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.sessions.base import Session

FREE_PAGE_HINT = "VIRTIO_BALLOON_F_FREE_PAGE_HINT"
PAGE_POISON = "VIRTIO_BALLOON_F_PAGE_POISON"
PAGE_REPORTING = "VIRTIO_BALLOON_F_PAGE_REPORTING"


# Reports


@pytest.mark.clause("5.5.6:1", "5.5.6.7.2:1")
@pytest.mark.feature(PAGE_REPORTING)
def test_a_reported_page_is_left_alone_from_the_end_of_its_report_on(
    session: Session, balloon: BalloonDriver
) -> None:
    balloon.start(without=[PAGE_POISON])
    pfns = balloon.fresh_pfns(4)
    balloon.report((pfns[0], 4))
    before = [balloon.fill(pfn, pfn) for pfn in pfns]
    session.never(
        "a page of the guest's was changed",
        lambda: [balloon.page(pfn) for pfn in pfns] != before,
    )
    balloon.report((balloon.fresh_pfn(), 1))
    for pfn, content in zip(pfns, before, strict=True):
        same(balloon.page(pfn), content, f"page {pfn}")


@pytest.mark.clause("5.5.6:1", "5.5.6.7.2:1")
@pytest.mark.feature(PAGE_REPORTING)
def test_pages_that_are_not_reported_are_left_alone(balloon: BalloonDriver) -> None:
    balloon.start(without=[PAGE_POISON])
    pfns = balloon.fresh_pfns(7)
    before = {pfn: balloon.fill(pfn, pfn) for pfn in (pfns[0], pfns[3], pfns[6])}
    balloon.report((pfns[1], 2), (pfns[4], 2))
    for pfn, content in before.items():
        same(balloon.page(pfn), content, f"page {pfn}")


@pytest.mark.clause("5.5.6.7.2:2")
@pytest.mark.feature(PAGE_REPORTING, PAGE_POISON)
@pytest.mark.parametrize("poison", [0, 1, 0xAAAA_AAAA, 0xFF00_0000])
def test_a_reported_page_holds_poison_val_as_before(
    session: Session, balloon: BalloonDriver, poison: int
) -> None:
    balloon.start(poison=poison)
    pfns = balloon.fresh_pfns(4)
    before = [balloon.fill(pfn, poison) for pfn in pfns]
    balloon.report((pfns[0], 4))
    session.never(
        "a reported page does not hold poison_val",
        lambda: [balloon.page(pfn) for pfn in pfns] != before,
    )


# Hints


@pytest.mark.clause("5.5.6.5.2:3")
@pytest.mark.feature(FREE_PAGE_HINT)
def test_pages_hinted_under_another_command_id_are_left_alone(
    session: Session, balloon: BalloonDriver
) -> None:
    balloon.start()
    pfns = balloon.fresh_pfns(4)
    before = [balloon.fill(pfn, pfn) for pfn in pfns]
    balloon.command(balloon.field(Field.free_page_hint_cmd_id) + 0x1000)
    balloon.report((pfns[0], 4), queue=Virtqueue.free_page_vq)
    session.never(
        "a page that was hinted under another command ID was changed",
        lambda: [balloon.page(pfn) for pfn in pfns] != before,
    )


def begin_hinting(balloon: BalloonDriver) -> int:
    """Begin a round of hints where the device asks for one; returns the command ID."""
    balloon.start()
    command_id = balloon.field(Field.free_page_hint_cmd_id)
    if command_id in {CMD_ID_STOP, CMD_ID_DONE}:
        raise NotApplicableError("the device does not ask for hints now")
    balloon.command(command_id)
    return command_id


@pytest.mark.clause("5.5.6.5.2:2")
@pytest.mark.feature(FREE_PAGE_HINT)
def test_a_command_id_does_not_come_again_before_the_driver_stops(
    session: Session, balloon: BalloonDriver
) -> None:
    ids = [begin_hinting(balloon)]

    def comes_again() -> bool:
        command_id = balloon.field(Field.free_page_hint_cmd_id)
        if command_id != ids[-1]:
            ids.append(command_id)
        rounds = [one for one in ids if one not in {CMD_ID_STOP, CMD_ID_DONE}]
        return len(set(rounds)) < len(rounds)

    balloon.report((balloon.fresh_pfn(), 1), queue=Virtqueue.free_page_vq)
    session.never("a command ID came again", comes_again)


@pytest.mark.clause("5.5.6:1", "5.5.6.5.2:4")
@pytest.mark.feature(FREE_PAGE_HINT)
def test_a_hinted_page_that_was_written_to_since_is_left_alone(
    session: Session, balloon: BalloonDriver
) -> None:
    begin_hinting(balloon)
    pfn = balloon.fresh_pfn()
    balloon.report((pfn, 1), queue=Virtqueue.free_page_vq)
    content = balloon.fill(pfn, 0x1234_5678)
    balloon.command(CMD_ID_STOP)
    same(balloon.page(pfn), content, "a page of the guest's")
    # Once hinting is done, another statement is about that.
    if balloon.field(Field.free_page_hint_cmd_id) != CMD_ID_DONE:
        session.never("a page of the guest's was changed", lambda: balloon.page(pfn) != content)


@pytest.mark.clause("5.5.6.5.2:5")
@pytest.mark.feature(FREE_PAGE_HINT)
def test_a_hinted_page_is_left_alone_once_hinting_is_done(
    session: Session, balloon: BalloonDriver
) -> None:
    begin_hinting(balloon)
    pfn = balloon.fresh_pfn()
    balloon.report((pfn, 1), queue=Virtqueue.free_page_vq)
    balloon.command(CMD_ID_STOP)
    if balloon.field(Field.free_page_hint_cmd_id) != CMD_ID_DONE:
        raise NotApplicableError("the device still needs the hinted pages")
    content = balloon.fill(pfn, 0x1234_5678)
    session.never("a hinted page was changed", lambda: balloon.page(pfn) != content)
