"""What becomes of each test of the suite, and what the user is told: loaded when asked for."""

import gc
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from virtiopy.conformance.collection import clauses_of, in_suite, target_of
from virtiopy.conformance.marks import SUITE
from virtiopy.conformance.problems import BlockedError, NotApplicableError, words_of
from virtiopy.conformance.progress import Ending, Progress, waited_in_vain
from virtiopy.conformance.report import github, reports, summary
from virtiopy.conformance.report.blame import Broken
from virtiopy.conformance.report.comparison import sides
from virtiopy.conformance.report.document import SPECIFICATION, document
from virtiopy.conformance.report.results import (
    Outcome,
    Remark,
    Result,
    failure_of,
)
from virtiopy.conformance.report.verdict import Verdict
from virtiopy.conformance.settings import (
    BROKEN,
    JUDGE,
    PROGRESS,
    REPORTS,
    RESULTS,
    SESSION,
    TIMEOUT,
    TRACE,
)


@dataclass(slots=True, frozen=True)
class Evidence:
    """What a phase of a test has come to, and how the test ended, if it did with that.

    It is data alone: it goes from the process that ran the test to the one that books it.
    """

    result: Result
    ending: Ending | None


#: Where a process keeps what another one is to book.
KEPT = pytest.StashKey[list[Evidence]]()

_REASON = "virtio_reason"
_OUTCOME = "virtio_outcome"

#: Where the suite is, and what it is written with.
PACKAGE = Path(__file__).parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test's device go when it is done, a disk's memory above all.

    The test keeps its session, and its judge does; and a device refers to itself: Python would
    collect it too late.
    """
    try:
        return (yield)
    finally:
        if SESSION in item.stash:
            del item.stash[SESSION]
            if JUDGE in item.stash:
                del item.stash[JUDGE]
            gc.collect()


def pytest_collection_finish() -> None:
    """Have no collection look at what lives as long as the process: tests, and the package."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what became of a test, with its evidence."""
    report = yield
    if not in_suite(item):
        return report
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(error, NotApplicableError):
        _leave_out(item, report, Outcome.NOT_APPLICABLE, str(error))
    elif isinstance(error, BlockedError):
        _leave_out(item, report, Outcome.BLOCKED, str(error))
    elif error is not None and waited_in_vain(error) and _hurried(item):
        _leave_out(item, report, Outcome.BLOCKED, _HURRIED.format(words_of(error)))
    failure = failure_of(error) if report.failed and error is not None else None
    lines = item.stash[TRACE].lines() if report.failed and TRACE in item.stash else []
    if lines:
        report.sections.append(("virtio trace", "\n".join(lines)))
    result = Result(
        test=_name(item),
        target=target_of(item).name,
        clauses=clauses_of(item),
        outcome=_outcome(report),
        reason=failure.words if failure is not None else _reason(report),
        details=_details(call) if failure is not None else "",
        seconds=report.duration,
        trace=lines,
        verdicts=_verdicts(item),
        failure=failure,
        remarks=_remarks(item),
    )
    ended = call.when == "call" or error is not None
    evidence = Evidence(result, _ending(item, error) if ended else None)
    kept = item.config.stash.get(KEPT, None)
    if kept is None:
        book(item, report, evidence)
    else:
        kept.append(evidence)
    return report


def _ending(item: pytest.Item, error: BaseException | None) -> Ending:
    session = item.stash.get(SESSION, None)
    if session is None:
        return Ending.by(error, served=False)
    return Ending.by(error, served=session.served, slowest=session.slowest)


def book(item: pytest.Item, report: pytest.TestReport, evidence: Evidence) -> None:
    """Take what a phase of a test has come to into the results, in the order of the tests."""
    result = item.config.stash[RESULTS].add(evidence.result)
    if evidence.result.failure is not None:
        _weigh(item, report, result)
    if evidence.ending is not None:
        _go_on(item, evidence.ending)


#: What is said of a test that waited less than the user asked for.
_HURRIED = "{}. Others waited in vain before, and this one was hurried: alone (-k) it is not"


def _hurried(item: pytest.Item) -> bool:
    session = item.stash.get(SESSION, None)
    return session is not None and session.hurried


def _leave_out(item: pytest.Item, report: pytest.TestReport, outcome: Outcome, reason: str) -> None:
    """Have a test be none that passed or failed."""
    report.outcome = "skipped"
    report.longrepr = (str(item.path), (item.location[1] or 0) + 1, reason)
    report.user_properties += [(_REASON, reason), (_OUTCOME, outcome.value)]


def _weigh(item: pytest.Item, report: pytest.TestReport, result: Result) -> None:
    """Have a failed test not be a failure where it shows nothing that fails."""
    strict = item.config.stash[RESULTS].strict
    broken = item.config.stash[BROKEN].setdefault(result.target, Broken(strict=strict))
    broken.take(result)
    outcome = broken.outcome(result)
    if outcome is Outcome.FAILED:
        return
    report.outcome = "skipped"
    reason = result.failure.words if result.failure is not None else ""
    report.longrepr = (str(item.path), (item.location[1] or 0) + 1, reason)
    report.sections.clear()
    report.user_properties += [(_REASON, reason), (_OUTCOME, outcome.value)]


