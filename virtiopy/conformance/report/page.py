"""A report as one HTML page, which loads nothing from elsewhere and needs no script.

Importing this needs the extra "conformance".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined

from virtiopy.conformance.clauses.protocol import link
from virtiopy.conformance.report.comparison import (
    AREAS,
    Row,
    Section,
    Side,
    differences,
    rows,
    sections,
    sides,
    title_of,
)
from virtiopy.conformance.report.document import SPECIFICATION, Document
from virtiopy.conformance.report.results import Outcome
from virtiopy.conformance.report.verdict import Verdict

#: How many events of a trace are shown, from its end: all of them are in the JSON.
_EVENTS = 80


@dataclass(slots=True, frozen=True)
class _AreaPart:
    """The part of the page that an area has."""

    name: str
    title: str
    numbers: str
    sections: Sequence[Section]

    @property
    def classes(self) -> str:
        """Which outcomes are in it, as the page's style sheet names them."""
        return classes([row for section in self.sections for row in section.rows])


def slug(outcome: str) -> str:
    """Return an outcome's, or a verdict's, name in the style sheet."""
    return outcome.replace(" ", "-") or "no-statement"


def classes(found: Sequence[Row]) -> str:
    """Return the names in the style sheet of every outcome that is in rows."""
    return " ".join(sorted({slug(outcome) for row in found for outcome in row.outcomes}))


@dataclass(slots=True, frozen=True)
class _Why:
    """A reason, and the letters of the sides that it is of."""

    letters: str
    reason: str


def reasons(row: Row, subjects: Sequence[Side]) -> list[_Why]:
    """Return why a statement came to what it did, each reason in a line."""
    letters: dict[str, list[str]] = {}
    for side, cell in zip(subjects, row.cells, strict=True):
        if cell is not None and cell["reason"]:
            reason = cell["reason"].splitlines()[0]
            letters.setdefault(reason, []).append(side.letter)
    return [_Why(", ".join(found), reason) for reason, found in letters.items()]


def render(documents: Sequence[tuple[str, Document]]) -> str:
    """Return the page of one run, or of several side by side, which come with their names."""
    environment = Environment(
        loader=PackageLoader("virtiopy.conformance.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    subjects = sides(documents)
    environment.filters |= {
        "classes": classes,
        "link": link,
        "reasons": partial(reasons, subjects=subjects),
        "slug": slug,
        "title_of": title_of,
    }
    found = rows(subjects)
    return environment.get_template("page.html.j2").render(
        specification=SPECIFICATION,
        events=_EVENTS,
        documents=documents,
        sides=subjects,
        outcomes=[outcome.value for outcome in Outcome],
        verdicts=[verdict.value for verdict in Verdict],
        differences=differences(found),
        count=len(found),
        areas=_areas(found),
    )


def _areas(found: Sequence[Row]) -> list[_AreaPart]:
    parts: list[_AreaPart] = []
    for area, members in groupby(sections(found), key=lambda section: section.area):
        title, numbers = AREAS[area]
        parts.append(_AreaPart(area.value, title, numbers, list(members)))
    return parts
