"""From failed tests to findings: one fault is one finding, and what it hides is blocked."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from virtiopy.conformance.clauses.catalogue import Area, Clause, Transport
from virtiopy.conformance.clauses.definitions import everything, stands_on
from virtiopy.conformance.marks import clauses_to_tests
from virtiopy.conformance.problems import WORKS_WITH
from virtiopy.conformance.report.blame import WORKS_ON, Broken
from virtiopy.conformance.report.results import (
    ClauseResult,
    Failure,
    Outcome,
    Result,
    Subject,
)

#: What is said of findings that are none of a statement.
WORDS: Mapping[str, str] = {
    WORKS_ON: "A device works on, whatever its driver does.",
    WORKS_WITH: "A backend works with the frontends of VMMs.",
}


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
        # What shows a finding, by the test's name.
        self._shows: dict[str, Finding] = {}
        self._broken = Broken(strict=strict)
        for result in results:
            self._broken.take(result)
        for result in results:
            if result.failure is not None:
                self._sort(result, result.failure)
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
        finding = self._shows.get(result.test)
        return Outcome.BLOCKED if finding is None else finding.outcome

    def counted_under(self, result: Result) -> str | None:
        """Return the statement that a failed test shows broken, or that is in its way."""
        return self._counted.get(result.test)

    # Which statement

    def _sort(self, result: Result, failure: Failure) -> None:
        place = self._broken.place(result, failure)
        self._counted[result.test] = place.below or place.statement
        if place.below is not None:
            self._finding(place.below, place.below, failure).blocked.append(result)
            return
        finding = self._finding(_key(place.statement, failure), place.statement, failure)
        finding.tests.append(result)
        self._shows[result.test] = finding

    def _finding(self, key: str, statement: str, failure: Failure) -> Finding:
        finding = self._by_key.get(key)
        if finding is None:
            finding = Finding(statement, self._broken.outcome_of(statement), failure.words)
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
                self._shows.update((result.test, earlier) for result in finding.tests)
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
            of_it = clause.area.value in {subject.device, subject.transport}
            if of_all or of_it:
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
    others = {
        WORKS_ON: "what a device does after hostile acts",
        WORKS_WITH: "what a backend does for the frontends of VMMs",
    }
    return others.get(statement, statement)


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
