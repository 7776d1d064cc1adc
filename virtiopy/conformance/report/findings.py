"""From failed tests to findings: one fault is one finding, and what it hides is blocked.

A test fails with something that it can name only in part. The device may break the statement that
the test is about, or one that every test stands on: a request that is never used fails each test
that sends one. So the tests of what is stood on decide.

1. A failure that is sure of its statement is about that.
2. A step's failure is about the step's statement where a test of that statement fails, too; where
   those pass, or there is none, it is about what the test does: its own statement.
3. What is about a statement that stands on another which is broken is blocked by that one.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from virtiopy.conformance.clauses.catalogue import Area, Clause, Transport
from virtiopy.conformance.clauses.definitions import everything, stands_on
from virtiopy.conformance.marks import clauses_to_tests
from virtiopy.conformance.report.results import (
    Blame,
    ClauseResult,
    Failure,
    Outcome,
    Result,
    Subject,
)
from virtiopy.statements.terms import Keyword

#: What the finding of a hostile act is called, which breaks no statement of the specification's.
WORKS_ON = "works on"

#: What is said of it.
WORKS_ON_WORDS = "A device works on, whatever its driver does."


@dataclass(slots=True)
class Finding:
    """One fault: the statement, or WORKS_ON, and the tests that show it, the first one first.

    `blocked` are the tests that cannot be judged because of it.
    """

    statement: str
    outcome: Outcome
    words: str
    tests: list[Result] = field(default_factory=list)
    blocked: list[Result] = field(default_factory=list)


class Findings:
    """The findings of one target, of the results of its tests.

    `strict` has what a device SHOULD do, and does not, be a failure.
    """

    def __init__(self, results: Sequence[Result], *, strict: bool = False) -> None:
        self._results = results
        self._strict = strict
        self._by_key: dict[str, Finding] = {}
        # The statement that a failed test is counted under, by the test's name.
        self._counted: dict[str, str] = {}
        failed = [(result, result.failure) for result in results if result.failure is not None]
        broken = {statement for one in failed if (statement := _shown_by(*one)) is not None}
        for result, failure in failed:
            self._sort(result, failure, broken)
        self._fold_deaths()
        self._remark()

    def all(self) -> list[Finding]:
        """Return what fails, in the specification's order, and then what is a warning."""
        order = {identity: number for number, identity in enumerate(everything())}
        return sorted(
            (finding for finding in self._by_key.values() if finding.tests),
            key=lambda one: (one.outcome.value, order.get(one.statement, len(order))),
        )

    def broken(self) -> list[Finding]:
        """Return what fails."""
        return [finding for finding in self.all() if finding.outcome is Outcome.FAILED]

    def outcome(self, result: Result) -> Outcome:
        """Return what a test came to, in the light of all others."""
        if result.failure is None:
            return result.outcome
        for finding in self._by_key.values():
            if result in finding.tests:
                return finding.outcome
        return Outcome.BLOCKED

    def counted_under(self, result: Result) -> str | None:
        """Return the statement that a failed test shows broken, or that is in its way."""
        return self._counted.get(result.test)

    # Which statement

    def _sort(self, result: Result, failure: Failure, broken: Collection[str]) -> None:
        statement = _statement(result, failure, broken)
        below = next((one for one in stands_on(statement) if one in broken), None)
        self._counted[result.test] = below or statement
        if below is not None:
            self._finding(below, below, failure).blocked.append(result)
        else:
            self._finding(_key(statement, failure), statement, failure).tests.append(result)

    def _finding(self, key: str, statement: str, failure: Failure) -> Finding:
        finding = self._by_key.get(key)
        if finding is None:
            warns = _is_should(statement) and not self._strict
            outcome = Outcome.WARNING if warns else Outcome.FAILED
            finding = Finding(statement, outcome, failure.words)
            self._by_key[key] = finding
        if not finding.tests:
            finding.words = failure.words
        return finding

    def _fold_deaths(self) -> None:
        """Make deaths by the same line of the device's one finding, whatever they came of."""
        first: dict[str, Finding] = {}
        for key, finding in list(self._by_key.items()):
            died = {result.failure.died for result in finding.tests if result.failure is not None}
            if len(died) != 1 or "" in died:
                continue
            [line] = died
            if (earlier := first.setdefault(line, finding)) is not finding:
                earlier.tests += finding.tests
                earlier.blocked += finding.blocked
                for result in [*finding.tests, *finding.blocked]:
                    self._counted[result.test] = earlier.statement
                del self._by_key[key]

    def _remark(self) -> None:
        for result in self._results:
            for remark in result.remarks:
                if any(below in self._by_key for below in stands_on(remark.clause)):
                    continue
                outcome = Outcome.FAILED if self._strict else Outcome.WARNING
                finding = self._by_key.setdefault(
                    remark.clause, Finding(remark.clause, outcome, remark.words)
                )
                if finding.outcome is outcome:
                    finding.tests.append(result)

    # What became of each statement

    def clauses(self, subject: Subject, clauses: Sequence[Clause]) -> Iterator[ClauseResult]:
        """Yield what became of each statement that is one to devices of the subject's type."""
        by_clause: defaultdict[str, list[Result]] = defaultdict(list)
        for result in self._results:
            for identity in result.clauses:
                by_clause[identity].append(result)
        for clause in clauses:
            of_all = clause.area in {Area.BASIC, Area.SPLIT, Area.MMIO}
            if of_all or clause.area.value == subject.device:
                yield self._clause(clause, by_clause[clause.id], subject)

    def _clause(self, clause: Clause, tests: Sequence[Result], subject: Subject) -> ClauseResult:
        finding = self._by_key.get(clause.id)
        if finding is not None and finding.tests:
            return ClauseResult(clause, finding.outcome, finding.words, finding.tests)
        if clause.unobservable is not None:
            return ClauseResult(clause, Outcome.NOT_OBSERVABLE, clause.unobservable, tests)
        for test in tests:
            if (other := self._counted.get(test.test)) is not None:
                reason = f"{_named(other)} is broken, which its test could not get past"
                return ClauseResult(clause, Outcome.BLOCKED, reason, tests)
        found = {test.outcome for test in tests}
        for outcome in (Outcome.BLOCKED, Outcome.PASSED, Outcome.SKIPPED):
            if outcome in found:
                reasons = [test.reason for test in tests if test.outcome is outcome]
                return ClauseResult(clause, outcome, next(filter(None, reasons), ""), tests)
        return _untested(clause, tests, subject)


