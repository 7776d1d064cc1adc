"""The suite's tests and the catalogue of clauses know each other: the table has no hole."""

import ast
from collections.abc import Iterator

import pytest

from virtiopy.conformance.clauses.catalogue import Area, Transport
from virtiopy.conformance.clauses.definitions import everything
from virtiopy.conformance.clauses.listing import listing
from virtiopy.conformance.marks import SUITE, clauses_to_tests, suite_files
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.targets.builders import BUILDERS
from virtiopy.conformance.targets.target import TRANSPORTS, InprocTarget
from virtiopy.errors import ConfigError

#: The areas of every device.
COMMON = {Area.BASIC, Area.SPLIT, Area.MMIO}


def test_every_clause_that_a_test_names_is_in_the_catalogue() -> None:
    assert set(clauses_to_tests()) - set(everything()) == set()


def test_no_test_is_overlooked_by_how_it_is_written() -> None:
    """The reader looks at lines that start with a decorator, and a parser at all there is."""
    functions = {
        f"{path.relative_to(SUITE)}::{function.name}": function.decorator_list
        for path in suite_files()
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
    }
    marked = {
        name: [ast.literal_eval(argument) for argument in mark.args]
        for name, decorators in functions.items()
        for mark in decorators
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.clause"
    }
    assert len(marked) > 300
    found = {(test, clause) for clause, tests in clauses_to_tests().items() for test in tests}
    assert found == {(test, clause) for test, clauses in marked.items() for clause in clauses}


def test_no_clause_that_nobody_can_observe_has_a_test() -> None:
    clauses = everything()
    assert [name for name in clauses_to_tests() if clauses[name].unobservable] == []


@pytest.fixture(scope="module")
def offered() -> dict[tuple[str, Transport], int]:
    """What each target in process offers, by the name of its device and how it is reached."""
    return {(device, transport): features for device, transport, features in _sessions()}


def _sessions() -> Iterator[tuple[str, Transport, int]]:
    for name, factory in BUILDERS.items():
        for transport in TRANSPORTS:
            target = InprocTarget(factory, name, served=transport == "vhost-user")
            with target.open(Trace()) as session:
                yield name, Transport(transport), session.offered


@pytest.mark.parametrize("area", Area, ids=lambda area: area.value)
def test_a_clause_without_a_test_cannot_be_observed_or_needs_what_was_not_offered(
    area: Area, offered: dict[tuple[str, Transport], int]
) -> None:
    tests = clauses_to_tests()
    holes = [
        f"{clause.id} over {transport.value} with {name}"
        for clause in everything().values()
        if clause.area is area and clause.unobservable is None and clause.id not in tests
        for (name, transport), features in offered.items()
        if area in COMMON or name.partition("-")[0] == area.value
        if transport in clause.transports and clause.applies(features)
    ]
    assert holes == []


def test_no_reason_why_a_clause_cannot_be_observed_is_empty() -> None:
    assert [
        c.id for c in everything().values() if c.unobservable is not None and not c.unobservable
    ] == []


# The list that people read


def test_the_list_has_every_statement_once_with_its_tests() -> None:
    lines = list(listing(None, 0))
    assert [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "] == list(
        everything()
    )
    assert {line.strip() for line in lines if "::" in line} == {
        test for tests in clauses_to_tests().values() for test in tests
    }


@pytest.mark.parametrize("part", ["2.7", "blk"])
def test_the_list_can_be_of_a_part(part: str) -> None:
    lines = list(listing(part, 100))
    area = Area.SPLIT if part == "2.7" else Area.BLK
    clauses = [clause for clause in everything().values() if clause.area is area]
    assert lines[0].startswith(f"virtio 1.4 CS01: {len(clauses)} statements")
    assert all(len(line) <= 100 for line in lines if "::" not in line)


def test_a_part_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="No statement to a device is in 9"):
        list(listing("9", 0))