def _go_on(item: pytest.Item, ending: Ending) -> None:
    """Take note of how a test ended, and end the run where no other would say more."""
    config = item.config
    target = target_of(item)
    progress = progress_of(item)
    progress.take(ending)
    if not (why := progress.hopeless or progress.cut_short or config.stash[TIMEOUT].over):
        return
    config.stash[RESULTS].cut_short = why
    if all(target_of(other) is target for other in item.session.items if in_suite(other)):
        item.session.shouldstop = "the run is cut short"


def progress_of(item: pytest.Item) -> Progress:
    """Return how a test's target does."""
    return item.config.stash[PROGRESS].setdefault(target_of(item).name, Progress())


def _details(call: pytest.CallInfo[None]) -> str:
    """Return where the failure came up: the lines of the test, and of what it calls."""
    assert call.excinfo is not None, "a failed test has an exception"
    lines: list[str] = []
    for entry in call.excinfo.traceback:
        path = Path(str(entry.path))
        if not path.is_relative_to(PACKAGE) and not lines:
            continue
        lines.append(f"{path.name}:{entry.lineno + 1}: in def {entry.name}")
        lines.append(f"    {str(entry.statement).strip().splitlines()[0]}")
    return "\n".join(lines)


def _name(item: pytest.Item) -> str:
    """Return what a test is called, from whatever folder and for whatever target it is run."""
    if item.path.is_relative_to(SUITE):
        return f"{item.path.relative_to(SUITE)}::{item.name}"
    return item.nodeid


def _verdicts(item: pytest.Item) -> Sequence[Verdict]:
    return tuple(item.stash[JUDGE].verdicts) if JUDGE in item.stash else ()


def _remarks(item: pytest.Item) -> Sequence[Remark]:
    session = item.stash.get(SESSION, None)
    return [Remark(*remark) for remark in session.remarks] if session is not None else []


def _property(report: pytest.TestReport, name: str) -> str:
    return next((str(value) for key, value in report.user_properties if key == name), "")


def _outcome(report: pytest.TestReport) -> Outcome:
    return Outcome(_property(report, _OUTCOME) or report.outcome)


def _reason(report: pytest.TestReport) -> str:
    return _property(report, _REASON)


#: How pytest shows a test that neither passed nor failed.
_STATUSES: dict[Outcome, tuple[str, str | tuple[str, dict[str, bool]]]] = {
    Outcome.NOT_APPLICABLE: ("-", "NOT APPLICABLE"),
    Outcome.BLOCKED: ("b", ("BLOCKED", {"purple": True})),
    Outcome.WARNING: ("w", ("WARNING", {"yellow": True})),
}


def pytest_report_teststatus(
    report: pytest.TestReport,
) -> tuple[str, str, str | tuple[str, dict[str, bool]]] | None:
    """Say of a test what became of it, rather than that it was skipped."""
    if report.skipped and (words := _property(report, _OUTCOME)):
        letter, status = _STATUSES[Outcome(words)]
        return words, letter, status
    return None


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show what was found, and what the statements came to, and say where the report is."""
    hopeless = _hopeless(config)
    found = document(config.stash[RESULTS])
    for side in sides([("", found)]):
        if side.subject["target"] in hopeless:
            continue
        terminalreporter.section(f"{side.name} against {SPECIFICATION}")
        for line in summary.run(side):
            terminalreporter.line(line)
        if config.getoption("virtio_output") == "github":
            for line in github.annotations(side):
                terminalreporter.line(line)
    if found["cut_short"] and not hopeless:
        terminalreporter.line(f"The run was cut short: {found['cut_short']}")
    for path in config.stash[REPORTS]:
        terminalreporter.line(f"report: {path}")
    for target, why in hopeless.items():
        sys.stderr.write(f"ERROR: {target} cannot be tested. {why}\n")


def _hopeless(config: pytest.Config) -> dict[str, str]:
    """Return why a target cannot be tested, by its name."""
    progress = config.stash[PROGRESS]
    return {target: one.hopeless for target, one in progress.items() if one.hopeless}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the reports, if anything was tested, and say in the exit status what was found."""
    config = session.config
    results = config.stash[RESULTS]
    if session.exitstatus == pytest.ExitCode.INTERRUPTED and not results.cut_short:
        results.cut_short = "it was interrupted."
        _write(config)
        return
    _write(config)
    if results.cut_short:
        # Where another target could be tested, the run has a verdict.
        vain = set(results.subjects) <= set(_hopeless(config))
        session.exitstatus = pytest.ExitCode.USAGE_ERROR if vain else pytest.ExitCode.TESTS_FAILED
        return
    # What was remarked on failed no test.
    remarks = any(result.remarks for result in results)
    if session.exitstatus == pytest.ExitCode.OK and results.strict and remarks:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _write(config: pytest.Config) -> None:
    """Write the reports, if anything was tested."""
    results = config.stash[RESULTS]
    paths = config.stash[REPORTS]
    if not results.subjects:
        paths.clear()
    for path in paths:
        reports.write(path, document(results))
