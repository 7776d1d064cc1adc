"""Which of the suite's tests are collected, and what becomes of each: loaded when asked for."""

import math
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from virtiopy.conformance.clauses.definitions import COMPLETION, PROTOCOLS, everything
from virtiopy.conformance.drivers import DRIVERS, driver_class_of, driver_of
from virtiopy.conformance.frontends.profile import check_name
from virtiopy.conformance.marks import SUITE, suite_files
from virtiopy.conformance.problems import BlockedError, NotApplicableError, words_of
from virtiopy.conformance.progress import Progress, waited_in_vain
from virtiopy.conformance.report import github, reports, summary
from virtiopy.conformance.report.blame import Broken
from virtiopy.conformance.report.comparison import sides
from virtiopy.conformance.report.document import SPECIFICATION, document
from virtiopy.conformance.report.results import (
    Outcome,
    Remark,
    Result,
    Results,
    Subject,
    failure_of,
)
from virtiopy.conformance.report.verdict import Judge, Verdict
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.targets.target import PATIENCE, Target, parse
from virtiopy.conformance.walks.steps import Step
from virtiopy.conformance.walks.steps import load as load_steps
from virtiopy.errors import ConfigError
from virtiopy.spec import DeviceId
from virtiopy.statements.terms import Keyword

#: How many random walks there are, where it is not said.
WALKS_COUNT = 25

TARGET = pytest.StashKey[Target]()
PATIENCE_KEY = pytest.StashKey[float]()
THOROUGH = pytest.StashKey[float]()
TIMEOUT = pytest.StashKey["Timeout"]()
TRACE = pytest.StashKey[Trace]()
JUDGE = pytest.StashKey[Judge]()
RESULTS = pytest.StashKey[Results]()
BROKEN = pytest.StashKey[dict[str, Broken]]()
WALKS = pytest.StashKey["Walks"]()
FRONTENDS = pytest.StashKey[Sequence[str]]()
REPORTS = pytest.StashKey[list[Path]]()
PROGRESS = pytest.StashKey[dict[str, Progress]]()
SESSION = pytest.StashKey[Session]()
_REASON = "virtio_reason"
_OUTCOME = "virtio_outcome"

#: Where the suite is, and what it is written with.
PACKAGE = Path(__file__).parent


@dataclass(slots=True, frozen=True)
class Walks:
    """How many random walks there are, or the one that is walked again, and no other test."""

    count: int
    replay: Sequence[Step] | None


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Find out what the target is."""
    option = config.getoption
    config.stash[RESULTS] = Results(strict=option("virtio_strict"))
    config.stash[PROGRESS] = {}
    config.stash[BROKEN] = {}
    try:
        config.stash[PATIENCE_KEY] = _seconds("patience", option("virtio_patience"), PATIENCE)
        config.stash[THOROUGH] = _seconds("thorough", option("virtio_thorough"), 0)
        config.stash[TIMEOUT] = Timeout(_seconds("timeout", option("virtio_timeout"), math.inf))
        config.stash[REPORTS] = [reports.check_path(text) for text in option("virtio_report")]
        config.stash[WALKS] = _walks(option("virtio_walks"), option("virtio_replay"))
        frontend = option("virtio_frontend")
        config.stash[FRONTENDS] = () if frontend is None else check_name(frontend)
        if option("virtio_target") or option("virtio_spawn"):
            config.stash[TARGET] = _target(config)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error
    if threading.current_thread() is threading.main_thread():
        # The user who ends the run is told what was found, as after Ctrl-C.
        for number in (signal.SIGTERM, signal.SIGHUP):
            # What is ignored stays so, as under nohup(1), and what is handled already.
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
                config.add_cleanup(partial(_restore, number))


def _restore(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)


class Timeout:
    """The end of a run that may take so many seconds from now on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> str:
        """Why no test is to begin any more; "" while one may."""
        late = time.monotonic() >= self._end
        return f"it has taken {self._seconds:g} s, as --timeout says." if late else ""


