"""The statements of the specification as a text, each with its tests or why it has none."""

import sys
import textwrap
from collections.abc import Iterator
from itertools import groupby

from virtiopy.conformance.clauses.catalogue import Area, Clause
from virtiopy.conformance.clauses.definitions import everything
from virtiopy.conformance.marks import clauses_to_tests
from virtiopy.conformance.report.comparison import AREAS, title_of
from virtiopy.conformance.report.document import SPECIFICATION
from virtiopy.errors import ConfigError

#: Where the ID of a statement ends, its keyword, and what is said of it begins; columns.
_ID = 18
_TEXT = 30


def listing(part: str | None, width: int) -> Iterator[str]:
    """Yield the lines, of a part if one is named: by a section's number, or as "blk" is.

    Lines are wrapped at `width` columns, or not at all where that is 0. Raises ConfigError for a
    part that there is not.
    """
    clauses = [clause for clause in everything().values() if part is None or _in(part, clause)]
    if not clauses:
        names = ", ".join(area.value for area in Area)
        raise ConfigError(
            f"No statement to a device is in {part}: name a section, as 2.7, or one of {names}."
        )
    yield from textwrap.wrap(_totals(clauses), width or sys.maxsize)
    for section, members in groupby(clauses, key=lambda clause: clause.section):
        found = list(members)
        area = AREAS[found[0].area][0]
        yield ""
        yield f"{section} {title_of(found[0].title)} ({area})"
        for clause in found:
            yield from _clause(clause, width)


def _in(part: str, clause: Clause) -> bool:
    return part == clause.area.value or f"{clause.section}.".startswith(f"{part}.")


def _totals(clauses: list[Clause]) -> str:
    tests = clauses_to_tests()
    tested = sum(clause.id in tests for clause in clauses)
    unobservable = sum(clause.unobservable is not None for clause in clauses)
    return (
        f"{SPECIFICATION}: {len(clauses)} statements to devices, {tested} with tests, "
        f"{unobservable} not observable from the driver's side, "
        f"{len(clauses) - tested - unobservable} on features that no device here offers"
    )


def _clause(clause: Clause, width: int) -> Iterator[str]:
    first = f"  {clause.id:<{_ID - 2}} {clause.keyword.value:<{_TEXT - _ID - 2}} "
    yield from _wrap(first, clause.paraphrase, width)
    if clause.feature:
        yield from _wrap(" " * _TEXT, f"where {clause.feature} is offered", width)
    if clause.unobservable is not None:
        yield from _wrap(" " * _TEXT, f"not observable: {clause.unobservable}", width)
        return
    tests = clauses_to_tests().get(clause.id, [])
    for test in tests:
        yield f"{'':<{_TEXT}}{test}"
    if not tests:
        yield f"{'':<{_TEXT}}no test"


def _wrap(first: str, text: str, width: int) -> Iterator[str]:
    if width <= _TEXT * 2:
        yield first + text
        return
    yield from textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=" " * _TEXT, break_long_words=False
    )
