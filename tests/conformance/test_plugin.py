"""The plugin: what it costs those who do not ask for it, and what it says to those who do."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.runs import run_command, run_pytest, run_suite
from virtiopy.conformance.report.document import read
from virtiopy.conformance.targets.backends import split

OWN_DEVICE = """\
from virtiopy.conformance.targets.target import inproc
from virtiopy.devices.rng import Rng

{device}

virtio_target = inproc({name}{options})
"""

RAISES = """\
class Broken(Rng):
    def serve(self, queue, chain):
        raise RuntimeError("out of randomness")
"""

SILENT = """\
class Broken(Rng):
    def handle(self, queue):
        pass
"""

NEVER_NOTIFIES = """\
class Broken(Rng):
    def notify(self, queue):
        pass
"""

STUCK = """\
import threading

class Broken(Rng):
    def serve(self, queue, chain):
        threading.Event().wait(20)
        return 1
"""


def own_device(folder: Path, device: str = "", name: str = "Rng", options: str = "") -> Path:
    path = folder / "test_own.py"
    path.write_text(OWN_DEVICE.format(device=device, name=name, options=options))
    return path


def test_the_plugin_imports_nothing_of_virtiopy_that_it_does_not_need() -> None:
    code = (
        "import sys, pytest, virtiopy.conformance.plugin; "
        "print(sorted(m for m in sys.modules if m.startswith('virtiopy')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(
        ["virtiopy", "virtiopy.conformance", "virtiopy.conformance.plugin"]
    )


def test_a_device_of_ones_own_gets_the_whole_suite_by_a_variable(tmp_path: Path) -> None:
    own_device(tmp_path)
    run = run_pytest("-v", "-k", "split", folder=tmp_path)
    assert run.returncode == 0, run.stdout
    assert "test_own.py::virtio_target::test_split::test_kicks_with_nothing_new" in run.stdout


@pytest.mark.parametrize("options", ["", ", served=True"], ids=["mmio", "vhost-user"])
@pytest.mark.parametrize(
    ("device", "verdict"),
    [
        (RAISES, "DiedError: the device raised RuntimeError: out of randomness"),
        (SILENT, "the buffer with head 0 of queue 0 used: not within"),
        (STUCK, "WedgedError"),
    ],
    ids=["raises", "silent", "stuck"],
)
def test_a_device_that_does_not_work_fails_and_does_not_end_the_run(
    tmp_path: Path, device: str, verdict: str, options: str
) -> None:
    own_device(tmp_path, device, "Broken", options)
    run = run_pytest(
        "--virtio-patience=0.2",
        "-k",
        "leaves_notifications_out or version_1_is_offered",
        folder=tmp_path,
    )
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    assert verdict in run.stdout
    assert "virtio trace" in run.stdout
    assert "1 failed, 1 passed" in run.stdout.splitlines()[-1]


def test_a_test_that_is_hurried_blocks_its_statement_and_accuses_the_device_of_nothing(
    tmp_path: Path,
) -> None:
    own_device(tmp_path, NEVER_NOTIFIES, "Broken")
    options = ["--virtio-patience=0.6", "--virtio-report=report.json"]
    run = run_pytest(*options, "-k", "test_split and event_idx", folder=tmp_path)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    [subject] = read(tmp_path / "report.json")["subjects"]
    clauses = {clause["id"]: clause for clause in subject["clauses"]}
    assert clauses["2.7.7.2:1"]["outcome"] == "failed"
    assert clauses["2.7.7.2:4"]["outcome"] == "blocked"
    assert "this one was hurried" in clauses["2.7.7.2:4"]["reason"]


# Counts how often the findings of all results are made.
COUNTS_FINDINGS = """\
from virtiopy.conformance.report.findings import Findings

made = []
make = Findings.__init__

def count(self, *args, **keywords):
    made.append(self)
    make(self, *args, **keywords)

Findings.__init__ = count

def pytest_unconfigure():
    print("findings made:", len(made))
"""


def test_a_failed_test_costs_no_look_at_all_results_before_it(tmp_path: Path) -> None:
    own_device(tmp_path, NEVER_NOTIFIES, "Broken")
    (tmp_path / "conftest.py").write_text(COUNTS_FINDINGS)
    run = run_pytest("--virtio-patience=0.1", "-k", "test_split", "-s", folder=tmp_path)
    failed = re.search(r"(\d+) failed", run.stdout.splitlines()[-2])
    made = re.search(r"findings made: (\d+)", run.stdout)
    assert failed is not None, run.stdout
    assert made is not None, run.stdout
    assert int(failed[1]) >= 3
    assert int(made[1]) <= 2


# Counts how many devices there are at a time.
COUNTED = """\
import atexit, weakref

