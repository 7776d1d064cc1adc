"""Random walks of a driver: whatever it does, and in whatever order, the device keeps its word."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from virtiopy.conformance.clauses.features import names
from virtiopy.conformance.collection import note_subject
from virtiopy.conformance.drivers import driver_of
from virtiopy.conformance.problems import (
    BlockedError,
    BrokenError,
    DeviceError,
    NotApplicableError,
    StepError,
    words_of,
)
from virtiopy.conformance.report.findings import Findings
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.settings import PATIENCE_KEY, RESULTS, TRACE, WALKS, Walks
from virtiopy.conformance.targets.target import Target
from virtiopy.conformance.walks.steps import Step, save
from virtiopy.conformance.walks.walk import Walk

#: What a file of a walk is called, around what makes the name its own.
PREFIX, SUFFIX = "virtiopy-walk-", ".txt"

#: How many of them stay: those of the last runs that failed.
KEPT = 20


@pytest.fixture
def walks(request: pytest.FixtureRequest) -> Walks:
    """Give what the options say of walks."""
    return request.config.stash[WALKS]


def test_a_random_walk(request: pytest.FixtureRequest, virtio_target: Target, walks: Walks) -> None:
    patience = request.config.stash[PATIENCE_KEY]
    # Of the last walk that failed: a shorter one, or the same again, may pass.
    failing = Trace()

    def go(steps: Sequence[Step], patience: float) -> None:
        nonlocal failing
        trace = request.node.stash[TRACE] = Trace()
        with virtio_target.open(trace, patience) as session:
            note_subject(request.config, virtio_target, session)
            try:
                Walk(session, driver_of(session)).run(steps)
            except (AssertionError, DeviceError):
                failing = trace
                raise

    if walks.replay is not None:
        go(walks.replay, patience)
        return
    # A walk goes through everything, and so through what is broken already.
    for finding in Findings(request.config.stash[RESULTS].of(virtio_target.name)).broken():
        raise BlockedError(finding.statement)
    try:
        from virtiopy.conformance.walks.search import Search
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise NotApplicableError(
            "hypothesis is missing, which makes walks: pip install 'virtiopy[conformance]'"
        ) from error
    with virtio_target.open(Trace(), patience) as session:
        features = names_of(session)
    number = request.config.getoption("--hypothesis-seed", None)
    search = Search(go, patience, None if number is None else int(number))
    steps = search.run(features, walks.count)
    if steps is None:
        return
    failure: AssertionError | DeviceError | None = None
    try:
        go(steps, patience)
    except (AssertionError, DeviceError) as error:
        failure = error
    again = "The same again"
    if failure is None:
        failure = search.failure
        request.node.stash[TRACE] = failing
        again = "The same again, which does not fail each time"
    assert failure is not None, "the search has given steps that failed"
    path = new_file()
    save(path, steps, [f"A walk that {virtio_target.name} does not stand:", *first_line(failure)])
    lines = "\n".join(f"    {step}" for step in steps)
    words = f"{first_line(failure)[0]}\n\n{lines}\n\n{again}: --virtio-replay={path}"
    raise said_of(failure, words)


def said_of(failure: AssertionError | DeviceError, words: str) -> AssertionError | DeviceError:
    """Return an exception of the same kind that says more."""
    if isinstance(failure, BrokenError):
        return BrokenError(words, failure.clause)
    if isinstance(failure, StepError):
        return StepError(words, failure.clause)
    return type(failure)(words)


def new_file() -> Path:
    """Return an empty file that stays until KEPT newer ones are there."""
    descriptor, name = tempfile.mkstemp(prefix=PREFIX, suffix=SUFFIX)
    os.close(descriptor)
    forget_older(Path(name).parent)
    return Path(name)


def forget_older(folder: Path) -> None:
    """Remove this user's files of walks in a folder, but for the newest."""
    mine: list[tuple[int, Path]] = []
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        # Another run may be removing it, too.
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                mine.append((status.st_mtime_ns, path))
    for _, path in sorted(mine)[:-KEPT]:
        path.unlink(missing_ok=True)


def names_of(session: Session) -> list[str]:
    """Return the features that can be left out."""
    driver_of(session)
    return names(session.offered & session.understood & ~(1 << 32), session.device_id)


def first_line(error: Exception) -> list[str]:
    """Return what an exception says, in a line."""
    return words_of(error).splitlines()[:1]
