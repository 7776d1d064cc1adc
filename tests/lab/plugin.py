"""A pytest plugin: tests marked `lab` run in the lab, where this host lacks what they need.

The same files are collected on both sides. Outside, tests marked `lab` come last, and the first
boots the lab, which runs pytest on all of them; each report that comes back stands for the test
of that name.
"""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.kernel import LabMissingError
from tests.lab.machine import CACHE, INSIDE, REPOSITORY, Lab, new_share

#: What lab tests use of a host.
DEVICES = ("/dev/kvm", "/dev/vhost-net", "/dev/net/tun")

#: One of these is under a KVM that runs guests as processors do, in every CPU mode.
HARDWARE_KVM = ("/sys/module/kvm_intel", "/sys/module/kvm_amd")

#: A test may take so many times its timeout in the lab.
SLOWNESS = 2.0

#: The lab has failed when it is silent for so many seconds longer than a test may take, or not
#: done after so many in all.
SILENCE = 60.0
PATIENCE = 3600.0

#: How often the reports are looked for, seconds.
_POLL = 0.25

#: What a test says first that is skipped because neither host nor lab has what it needs.
NOT_TO_BE_HAD = "the lab is not to be had"

_REPORTS = "reports.jsonl"

Report = pytest.TestReport | pytest.CollectReport


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("virtiopy").addoption(
        "--lab",
        choices=["auto", "boot", "direct", "off"],
        default="auto",
        help="Where tests marked `lab` run: in a booted kernel, directly on this host, nowhere; "
        "auto: directly if the host has all they need.",
    )


def pytest_configure(config: pytest.Config) -> None:
    if inside := os.environ.get(INSIDE):
        config.pluginmanager.register(_Inside(config, Path(inside)), "virtiopy-lab-inside")
    else:
        config.pluginmanager.register(_Outside(config), "virtiopy-lab-outside")


def _where(config: pytest.Config) -> str:
    where: str = config.getoption("--lab")
    if where == "auto":
        return "boot" if lacking() else "direct"
    return where


def lacking() -> list[str]:
    """Name what this host lacks, or keeps from us, for lab tests to run on it directly."""
    things = [path for path in DEVICES if not os.access(path, os.R_OK | os.W_OK)]
    if not any(Path(module).exists() for module in HARDWARE_KVM):
        things.append("VT-x or SVM under KVM")
    if os.geteuid() != 0:
        things.append("root's rights")
    return things


def seconds_of(item: pytest.Item) -> float:
    """Return how long a test may take on a machine of the usual speed."""
    marker = item.get_closest_marker("timeout")
    if marker is None:
        return float(item.config.getini("timeout"))
    return float(marker.kwargs["timeout"] if "timeout" in marker.kwargs else marker.args[0])


def limit(item: pytest.Item, seconds: float) -> None:
    """Let a test take so long, whatever it says itself."""
    item.add_marker(pytest.mark.timeout(seconds), append=False)


class _Inside:
    """Writes each report down, for the other side to read."""

    def __init__(self, config: pytest.Config, share: Path) -> None:
        self._config = config
        self._stream = (share / _REPORTS).open("w")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            limit(item, SLOWNESS * seconds_of(item))

    def _write(self, report: Report) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        # What pytest cannot turn into JSON, such as a path, is of use as text.
        self._stream.write(json.dumps(data, default=str) + "\n")
        self._stream.flush()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report)

    def pytest_unconfigure(self) -> None:
        self._stream.close()


