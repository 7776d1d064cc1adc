"""Random walks: they find what is broken, show it in a few steps, and do the same again."""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.mutants.vhostuser import Faulty
from tests.conformance.runs import run_pytest, run_suite
from virtiopy.conformance.drivers import driver_of
from virtiopy.conformance.problems import BrokenError
from virtiopy.conformance.report.document import read
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.suite.test_walks import KEPT, PREFIX, SUFFIX, new_file
from virtiopy.conformance.targets.builders import BUILDERS
from virtiopy.conformance.targets.target import InprocTarget
from virtiopy.conformance.walks.search import Search
from virtiopy.conformance.walks.steps import (
    KINDS,
    Kick,
    ResetQueue,
    Send,
    Start,
    Step,
    Wait,
    WriteConfig,
    load,
)
from virtiopy.conformance.walks.walk import Walk
from virtiopy.errors import ConfigError, PeerError
from virtiopy.vhost.user.backend import Backend
from virtiopy.vhost.user.messages import Message, Request, RingState, u64

OWN_DEVICE = """\
from virtiopy.conformance.targets.target import inproc
from virtiopy.devices.rng import Rng

class Own(Rng):
    def __init__(self):
        super().__init__()
        self.before_loss = None
        self.served = self.again = False

    def start_queue(self, index, queue):
        super().start_queue(index, queue)
        self.before_loss = 2

    def reset(self):
        super().reset()
        self.again = self.served

    def handle(self, queue):
        while True:
            while (chain := queue.pop()) is not None:
                self.complete(queue, chain)
            self.notify(queue)
            if not queue.enable_kicks():
                return

    def complete(self, queue, chain):
        queue.push(chain, self.serve(queue, chain))

{broken}

virtio_target = inproc(Own{options})
"""

LOSES_THE_THIRD_AFTER_A_QUEUE_RESET = """\
    def complete(self, queue, chain):
        if self.before_loss is not None:
            self.before_loss -= 1
            if self.before_loss == -1:
                return
        queue.push(chain, self.serve(queue, chain))
"""

COMPLETES_TWICE_AFTER_A_RESET = """\
    def complete(self, queue, chain):
        queue.push(chain, self.serve(queue, chain))
        self.served = True
        if self.again and queue.state.vring_base == 2:
            state = queue.state
            queue.recover([chain.token])
            queue.push(queue.pop(), 0)
            queue.resume(state)
"""


def own_device(folder: Path, broken: str, options: str = "") -> None:
    text = OWN_DEVICE.format(broken=broken, options=options)
    (folder / "test_own.py").write_text(text)


FAILS_ONCE_IN_A_RUN = """\
    failed = []

    def complete(self, queue, chain):
        # The third request of the process's life, whichever walk it is in.
        self.failed.append(chain)
        if len(self.failed) == 3:
            return
        queue.push(chain, self.serve(queue, chain))
"""


def walk(folder: Path, *arguments: str) -> str:
    """Walk, where it has to fail; returns what was said."""
    run = run_pytest("--virtio-patience=0.2", "-k", "random_walk", *arguments, folder=folder)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    return run.stdout


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("broken", "options", "failure"),
    [
        (LOSES_THE_THIRD_AFTER_A_QUEUE_RESET, ", served=True", "not within 0.2 s"),
        (COMPLETES_TWICE_AFTER_A_RESET, "", "was used, and is not in flight"),
    ],
    ids=["loses the third after a queue reset", "completes twice after a reset"],
)
def test_a_walk_finds_what_is_broken_and_shows_it_in_a_few_steps(
    tmp_path: Path, broken: str, options: str, failure: str
) -> None:
    own_device(tmp_path, broken, options)
    said = walk(tmp_path, "--virtio-walks=200")
    assert failure in said
    assert "During handling" not in said
    found = re.search(r"--virtio-replay=(/\S+)", said)
    assert found is not None, said
    path = tmp_path / "walk.txt"
    shutil.move(found[1], path)
    assert len(load(path)) <= 4, path.read_text()
    # The same again, by the file alone; and not where it was mended.
    assert failure in walk(tmp_path, f"--virtio-replay={path}")
    own_device(tmp_path, "", options)
    run = run_pytest(f"--virtio-replay={path}", folder=tmp_path)
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout


@pytest.mark.thorough
def test_a_walk_that_fails_once_says_with_what(tmp_path: Path) -> None:
    own_device(tmp_path, FAILS_ONCE_IN_A_RUN, "")
    said = walk(tmp_path, "--virtio-walks=5")
    assert "not within 0.2 s" in said
    assert "The same again, which does not fail each time: --virtio-replay=" in said