def _seconds(name: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not seconds > 0:
        raise ConfigError(f"--virtio-{name} {text}: give a number of seconds above 0.")
    return seconds


def _walks(count: str | None, replay: str | None) -> Walks:
    if count is not None and not (count.isdecimal() and int(count)):
        raise ConfigError(f"--virtio-walks {count}: give a number above 0.")
    steps = load_steps(Path(replay)) if replay is not None else None
    return Walks(int(count) if count is not None else WALKS_COUNT, steps)


def _target(config: pytest.Config) -> Target:
    option = config.getoption
    transport = option("virtio_transport") or "mmio"
    device = option("virtio_device")
    if transport not in {"mmio", "vhost-user"}:
        raise ConfigError(f"--virtio-transport {transport}: give mmio or vhost-user.")
    if device is not None and device not in DRIVERS:
        raise ConfigError(f"--virtio-device {device}: give one of {', '.join(DRIVERS)}.")
    target = parse(
        option("virtio_target"),
        device=device,
        spawn=option("virtio_spawn"),
        transport=transport,
    )
    if device is not None and target.device != device:
        raise ConfigError(
            f"The target is {target.device}, and no {device}: leave out --virtio-device."
        )
    return target


# Collection


class Suite(pytest.Collector):
    """The whole suite, for the variable `virtio_target` of a test module."""

    target: Target

    def collect(self) -> Iterator[pytest.Collector]:
        """Collect every file of the suite."""
        for path in suite_files():
            if is_of_another(path, self.target):
                continue
            # Its name is as in its ID, by which a test can be asked for again.
            nodeid = f"{self.nodeid}::{path.stem}"
            yield pytest.Module.from_parent(self, path=path, nodeid=nodeid, name=path.stem)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files about other devices, where it is known what the target is."""
    if TARGET in config.stash and is_of_another(collection_path, config.stash[TARGET]):
        return True
    return None


def is_of_another(path: Path, target: Target) -> bool:
    """Say whether a file of the suite is about another device: such a file is not even read."""
    if target.device is None or not path.is_relative_to(SUITE) or path == SUITE:
        return False
    folder = path.relative_to(SUITE).parts[0]
    return folder != target.device and folder in DRIVERS


def suite_for(module: pytest.Module, target: object) -> Suite:
    """Return the suite for a module's target."""
    if not isinstance(target, Target):
        raise module.CollectError(
            "virtio_target is what virtiopy.conformance.targets.target.inproc returns, and no "
            f"{type(target).__name__}"
        )
    node = Suite.from_parent(module, name="virtio_target")
    node.target = target
    node.stash[TARGET] = target
    return node


def target_of(node: pytest.Item) -> Target:
    """Return what a test is about."""
    for parent in reversed(node.listchain()):
        if TARGET in parent.stash:
            return parent.stash[TARGET]
    return node.config.stash[TARGET]


def note_subject(config: pytest.Config, target: Target, session: Session) -> None:
    """Note what a target is, as the first session with it shows: reports name what was tested."""
    subjects = config.stash[RESULTS].subjects
    known = subjects.get(target.name)
    if known is None or not known.offered:
        subjects[target.name] = Subject(
            target.name,
            session.device_id,
            driver_of(session).name,
            session.transport,
            session.offered,
        )


def note_backend(config: pytest.Config, target: Target, device_id: DeviceId) -> None:
    """Note what a backend is of which there was no session yet."""
    name = driver_class_of(device_id).name
    config.stash[RESULTS].subjects.setdefault(
        target.name, Subject(target.name, device_id, name, target.transport, 0)
    )


def in_suite(item: pytest.Item) -> bool:
    """Say whether a test is one of the suite's, or a user's own that is written like them."""
    return "virtio_target" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of other devices, which ask for the driver of one; order the others.

    What everything else stands on comes first, so that the first failure is the one to look at.
    """
    others = [
        item
        for item in items
        if in_suite(item) and not (_concerns(item) and _is_asked_for(config, item))
    ]
    if others:
        config.hook.pytest_deselected(items=others)
        left_out = set(others)
        items[:] = [item for item in items if item not in left_out]
    targets: dict[Target, int] = {}
    for item in items:
        if in_suite(item):
            targets.setdefault(target_of(item), len(targets))
    # A user's own tests stay where they are, before those of the suite.
    items.sort(key=lambda item: (targets[target_of(item)], _rank(item)) if in_suite(item) else ())


def _is_asked_for(config: pytest.Config, item: pytest.Item) -> bool:
    """Say whether a test is one that the options ask for, where they ask for some alone."""
    if config.stash[WALKS].replay is not None:
        return "walks" in getattr(item, "fixturenames", ())
    asked_for = config.stash[FRONTENDS]
    return not asked_for or _frontend_of(item) in asked_for


def _frontend_of(item: pytest.Item) -> str | None:
    """Return the frontend of VMMs that a test is about; None where it is about none."""
    call = getattr(item, "callspec", None)
    name = None if call is None else call.params.get("guest")
    return name if isinstance(name, str) and item.path.parent.name == _FRONTENDS else None


#: The files of the suite's tests about every device, in the order in which they are run.
_ORDER = ("test_basic", "test_split", "test_mmio")


def _rank(item: pytest.Item) -> int:
    if not item.path.is_relative_to(SUITE):
        return -1
    if COMPLETION in clauses_of(item) or set(PROTOCOLS) & set(clauses_of(item)):
        return 0
    if item.path.stem in _ORDER:
        return 2 + _ORDER.index(item.path.stem)
    last = 2 + len(_ORDER)
    if item.path.stem == "test_walks":
        return last + 3
    if item.path.parent.name == _FRONTENDS:
        # What they stand on is looked at before.
        return last + 2
    if item.path.parent.name == "hostile":
        return last + 1
    return 1 if is_basis(item) else last


def is_basis(item: pytest.Item) -> bool:
    """Say whether a test is about what tests of other statements stand on.

    Such tests come first, and are not hurried: what they find is not held against others.
    """
    if _is_protocols(item):
        return False
    known = everything()
    clauses = [known[clause] for clause in clauses_of(item) if clause in known]
    return any(clause.keyword is Keyword.DEFINITION or clause.bears for clause in clauses)


#: The folder of the tests about the vhost-user protocol.
_PROTOCOL = "vhostuser"

#: The folder of the sessions of VMMs' frontends.
_FRONTENDS = "frontends"


def _is_protocols(item: pytest.Item) -> bool:
    return item.path.is_relative_to(SUITE) and item.path.parent.name == _PROTOCOL


def _concerns(item: pytest.Item) -> bool:
    only_there = _is_protocols(item) or item.path.parent.name == _FRONTENDS
    if only_there and target_of(item).transport != "vhost-user":
        return False
    asked_for = set(DRIVERS) & set(getattr(item, "fixturenames", ()))
    return not asked_for or asked_for == {target_of(item).device}


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Look whether there is anything to test, before any test says so."""
    if session.config.option.collectonly:
        return
    try:
        for target in {target_of(item) for item in session.items if in_suite(item)}:
            target.check()
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error


# Results


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
    results = item.config.stash[RESULTS]
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
    result = results.add(result)
    if failure is not None:
        _weigh(item, report, result)
    if call.when == "call" or error is not None:
        _go_on(item, error)
    return report


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


def _go_on(item: pytest.Item, error: BaseException | None) -> None:
    """Take note of how a test ended, and end the run where no other would say more."""
    config = item.config
    target = target_of(item)
    progress = progress_of(item)
    session = item.stash.get(SESSION, None)
    if session is not None:
        progress.take(error, served=session.served, slowest=session.slowest)
    else:
        progress.take(error, served=False)
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


def clauses_of(item: pytest.Item) -> Sequence[str]:
    """Return the IDs of the statements that a test is about."""
    return [clause for mark in item.iter_markers("clause") for clause in mark.args]


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
