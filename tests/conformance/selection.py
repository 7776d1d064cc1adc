"""What of the suite a mutant is put to: all that is about its statement, and by night the rest."""

from collections.abc import Collection, Mapping

import pytest

from virtiopy.conformance.collection import Suite, clauses_of
from virtiopy.conformance.marks import SUITE, clauses_to_tests


def narrow(
    collector: pytest.Collector, report: pytest.CollectReport, own: Mapping[str, Collection[str]]
) -> None:
    """Leave out the files of a suite without a test of the statements, before they are collected.

    What `select` would leave out of them is most of what a run costs.
    """
    if not isinstance(collector, Suite):
        return
    assert collector.parent is not None, "a suite stands in a module"
    tests = clauses_to_tests()
    files = {
        SUITE / test.partition("::")[0]
        for clause in own[collector.parent.name]
        for test in tests.get(clause, ())
    }
    report.result = [node for node in report.result or () if node.path in files]


def select(
    items: list[pytest.Item],
    own: Mapping[str, Collection[str]],
    *,
    whole: bool,
    files: Collection[str] = (),
) -> None:
    """Leave out what no mutant is put to; `own` has the statements of each by its module's name.

    With `whole` there is a case of every test besides, in `files` alone where those are given. None
    is mistreated, or put to random work.
    """
    seen: set[tuple[str, str]] = set()
    kept = []
    for item in items:
        module = item.nodeid.partition("::")[0]
        name = (module, _function(item))
        if set(clauses_of(item)) & set(own[module]):
            kept.append(item)
        elif (
            whole
            and name not in seen
            and _is_plain(item)
            and (not files or item.path.stem in files)
        ):
            seen.add(name)
            kept.append(item)
    items[:] = kept


def _function(item: pytest.Item) -> str:
    return f"{item.path}::{getattr(item, 'originalname', item.name)}"


def _is_plain(item: pytest.Item) -> bool:
    folder = item.path.relative_to(SUITE).parts[0]
    fixtures = getattr(item, "fixturenames", ())
    return folder != "hostile" and not {"effort", "walks"} & set(fixtures)
