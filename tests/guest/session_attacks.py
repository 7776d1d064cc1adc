"""Frontends that attack `virtiopy serve` by the sessions they begin, and what that costs others."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.guest.attacks import Cost, anonymous
from tests.guest.support import VIRTIOPY
from tests.guest.vhost_user import Backend
from tests.guest.vm_attacks import NEVER
from tests.namespace import Namespace
from tests.patience import PATIENCE
from tests.processes import wait_until
from tests.unit.vhost_user import FEATURES, Driver
from virtiopy.errors import VirtiopyError
from virtiopy.vhost.user.frontend import connect

#: GUEST_TSO4, without GUEST_CSUM, which it depends on (5.1.3.1).
TSO4_ALONE = FEATURES | 1 << 7

#: Breaks the protocol as often as it is let in, until it is killed: a header that says nothing
#: which is known, one of too long a payload, features that were not offered.
_BREAKER = """
import itertools, socket, sys
messages = [
    bytes.fromhex("ffff0000 01000000 00000000"),
    bytes.fromhex("05000000 01000000 ffffffff"),
    bytes.fromhex("02000000 01000000 08000000 ffffffffffffffff"),
]
for message in itertools.cycle(messages):
    with socket.socket(socket.AF_UNIX) as stream:
        try:
            stream.connect(sys.argv[1])
            stream.sendall(message)
            stream.recv(1)
        except OSError:
            pass
"""

#: How many of them there are.
_BREAKERS = 2


@dataclass(slots=True, frozen=True)
class SessionAttack:
    """What is served, what goes on beside the good sessions, and what is done before each."""

    device: str
    queues: int = 1
    #: Whether it has a tap, in a network namespace of its own.
    has_tap: bool = False
    beside: Callable[[Backend], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    step: Callable[[Path], None] = lambda path: None


@contextlib.contextmanager
def _breakers(backend: Backend) -> Iterator[None]:
    command = [sys.executable, "-S", "-c", _BREAKER, str(backend.path)]
    running = [subprocess.Popen(command) for _ in range(_BREAKERS)]
    try:
        wait_until(lambda: backend.output.count("disconnected") > len(running))
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def _offloads_without_checksums(path: Path) -> None:
    stream = connect(path)
    stream.settimeout(PATIENCE)
    # The session may end anywhere in this.
    with (
        contextlib.suppress(VirtiopyError, OSError),
        Driver(stream, queue_count=2, features=TSO4_ALONE) as driver,
    ):
        driver.start()
        driver.queues[1].notify()
        driver.frontend.get_features()


#: By name.
SESSION_ATTACKS: dict[str, SessionAttack] = {
    "GUEST_TSO4 without GUEST_CSUM": SessionAttack(
        "net", queues=2, has_tap=True, step=_offloads_without_checksums
    ),
    "sessions that break the protocol": SessionAttack("rng", beside=_breakers),
}


def _good_session(path: Path, queues: int) -> float:
    """Be served as a frontend that begins anew; returns how long that took, in seconds."""
    begun = time.monotonic()
    stream = connect(path)
    stream.settimeout(PATIENCE)
    with Driver(stream, queue_count=queues) as driver:
        driver.start()
        queue = driver.queues[queues - 1]
        # A random number of 64 bytes, or a frame of 60 with a header of 12 before it.
        queue.driver.add([driver.piece(bytes(72) if queues > 1 else 64)])
        queue.notify()
        queue.wait()
    return time.monotonic() - begun


def measure_sessions(
    name: str, folder: Path, seconds: float, program: Sequence[str] = VIRTIOPY
) -> Cost:
    """Serve a device, attack it for so long, and end it by SIGTERM while it is attacked."""
    attack = SESSION_ATTACKS[name]
    path = folder / "s.sock"
    command = [*program, "serve", attack.device, "--socket", str(path)]
    if not attack.has_tap:
        return _measure(attack, Backend(command, path), seconds)
    with Namespace() as namespace:
        command.insert(-2, f"tap=attack0,create=on,netns={namespace.name}")
        return _measure(attack, Backend(command, path), seconds)


def _measure(attack: SessionAttack, backend: Backend, seconds: float) -> Cost:
    path, process = backend.path, backend.process
    try:
        _good_session(path, attack.queues)
        before = growth = anonymous(process.pid)
        said = len(backend.output.splitlines())
        answers = []
        with attack.beside(backend):
            until = time.monotonic() + seconds
            while time.monotonic() < until and process.poll() is None:
                try:
                    attack.step(path)
                    answers.append(_good_session(path, attack.queues))
                except (OSError, VirtiopyError):
                    answers.append(NEVER)
                    break
                growth = max(growth, anonymous(process.pid))
            lines = len(backend.output.splitlines()) - said
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
            end = time.monotonic() - begun
    finally:
        backend.kill()
    return Cost(max(answers), end, growth - before, len(answers), lines)
