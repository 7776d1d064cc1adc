"""What of the suite a mutant is put to: all that is about its statement, and a look at the rest."""

from collections.abc import Collection, Iterable, Mapping

import pytest

from virtiopy.conformance.clauses.definitions import BASIS, everything
from virtiopy.conformance.collection import clauses_of
from virtiopy.conformance.marks import SUITE
from virtiopy.statements.terms import Keyword


def select(
    items: list[pytest.Item],
    own: Mapping[str, Collection[str]],
    *,
    whole: bool,
    files: Collection[str] = (),
) -> None:
    """Leave out what no mutant is put to; `own` has the statements of each by its module's name.

    Of what is not about its statement there is one test of each statement that others stand on,
    and with `whole` a case of every test, in `files` alone where those are given. None is
    mistreated, or put to random work.
    """
    seen: set[tuple[str, str]] = set()
    kept = []
    for item in items:
        module = item.nodeid.partition("::")[0]
        clauses = clauses_of(item)
        names = {_function(item)} if whole else set(_basic(clauses))
        unseen = {(module, name) for name in names} - seen
        if set(clauses) & set(own[module]):
            kept.append(item)
        elif unseen and _is_plain(item) and (not files or item.path.stem in files):
            seen |= unseen
            kept.append(item)
    items[:] = kept


def _function(item: pytest.Item) -> str:
    return f"{item.path}::{getattr(item, 'originalname', item.name)}"


def _basic(clauses: Iterable[str]) -> list[str]:
    known = everything()
    return [
        clause
        for clause in clauses
        if clause in BASIS or known[clause].keyword is Keyword.DEFINITION
    ]


def _is_plain(item: pytest.Item) -> bool:
    folder = item.path.relative_to(SUITE).parts[0]
    fixtures = getattr(item, "fixturenames", ())
    return folder != "hostile" and not {"effort", "walks"} & set(fixtures)
