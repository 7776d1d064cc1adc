"""Which of the suite's tests are collected, and what becomes of each: loaded when asked for."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from virtiopy.conformance import problems
from virtiopy.conformance.drivers import DRIVERS
from virtiopy.conformance.marks import SUITE, suite_files
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.report import reports, summary
from virtiopy.conformance.report.comparison import sides
from virtiopy.conformance.report.document import SPECIFICATION, document
from virtiopy.conformance.report.results import Outcome, Result, Results
from virtiopy.conformance.report.verdict import Judge, Verdict
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.targets.target import PATIENCE, Target, parse
from virtiopy.conformance.walks.steps import Step
from virtiopy.conformance.walks.steps import load as load_steps
from virtiopy.errors import ConfigError

#: How many random walks there are, where it is not said.
WALKS_COUNT = 25

TARGET = pytest.StashKey[Target]()
PATIENCE_KEY = pytest.StashKey[float]()
TRACE = pytest.StashKey[Trace]()
JUDGE = pytest.StashKey[Judge]()
RESULTS = pytest.StashKey[Results]()
WALKS = pytest.StashKey["Walks"]()
REPORTS = pytest.StashKey[list[Path]]()
_REASON = "virtio_not_applicable"


@dataclass(slots=True, frozen=True)
class Walks:
    """How many random walks there are, or the one that is walked again, and no other test."""

    count: int
    replay: Sequence[Step] | None


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Find out what the target is."""
    option = config.getoption
    config.stash[RESULTS] = Results()
    try:
        config.stash[PATIENCE_KEY] = _seconds(option("virtio_patience"))
        config.stash[REPORTS] = [reports.check_path(text) for text in option("virtio_report")]
        config.stash[WALKS] = _walks(option("virtio_walks"), option("virtio_replay"))
        if option("virtio_target") or option("virtio_spawn"):
            config.stash[TARGET] = _target(config)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text) if text is not None else PATIENCE
    except ValueError:
        seconds = 0
    if not seconds > 0:
        raise ConfigError(f"--virtio-patience {text}: give a number of seconds above 0.")
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
            # Its name is as in its ID, by which a test can be asked for again.
            nodeid = f"{self.nodeid}::{path.stem}"
            yield pytest.Module.from_parent(self, path=path, nodeid=nodeid, name=path.stem)


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


def in_suite(item: pytest.Item) -> bool:
    """Say whether a test is one of the suite's, or a user's own that is written like them."""
    return "virtio_target" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of other devices: those that ask for the driver of one."""
    replay = config.stash[WALKS].replay is not None
    others = [
        item
        for item in items
        if in_suite(item)
        and (not _concerns(item) or (replay and "walks" not in getattr(item, "fixturenames", ())))
    ]
    if others:
        config.hook.pytest_deselected(items=others)
        left_out = set(others)
        items[:] = [item for item in items if item not in left_out]


def _concerns(item: pytest.Item) -> bool:
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
    if call.excinfo is not None and isinstance(call.excinfo.value, NotApplicableError):
        reason = str(call.excinfo.value)
        report.outcome = "skipped"
        report.longrepr = (str(item.path), (item.location[1] or 0) + 1, reason)
        report.user_properties.append((_REASON, reason))
    lines = item.stash[TRACE].lines() if report.failed and TRACE in item.stash else []
    if lines:
        report.sections.append(("virtio trace", "\n".join(lines)))
    item.config.stash[RESULTS].add(
        Result(
            test=_name(item),
            target=target_of(item).name,
            clauses=clauses_of(item),
            outcome=_outcome(report),
            reason=_reason(report),
            details=report.longreprtext if report.failed else "",
            seconds=report.duration,
            trace=lines,
            verdicts=_verdicts(item),
        )
    )
    return report


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


def _outcome(report: pytest.TestReport) -> Outcome:
    return Outcome.NOT_APPLICABLE if _is_not_applicable(report) else Outcome(report.outcome)


def _is_not_applicable(report: pytest.TestReport) -> bool:
    return any(key == _REASON for key, _ in report.user_properties)


def _reason(report: pytest.TestReport) -> str:
    for key, value in report.user_properties:
        if key == _REASON:
            return str(value)
    if not report.failed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    words = str(crash.message) if crash is not None else report.longreprtext
    return words.removeprefix(f"{problems.__name__}.")


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Say of a test that it is not applicable, rather than skipped."""
    if report.skipped and _is_not_applicable(report):
        return "not applicable", "-", "NOT APPLICABLE"
    return None


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show what the statements came to, section by section, and say where the report is."""
    for side in sides([("", document(config.stash[RESULTS]))]):
        terminalreporter.section(f"{side.name} against {SPECIFICATION}")
        for line in summary.run(side):
            terminalreporter.line(line)
    for path in config.stash[REPORTS]:
        terminalreporter.line(f"report: {path}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the reports, if anything was tested."""
    results = session.config.stash[RESULTS]
    paths = session.config.stash[REPORTS]
    if not results.subjects:
        paths.clear()
    for path in paths:
        reports.write(path, document(results))