def test_files_of_walks_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for number in range(3 * KEPT):
        path = tmp_path / f"{PREFIX}{number}{SUFFIX}"
        path.write_text("reset\n")
        os.utime(path, ns=(number, number))
    others = [tmp_path / f"{PREFIX}notes.md", tmp_path / f"{PREFIX}link{SUFFIX}"]
    others[0].write_text("")
    others[1].symlink_to(others[0])

    new = new_file()

    kept = {tmp_path / f"{PREFIX}{number}{SUFFIX}" for number in range(2 * KEPT + 1, 3 * KEPT)}
    assert set(tmp_path.iterdir()) == {new, *kept, *others}


def test_a_console_with_ports_is_not_reconnected_to(tmp_path: Path) -> None:
    path = tmp_path / "walk.txt"
    path.write_text("reconnect\nsend queue=1\nwait queue=1\n")
    run = run_suite(
        "--virtio-target=inproc:console",
        "--virtio-transport=vhost-user",
        f"--virtio-replay={path}",
        folder=tmp_path,
    )
    assert run.returncode == 0, run.stdout


class LeavesForAWriteItHasAcknowledged(Faulty):
    """As libvhost-user does: with the next message it is gone."""

    written = False

    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_CONFIG:
            self._reply(Message(message.request, u64(0)))
            self.written = True
            return True
        if self.written and message.request == Request.GET_VRING_BASE:
            raise PeerError("a field that is read-only was written")
        return False


class StopsWithARequestInFlight(Faulty):
    """Replies to GET_VRING_BASE while it has still something to use."""

    def _reply(self, reply: Message) -> None:
        if reply.request == Request.GET_VRING_BASE:
            state = RingState.decode(reply)
            reply.payload = replace(state, number=state.number + 1).encode()
        super()._reply(reply)


def walked_on(backend: type[Backend], *steps: Step) -> None:
    """Walk on a disk that is served by a backend with a fault."""
    target = InprocTarget(BUILDERS["blk"], "blk", served=True, backend=backend)
    with target.open(Trace()) as session:
        Walk(session, driver_of(session)).run(steps)


def test_a_backend_may_leave_after_a_wrong_write_that_it_has_replied_to() -> None:
    walked_on(LeavesForAWriteItHasAcknowledged, WriteConfig(), ResetQueue(), Send(), Wait())
    walked_on(LeavesForAWriteItHasAcknowledged, Send(count=2), WriteConfig())


@pytest.mark.parametrize(
    ("sent", "clause"),
    [(Send(kick=False), "GET_VRING_BASE:2"), (Kick(), "GET_VRING_BASE:1")],
    ids=["with a request in flight", "beyond what is available"],
)
def test_a_ring_is_stopped_where_nothing_is_in_flight(sent: Step, clause: str) -> None:
    with pytest.raises(BrokenError) as raised:
        walked_on(StopsWithARequestInFlight, Start(), sent, ResetQueue())
    assert raised.value.clause == clause


def test_a_step_is_what_its_line_says(tmp_path: Path) -> None:
    path = tmp_path / "walk.txt"
    path.write_text("# every step there is\n\n" + "\n".join(str(kind()) for kind in KINDS))
    assert load(path) == [kind() for kind in KINDS]


@pytest.mark.parametrize(
    "line", ["jump", "send queue=first", "send quee=1", "kick queue", "send kick=1"]
)
def test_what_is_no_step_is_said_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "walk.txt"
    path.write_text(f"start\n{line}\n")
    with pytest.raises(ConfigError, match=f"Line 2 .*{line}"):
        load(path)


def test_walks_alone_name_what_was_tested_and_leave_the_rest_untested(tmp_path: Path) -> None:
    own_device(tmp_path, "")
    options = ["--virtio-walks=3", "--virtio-report=report.json"]
    run = run_pytest("-k", "random_walk", *options, folder=tmp_path)
    assert run.returncode == 0, run.stdout
    document = read(tmp_path / "report.json")
    [subject] = document["subjects"]
    assert (subject["device"], subject["findings"]) == ("rng", [])
    assert [test["outcome"] for test in document["tests"]] == ["passed"]


def walked(number: int | None) -> list[Sequence[Step]]:
    """Return the walks that a seed comes to."""
    found: list[Sequence[Step]] = []
    Search(lambda steps, _: found.append(steps), 1, number).run([], 5)
    return found


@pytest.mark.thorough
def test_each_seed_has_walks_of_its_own_the_same_in_each_run() -> None:
    """As campaigns ask for them: --hypothesis-seed was taken, and changed nothing."""
    assert walked(1) == walked(1) != walked(2)
    assert walked(None) == walked(None)