class Counted(Rng):
    alive = weakref.WeakSet()
    most = 0

    def __init__(self):
        super().__init__()
        Counted.alive.add(self)
        Counted.most = max(Counted.most, len(Counted.alive))

atexit.register(lambda: print("devices at a time:", Counted.most))
"""


def test_a_device_is_let_go_when_its_test_is_done(tmp_path: Path) -> None:
    own_device(tmp_path, COUNTED, "Counted")
    run = run_pytest("-k", "test_setups and status or event_idx", folder=tmp_path)
    assert re.search(r"\d\d passed", run.stdout), run.stdout
    most = re.search(r"devices at a time: (\d+)", run.stdout)
    assert most is not None, run.stdout
    # That of a test, and of the one before it.
    assert int(most[1]) <= 2


def test_a_run_that_takes_too_long_says_what_it_found(tmp_path: Path) -> None:
    own_device(tmp_path, NEVER_NOTIFIES, "Broken")
    options = ["--virtio-patience=0.3", "--virtio-timeout=0.2", "--virtio-report=report.json"]
    run = run_pytest(*options, "-k", "test_split and event_idx", folder=tmp_path)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    assert "1 finding" in run.stdout
    assert "cut short: it has taken 0.2 s, as --timeout says." in run.stdout
    assert read(tmp_path / "report.json")["cut_short"]


# The test after the first that failed ends the run.
ENDS_THE_RUN = """\
import os

