"""Tests of a driver of one's own, for pytest: one for each unusual and each hostile device.

A conftest.py says what is to be run, and one test asks for each case in turn:

    pytest_plugins = ["virtiopy.check.pytest"]

    @pytest.fixture
    def virtio_guest(tmp_path):
        disk = tmp_path / "disk.img"
        disk.write_bytes(bytes(16 << 20))
        return Guest("my-kernel.elf", ["--disk", str(disk)], marker="all tests passed")

    def test_driver(virtio_case):
        virtio_case.check()

Each run is a process of its own. The terminal's summary says which statements were broken and in
which runs; `--driver-report FILE.html`, `.json` or `.xml` has the whole table. It works with
pytest-xdist as well. `virtio_withhold = VIRTIO_BLK_F_FLUSH VIRTIO_F_EVENT_IDX` in pytest.ini has a
test more for each of these features, with a device that does not offer it.

PYTEST_DONT_REWRITE: a conftest.py imports Guest from here before pytest does, and has no warning.
"""

import subprocess
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from virtiopy.check import report
from virtiopy.check.cases import (
    Case,
    CaseKind,
    CaseResult,
    Files,
    Outcome,
    cases,
    merge,
    named,
    read_result,
)
from virtiopy.errors import ConfigError
from virtiopy.files import check_output

#: How many lines of a run's output are shown where it is not right.
_LINES_SHOWN = 25

#: How many of the driver's acts before a finding are shown.
_ACTS_SHOWN = 6

#: How much longer than its own timeout a run may take to end, seconds.
_GRACE = 60.0

_RUNS = pytest.StashKey[list[CaseResult]]()

#: What a test's report carries the results of its runs as: from one process to another, too.
_ATTRIBUTE = "virtio_runs"


@dataclass(slots=True, frozen=True)
class Guest:
    """What is run: a kernel's `image`, or with `kernel=False` one as `virtiopy run --guest` takes.

    `options` are those of `virtiopy run`, with the devices. A guest that prints a line with
    `marker` has passed, and the run ends there; one without a marker passes where its status is 0.
    `marker_of_failure` is what a guest prints that lives and could not do its work: that is as good
    with a hostile device. A guest that takes longer than `timeout` seconds hangs.
    """

    image: str | Path
    options: Sequence[str] = ()
    marker: str | None = None
    marker_of_failure: str | None = None
    kernel: bool = True
    timeout: float = 60.0

    def command(self, case: Case, files: Files) -> list[str]:
        """Return the command that runs it with the devices of a case."""
        words = [sys.executable, "-m", "virtiopy", "run", *self.options, *case.options]
        words += ["--kernel" if self.kernel else "--guest", str(self.image)]
        if self.kernel:
            words += ["--serial", "stdout"]
        words += ["--timeout", str(self.timeout), "--json", str(files.run)]
        words.append(f"--check-driver={files.judged}")
        for option, marker in (
            ("--until", self.marker),
            ("--until-failure", self.marker_of_failure),
        ):
            if marker is not None:
                words += [option, marker]
        return words


class CaseRun:
    """A guest to be run with the devices of a case."""

    def __init__(self, guest: Guest, case: Case, folder: Path) -> None:
        self.case = case
        self.results: list[CaseResult] = []
        self._guest = guest
        self._folder = folder

    def run(self) -> CaseResult:
        """Run the guest, once, and return what came of it."""
        if not self.results:
            files = Files.make(self._folder / self.case.name)
            command = self._guest.command(self.case, files)
            with files.output.open("wb") as output:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    check=False,
                    timeout=self._guest.timeout + _GRACE,
                )
            self.results.append(read_result(self.case, files, done.returncode))
        return self.results[0]

    def check(self) -> None:
        """Run the guest, and fail the test where it is not right with such devices."""
        result = self.run()
        if not result.is_right:
            pytest.fail("\n".join(_reasons(result)), pytrace=False)


def _reasons(result: CaseResult) -> list[str]:
    lines = [f"{result.case.name}: the device {result.case.text}; the guest {result.outcome}"]
    if result.why:
        lines.append(f"    {result.why}")
    for finding in result.errors if result.case.kind is not CaseKind.HOSTILE else ():
        lines.append(str(finding))
        lines += [f"    {act}" for act in finding.trace[-_ACTS_SHOWN:]]
    if result.outcome is not Outcome.PASSES:
        lines += ["It said last:", *(f"    {line}" for line in result.said_last(_LINES_SHOWN))]
    return lines


# The fixtures


def _name(case: Case) -> str:
    return case.name if case.kind is CaseKind.AS_IT_IS else f"{case.kind.value}-{case.name}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each case, and of each feature that is to be withheld."""
    if "virtio_case" in metafunc.fixturenames:
        try:
            more = named(metafunc.config.getini("virtio_withhold"))
        except ConfigError as error:
            raise pytest.UsageError(f"virtio_withhold: {error}") from error
        metafunc.parametrize("virtio_case", [*cases(), *more], ids=_name, indirect=True)


@pytest.fixture
def virtio_case(request: pytest.FixtureRequest, virtio_guest: Guest, tmp_path: Path) -> CaseRun:
    """Give a test each case in turn, with the guest of the fixture `virtio_guest`."""
    run = CaseRun(virtio_guest, request.param, tmp_path)
    request.node.stash[_RUNS] = run.results
    return run


@pytest.fixture
def virtio_guest() -> Guest:
    """Say that there is none: a conftest.py of the user's has the fixture that is used."""
    raise pytest.UsageError(
        "There is no guest to run: define a fixture virtio_guest that returns a "
        "virtiopy.check.pytest.Guest."
    )


# The report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of the report, and the setting that names features."""
    parser.addini(
        "virtio_withhold",
        "features, by the specification's names, that virtio_case's devices do not offer in a test "
        "of each's own",
        type="args",
    )
    parser.getgroup("virtio drivers").addoption(
        "--driver-report",
        metavar="FILE",
        help="write the table of the statements that virtio 1.4 makes to drivers, with what the "
        "runs of virtio_case came to: FILE.html, .json or .xml",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect results in the process that has the terminal."""
    path = config.getoption("driver_report", None)
    if path is not None and Path(path).suffix not in report.FORMS:
        raise pytest.UsageError(
            f"--driver-report {path}: end the report's name with one of {', '.join(report.FORMS)}."
        )
    if path is not None:
        try:
            # Now, and not when every guest has run for nothing.
            check_output(Path(path), "The report")
        except ConfigError as error:
            raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(_Summary(None if path is None else Path(path)), "virtio-drivers")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have a test's report carry the results of its runs."""
    made = yield
    if call.when == "call" and (results := item.stash.get(_RUNS, None)):
        setattr(made, _ATTRIBUTE, [result.record() for result in results])
    return made


class _Summary:
    """Collects the results, and shows them at the end."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._results: list[CaseResult] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the results of a test's runs."""
        for record in getattr(report, _ATTRIBUTE, ()):
            self._results.append(CaseResult.of_record(record))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show what the drivers broke, and write the report."""
        if not self._results:
            return
        verdict = merge(self._results)
        terminalreporter.section("virtio drivers")
        for line in report.lines(verdict):
            terminalreporter.line(line)
        right = sum(result.is_right for result in self._results)
        terminalreporter.line(f"{right} of {len(self._results)} runs are right.")
        if self._path is not None:
            try:
                report.write(verdict, self._path, told=terminalreporter.line)
            except ConfigError as error:
                terminalreporter.line(str(error), red=True)
