"""What the user asked for, kept where all of the suite finds it: loaded when asked for."""

import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from virtiopy.conformance.drivers import DRIVERS
from virtiopy.conformance.frontends.profile import check_name
from virtiopy.conformance.progress import Progress
from virtiopy.conformance.report import reports
from virtiopy.conformance.report.blame import Broken
from virtiopy.conformance.report.results import (
    Results,
)
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.targets.backends import SPAWN_TIME
from virtiopy.conformance.targets.target import PATIENCE, SocketTarget, Target, parse
from virtiopy.conformance.walks.steps import Step
from virtiopy.conformance.walks.steps import load as load_steps
from virtiopy.errors import ConfigError

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
JOBS = pytest.StashKey[int]()
FRONTENDS = pytest.StashKey[Sequence[str]]()
REPORTS = pytest.StashKey[list[Path]]()
PROGRESS = pytest.StashKey[dict[str, Progress]]()
SESSION = pytest.StashKey[Session]()


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
        config.stash[JOBS] = _jobs(config)
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


def _jobs(config: pytest.Config) -> int:
    """Return how many processes run tests beside one another."""
    text = config.getoption("virtio_jobs")
    if hasattr(config, "workerinput"):
        # It is one of many already.
        return 1
    target = config.stash.get(TARGET, None)
    if text is None:
        # A device of the user's own, or a backend, may keep what it has where all of them do.
        ours = target is not None and target.name.startswith("inproc:")
        return len(os.sched_getaffinity(0)) if ours else 1
    if not (text.isdecimal() and int(text)):
        raise ConfigError(f"--virtio-jobs {text}: give a number above 0.")
    if isinstance(target, SocketTarget) and int(text) > 1:
        raise ConfigError(
            f"--virtio-jobs {text}: the backend at a socket has one session at a time; leave it "
            "out, or have a backend for each test by --virtio-spawn."
        )
    return int(text)


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
        spawn_time=_seconds("spawn-time", option("virtio_spawn_time"), SPAWN_TIME),
        transport=transport,
    )
    if device is not None and target.device != device:
        raise ConfigError(
            f"The target is {target.device}, and no {device}: leave out --virtio-device."
        )
    return target
