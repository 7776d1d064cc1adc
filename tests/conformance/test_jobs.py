"""Tests beside one another: what is said of a target is what one process alone says of it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conformance.runs import run_command
from tests.patience import PATIENCE
from virtiopy.conformance.report.document import Document, read

pytestmark = pytest.mark.thorough

#: Devices that are broken, or mind which process they are in.
DEVICES = """\
import os, time
from virtiopy.devices.rng import Rng

FIRST = os.getpid()


class Constant(Rng):
    def serve(self, queue, chain):
        for buffer in chain.writable:
            buffer[:] = bytes(len(buffer))
        return sum(map(len, chain.writable))


class EndsItsJob(Rng):
    def serve(self, queue, chain):
        if os.getpid() != FIRST:
            os._exit(7)
        return super().serve(queue, chain)


class Endless(Rng):
    def serve(self, queue, chain):
        open("begun", "w").close()
        time.sleep(3600)
"""


def run(folder: Path, device: str, jobs: int, *options: str) -> tuple[int, list[str], Document]:
    """Run the suite; returns its status, the lines that it ends with, and the report."""
    (folder / "mine.py").write_text(DEVICES)
    report = f"{device}-{jobs}.json"
    done = run_command(
        f"python:mine:{device}",
        *("--jobs", str(jobs), "--report", report, *options),
        folder=folder,
    )
    said = done.stdout.partition("collected")[2]
    assert "python:mine" in said, done.stdout + done.stderr
    # But for where the report is, how long all took, and traces, in which that shows.
    lines = [
        re.sub(r"in [\d.]+s", "", line).strip(" =")
        for line in said.splitlines()
        if report not in line and not re.match(r" *[\d.]+ ms ", line)
    ]
    return done.returncode, lines, without_times(read(folder / report))


def without_times(document: Document) -> Document:
    """Return what a report says, and not when that was, or what went on meanwhile."""
    for name in ("date", "command"):
        document[name] = ""
    for test in document["tests"]:
        test["seconds"] = 0
        test["trace"] = []
    return document


def test_two_jobs_say_what_one_process_says(tmp_path: Path) -> None:
    alone, together = (run(tmp_path, "Constant", jobs, "-k", "test_random") for jobs in (1, 2))
    assert alone[0] == 1
    assert together == alone


def test_a_test_that_ends_its_job_is_run_in_the_first_process(tmp_path: Path) -> None:
    status, lines, document = run(tmp_path, "EndsItsJob", 2, "-k", "test_random")
    assert status == 0, lines
    assert {test["outcome"] for test in document["tests"]} == {"passed"}


def test_an_interrupt_ends_the_jobs_and_the_report_says_so(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(DEVICES)
    command = [sys.executable, "-m", "virtiopy", "conformance", "python:mine:Endless"]
    command += ["--jobs", "2", "--patience", "600", "--report", "report.json"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        end = time.monotonic() + PATIENCE
        while not (tmp_path / "begun").exists() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + signal.SIGINT, said
        assert "The run was cut short: it was interrupted." in said
    document = read(tmp_path / "report.json")
    assert document["cut_short"]
    # No test has come to its end: the device serves nothing.
    assert document["tests"] == []
    [subject] = document["subjects"]
    assert (subject["device"], subject["findings"]) == ("rng", [])
    assert "not tested" in {clause["outcome"] for clause in subject["clauses"]}
    with pytest.raises(ProcessLookupError):
        # No process of its session is left.
        os.killpg(process.pid, 0)


def test_a_backend_at_a_socket_has_one_job(tmp_path: Path) -> None:
    done = run_command("vhost-user:socket", "--device", "rng", "--jobs", "2", folder=tmp_path)
    assert done.returncode == 2
    assert "one session at a time" in done.stderr
