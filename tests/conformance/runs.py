"""Runs of the suite, in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from virtiopy.conformance.report.document import Document, read

REPOSITORY = Path(__file__).parents[2]

#: How long a run may take, seconds: many times what it does.
RUN_TIME = 100


def run_pytest(
    *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder; it has no settings but the arguments."""
    alone = ["-c", "/dev/null", "-p", "no:cacheprovider", "-W", "error", "--rootdir", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *alone, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_TIME,
        check=False,
    )


def run_suite(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the suite on what the arguments say."""
    return run_pytest("--pyargs", "virtiopy.conformance", *arguments, folder=folder)


def run_command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `virtiopy conformance` in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "virtiopy.cli.main", "conformance", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=RUN_TIME,
        check=False,
    )


@dataclass(slots=True, frozen=True)
class SuiteRun:
    """How a run of the suite on one target ended, and its report."""

    status: int
    output: str
    document: Document


class SuiteRuns:
    """Runs of the suite on devices of this process, each made once for all who look at it."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        #: The run on a target, over a transport ("mmio" or "vhost-user").
        self.on = cache(self._on)
        self._factory = factory

    def _on(self, target: str, transport: str) -> SuiteRun:
        folder = self._factory.mktemp("suite")
        report = folder / "report.json"
        done = run_pytest(
            *("--pyargs", "virtiopy.conformance"),
            f"--virtio-target={target}",
            f"--virtio-transport={transport}",
            f"--virtio-report={report}",
            *_selection(target),
            folder=folder,
            environment={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert report.exists(), done.stdout + done.stderr
        return SuiteRun(done.returncode, done.stdout, read(report))


def _selection(target: str) -> Iterator[str]:
    """Yield what selects a target's tests: all, or those by which it differs from another."""
    if target.startswith("python:"):
        yield from ("-k", "test_zoned")
    elif "-" in target:
        # A variant of a device; the one that offers most is mistreated.
        yield from ("-k", "not hostile and not walk")


def group_of(name: str) -> pytest.MarkDecorator:
    """Return the mark that keeps a device's tests in one process, which makes each run once.

    `name` is a device's name, with what tells a variant or an area of its tests after it.
    """
    device = name.replace("-", "_").partition("_")[0]
    return pytest.mark.xdist_group(f"suite-{device}")
