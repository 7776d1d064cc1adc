"""Tests beside one another: jobs are processes forked from this one, which run the suite's tests.

This process runs no test then. It books what they came to in the order of the tests, so all that
is said and written is what one process alone would say. What a test does depends on those before
it only where the device fails: tests are hurried after some that waited in vain, and no walk goes
through what is broken. Such a test is run again, here. The same goes for one that ends its job.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait

import pytest

from virtiopy.conformance.collection import in_suite, is_basis, target_of
from virtiopy.conformance.outcomes import KEPT, Evidence, book, progress_of
from virtiopy.conformance.report.findings import Findings
from virtiopy.conformance.report.results import Subject
from virtiopy.conformance.settings import JOBS, PATIENCE_KEY, RESULTS

CREW = pytest.StashKey["Crew"]()

#: How long a job that is ended has to take its device down, seconds.
_ENDS_WITHIN = 5.0

#: A test report as pytest makes it for another process.
_ReportData = Mapping[str, object]


@dataclass(slots=True, frozen=True)
class Ran:
    """What a test came to in a job: each phase's report and evidence, and the subjects known.

    One that has `ended` its job before its own end has no phases.
    """

    phases: Sequence[tuple[_ReportData, Evidence]]
    subjects: Sequence[Subject]
    ended: bool = False


@dataclass(slots=True)
class _Job:
    pid: int
    wire: Connection
    #: The number of the test that it runs.
    test: int
    #: Whether a message of its is being read: an interrupt may leave the rest of it.
    reading: bool = False


class Crew:
    """Jobs, and what became of the tests that they have run; a test is its place in `items`."""

    def __init__(self, items: Sequence[pytest.Item], count: int) -> None:
        self._items = items
        self._numbers = {item: number for number, item in enumerate(items)}
        self._waiting = _in_turn(items)
        self._ran: dict[int, Ran | None] = {}
        self._jobs: list[_Job] = []
        for _ in range(count):
            self._start()

    def _start(self) -> None:
        ours, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        if (pid := os.fork()) == 0:
            # A job is to see that this process has ended: none keeps another's end open.
            for job in self._jobs:
                job.wire.close()
            ours.close()
            _work(self._items, theirs)
        theirs.close()
        job = _Job(pid, ours, -1)
        self._jobs.append(job)
        self._hand_out(job)

    def _hand_out(self, job: _Job) -> None:
        number = next(self._waiting, None)
        if number is None:
            self._end(job)
            return
        job.test = number
        try:
            job.wire.send(number)
        except BrokenPipeError:
            self._lost(job)

    def take(self, item: pytest.Item) -> Ran | None:
        """Wait for a test's end; None where this process is to run it."""
        number = self._numbers[item]
        while self._jobs and number not in self._ran:
            ready = wait([job.wire for job in self._jobs])
            for job in [one for one in self._jobs if one.wire in ready]:
                job.reading = True
                try:
                    self._ran[job.test] = job.wire.recv()
                except EOFError:
                    self._lost(job)
                else:
                    job.reading = False
                    self._hand_out(job)
        return self._ran.pop(number, None)

    def _lost(self, job: _Job) -> None:
        """Book that a job has ended with its test."""
        self._ran[job.test] = None
        self._end(job)

    def _end(self, job: _Job) -> None:
        self._jobs.remove(job)
        job.wire.close()
        _reap(job.pid)

    def dismiss(self) -> list[Subject]:
        """End all jobs, whatever they are at; returns the subjects that they know."""
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            os.kill(job.pid, signal.SIGTERM)
        ran = [*self._ran.values(), *map(_last_words, jobs)]
        for job in jobs:
            job.wire.close()
        for job in jobs:
            _reap(job.pid)
        return [subject for one in ran if one is not None for subject in one.subjects]


def _last_words(job: _Job) -> Ran | None:
    """Return what a job that was told to end says of its test; None where it says nothing."""
    if job.reading or not job.wire.poll(_ENDS_WITHIN):
        return None
    try:
        said: Ran | None = job.wire.recv()
    except EOFError:
        return None
    return said


def _reap(pid: int) -> None:
    """Wait for a job that was told to end; one that does not is killed."""
    end = time.monotonic() + _ENDS_WITHIN
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _in_turn(items: Sequence[pytest.Item]) -> Iterator[int]:
    """Yield the suite's tests as jobs are to begin them: the walks, which take longest, first."""
    numbers = [number for number, item in enumerate(items) if in_suite(item)]
    return iter(sorted(numbers, key=lambda number: not _is_of_walks(items[number])))


