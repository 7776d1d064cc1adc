"""Runs of the suite, in processes of their own."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

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
