"""virtiopy replay: a recorded driver, played to another backend."""

import contextlib
import itertools
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from virtiopy.cli.main import EXIT_GUEST_FAILED
from virtiopy.cli.options import Seconds, note
from virtiopy.cli.sandboxed import Sandbox, sandbox_option
from virtiopy.errors import ConfigError
from virtiopy.sandbox.calls import Ability
from virtiopy.sandbox.process import SandboxMode


@click.command(
    epilog="""Example: has the new version of a backend another answer than the old one?

\b
  virtiopy proxy --listen seen.sock --connect old.sock --record bug.rec &
  ... whatever goes wrong, at seen.sock; then end the proxy ...
  virtiopy replay bug.rec --spawn 'new-backend --socket-path {socket}'
"""
)
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--spawn", metavar="COMMAND", help="Start the backend, at the socket {socket}.")
@click.option(
    "--spawn-time",
    type=Seconds(),
    default="60",
    metavar="SECONDS",
    help="Give a backend that was started so long to listen (60); its end is noticed at once.",
)
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Play to the backend at this Unix socket.",
)
@click.option(
    "--any-order", is_flag=True, help="Let the backend use chains in another order than before."
)
@click.option(
    "--patience",
    type=Seconds(),
    default="10",
    metavar="SECONDS",
    help="Wait so long for an answer, or for a chain to be used (10).",
)
@sandbox_option
def command(
    *,
    recording: Path,
    spawn: str | None,
    spawn_time: float,
    path: Path | None,
    any_order: bool,
    patience: float,
    sandbox: str,
    user: str | None,
) -> int:
    """Play the driver of RECORDING to a backend, and say where that answers otherwise.

    RECORDING is a file of `virtiopy proxy --record`. The backend is told the same messages, and
    has the same chains with the same bytes. Each difference is a line: another answer to a
    message, another used length, other bytes, another order. The status is 1 where there is one.
    With --spawn there is no sandbox: it starts programs.
    """
    from virtiopy.vhost.user.record.format import CutOffError, read
    from virtiopy.vhost.user.record.player import Player

    if (spawn is None) == (path is None):
        raise ConfigError("Say what to play to: give one of --spawn, --socket.")
    box = Sandbox("off" if spawn is not None and sandbox == "auto" else sandbox, user)
    if spawn is not None and box.mode is not SandboxMode.OFF:
        raise ConfigError("--spawn starts programs, which --sandbox on forbids: use --socket.")
    box.abilities |= Ability.CONNECT
    events = read(recording)
    # A file that is none is found before anything is started.
    first = list(itertools.islice(events, 1))
    cut = ""
    with contextlib.ExitStack() as stack:
        connector = _connector(spawn, spawn_time, path, stack)
        box.enter()
        player = Player(connector, click.echo, patience, any_order)
        try:
            player.play(itertools.chain(first, events))
        except CutOffError as error:
            cut = f"{error} What is before that was played."
    tally = player.tally
    click.echo(f"{tally}")
    if tally.missed:
        note(f"{tally.missed} chains of the driver are not in the recording: they came too late.")
    if tally.not_compared:
        note(f"{tally.not_compared} answers are not compared: the recording is not sure of them.")
    if cut:
        note(cut)
    return EXIT_GUEST_FAILED if tally.differences else 0


def _connector(
    spawn: str | None, spawn_time: float, path: Path | None, stack: contextlib.ExitStack
) -> Callable[[], socket.socket]:
    """Return what connects to the backend, and starts it where that is to be."""
    from virtiopy.vhost.user.frontend import connect

    if spawn is None:
        assert path is not None
        return partial(connect, path)
    from virtiopy.conformance.targets.backends import SpawnedBackend

    backend = stack.enter_context(SpawnedBackend(spawn, spawn_time))
    return partial(backend.connect, spawn_time)