def _named(statement: str) -> str:
    return "what a device does after hostile acts" if statement == WORKS_ON else statement


def _shown_by(result: Result, failure: Failure) -> str | None:
    """Return the statement that a failure shows to be broken whatever other tests come to."""
    if failure.blame is Blame.SURE:
        return failure.clause
    if failure.blame is Blame.STEP:
        return failure.clause if failure.clause in result.clauses else None
    return _own(result)


def _statement(result: Result, failure: Failure, broken: Collection[str]) -> str:
    """Return what a failure is about."""
    own = _own(result)
    if failure.blame is Blame.TEST or failure.clause is None:
        return own or WORKS_ON
    if failure.blame is Blame.SURE or failure.clause in broken:
        return failure.clause
    if own is None:
        # Of a hostile act, if it is the device's end; else of a random walk.
        return WORKS_ON if failure.died and not result.clauses else failure.clause
    # A step that fails is more than what a device SHOULD do.
    return failure.clause if _is_should(own) else own


def _own(result: Result) -> str | None:
    """Return the statement that a test is about; what a device MAY do cannot be done wrong."""
    known = everything()
    return next((one for one in result.clauses if known[one].keyword is not Keyword.MAY), None)


def _is_should(statement: str) -> bool:
    clause = everything().get(statement)
    return clause is not None and clause.keyword in {Keyword.SHOULD, Keyword.SHOULD_NOT}


def _key(statement: str, failure: Failure) -> str:
    # Acts that come to the same are one fault.
    if statement == WORKS_ON:
        return f"{WORKS_ON} {failure.died or failure.words.partition(chr(10))[0]}"
    return statement


def _untested(clause: Clause, tests: Sequence[Result], subject: Subject) -> ClauseResult:
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
