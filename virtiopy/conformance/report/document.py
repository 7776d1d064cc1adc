"""A run as JSON, under names that stay: docs/conformance.md lists them."""

import json
import platform
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import TypedDict, cast

from virtiopy import __version__
from virtiopy.conformance.clauses.definitions import everything
from virtiopy.conformance.clauses.features import names
from virtiopy.conformance.report.findings import WORDS, Finding, Findings
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


class FindingRecord(TypedDict):
    """A fault: a statement that is not met, or "works on", and what shows it."""

    statement: str
    keyword: str  # "" where that is no statement
    paraphrase: str
    outcome: str  # failed or warning
    reason: str
    tests: list[str]  # that show it, the one with the evidence first
    blocked: list[str]  # that it keeps from saying anything


class SubjectRecord(TypedDict):
    """What was put to the test, and what that came to."""

    target: str
    device: str
    transport: str
    offered: str  # hexadecimal
    features: list[str]  # the same by name
    outcomes: dict[str, int]  # of statements: how many came to what
    verdicts: dict[str, int]  # of hostile acts: how many were taken how
    findings: list[FindingRecord]
    clauses: list[ClauseRecord]


class ResultRecord(TypedDict):
    """What became of a test, with its evidence where it failed.

    `about` is the statement that it shows broken, or that is in its way; "" where it passed.
    """

    test: str
    target: str
    clauses: list[str]
    outcome: str
    about: str
    seconds: float
    reason: str
    details: str
    verdicts: list[str]
    trace: list[str]


class Document(TypedDict):
    """A run: one subject, or several that were tested one after another."""

    schema: int
    virtiopy: str
    python: str
    system: str  # the kernel and the machine
    command: list[str]
    specification: str
    date: str  # ISO 8601, of the run's end
    cut_short: str  # why the run ended before its last test; "" where it did not
    subjects: list[SubjectRecord]
    tests: list[ResultRecord]


def document(results: Results) -> Document:
    """Return all of a run."""
    found = {
        target: Findings(results.of(target), strict=results.strict) for target in results.subjects
    }
    return Document(
        schema=SCHEMA,
        virtiopy=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        command=[PurePath(sys.argv[0]).name, *sys.argv[1:]],
        specification=SPECIFICATION,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        cut_short=results.cut_short,
        subjects=[
            _subject(results, subject, found[target])
            for target, subject in results.subjects.items()
        ],
        tests=[_test(result, found.get(result.target) or Findings([result])) for result in results],
    )


def read(path: Path) -> Document:
    """Return the run of a report that was written as JSON; raises ConfigError."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"The report {path} cannot be read ({error.strerror}): name one of --report FILE.json."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"The report {path} is no JSON: give one of --report FILE.json."
        ) from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ConfigError(
            f"The report {path} is none that this virtiopy can read: make it again with "
            "virtiopy conformance TARGET --report FILE.json."
        )
    return cast("Document", found)


def _subject(results: Results, subject: Subject, findings: Findings) -> SubjectRecord:
    clauses = list(findings.clauses(subject, list(everything().values())))
    outcomes = Counter(result.outcome for result in clauses)
    verdicts = Counter(
        verdict for result in results.of(subject.target) for verdict in result.verdicts
    )
    return SubjectRecord(
        target=subject.target,
        device=subject.device,
        transport=subject.transport,
        offered=f"{subject.offered:#x}",
        features=names(subject.offered, subject.device_id),
        outcomes={outcome.value: outcomes[outcome] for outcome in Outcome},
        verdicts={verdict.value: verdicts[verdict] for verdict in Verdict},
        findings=[_finding(finding) for finding in findings.all()],
        clauses=[_clause(result) for result in clauses],
    )


def _finding(finding: Finding) -> FindingRecord:
    clause = everything().get(finding.statement)
    return FindingRecord(
        statement=finding.statement,
        keyword=clause.keyword.value if clause is not None else "",
        paraphrase=clause.paraphrase if clause is not None else WORDS[finding.statement],
        outcome=finding.outcome.value,
        reason=finding.words,
        tests=[test.test for test in finding.tests],
        blocked=[test.test for test in finding.blocked],
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


def _test(result: Result, findings: Findings) -> ResultRecord:
    return ResultRecord(
        test=result.test,
        target=result.target,
        clauses=list(result.clauses),
        outcome=findings.outcome(result).value,
        about=findings.counted_under(result) or "",
        seconds=round(result.seconds, 6),
        reason=result.reason,
        details=result.details,
        verdicts=[verdict.value for verdict in result.verdicts],
        trace=list(result.trace),
    )
