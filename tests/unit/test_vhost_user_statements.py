"""The list of what the vhost-user protocol asks of its two sides."""

from itertools import groupby

import pytest

from virtiopy.vhost.user.messages import BackendRequest, Request
from virtiopy.vhost.user.statements import PAGE, Section, Side, statements, to_side

MESSAGES = {
    *(request.name for request in Request),
    *(f"BACKEND_{request.name}" for request in BackendRequest),
}


def test_each_side_has_statements_and_none_has_two_sides() -> None:
    of_sides = [one.id for side in Side for one in to_side(side)]
    assert sorted(of_sides) == sorted(statements())
    assert all(to_side(side) for side in Side)


def test_the_statements_of_a_section_or_message_are_numbered_from_1_without_a_gap() -> None:
    for name, ids in groupby(statements(), key=lambda identity: identity.rpartition(":")[0]):
        numbers = [int(identity.rpartition(":")[2]) for identity in ids]
        assert numbers == list(range(1, len(numbers) + 1)), name


@pytest.mark.parametrize("section", [Section.MESSAGES, Section.BACKEND_MESSAGES])
def test_a_statement_about_a_message_is_called_by_its_name(section: Section) -> None:
    names = {one.id.rpartition(":")[0] for one in statements().values() if one.section is section}
    assert names
    assert names <= MESSAGES


def test_every_section_is_one_that_a_statement_is_from() -> None:
    assert {one.section for one in statements().values()} == set(Section)


def test_a_section_is_found_in_the_page() -> None:
    assert Section.RING_STATES.link == f"{PAGE}#ring-states"


def test_a_reason_why_a_statement_is_not_looked_at_is_the_only_one() -> None:
    assert [one.id for one in statements().values() if one.unobservable and one.not_tested] == []
