"""virtiopy proxy: between anybody's frontend and anybody's backend."""

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from virtiopy.cli.options import parse_mode
from virtiopy.cli.output import PATIENCE, patient_output
from virtiopy.cli.sandboxed import Sandbox, sandbox_option
from virtiopy.cli.signals import signals_as_file
from virtiopy.cli.trace import TraceChoice, Tracing, trace_options
from virtiopy.eventloop import READABLE, EventLoop
from virtiopy.sandbox.calls import Ability
from virtiopy.sockets import OWNER_ONLY
from virtiopy.vhost.user.messages import Message
from virtiopy.virtqueue.queue import QueueObserver


class _Nothing:
    """Sees what passes, and makes nothing of it."""

    observers: Sequence[QueueObserver] = ()

    def message(self, message: Message, from_frontend: bool) -> None:
        """See a message."""

    def kicked(self, index: int) -> None:
        """See a kick."""

    def called(self, index: int) -> None:
        """See a used buffer notification."""


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
@trace_options
@sandbox_option
def command(
    *,
    listen_at: Path,
    backend: Path,
    socket_mode: int | None,
    trace: str | None,
    trace_only: tuple[str, ...],
    sandbox: str,
    user: str | None,
) -> int:
    """Stand between a vhost-user frontend and a backend, pass all on, and show it with --trace.

    Messages pass as they are; kicks and calls pass by eventfds of the proxy's, which looks at the
    rings on the way and writes nothing into memory. What a driver or a device that polls does
    between two notifications can be missed. Until SIGTERM or Ctrl-C.
    """
    from virtiopy.vhost.user.frontend import connect
    from virtiopy.vhost.user.proxy import Proxy
    from virtiopy.vhost.user.server import listen

    box = Sandbox(sandbox, user)
    box.abilities |= Ability.CONNECT
    with contextlib.ExitStack() as stack:
        ended = signals_as_file(stack)
        printed = stack.enter_context(patient_output())
        tracing = Tracing.open(TraceChoice(trace, trace_only), stack)
        # Neither side waits for the trace's reader.
        tracing.hurry()
        loop = stack.enter_context(EventLoop("proxy"))
        listener = listen(listen_at, OWNER_ONLY if socket_mode is None else socket_mode)
        watch = tracing.device("proxy") or _Nothing()
        with Proxy(listener, partial(connect, backend), loop, watch):
            box.enter()
            loop.watch(ended, READABLE, lambda events: loop.stop(), "signals")
            click.echo(f"virtiopy: a proxy to {backend} is ready at {listen_at}")
            if printed is not None:
                printed.finish(PATIENCE)
            loop.run()
            if loop.failure is not None:
                raise loop.failure
    return 0
