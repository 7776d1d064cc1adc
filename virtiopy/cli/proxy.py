"""virtiopy proxy: between anybody's frontend and anybody's backend."""

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virtiopy.cli.check import NO_FILE
from virtiopy.cli.main import EXIT_GUEST_FAILED
from virtiopy.cli.options import DeviceOptions, parse_mode, parse_size
from virtiopy.cli.output import PATIENCE, patient_output
from virtiopy.cli.passing import PassingChecking
from virtiopy.cli.sandboxed import Sandbox, sandbox_option
from virtiopy.cli.signals import signals_as_file
from virtiopy.cli.trace import TraceChoice, Tracing, trace_options
from virtiopy.devices.registry import names
from virtiopy.errors import ConfigError
from virtiopy.eventloop import READABLE, EventLoop
from virtiopy.sandbox.calls import Ability
from virtiopy.sockets import OWNER_ONLY

if TYPE_CHECKING:
    from virtiopy.vhost.user.record.recorder import Recorder


@click.command(
    epilog="""Example: see what QEMU and another's backend say to one another:

\b
  virtiopy proxy --listen seen.sock --connect backend.sock --trace &
  qemu-system-x86_64 ... -chardev socket,id=blk,path=seen.sock ...
"""
)
@click.option(
    "--listen",
    "listen_at",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    help="Listen for frontends at this Unix socket, one at a time.",
)
@click.option(
    "--connect",
    "backend",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    help="Pass each frontend on to the backend at this Unix socket.",
)
@click.option(
    "--socket-mode",
    type=parse_mode,
    default=None,
    metavar="MODE",
    help="Who may connect to --listen, as in 0660; 0600 where it is not given.",
)
@click.option(
    "--check",
    is_flag=False,
    flag_value=NO_FILE,
    metavar="[FILE]",
    help="Hold both sides against what virtio 1.4 states of drivers and devices, and say what they "
    "broke; FILE.html, .json or .xml is the whole report. The status is 1 where a MUST is broken.",
)
@click.option(
    "--device",
    type=click.Choice(names()),
    help="What the backend's device is: with --check, its requests are judged too.",
)
@click.option(
    "--record",
    metavar="FILE[,limit=SIZE]",
    help="Record messages, chains with their bytes, and what came of them, for `virtiopy replay`; "
    "no more than SIZE (1G).",
)
@trace_options
@sandbox_option
def command(
    *,
    listen_at: Path,
    backend: Path,
    socket_mode: int | None,
    check: str | None,
    device: str | None,
    record: str | None,
    trace: str | None,
    trace_only: tuple[str, ...],
    sandbox: str,
    user: str | None,
) -> int:
    """Stand between a vhost-user frontend and a backend, pass all on, and look at it.

    Messages pass as they are; kicks and calls pass by eventfds of the proxy's, which looks at the
    rings on the way and writes nothing into memory. What a driver or a device that polls does
    between two notifications can be missed. --trace shows what passes, --check judges both sides,
    --record keeps it. Until SIGTERM or Ctrl-C.
    """
    from virtiopy.vhost.user.frontend import connect
    from virtiopy.vhost.user.passing import ProxyWatch, Shown
    from virtiopy.vhost.user.proxy import Proxy
    from virtiopy.vhost.user.server import listen

    checking = PassingChecking.open(check, device)
    box = Sandbox(sandbox, user)
    box.writes(checking.path)
    box.abilities |= Ability.CONNECT
    with contextlib.ExitStack() as stack:
        ended = signals_as_file(stack)
        printed = stack.enter_context(patient_output())
        tracing = Tracing.open(TraceChoice(trace, trace_only), stack)
        # Neither side waits for the trace's reader.
        tracing.hurry()
        loop = stack.enter_context(EventLoop("proxy"))
        listener = listen(listen_at, OWNER_ONLY if socket_mode is None else socket_mode)
        watches: list[ProxyWatch] = []
        if (shown := tracing.device("proxy")) is not None:
            watches.append(Shown(shown))
        if checking.check is not None:
            watches.append(checking.check)
        if record is not None:
            watches.append(stack.enter_context(_recorder(record)))
        with Proxy(listener, partial(connect, backend), loop, watches):
            box.enter()
            loop.watch(ended, READABLE, lambda events: loop.stop(), "signals")
            click.echo(f"virtiopy: a proxy to {backend} is ready at {listen_at}")
            if printed is not None:
                printed.finish(PATIENCE)
            loop.run()
            if loop.failure is not None:
                raise loop.failure
        kept = checking.finish()
        if printed is not None:
            printed.finish(PATIENCE)
    return 0 if kept else EXIT_GUEST_FAILED


def _recorder(text: str) -> "Recorder":
    """Begin the recording that an option asks for; raises ConfigError."""
    from virtiopy.vhost.user.record.recorder import LIMIT, Recorder

    options = DeviceOptions("--record", text, ["limit"])
    if not options.main:
        raise ConfigError("--record needs a file: give its name first, as in bug.rec,limit=64M.")
    return Recorder(Path(options.main), parse_size(options.text("limit", str(LIMIT))))