def _is_of_walks(item: pytest.Item) -> bool:
    return "walks" in getattr(item, "fixturenames", ())


def _work(items: Sequence[pytest.Item], wire: Connection) -> None:
    """Run the tests that are asked for, in a forked process, until there is no more to do."""
    # Ctrl-C is for the first process, which ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = 1
    try:
        _be_a_job(items[0].config)
        while True:
            _serve(items[wire.recv()], wire)
    except (EOFError, BrokenPipeError):
        status = 0
    finally:
        # What the first process has open is not to be flushed, or removed, here.
        os._exit(status)


def _be_a_job(config: pytest.Config) -> None:
    manager = config.pluginmanager
    manager.unregister(name="terminalreporter")
    capture = manager.getplugin("capturemanager")
    if capture is not None and capture.is_globally_capturing():
        # The first process's files are not to be written to.
        capture.read_global_capture()
        capture.stop_global_capturing()
        capture.start_global_capturing()


class _Keeper:
    """Keeps the reports of a test."""

    def __init__(self) -> None:
        self.reports: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep it."""
        self.reports.append(report)


def _serve(item: pytest.Item, wire: Connection) -> None:
    """Run a test, and send what it came to; one that ends the run is to do so there."""
    try:
        ran = _run(item)
    except (KeyboardInterrupt, pytest.exit.Exception):
        # Said first: to take down a device that hangs may take longer than this job is given.
        wire.send(Ran((), _subjects(item), ended=True))
        item.config.hook.pytest_runtest_teardown(item=item, nextitem=None)
    else:
        wire.send(ran)


def _subjects(item: pytest.Item) -> Sequence[Subject]:
    return list(item.config.stash[RESULTS].subjects.values())


def _run(item: pytest.Item) -> Ran:
    config = item.config
    evidence = config.stash[KEPT] = []
    keeper = _Keeper()
    config.pluginmanager.register(keeper)
    try:
        config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    finally:
        config.pluginmanager.unregister(keeper)
    to_data = config.hook.pytest_report_to_serializable
    data = [to_data(config=config, report=report) for report in keeper.reports]
    return Ran(list(zip(data, evidence, strict=True)), _subjects(item))


def pytest_runtestloop(session: pytest.Session) -> None:
    """Start the jobs, where there are to be some."""
    config = session.config
    count = min(config.stash[JOBS], sum(in_suite(item) for item in session.items))
    if config.option.collectonly or config.option.usepdb or count < 2:
        return
    if threading.active_count() > 1:
        # What another thread holds would be held for ever in a fork.
        return
    config.stash[CREW] = Crew(session.items, count)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Have a job's result be the test's, where there are jobs."""
    config = item.config
    crew = config.stash.get(CREW, None)
    if crew is None or KEPT in config.stash or not in_suite(item):
        return None
    if _is_hurried(item):
        # So are those after it. They wait, and do so in turn, as the device is at its end.
        _dismiss(config)
        return None
    ran = None if _is_of_walks(item) and _is_broken(item) else crew.take(item)
    if ran is None or ran.ended:
        return None
    for subject in ran.subjects:
        config.stash[RESULTS].note(subject)
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data, evidence in ran.phases:
        report = config.hook.pytest_report_from_serializable(config=config, data=data)
        book(item, report, evidence)
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _is_hurried(item: pytest.Item) -> bool:
    """Say whether a test is to wait less than it did in a job, or is not to be run at all."""
    progress = progress_of(item)
    if progress.hopeless or progress.cut_short:
        return True
    asked_for = item.config.stash[PATIENCE_KEY]
    return not is_basis(item) and progress.patience(asked_for) < asked_for


def _is_broken(item: pytest.Item) -> bool:
    results = item.config.stash[RESULTS]
    return bool(Findings(results.of(target_of(item).name)).broken())


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the jobs, however the run has come to its end."""
    _dismiss(session.config)


def _dismiss(config: pytest.Config) -> None:
    crew = config.stash.get(CREW, None)
    if crew is not None:
        del config.stash[CREW]
        # A run that is ended before its first test is done has a report all the same.
        for subject in crew.dismiss():
            config.stash[RESULTS].note(subject)
