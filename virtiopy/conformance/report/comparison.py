"""Subjects beside each other, statement by statement; one alone is the simplest case."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePath

from virtiopy.conformance.clauses.catalogue import Area
from virtiopy.conformance.clauses.definitions import everything
from virtiopy.conformance.report.document import (
    ClauseRecord,
    Document,
    FindingRecord,
    ResultRecord,
    SubjectRecord,
)
from virtiopy.conformance.report.results import Outcome

#: What an area is called, and which sections of the specification it has.
AREAS = {
    Area.BASIC: ("basic facilities", "2, 3, 6"),
    Area.SPLIT: ("split virtqueues", "2.7"),
    Area.MMIO: ("virtio over MMIO", "4.2"),
    Area.VHOST_USER: ("vhost-user protocol", ""),
    Area.NET: ("network device", "5.1"),
    Area.BLK: ("block device", "5.2"),
    Area.CONSOLE: ("console device", "5.3"),
    Area.RNG: ("entropy device", "5.4"),
    Area.BALLOON: ("traditional balloon device", "5.5"),
    Area.SCSI: ("SCSI host device", "5.6"),
    Area.VSOCK: ("Socket device", "5.10"),
    Area.FS: ("File system device", "5.11"),
}

#: Characters of a target's name in a heading.
_NAME_MAX = 50


@dataclass(slots=True, frozen=True)
class Fault:
    """A finding, and the tests that show it."""

    finding: FindingRecord
    tests: Sequence[ResultRecord]

    @property
    def is_warning(self) -> bool:
        """Whether a device may have a reason to be so."""
        return self.finding["outcome"] == Outcome.WARNING.value

    @property
    def statement(self) -> str:
        """The statement's ID; "" for what breaks none."""
        return self.finding["statement"] if self.finding["keyword"] else ""


@dataclass(slots=True, frozen=True)
class Side:
    """A subject, the letter that stands for it, and where its report is from."""

    letter: str
    subject: SubjectRecord
    source: str
    document: Document = field(repr=False)
    clauses: dict[str, ClauseRecord] = field(repr=False)
    faults: Sequence[Fault] = field(repr=False)

    @property
    def name(self) -> str:
        """The target's name, to fit a heading; of a long command the program's."""
        target = self.subject["target"]
        return target if len(target) <= _NAME_MAX else PurePath(target.split()[0]).name


@dataclass(slots=True, frozen=True)
class Row:
    """A statement, and what became of it on each side: None where it is none to that device."""

    clause: ClauseRecord
    cells: Sequence[ClauseRecord | None]

    @property
    def outcomes(self) -> list[str]:
        """What it came to, side by side; "" where it is none to that device."""
        return [cell["outcome"] if cell else "" for cell in self.cells]

    @property
    def tests(self) -> list[str]:
        """The tests that are about it."""
        return list(dict.fromkeys(test for cell in self.cells if cell for test in cell["tests"]))

    @property
    def differs(self) -> bool:
        """Whether it came to different things."""
        return len(set(self.outcomes)) > 1


@dataclass(slots=True, frozen=True)
class Section:
    """A section's statements."""

    number: str
    title: str
    area: Area
    rows: Sequence[Row]


def sides(documents: Sequence[tuple[str, Document]]) -> list[Side]:
    """Return the subjects of documents, which come with their names, in their order."""
    found: list[Side] = []
    for source, document in documents:
        for subject in document["subjects"]:
            found.append(_side(_letter(len(found)), source, subject, document))
    return found


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"#{number + 1}"


def _side(letter: str, source: str, subject: SubjectRecord, document: Document) -> Side:
    named = {
        test["test"]: test for test in document["tests"] if test["target"] == subject["target"]
    }
    return Side(
        letter,
        subject,
        source,
        document,
        clauses={clause["id"]: clause for clause in subject["clauses"]},
        faults=[
            Fault(finding, [named[name] for name in finding["tests"] if name in named])
            for finding in subject["findings"]
        ],
    )


def rows(subjects: Sequence[Side]) -> list[Row]:
    """Return every statement to any of the sides, by area, in the specification's order."""
    clauses = {identity: clause for side in subjects for identity, clause in side.clauses.items()}
    return [
        Row(clause, [side.clauses.get(clause["id"]) for side in subjects])
        for clause in sorted(clauses.values(), key=_place)
    ]


def _place(clause: ClauseRecord) -> tuple[int, int, str]:
    area = list(AREAS).index(Area(clause["area"]))
    # A report may be of another version, with statements that this one does not have.
    return area, _order().get(clause["id"], len(_order())), clause["id"]


@functools.cache
def _order() -> dict[str, int]:
    return {identity: number for number, identity in enumerate(everything())}


def sections(found: Sequence[Row]) -> Iterator[Section]:
    """Yield rows by their section."""
    for number, group in groupby(found, key=lambda row: row.clause["section"]):
        members = list(group)
        first = members[0].clause
        yield Section(number, title_of(first["title"]), Area(first["area"]), members)


def title_of(title: str) -> str:
    """Return a section's title without what all of them begin with."""
    return title.removeprefix("Device Requirements: ")


def differences(found: Sequence[Row]) -> list[Row]:
    """Return the rows that differ: first where one side fails, then where one was not tested."""
    return sorted((row for row in found if row.differs), key=_weight)


def contradicts(row: Row) -> bool:
    """Say whether one side meets what another does not."""
    return {Outcome.PASSED.value, Outcome.FAILED.value} <= set(row.outcomes)


def _weight(row: Row) -> int:
    # That another feature set was offered says least, but for another type of device.
    if Outcome.FAILED.value in row.outcomes:
        return 0 if contradicts(row) else 1
    return 2 if all(row.outcomes) else 3
