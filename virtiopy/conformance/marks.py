"""Which tests of the suite are about which statements, by their sources: no test is imported."""

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

SUITE = Path(__file__).parent / "suite"


def suite_files() -> list[Path]:
    """Return the files of the suite."""
    return sorted(SUITE.rglob("test_*.py"))


@functools.cache
def clauses_to_tests() -> Mapping[str, list[str]]:
    """Return the tests of each statement that has any, as FILE::TEST, by the statement's ID."""
    tests: dict[str, list[str]] = {}
    for path in suite_files():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for clause in _clauses(function):
                    name = f"{path.relative_to(SUITE)}::{function.name}"
                    tests.setdefault(clause, []).append(name)
    return tests


def _clauses(function: ast.FunctionDef) -> Iterator[str]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.clause":
            for argument in decorator.args:
                # A reader of the list is not to run anything for it.
                if not isinstance(argument, ast.Constant):
                    raise TypeError(f"{function.name}: a clause is named by a literal")
                yield str(argument.value)
