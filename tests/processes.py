"""Processes of the host, as tests look at them."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.patience import PATIENCE


def descendants(pid: int) -> set[int]:
    """Return the processes that a process has started, and theirs, but for zombies."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name before it may have spaces and brackets.
            state, parent = path.read_text().rpartition(") ")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            parents[int(path.parent.name)] = int(parent)
    found = {pid}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def is_running(pid: int) -> bool:
    """Say whether there is such a process, and it is no zombie."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(happened: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for what another process does; fails where it does not."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def named(pids: set[int], name: str) -> set[int]:
    """Return those of `pids` that run the program of this name."""
    found = set()
    for pid in pids:
        try:
            if Path(os.sep, "proc", str(pid), "comm").read_text().strip() == name:
                found.add(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
