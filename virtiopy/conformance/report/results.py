"""What became of every test, and so of every statement of the specification."""

import enum
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from virtiopy.conformance.clauses.catalogue import Area, Clause, Transport
from virtiopy.conformance.marks import clauses_to_tests
from virtiopy.conformance.report.verdict import Verdict
from virtiopy.spec import DeviceId


class Outcome(enum.Enum):
    """What a test or a statement comes to, the one that counts most first."""

    FAILED = "failed"
    PASSED = "passed"
    SKIPPED = "skipped"
    NOT_APPLICABLE = "not applicable"
    NOT_OBSERVABLE = "not observable"
    #: There is no test for it, and no reason why: a hole.
    NOT_TESTED = "not tested"


@dataclass(slots=True, frozen=True)
class Subject:
    """What was put to the test; `offered` is the feature set that it offers."""

    target: str
    device_id: DeviceId
    device: str
    transport: str
    offered: int


@dataclass(slots=True, frozen=True)
class Result:
    """A test: its name, the statements it is about, what became of it, and the evidence.

    `reason` is what a failed assertion says, or why a test does not apply; `details` is where that
    came up in the test. `verdicts` say how the device took each hostile act, if there were any.
    """

    test: str
    target: str
    clauses: Sequence[str]
    outcome: Outcome
    reason: str
    details: str
    seconds: float
    trace: Sequence[str]
    verdicts: Sequence[Verdict]


@dataclass(slots=True, frozen=True)
class ClauseResult:
    """What became of a statement: by its tests, or for a reason."""

    clause: Clause
    outcome: Outcome
    reason: str
    tests: Sequence[Result]


class Results:
    """The results of a run, in the order of the tests."""

    def __init__(self) -> None:
        #: By the target's name.
        self.subjects: dict[str, Subject] = {}
        self._results: dict[tuple[str, str], Result] = {}

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results.values())

    def add(self, result: Result) -> None:
        """Add a phase of a test: a setup that passes gives way to the call, and so on."""
        key = result.target, result.test
        before = self._results.get(key)
        if before is not None:
            last = result if before.outcome is Outcome.PASSED else before
            result = replace(last, seconds=before.seconds + result.seconds)
        self._results[key] = result

    def clauses(self, subject: Subject, clauses: Sequence[Clause]) -> Iterator[ClauseResult]:
        """Yield what became of each statement that is one to devices of the subject's type."""
        by_clause: defaultdict[str, list[Result]] = defaultdict(list)
        for result in self:
            if result.target == subject.target:
                for identity in result.clauses:
                    by_clause[identity].append(result)
        for clause in clauses:
            of_all = clause.area in {Area.BASIC, Area.SPLIT, Area.MMIO}
            if of_all or clause.area.value == subject.device:
                yield _clause_result(clause, by_clause[clause.id], subject)


def _clause_result(clause: Clause, tests: Sequence[Result], subject: Subject) -> ClauseResult:
    if clause.unobservable is not None:
        return ClauseResult(clause, Outcome.NOT_OBSERVABLE, clause.unobservable, tests)
    found = {test.outcome for test in tests}
    for outcome in (Outcome.FAILED, Outcome.PASSED, Outcome.SKIPPED):
        if outcome in found:
            reasons = [test.reason for test in tests if test.outcome is outcome]
            return ClauseResult(clause, outcome, next(filter(None, reasons), ""), tests)
    if not clause.applies(subject.offered):
        reason = f"{clause.feature} was not offered"
        return ClauseResult(clause, Outcome.NOT_APPLICABLE, reason, tests)
    if Transport(subject.transport) not in clause.transports:
        reason = f"it cannot be seen over {subject.transport}"
        return ClauseResult(clause, Outcome.NOT_APPLICABLE, reason, tests)
    if tests:
        return ClauseResult(clause, Outcome.NOT_APPLICABLE, tests[0].reason, tests)
    reason = (
        "its tests were not run" if clause.id in clauses_to_tests() else "there is no test for it"
    )
    return ClauseResult(clause, Outcome.NOT_TESTED, reason, tests)
