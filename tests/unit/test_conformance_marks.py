"""The suite's tests and the catalogue of clauses know each other."""

import ast
from collections.abc import Iterator

from virtiopy.conformance.catalogue import load
from virtiopy.conformance.collection import SUITE


def marked(name: str) -> Iterator[tuple[str, str]]:
    """Yield each argument of each mark of a name: where it is, and what it says."""
    for path in sorted(SUITE.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == f"pytest.mark.{name}":
                for argument in node.args:
                    where = f"{path.name}:{node.lineno}"
                    assert isinstance(argument, ast.Constant), f"{where}: no literal"
                    yield where, str(argument.value)


def test_every_clause_that_a_test_names_is_in_the_catalogue() -> None:
    clauses = load()
    assert [where for where, clause in marked("clause") if clause not in clauses] == []
