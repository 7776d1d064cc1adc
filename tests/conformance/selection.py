"""What of the suite a mutant is put to: all that is about its statement, and a look at the rest.

That it breaks no other statement is seen with one case of each test: the suite's tests have five
thousand cases for two hundred mutants, and most of them differ in a number.
"""

from collections.abc import Collection, Mapping

import pytest

from virtiopy.conformance.collection import clauses_of
from virtiopy.conformance.marks import SUITE


def select(items: list[pytest.Item], own: Mapping[str, Collection[str]]) -> None:
    """Leave out what no mutant is put to; `own` has the statements of each by its module's name.

    Nor is one mistreated, or put to random work that is not about its statement.
    """
    seen: set[tuple[str, str, str]] = set()
    kept = []
    for item in items:
        module = item.nodeid.partition("::")[0]
        function = getattr(item, "originalname", item.name)
        key = module, str(item.path), function
        if set(clauses_of(item)) & set(own[module]):
            kept.append(item)
        elif key not in seen and _is_plain(item):
            seen.add(key)
            kept.append(item)
    items[:] = kept


def _is_plain(item: pytest.Item) -> bool:
    folder = item.path.relative_to(SUITE).parts[0]
    fixtures = getattr(item, "fixturenames", ())
    return folder != "hostile" and not {"effort", "walks"} & set(fixtures)
