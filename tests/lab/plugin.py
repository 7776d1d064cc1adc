"""A pytest plugin: tests marked `lab` run in the lab, where this host lacks what they need.

The same files are collected on both sides. Outside, the first test marked `lab` boots the lab,
which runs pytest on all of them; each report that comes back stands for the test of that name.
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

#: The lab has failed when it is silent, or not done, for so many seconds.
SILENCE = 240.0
PATIENCE = 1200.0

#: How often the reports are looked for, seconds.
_POLL = 0.25

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
    elif _where(config) != "direct":
        config.pluginmanager.register(_Outside(config), "virtiopy-lab-outside")


def _where(config: pytest.Config) -> str:
    where: str = config.getoption("--lab")
    if where == "auto":
        return "boot" if lacking_devices() else "direct"
    return where


def lacking_devices() -> list[str]:
    """Name the devices of DEVICES that this host has not, or not for us."""
    return [path for path in DEVICES if not os.access(path, os.R_OK | os.W_OK)]


class _Inside:
    """Writes each report down, for the other side to read."""

    def __init__(self, config: pytest.Config, share: Path) -> None:
        self._config = config
        self._stream = (share / _REPORTS).open("w")

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
        self._lab: Lab | None = None
        self._missing: str | None = None
        self._broken: str | None = None
        self._nodes: list[str] = []
        self._reports: dict[str, list[pytest.TestReport]] = defaultdict(list)
        self._read = 0
        self._seconds = 0.0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if item.get_closest_marker("lab"):
                # The first of them waits for the boot; the lab has limits of its own.
                item.add_marker(pytest.mark.timeout(PATIENCE + 60))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        # After -m, -k and all else that deselects.
        self._nodes = [item.nodeid for item in session.items if item.get_closest_marker("lab")]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if not item.get_closest_marker("lab"):
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
            yield _skipped(item, f"the lab is not to be had: {self._missing}")
            return
        while not any(report.when == "teardown" for report in self._reports[item.nodeid]):
            if self._broken is None:
                self._wait()
            if self._broken is not None:
                yield _failed(item, self._broken)
                return
        yield from self._reports[item.nodeid]

    # The lab's life

    def _boot(self) -> None:
        if _where(self._config) == "off":
            raise LabMissingError("it is switched off by --lab=off")
        share = new_share()
        share.mkdir()
        arguments = share / "tests.txt"
        arguments.write_text("".join(f"{node}\n" for node in self._nodes))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"@{arguments}"]
        environment = {"PYTHONPYCACHEPREFIX": str(CACHE / "pycache")}
        _compile(command, environment)
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        # A test that hangs says where, in output.txt, before the lab is given up.
        command += ["-o", "faulthandler_timeout=100"]
        # Slow to import, and of no use there.
        command += ["-p", "no:hypothesispytest"]
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
        elif silent > SILENCE or running > PATIENCE:
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
                self._reports[report.nodeid].append(report)
            else:
                self._broken = f"The lab cannot collect {report.nodeid}:\n{report.longreprtext}"
        return bool(lines)

    def pytest_sessionfinish(self) -> None:
        if self._lab is None:
            return
        # All reports are in: what is left is switching off.
        self._lab.wait(0 if self._broken else 60)
        self._lab.close()
        self._seconds = time.monotonic() - self._started

    # What the user is told

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._missing is not None:
            terminalreporter.section("THE LAB DID NOT RUN", red=True, bold=True)
            lacking = ", ".join(lacking_devices()) or "nothing"
            terminalreporter.line(
                f"{len(self._nodes)} tests marked `lab` were skipped. This host lacks {lacking}, "
                f"and the lab that has it is not to be had: {self._missing}."
            )
        elif self._lab is not None:
            terminalreporter.section("lab")
            terminalreporter.line(
                f"{len(self._nodes)} tests ran in {self._seconds:.0f} s, boot included, under "
                f"software emulation; logs in {self._lab.share}"
            )


def _compile(command: list[str], environment: dict[str, str]) -> None:
    """Collect the tests out here, so that the slow CPU in there has nothing to compile."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(
        [*command, "--collect-only", "--lab=off"],
        cwd=REPOSITORY,
        env=own | environment,
        capture_output=True,
        check=False,
        timeout=120,
    )


def _last_words(lab: Lab) -> str:
    output = lab.share / "output.txt"
    text = output.read_text(errors="replace") if output.exists() else ""
    return "\n".join([*lab.console.splitlines()[-40:], *text.splitlines()[-60:]])


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