class _Outside:
    """Boots the lab when the first test needs it, and passes on what is reported from there."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._where = _where(config)
        self._lab: Lab | None = None
        self._missing: str | None = None
        self._broken: str | None = None
        self._nodes: list[str] = []
        self._silence = SILENCE
        self._reports: dict[str, list[pytest.TestReport]] = defaultdict(list)
        self._read = 0
        self._seconds = 0.0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=_is_for_the_lab)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        # After -m, -k and all else that deselects.
        chosen = [item for item in session.items if _is_for_the_lab(item)]
        self._nodes = [item.nodeid for item in chosen]
        if self._where == "direct":
            return
        for item in chosen:
            self._silence = max(self._silence, SLOWNESS * seconds_of(item) + SILENCE)
            # The first of them waits for the boot; the lab has limits of its own.
            limit(item, PATIENCE + SILENCE)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if self._where == "direct" or not _is_for_the_lab(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports_of(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _reports_of(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        if self._lab is None and self._missing is None:
            try:
                self._boot()
            except LabMissingError as error:
                self._missing = str(error)
        if self._missing is not None:
            yield _skipped(item, f"{NOT_TO_BE_HAD}: {self._missing}")
            return
        while not self._is_done(item.nodeid):
            if self._broken is None:
                self._wait()
            if self._broken is not None:
                yield _failed(item, self._broken)
                return
        yield from self._reports[item.nodeid]

    def _is_done(self, node: str) -> bool:
        return any(report.when == "teardown" for report in self._reports[node])

    # The lab's life

    def _boot(self) -> None:
        if self._where == "off":
            raise LabMissingError("it is switched off by --lab=off")
        share = new_share()
        share.mkdir()
        arguments = share / "tests.txt"
        arguments.write_text("".join(f"{node}\n" for node in self._nodes))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"@{arguments}"]
        environment = {"PYTHONPYCACHEPREFIX": str(CACHE / "pycache")}
        _compile(command, environment)
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        # A test that hangs says where, in output.txt, before the lab is given up. Not before it is
        # certain: Python 3.11 may crash where it says that of a thread that goes on.
        command += ["-o", f"faulthandler_timeout={self._silence - SILENCE / 2:.0f}"]
        # Slow to import, and of no use there.
        command += ["-p", "no:hypothesispytest", "-p", "no:xdist"]
        # They are left out by default (pyproject.toml), and here they are what is asked for.
        command += ["-m", "lab"]
        self._started = self._heard = time.monotonic()
        self._lab = Lab(command, share, environment)

    def _wait(self) -> None:
        """Wait for more reports to come; sets _broken when none will."""
        assert self._lab is not None
        ended = self._lab.wait(_POLL)
        if self._receive():
            self._heard = time.monotonic()
            return
        silent, running = (time.monotonic() - since for since in (self._heard, self._started))
        if ended:
            self._broken = f"The lab ended early, with status {self._lab.status}."
        elif silent > self._silence or running > PATIENCE:
            self._broken = f"The lab said nothing for {silent:.0f} s, after {running:.0f} s in all."
            self._lab.close()
        if self._broken is not None:
            self._broken += f" Its folder: {self._lab.share}\n{_last_words(self._lab)}"

    def _receive(self) -> bool:
        """Read the reports that have come; False when there are none."""
        assert self._lab is not None
        path = self._lab.share / _REPORTS
        if not path.exists():
            return False
        with path.open("rb") as stream:
            stream.seek(self._read)
            # The last line may be in the middle of being written.
            lines = stream.read().rpartition(b"\n")[0]
        self._read += len(lines) + bool(lines)
        for line in lines.splitlines():
            data: dict[str, Any] = json.loads(line)
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=data
            )
            if isinstance(report, pytest.TestReport):
                report.sections.append(("Where", "in the lab"))
                if isinstance(report.longrepr, list):
                    # A skip's, which JSON has turned into a list.
                    report.longrepr = tuple(report.longrepr)
                self._reports[report.nodeid].append(report)
            else:
                self._broken = f"The lab cannot collect {report.nodeid}:\n{report.longreprtext}"
        return bool(lines)

    def pytest_sessionfinish(self) -> None:
        if self._lab is None:
            return
        # When all reports are in, what is left is switching off. Or somebody has had enough.
        self._lab.wait(60 if all(map(self._is_done, self._nodes)) else 0)
        self._lab.close()
        self._seconds = time.monotonic() - self._started

    # What the user is told

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
        # Below all that others have to say, where it is not overlooked.
        yield
        skipped = terminalreporter.getreports("skipped")
        reasons = [text for text in map(_reason, skipped) if text.startswith(NOT_TO_BE_HAD)]
        if reasons:
            terminalreporter.section("THE LAB DID NOT RUN", red=True, bold=True)
            terminalreporter.line(
                f"{len(reasons)} tests were skipped. This host lacks "
                f"{', '.join(lacking()) or 'nothing'}."
            )
            for reason in sorted(set(reasons)):
                terminalreporter.line(f"{reason}.")
        if not self._nodes or self._missing is not None:
            return
        if self._lab is not None:
            terminalreporter.section("lab")
            terminalreporter.line(
                f"{len(self._nodes)} tests ran in {self._seconds:.0f} s, boot included, under "
                f"software emulation; logs in {self._lab.share}"
            )
        elif self._where == "direct":
            terminalreporter.section("lab")
            terminalreporter.line(f"{len(self._nodes)} tests ran directly on this host.")


def _is_for_the_lab(item: pytest.Item) -> bool:
    return item.get_closest_marker("lab") is not None


def _compile(command: list[str], environment: dict[str, str]) -> None:
    """Collect the tests out here, so that the slow CPU in there has nothing to compile."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(
        [*command, "--collect-only", "--lab=off"],
        cwd=REPOSITORY,
        env=own | environment,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )


def _last_words(lab: Lab) -> str:
    output = lab.share / "output.txt"
    text = output.read_text(errors="replace") if output.exists() else ""
    return "\n".join([*lab.console.splitlines()[-40:], *text.splitlines()[-60:]])


def _reason(report: pytest.TestReport) -> str:
    """Return why a test was skipped."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return ""


def _report(
    item: pytest.Item, when: str, outcome: str, longrepr: str | tuple[str, int, str]
) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome=outcome,  # type: ignore[arg-type]
        longrepr=longrepr,
        when=when,  # type: ignore[arg-type]
    )


def _skipped(item: pytest.Item, reason: str) -> pytest.TestReport:
    return _report(item, "setup", "skipped", (__file__, 0, f"Skipped: {reason}"))


def _failed(item: pytest.Item, reason: str) -> pytest.TestReport:
    return _report(item, "call", "failed", reason)
