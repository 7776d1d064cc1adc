"""What a guest reported, in the Test Anything Protocol."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tap.line import Line

#: How the lines begin that a report is made of: without one, there is none.
_STARTS = ("ok", "not ok", "1..", "Bail out!")


@dataclass(slots=True, frozen=True)
class TestResult:
    """One `ok` or `not ok` line; `skip` is the reason, None for a test that was run."""

    number: int
    description: str
    ok: bool
    skip: str | None

    @property
    def group(self) -> str:
        """What the test is about: what stands before the colon."""
        head, colon, _ = self.description.partition(": ")
        return head if colon else ""

    @property
    def outcome(self) -> str:
        """One of passed, failed, skipped."""
        if self.skip is not None:
            return "skipped"
        return "passed" if self.ok else "failed"


@dataclass(slots=True)
class TapReport:
    """All that a guest reported; `complaint` says what is wrong with the report itself."""

    tests: list[TestResult] = field(default_factory=list)
    bail_out: str | None = None
    complaint: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing failed and the report is whole."""
        return (
            self.bail_out is None
            and self.complaint is None
            and all(test.outcome != "failed" for test in self.tests)
        )

    def by_group(self) -> dict[str, Counter[str]]:
        """Count outcomes by group, in the order of appearance."""
        groups: dict[str, Counter[str]] = {}
        for test in self.tests:
            groups.setdefault(test.group, Counter())[test.outcome] += 1
        return groups


def parse_tap(text: str, *, whole: bool = True) -> TapReport:
    """Read a guest's output; text that is no TAP at all is an empty report.

    Where the text is not `whole`, the report is not either.
    """
    report = TapReport()
    planned: int | None = None
    for line in _tap_lines(text):
        if line.category == "test":
            skip = line.directive.reason if line.skip else None
            description = line.description.removeprefix("- ")
            report.tests.append(TestResult(line.number, description, line.ok, skip))
        elif line.category == "plan":
            planned = line.expected_tests
        elif line.category == "bail":
            report.bail_out = line.reason
    if not whole:
        report.complaint = f"only its first {len(text) >> 20} MiB were kept"
    elif planned is None and report.tests:
        report.complaint = "it has no plan: the guest ended early"
    elif planned is not None and planned != len(report.tests):
        report.complaint = f"it has {len(report.tests)} of {planned} planned tests"
    return report


def _tap_lines(text: str) -> "Iterable[Line]":
    if not any(line.startswith(_STARTS) for line in text.splitlines()):
        return ()
    from tap.parser import Parser

    parsed: Iterable[Line] = Parser().parse_text(text)
    return parsed
