"""Which statement a failed test is about, in the light of what other tests have shown broken.

A test fails with something that it can name only in part. The device may break the statement that
the test is about, or one that every test stands on: a request that is never used fails each test
that sends one. So the tests of what is stood on decide.

1. A failure that is sure of its statement is about that.
2. A step's failure is about the step's statement where a test of that statement fails, too; where
   those pass, or there is none, it is about what the test does: its own statement.
3. What is about a statement that stands on another which is broken is blocked by that one.
4. What waited in vain is blocked by the test that kicks with nothing new, where that fails: each
   driver sends such a kick now and then, when the device is done before it comes.
"""

import functools
from dataclasses import dataclass

from virtiopy.conformance.clauses.definitions import (
    BASIS,
    COMPLETION,
    IDLE_KICK,
    everything,
    stands_on,
)
from virtiopy.conformance.clauses.protocol import protocol
from virtiopy.conformance.problems import WORKS_WITH
from virtiopy.conformance.report.results import Blame, Failure, Outcome, Result
from virtiopy.statements.terms import Keyword

#: What the finding of a hostile act is called, which breaks no statement of the specification's.
WORKS_ON = "works on"


@dataclass(slots=True, frozen=True)
class Place:
    """What a failure is about, and the broken statement below that which blocks it, or None."""

    statement: str
    below: str | None


class Broken:
    """The statements that the tests of one target have shown to be broken so far.

    Its work for one test does not grow with the number of tests before it.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._statements: set[str] = set()

    def take(self, result: Result) -> None:
        """Take what a test failed with, if it did."""
        if result.failure is not None:
            statement = _shown_by(result, result.failure)
            if statement is not None:
                self._statements.add(statement)

    def place(self, result: Result, failure: Failure) -> Place:
        """Return what a failure is about, as far as tests have told yet."""
        statement = self._statement(result, failure)
        below = next((one for one in _below(statement) if one in self._statements), None)
        if below is None and statement == _own(result) and _is_in_vain(failure):
            below = IDLE_KICK if IDLE_KICK in self._statements - {statement} else None
        return Place(statement, below)

    def outcome(self, result: Result) -> Outcome:
        """Return what a test comes to, as far as tests have told yet."""
        if result.failure is None:
            return result.outcome
        place = self.place(result, result.failure)
        return self.outcome_of(place.statement) if place.below is None else Outcome.BLOCKED

    def outcome_of(self, statement: str) -> Outcome:
        """Return what it comes to that a statement is broken."""
        warns = _is_should(statement) and not self._strict
        return Outcome.WARNING if warns else Outcome.FAILED

    def _statement(self, result: Result, failure: Failure) -> str:
        own = _own(result)
        if failure.blame is Blame.TEST or failure.clause is None:
            return own or WORKS_ON
        if failure.blame is Blame.SURE or failure.clause in self._statements:
            return failure.clause
        if own is None:
            # Of a hostile act, if it is the device's end; else of a random walk.
            return WORKS_ON if failure.died and not result.clauses else failure.clause
        # A step without which nothing works is more than what a device SHOULD do.
        return failure.clause if _is_should(own) and failure.clause in BASIS else own


@functools.cache
def _below(statement: str) -> list[str]:
    """Return the statements without which one cannot be judged, the most basic first.

    A session as a frontend has it goes through all that the protocol has a sentence for.
    """
    below = stands_on(statement)
    if statement != WORKS_WITH:
        return below
    return [*below, *(identity for identity in protocol() if not _is_should(identity))]


def _shown_by(result: Result, failure: Failure) -> str | None:
    """Return the statement that a failure shows to be broken whatever other tests come to."""
    if failure.blame is Blame.SURE:
        return failure.clause
    if failure.blame is Blame.STEP:
        if _own(result) == IDLE_KICK:
            return IDLE_KICK
        # A test of what a device MAY do has no other statement that could be broken.
        own = failure.clause in result.clauses or (result.clauses and _own(result) is None)
        return failure.clause if own else None
    return _own(result)


def _is_in_vain(failure: Failure) -> bool:
    """Say whether a test did not get past a request that was not carried out."""
    return failure.blame is Blame.STEP and failure.clause == COMPLETION and not failure.died


def _own(result: Result) -> str | None:
    """Return the statement that a test is about; what a device MAY do cannot be done wrong."""
    known = everything()
    return next((one for one in result.clauses if known[one].keyword is not Keyword.MAY), None)


def _is_should(statement: str) -> bool:
    clause = everything().get(statement)
    return clause is not None and clause.keyword in {Keyword.SHOULD, Keyword.SHOULD_NOT}
