"""A run as JSON, under names that stay: docs/conformance.md lists them."""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, cast

from virtiopy import __version__
from virtiopy.conformance.clauses.catalogue import load
from virtiopy.conformance.clauses.features import names
from virtiopy.conformance.report.results import ClauseResult, Outcome, Result, Results, Subject
from virtiopy.conformance.report.verdict import Verdict
from virtiopy.errors import ConfigError

SPECIFICATION = "virtio 1.4 CS01"

#: Counted up when a name goes or changes its meaning; new names may come without.
SCHEMA = 1


class ClauseRecord(TypedDict):
    """What became of a statement. `feature` is what it depends on, null where that is nothing."""

    id: str
    section: str
    title: str
    area: str
    keyword: str
    paraphrase: str
    feature: str | None
    outcome: str
    reason: str
    tests: list[str]


class SubjectRecord(TypedDict):
    """What was put to the test, and what that came to."""

    target: str
    device: str
    transport: str
    offered: str  # hexadecimal
    features: list[str]  # the same by name
    outcomes: dict[str, int]  # of statements: how many came to what
    verdicts: dict[str, int]  # of hostile acts: how many were taken how
    clauses: list[ClauseRecord]


class ResultRecord(TypedDict):
    """What became of a test, with its evidence where it failed."""

    test: str
    target: str
    clauses: list[str]
    outcome: str
    seconds: float
    reason: str
    details: str
    verdicts: list[str]
    trace: list[str]


class Document(TypedDict):
    """A run: one subject, or several that were tested one after another."""

    schema: int
    virtiopy: str
    specification: str
    date: str  # ISO 8601, of the run's end
    subjects: list[SubjectRecord]
    tests: list[ResultRecord]


def document(results: Results) -> Document:
    """Return all of a run."""
    return Document(
        schema=SCHEMA,
        virtiopy=__version__,
        specification=SPECIFICATION,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        subjects=[_subject(results, subject) for subject in results.subjects.values()],
        tests=[_test(result) for result in results],
    )


def read(path: Path) -> Document:
    """Return the run of a report that was written as JSON; raises ConfigError."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"The report {path} cannot be read ({error.strerror}): name one of --report FILE.json."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"The report {path} is no JSON: give one of --report FILE.json."
        ) from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ConfigError(
            f"The report {path} is none that this virtiopy can read: make it again with "
            "virtiopy conformance TARGET --report FILE.json."
        )
    return cast("Document", found)


def _subject(results: Results, subject: Subject) -> SubjectRecord:
    clauses = list(results.clauses(subject, list(load().values())))
    outcomes = Counter(result.outcome for result in clauses)
    verdicts = Counter(
        verdict
        for result in results
        if result.target == subject.target
        for verdict in result.verdicts
    )
    return SubjectRecord(
        target=subject.target,
        device=subject.device,
        transport=subject.transport,
        offered=f"{subject.offered:#x}",
        features=names(subject.offered, subject.device_id),
        outcomes={outcome.value: outcomes[outcome] for outcome in Outcome},
        verdicts={verdict.value: verdicts[verdict] for verdict in Verdict},
        clauses=[_clause(result) for result in clauses],
    )


def _clause(result: ClauseResult) -> ClauseRecord:
    clause = result.clause
    return ClauseRecord(
        id=clause.id,
        section=clause.section,
        title=clause.title,
        area=clause.area.value,
        keyword=clause.keyword.value,
        paraphrase=clause.paraphrase,
        feature=clause.feature,
        outcome=result.outcome.value,
        reason=result.reason,
        tests=[test.test for test in result.tests],
    )


def _test(result: Result) -> ResultRecord:
    return ResultRecord(
        test=result.test,
        target=result.target,
        clauses=list(result.clauses),
        outcome=result.outcome.value,
        seconds=round(result.seconds, 6),
        reason=result.reason,
        details=result.details,
        verdicts=[verdict.value for verdict in result.verdicts],
        trace=list(result.trace),
    )
