"""The suite's tests and the catalogue of clauses know each other."""

from virtiopy.conformance.catalogue import load
from virtiopy.conformance.marks import clauses_to_tests


def test_every_clause_that_a_test_names_is_in_the_catalogue() -> None:
    assert set(clauses_to_tests()) - set(load()) == set()


def test_no_clause_that_nobody_can_observe_has_a_test() -> None:
    clauses = load()
    assert [name for name in clauses_to_tests() if clauses[name].unobservable] == []
