"""Threads that work rings, as /proc shows them: which they are and what CPU time they took."""

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")

#: What _native/worker.c names its threads.
_NATIVE = "virtio-worker"


def worker_threads(*owners: int) -> list[Path]:
    """Return the /proc folder of each vhost thread that one of these threads caused to be.

    The kernel names it vhost-OWNER: a kernel thread until 6.3, since then a thread of the owner's
    process.
    """
    names = {f"vhost-{owner}" for owner in owners}
    return [thread for thread in _threads() if _name(thread) in names]


def native_threads() -> list[Path]:
    """Return the /proc folder of each thread of this process that works rings (worker/)."""
    return [thread for thread in (PROC / "self" / "task").iterdir() if _name(thread) == _NATIVE]


def cpu_seconds(thread: Path) -> float:
    """Return the CPU time of a thread by its /proc folder; its first field, ns (schedstat)."""
    return int((thread / "schedstat").read_text().split()[0]) / 1e9


def _threads() -> Iterator[Path]:
    yield from (path for path in PROC.iterdir() if path.name.isdigit())
    yield from (PROC / "self" / "task").iterdir()


def _name(thread: Path) -> str:
    try:
        return (thread / "comm").read_text().strip()
    except OSError:
        # It ended meanwhile.
        return ""
