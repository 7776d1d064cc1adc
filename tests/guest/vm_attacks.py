"""Guests, and users of its sockets, that attack a VM, and what that costs those who are good."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.guest.attacks import Cost, anonymous
from tests.guest.support import VIRTIOPY
from tests.patience import PATIENCE
from tests.unit.test_bounded_runs import self_feeding_image
from virtiopy.boot.guests import guest_path
from virtiopy.control.client import ask
from virtiopy.errors import VirtiopyError

#: An answer that did not come, seconds.
NEVER = float("inf")

#: How long an answer is waited for, and an end beyond its time: what takes longer never comes.
ANSWER_TIME = 15.0
END_TIME = 30.0


@dataclass(slots=True, frozen=True)
class VmAttack:
    """The guest's words, the options of its devices, and what else is done to its sockets."""

    guest: str
    words: str
    options: Callable[[Path], Sequence[str]]
    #: Done once before each good request.
    step: Callable[[Path], None] = lambda control: None
    needs_root: bool = False


def _attack(name: str, *options: str, needs_root: bool = False) -> VmAttack:
    return VmAttack("attack", f"attack={name}", lambda folder: options, needs_root=needs_root)


def _self_feeding(mode: str) -> VmAttack:
    def options(folder: Path) -> Sequence[str]:
        image = self_feeding_image(folder / "disk.img")
        return ("--disk", f"{image},format=raw,queue-size=64,mode={mode}")

    return VmAttack("attack", "attack=ring", options)


def _send(control: Path, request: bytes, *, answered: bool) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(ANSWER_TIME)
    stream.connect(str(control))
    stream.sendall(request)
    if answered:
        stream.recv(1 << 16)
    return stream


_idle: list[socket.socket] = []


def _idle_clients(control: Path) -> None:
    """16 clients that ask nothing, and stay."""
    while len(_idle) < 16:
        _idle.append(_send(control, b"", answered=False))


def _huge_target(control: Path) -> None:
    request = b'{"command": "balloon", "target": ' + b"9" * 4299 + b"}\n"
    _send(control, request, answered=True).close()


_SPIN = "misbehave=spin"

#: By name.
VM_ATTACKS: dict[str, VmAttack] = {
    "a read that overwrites its own ring, trapped": _self_feeding("trapped"),
    "a read that overwrites its own ring, ioeventfd": _self_feeding("ioeventfd"),
    "a console flood": _attack("console", "--console", "pty"),
    "a control queue flood": _attack(
        "control", "--net", "tap=attack0,create=on", "--mode", "ioeventfd", needs_root=True
    ),
    "marks without end": _attack("marks"),
    "addresses that are no device's": _attack("addresses", "--unassigned", "ignore"),
    "16 idle clients": VmAttack("misbehave", _SPIN, lambda folder: (), _idle_clients),
    "a balloon target of 4,299 digits": VmAttack(
        "misbehave", _SPIN, lambda folder: ("--balloon",), _huge_target
    ),
}


@contextmanager
def _run(
    program: Sequence[str], attack: VmAttack, folder: Path, timeout: float
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    folder.mkdir()
    control = folder / "c.sock"
    command = [
        *program, "run", "--accel", "tcg", "--guest", str(guest_path(attack.guest)),
        "--append", attack.words, "--timeout", f"{timeout:g}", "--control", str(control),
        *attack.options(folder),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        # In a network namespace of its own, which goes with it, where it makes a tap.
        process = subprocess.Popen(
            ["unshare", "--net", *command] if attack.needs_root else command,
            stdout=log,
            stderr=log,
            # Another checkout's program finds its own modules.
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )
    try:
        end = time.monotonic() + PATIENCE
        while _answer(control) == NEVER:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, "it does not start"
            time.sleep(0.01)
        yield process, control
    finally:
        while _idle:
            _idle.pop().close()
        process.kill()
        process.wait()


def _answer(control: Path) -> float:
    """Ask for the machine's state; returns how long that took, in seconds."""
    begun = time.monotonic()
    try:
        ask(control, {"command": "status"}, timeout=ANSWER_TIME)
    except VirtiopyError:
        taken = time.monotonic() - begun
        return NEVER if taken < ANSWER_TIME else taken
    return time.monotonic() - begun


def measure_vm(name: str, folder: Path, seconds: float, program: Sequence[str] = VIRTIOPY) -> Cost:
    """Attack a VM for so long; its end is by SIGTERM, or at its time, whatever takes longer."""
    attack = VM_ATTACKS[name]
    with _run(program, attack, folder / "signal", 0) as (process, control):
        before = growth = anonymous(process.pid)
        answers = []
        until = time.monotonic() + seconds
        while time.monotonic() < until and process.poll() is None:
            try:
                attack.step(control)
            except OSError:
                answers.append(NEVER)
                break
            answers.append(_answer(control))
            if process.poll() is None:
                growth = max(growth, anonymous(process.pid))
        ended = process.poll() is not None
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        end = _wait(process, begun)
    with _run(program, attack, folder / "time", seconds) as (process, _):
        # Its own clock began before.
        end = max(end, _wait(process, time.monotonic() + seconds))
    return Cost(NEVER if ended else max(answers), end, growth - before, len(answers))


def _wait(process: subprocess.Popen[bytes], since: float) -> float:
    """Return how long after `since` a process ends, in seconds."""
    try:
        process.wait(max(0.0, since - time.monotonic()) + END_TIME)
    except subprocess.TimeoutExpired:
        return NEVER
    return max(0.0, time.monotonic() - since)
