"""Runs of the suite, in processes of their own."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from virtiopy.conformance.report.document import Document, read

REPOSITORY = Path(__file__).parents[2]

#: How long a run may take, seconds. Ten mutants in the whole suite took over 300 on a busy machine.
RUN_TIME = 1800


def run_pytest(
    *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder; it has no settings but the arguments."""
    alone = ["-c", "/dev/null", "-p", "no:cacheprovider", "-W", "error", "--rootdir", str(folder)]
    # Walks ask hypothesis itself. Its plugin imports it in each run, a fifth of a short one's time.
    alone += ["-p", "no:hypothesispytest"]
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
        [sys.executable, "-m", "virtiopy", "conformance", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=RUN_TIME,
        check=False,
    )


class Once:
    """Folders that are filled once, for all processes that run tests beside one another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fill(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return the folder of this name; whoever asks first has `make` fill it, others wait."""
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "done").exists():
                make(folder)
                (folder / "done").touch()
        return folder


@dataclass(slots=True, frozen=True)
class SuiteRun:
    """What became of the suite's tests in a run: pytest's status and output, and the report."""

    status: int
    output: str
    document: Document

    def outcomes(self, target: str, clause: str) -> set[str]:
        """Return how the tests of a statement ended on a target."""
        return {
            test["outcome"]
            for test in self.document["tests"]
            if test["target"] == target and clause in test["clauses"]
        }

    def findings(self, target: str) -> tuple[list[str], list[str]]:
        """Return the statements of a target's findings: those that fail, and the warnings."""
        [subject] = [one for one in self.document["subjects"] if one["target"] == target]
        found: dict[str, list[str]] = {"failed": [], "warning": []}
        for finding in subject["findings"]:
            found[finding["outcome"]].append(finding["statement"])
        return found["failed"], found["warning"]


@cache
def kept(folder: Path) -> SuiteRun:
    """Return the run that `keep` has kept in a folder."""
    status, output = (folder / "output.txt").read_text().split("\n", 1)
    return SuiteRun(int(status), output, read(folder / "report.json"))


def keep(folder: Path, *arguments: str) -> None:
    """Run the suite in a folder, by these arguments, and keep what became of it."""
    done = run_pytest(
        *arguments,
        f"--virtio-report={folder / 'report.json'}",
        folder=folder,
        environment={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}, (
        done.stdout + done.stderr
    )
    (folder / "output.txt").write_text(f"{int(done.returncode)}\n{done.stdout}")


@dataclass(slots=True, frozen=True)
class WholeRuns:
    """Runs of the suite on devices of this process, for all tests that look at them."""

    once: Once

    def on(self, target: str, transport: str) -> SuiteRun:
        """Return the run on a target, over "mmio" or "vhost-user"."""

        def make(folder: Path) -> None:
            keep(
                folder,
                *("--pyargs", "virtiopy.conformance"),
                f"--virtio-target={target}",
                f"--virtio-transport={transport}",
                # These tests are run beside one another already.
                "--virtio-jobs=1",
                *_selection(target),
            )

        name = f"{target}-{transport}".replace(":", "-")
        return kept(self.once.fill(name, make))


def _selection(target: str) -> Iterator[str]:
    """Yield what selects a target's tests: all, or those by which it differs from another."""
    if target.startswith("python:"):
        yield from ("-k", "test_zoned")
    elif "-" in target:
        # A variant of a device; the one that offers most is mistreated.
        yield from ("-k", "not hostile and not walk")
