"""What became of every test, and so of every statement of the specification."""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from virtiopy.conformance.clauses.catalogue import Clause
from virtiopy.conformance.clauses.definitions import COMPLETION
from virtiopy.conformance.problems import (
    BrokenError,
    DeviceError,
    DiedError,
    StepError,
    words_of,
)
from virtiopy.conformance.report.verdict import Verdict
from virtiopy.spec import DeviceId


class Outcome(enum.Enum):
    """What a test or a statement comes to, the one that counts most first."""

    FAILED = "failed"
    #: A statement that may be left unmet for a reason (SHOULD), and was.
    WARNING = "warning"
    #: Something else that is broken is in the way.
    BLOCKED = "blocked"
    PASSED = "passed"
    SKIPPED = "skipped"
    NOT_APPLICABLE = "not applicable"
    NOT_OBSERVABLE = "not observable"
    #: There is no test for it, and no reason why: a hole.
    NOT_TESTED = "not tested"


class Blame(enum.Enum):
    """How sure it is which statement a failure is about."""

    #: It is the statement of the check that failed.
    SURE = "sure"
    #: It is a step's, unless that works wherever else it is taken.
    STEP = "step"
    #: It is what the test is about.
    TEST = "test"


@dataclass(slots=True, frozen=True)
class Failure:
    """What a test failed with: in words, and what it is about as far as the test can know.

    `died` is what the device raised and where, by which one fault is known again.
    """

    words: str
    blame: Blame
    clause: str | None = None
    died: str = ""


def failure_of(error: BaseException) -> Failure:
    """Return what an exception says of the device."""
    words = words_of(error)
    if isinstance(error, BrokenError):
        return Failure(words, Blame.SURE, error.clause)
    if isinstance(error, StepError) and error.clause is not None:
        return Failure(words, Blame.STEP, error.clause)
    if isinstance(error, DeviceError):
        died = words.partition("\n")[0] if isinstance(error, DiedError) else ""
        return Failure(words, Blame.STEP, COMPLETION, died)
    return Failure(words, Blame.TEST)


@dataclass(slots=True, frozen=True)
class Remark:
    """What is not as it should be, though no test fails by it: a statement, and what was seen."""

    clause: str
    words: str


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
    failure: Failure | None = None
    remarks: Sequence[Remark] = ()


@dataclass(slots=True, frozen=True)
class ClauseResult:
    """What became of a statement: by its tests, or for a reason."""

    clause: Clause
    outcome: Outcome
    reason: str
    tests: Sequence[Result]


class Results:
    """The results of a run, in the order of the tests.

    `strict` is whether what a device SHOULD do, and does not, is a failure.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        #: By the target's name.
        self.subjects: dict[str, Subject] = {}
        #: Why the run ended before its last test; "" where it did not.
        self.cut_short = ""
        self._results: dict[tuple[str, str], Result] = {}

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results.values())

    def knows(self, target: str) -> bool:
        """Say whether it is noted what a target offers."""
        known = self.subjects.get(target)
        return known is not None and bool(known.offered)

    def note(self, subject: Subject) -> None:
        """Note what a target is, as a session shows; one without a session yet offers 0."""
        if not self.knows(subject.target):
            self.subjects[subject.target] = subject

    def of(self, target: str) -> list[Result]:
        """Return the results of one target."""
        return [result for result in self if result.target == target]

    def add(self, result: Result) -> Result:
        """Add a phase of a test: a setup that passes gives way to the call, and so on.

        Returns what the test came to so far.
        """
        key = result.target, result.test
        before = self._results.get(key)
        if before is not None:
            last = result if before.outcome is Outcome.PASSED else before
            result = replace(last, seconds=before.seconds + result.seconds)
        self._results[key] = result
        return result
