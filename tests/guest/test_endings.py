"""What is left of a run, whatever ends it: counts, facts, JSON, a status."""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.guest.support import (
    VIRTIOPY,
    assert_one_sentence,
    make_image,
    needs_kvm,
    run_guest,
    virtiopy,
)
from tests.patience import PATIENCE
from virtiopy.vhost.user.frontend import VhostUserFrontend, connect

FLOOD = ("--guest", "misbehave", "--append", "misbehave=flood")

pytestmark = needs_kvm


def report_of(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_text())
    return report


@pytest.mark.parametrize(
    ("way", "timeout", "reason", "words"),
    [
        ("spin", "0.3", "timeout", "not done after 0.3 seconds"),
        ("flood", "1", "timeout", "not done after 1 seconds"),
        ("triple-fault", "0", "guest-fault", "triple-faulted at rip 0x"),
        ("stray-port", "0", "guest-fault", "at port 0x5555, where no device is"),
    ],
)
def test_a_run_that_does_not_end_by_itself_leaves_its_counts(
    tmp_path: Path, way: str, timeout: str, reason: str, words: str
) -> None:
    outcome = run_guest(
        tmp_path, "misbehave", "--append", f"misbehave={way}", "--rng", "--timeout", timeout
    )

    assert_one_sentence(outcome, words)
    assert "Exit to userspace" in outcome.output
    assert "Told by the devices" in outcome.output
    report = outcome.report
    assert (report["reason"], report["status"], report["passed"]) == (reason, None, False)
    assert f"virtiopy: {report['complaint']}" == outcome.errors.strip()
    assert report["exits"]["userspace_total"] >= (100 if way == "flood" else 0)
    assert report["exits"]["kernel"]["exits"] > 0
    assert report["seconds"] > 0
    assert [device["name"] for device in report["devices"]] == ["rng0"]


def test_a_run_that_ends_by_itself_says_so(tmp_path: Path) -> None:
    report = run_guest(tmp_path, "greet").report

    assert (report["reason"], report["complaint"], report["status"]) == ("exit", None, 0)


@contextmanager
def started(
    *arguments: str | Path, stdout: int | IO[str] = subprocess.PIPE
) -> Iterator["subprocess.Popen[bytes]"]:
    command = [*VIRTIOPY, "run", "--accel", "kvm", *map(str, arguments)]
    with subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "terminated"),
        (signal.SIGHUP, "hung-up"),
    ],
)
def test_a_signal_leaves_the_counts_and_is_the_status(
    tmp_path: Path, number: signal.Signals, reason: str
) -> None:
    path = tmp_path / "report.json"
    with started(*FLOOD, "--json", path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE)

    assert process.returncode == 128 + number
    assert b"Exit to userspace" in output
    report = report_of(path)
    assert report["reason"] == reason
    assert report["exits"]["userspace_total"] > 0


@contextmanager
def unread(*arguments: str | Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a guest whose output is a pipe that has a reader, who reads nothing."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with started(*FLOOD, *arguments, stdout=writer) as process:
            yield process
    finally:
        os.close(reader)
        os.close(writer)


def test_a_pipe_that_is_not_read_keeps_no_run_from_ending_at_its_time(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with unread("--timeout", "2", "--json", path) as process:
        _, errors = process.communicate(timeout=2 + PATIENCE)

    assert process.returncode == 2
    assert b"not done after 2 seconds" in errors
    assert report_of(path)["reason"] == "timeout"
    assert report_of(path)["exits"]["userspace_total"] > 0


def test_one_sigterm_ends_a_run_whose_pipe_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with unread("--timeout", "0", "--json", path) as process:
        _wait_until_stuck(process.pid)
        process.terminate()
        process.communicate(timeout=PATIENCE)

    assert process.returncode == 143
    assert report_of(path)["reason"] == "terminated"


def test_one_sigterm_ends_a_backend_whose_pipe_is_not_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, bytes(fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)))
    image, path = make_image(tmp_path / "disk.img"), tmp_path / "socket"
    command = [*VIRTIOPY, "serve", "blk", str(image), "--socket", str(path)]
    with subprocess.Popen(command, stdout=writer) as process:
        _wait_until_stuck(process.pid)
        # A frontend is answered nevertheless.
        stream = connect(path)
        stream.settimeout(PATIENCE)
        VhostUserFrontend(stream).close()
        process.terminate()
        assert process.wait(PATIENCE) == 0
    os.close(reader)
    os.close(writer)