class Broken(Rng):
    def notify(self, queue):
        pass

    def negotiated(self, features):
        super().negotiated(features)
        Broken.times = getattr(Broken, "times", 0) + 1
        if Broken.times == 3:
            os.kill(os.getpid(), {number})
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_is_ended_says_what_it_found(tmp_path: Path, number: signal.Signals) -> None:
    own_device(tmp_path, ENDS_THE_RUN.format(number=int(number)), "Broken")
    options = ["--virtio-patience=0.3", "--virtio-report=report.json"]
    run = run_pytest(*options, "-k", "test_split and event_idx", folder=tmp_path)
    assert run.returncode == pytest.ExitCode.INTERRUPTED, run.stdout
    assert "1 finding" in run.stdout
    assert "cut short: it was interrupted." in run.stdout
    assert read(tmp_path / "report.json")["cut_short"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_on_the_command_line_a_signal_has_its_own_status(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "mine.py").write_text(
        "from virtiopy.devices.rng import Rng\n" + ENDS_THE_RUN.format(number=int(number))
    )
    command = [sys.executable, "-m", "virtiopy", "conformance", "python:mine:Broken"]
    command += ["--device", "rng", "--patience", "0.3", "--report", "report.json"]
    run = subprocess.run(
        [*command, "-k", "test_split and event_idx"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 128 + number, run.stdout + run.stderr
    assert run.stderr.strip() == "virtiopy: interrupted"
    assert read(tmp_path / "report.json")["cut_short"]


def test_a_feature_that_was_not_offered_makes_a_test_not_applicable(tmp_path: Path) -> None:
    own_device(tmp_path)
    run = run_pytest("-v", "-k", "in_order", folder=tmp_path)
    assert run.returncode == 0
    assert "1 not applicable" in run.stdout


# Says which options it does not take once it has been connected to.
DIES = """\
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
listener.accept()[0].close()
sys.exit("there is no such option")
"""


# Ends with its first session, as the backends of several libraries do.
ONCE = """\
import os, sys
from pathlib import Path
from virtiopy.devices.rng import Rng
from virtiopy.eventloop import EventLoop
from virtiopy.vhost.user.backend import Backend
from virtiopy.vhost.user.server import listen

loop = EventLoop()
backend = Backend(Rng(), loop, lambda: os._exit(0))
with listen(Path(sys.argv[1])) as listener:
    listener.setblocking(True)
    stream, _ = listener.accept()
backend.connect(stream)
loop.run()
"""


def test_a_backend_that_listens_and_dies_is_the_users_fault(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    run = run_command(
        "--device", "rng", "--spawn", f"{sys.executable} dies.py {{socket}}", folder=tmp_path
    )
    assert run.returncode == 2
    assert "ended with status 1. there is no such option" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_backend_that_lives_and_does_not_listen_has_the_time_that_the_user_gives_it(
    tmp_path: Path,
) -> None:
    command = f"{sys.executable} -c 'import time; time.sleep(600)' {{socket}}"
    words = ("--device", "rng", "--spawn", command, "--spawn-time", "0.5")
    run = run_command(*words, folder=tmp_path)
    assert run.returncode == 2
    assert "nothing listens there after 0.5 s" in run.stderr
    assert "--spawn-time" in run.stderr
    assert "Traceback" not in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_a_backend_may_serve_one_connection_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "once.py").write_text(ONCE)
    command = f"{sys.executable} once.py {{socket}}"
    run = run_command("--device", "rng", "--spawn", command, "-k", "framing", folder=tmp_path)
    assert run.returncode == 0, run.stdout


def test_a_command_may_go_on_in_the_next_line_within_its_quotes() -> None:
    command = "backend --blockdev driver=file \\\n    --export addr.path={socket}"
    assert split(command) == [
        *("backend", "--blockdev", "driver=file", "--export", "addr.path={socket}")
    ]


def test_a_socket_that_nobody_serves_is_the_users_fault(tmp_path: Path) -> None:
    run = run_command("vhost-user:nobody.sock", "--device", "rng", folder=tmp_path)
    assert run.returncode == 2
    assert "No backend serves a device at nobody.sock" in run.stderr
    assert "Traceback" not in run.stderr
    assert "Exit" not in run.stdout


def test_the_command_runs_no_conftest_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for folder in (tmp_path, tmp_path / "tests"):
        (folder / "conftest.py").write_text("raise SystemExit('the conftest was run')")
    run = run_command("vhost-user:absent.sock", "--device", "rng", folder=tmp_path)
    assert run.returncode == 2
    assert "No backend serves a device at absent.sock" in run.stderr
    assert "the conftest was run" not in run.stdout + run.stderr


def test_a_device_that_wants_arguments_is_the_users_fault(tmp_path: Path) -> None:
    run = run_command("python:virtiopy.devices.blk:Blk", folder=tmp_path)
    assert run.returncode == 2
    assert "give what makes the device without arguments" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Say what to put to the test"),
        (["--virtio-target=inproc:disk"], "There is no device 'disk' here"),
        (["--virtio-target=vhost-user:x.sock"], "say --virtio-device=blk"),
        (["--virtio-spawn=true", "--virtio-device=blk"], "has no {socket} in it"),
        (["--virtio-target=python:nowhere:Disk"], "python:nowhere:Disk cannot be imported"),
        (["--virtio-target=inproc:blk", "--virtio-patience=soon"], "give a number of seconds"),
        (["--virtio-target=inproc:blk", "--virtio-device=net"], "The target is blk, and no net"),
    ],
)
def test_what_the_user_got_wrong_is_one_sentence(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    run = run_suite(*arguments, folder=tmp_path)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr


def test_the_report_says_what_every_statement_came_to_and_why(tmp_path: Path) -> None:
    own_device(tmp_path, SILENT, "Broken")
    path = tmp_path / "report.json"
    run = run_pytest(
        "--virtio-patience=0.2",
        f"--virtio-report={path}",
        "-k",
        "leaves_notifications_out or version_1_is_offered",
        folder=tmp_path,
    )
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    report = json.loads(path.read_text())
    [subject] = report["subjects"]
    assert (subject["device"], subject["transport"]) == ("rng", "mmio")
    clauses = {clause["id"]: clause for clause in subject["clauses"]}
    assert clauses["2.6:1"]["outcome"] == "failed"
    assert "not within 0.2 s" in clauses["2.6:1"]["reason"]
    # That is no notification too many: the test could not come so far.
    assert clauses["2.7.7.2:2"]["outcome"] == "blocked"
    assert "2.6:1 is broken" in clauses["2.7.7.2:2"]["reason"]
    assert clauses["6.2:1"]["outcome"] == "passed"
    assert clauses["6.2:3"]["outcome"] == "not observable"
    assert clauses["3.4.2:1"]["reason"] == "VIRTIO_F_SUSPEND was not offered"
    assert "5.2.6.2:1" not in clauses
    [failed] = [test for test in report["tests"] if test["outcome"] == "failed"]
    assert failed["clauses"] == ["2.7.7.2:2"]
    assert any("write QueueNotify" in line for line in failed["trace"])
