"""Which tests of the suite are about which statements, by their sources: no test is imported."""

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

SUITE = Path(__file__).parent / "suite"

#: The decorators of a function, each with the lines that it goes on in, and the function's name.
_DECORATED = re.compile(r"^((?:@.*\n(?:[ )].*\n)*)+)def (\w+)", re.MULTILINE)


def suite_files() -> list[Path]:
    """Return the files of the suite."""
    return sorted(SUITE.rglob("test_*.py"))


@functools.cache
def clauses_to_tests() -> Mapping[str, list[str]]:
    """Return the tests of each statement that has any, as FILE::TEST, by the statement's ID."""
    tests: dict[str, list[str]] = {}
    for path in suite_files():
        # Each run's report asks for this, and to parse the whole files takes ten times as long.
        for decorators, name in _DECORATED.findall(path.read_text()):
            for clause in _clauses(decorators, name):
                tests.setdefault(clause, []).append(f"{path.relative_to(SUITE)}::{name}")
    return tests


def _clauses(decorators: str, name: str) -> Iterator[str]:
    if "pytest.mark.clause" not in decorators:
        return
    [function] = ast.parse(f"{decorators}def {name}(): ...").body
    assert isinstance(function, ast.FunctionDef)
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.clause":
            for argument in decorator.args:
                # A reader of the list is not to run anything for it.
                if not isinstance(argument, ast.Constant):
                    raise TypeError(f"{name}: a clause is named by a literal")
                yield str(argument.value)