def _wait_until_stuck(pid: int) -> None:
    """Wait until a thread of the process waits in the write to the pipe that is full."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            # The number of the system call, and its first argument: write(1, ...).
            if (thread / "syscall").read_text().split()[:2] == ["1", "0x1"]:
                return
        time.sleep(0.05)
    raise AssertionError("the output is never stuck")


def test_a_reader_that_leaves_ends_the_run_and_the_counts_are_written(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with started(*FLOOD, "--json", path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        process.wait(PATIENCE)

    assert (process.returncode, errors) == (1, b"")
    assert report_of(path)["reason"] == "output-closed"


@pytest.mark.parametrize("command", [("run", "--guest", "greet"), ("hello",), ("doctor",)])
def test_output_that_has_no_room_is_told_in_a_sentence(command: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*VIRTIOPY, *command], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )

    assert done.returncode == 2
    assert done.stderr.startswith("virtiopy: Standard output cannot be written (No space left")
    assert done.stderr.count("\n") == 1


def test_a_run_whose_output_has_no_room_leaves_its_counts(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with (
        open("/dev/full", "w") as full,
        started(*FLOOD, "--json", path, stdout=full) as process,
    ):
        process.communicate(timeout=PATIENCE)

    assert process.returncode == 2
    assert report_of(path)["reason"] == "host-fault"


@pytest.mark.parametrize("command", ["run --guest greet", "hello --mode long"])
def test_closed_output_is_no_fault_and_no_other_file_takes_its_place(
    tmp_path: Path, command: str
) -> None:
    script = f"exec {' '.join(VIRTIOPY)} {command} >&- 2>{tmp_path / 'errors'}"
    done = subprocess.run(["sh", "-c", script], check=False)

    assert (done.returncode, (tmp_path / "errors").read_text()) == (0, "")


def test_a_report_without_room_is_told_after_the_counts() -> None:
    outcome = virtiopy("run", "--guest", "greet", "--json", "/dev/full")

    assert_one_sentence(outcome, "/dev/full cannot be written (No space left")
    assert "Exit to userspace" in outcome.output


def test_a_memory_file_that_another_program_cuts_ends_the_run(tmp_path: Path) -> None:
    ram, path = tmp_path / "ram", tmp_path / "report.json"
    with started(*FLOOD, "--timeout", "0", "--memory-path", ram, "--json", path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.truncate(ram, 1 << 20)
        _, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 2
    assert errors.decode() == (
        f"virtiopy: The memory file {ram} was made smaller while the guest ran: let no other "
        "program write to it.\n"
    )
    assert report_of(path)["reason"] == "host-fault"


@pytest.mark.parametrize("accelerator", ["kvm", pytest.param("tcg", marks=needs_unicorn)])
@pytest.mark.parametrize(
    ("way", "words", "spins"),
    [
        ("spin", "(spin+0x0) spins", True),
        ("halt", "is halted with interrupts off, and does not wake", False),
    ],
)
def test_a_run_that_is_stopped_says_what_the_cpu_does(
    tmp_path: Path, accelerator: str, way: str, words: str, *, spins: bool
) -> None:
    outcome = run_guest(
        *(tmp_path, "misbehave", "--append", f"misbehave={way}", "--rng", "--timeout", "0.5"),
        *("--accel", accelerator),
    )

    assert words in outcome.output
    assert "rng0: no driver" in outcome.output
    [cpu] = outcome.report["standing"]["cpus"]
    assert cpu["spins"] is spins
    assert cpu["symbol"].startswith(way)
    assert outcome.report["standing"]["devices"] == [{"name": "rng0", "status": 0, "facts": []}]


def test_cpus_that_the_guest_did_not_start_are_told() -> None:
    outcome = virtiopy(
        *("run", "--guest", "misbehave", "--append", "misbehave=spin", "--cpus", "2"),
        *("--accel", "kvm", "--timeout", "0.5"),
    )

    assert "CPU 1 was not started: no INIT and SIPI came" in outcome.output
