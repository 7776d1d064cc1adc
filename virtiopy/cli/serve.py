"""virtiopy serve: a device for another VMM, over vhost-user."""

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virtiopy.cli import attachments
from virtiopy.cli.attachments import build_served, parse, vhost_user_path
from virtiopy.cli.check import DriverChecking, driver_check_option
from virtiopy.cli.devices import DeviceCommand, served_device
from virtiopy.cli.main import EXIT_GUEST_FAILED
from virtiopy.cli.options import parse_mode
from virtiopy.cli.output import PATIENCE, patient_output
from virtiopy.cli.sandboxed import Sandbox, sandbox_option
from virtiopy.cli.signals import signals_as_file
from virtiopy.cli.trace import TraceChoice, Tracing, trace_options
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.entry import DeviceEntry
from virtiopy.devices.registry import entry_named
from virtiopy.errors import ConfigError
from virtiopy.eventloop import READABLE, EventLoop
from virtiopy.sandbox.calls import Ability
from virtiopy.sockets import OWNER_ONLY

if TYPE_CHECKING:
    from virtiopy.memory import GuestMemory
    from virtiopy.vhost.user.backend import Backend
    from virtiopy.vhost.user.rings import Lease


@click.command(
    cls=DeviceCommand,
    device_params=served_device,
    epilog="""Example: give QEMU a disk, 4 queues wide:

\b
  virtiopy serve blk disk.img,queues=4 --socket blk.sock &
  qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=ram,size=1G,share=on \\
    -machine q35,memory-backend=ram -chardev socket,id=blk,path=blk.sock,reconnect=1 \\
    -device vhost-user-blk-pci,chardev=blk,num-queues=4

The page vhost-user.md (docs/ of the sources, share/doc/virtiopy of an installation)
has network devices, libvirt and other VMMs, and systemd.
""",
)
@click.argument("options", default="")
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Listen at this Unix socket, one frontend at a time.",
)
@click.option(
    "--connect",
    is_flag=True,
    help="Connect to the socket, at which the frontend listens, as soon and as often as it does, "
    "instead of listening there.",
)
@click.option(
    "--socket-fd",
    type=click.IntRange(min=0),
    metavar="N",
    help="Listen at a socket that is open already, as file descriptor N (socket activation).",
)
@click.option(
    "--socket-mode",
    type=parse_mode,
    metavar="MODE",
    help="Who may connect to --socket, as in 0660; 0600 where it is not given, whatever the umask.",
)
@click.option(
    "--control",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Take commands on a Unix socket here, while the device is served: see `virtiopy ctl`.",
)
@driver_check_option
@trace_options
@sandbox_option
def command(
    *,
    device: str,
    options: str,
    path: Path | None,
    connect: bool,
    socket_fd: int | None,
    socket_mode: int | None,
    control: Path | None,
    check_driver: str | None,
    trace: str | None,
    trace_only: tuple[str, ...],
    sandbox: str,
    user: str | None,
) -> int:
    """Serve DEVICE to another VMM over vhost-user, until SIGTERM or Ctrl-C.

    OPTIONS are those of the device's option in `virtiopy run`: a disk's path and keys for blk,
    tap=NAME,... for net, a target for console. One frontend is served at a time; when it leaves,
    or breaks the protocol, the device waits for the next. A line says when the device can be had.
    SIGTERM ends what is in flight first.

    With --check-driver, features, rings and requests of the frontend's driver are judged; what
    went before is between the driver and its VMM.
    """
    from virtiopy.control.server import ControlServer
    from virtiopy.vhost.user.server import Server

    checking = DriverChecking.open(check_driver, exit_free=False)
    box = Sandbox(sandbox, user)
    box.writes(checking.path)
    if connect:
        box.abilities |= Ability.CONNECT

    with contextlib.ExitStack() as stack:
        # First of all: a program that sees the socket may end this one.
        ended = signals_as_file(stack)
        # A signal interrupts no write to a pipe that is full and not read.
        printed = stack.enter_context(patient_output())
        source, name = _source(path, socket_fd, socket_mode, connect=connect)
        if isinstance(source, socket.socket):
            stack.callback(source.close)
        served, lease, mode = _build(entry_named(device), options, box)
        stack.callback(served.close)
        tracing = Tracing.open(TraceChoice(trace, trace_only), stack)
        # Other frontends do not wait for the trace's reader.
        tracing.hurry()
        loop = stack.enter_context(EventLoop("serve"))
        server = Server(served, loop, source, kept=path is None, lease=lease)
        # Closed on this thread, as the loop ran here: nothing is done beside it any more.
        with server:
            checking.watch_frontend(device, server.backend.lifecycle)
            tracing.watch_backend(device, server.backend)
            given = _Served(f"{device}0", server.backend, loop)
            controlled = stack.enter_context(contextlib.ExitStack())
            if control is not None:
                controlled.enter_context(ControlServer(given, control))
            # Before there are threads that work rings.
            box.enter()
            # What watches the queues watches them in Python.
            if mode.required or not (checking.watches or tracing.watches):
                given.mode = _delegate(served, mode)
            loop.watch(ended, READABLE, lambda events: loop.stop(), "signals")
            click.echo(f"virtiopy: {device} {'connects to' if connect else 'is ready at'} {name}")
            if printed is not None:
                printed.finish(PATIENCE)
            with controlled:
                loop.run()
            if loop.failure is not None:
                raise loop.failure
        kept = checking.finish(passed=False)
        if printed is not None:
            printed.finish(PATIENCE)
    return 0 if kept else EXIT_GUEST_FAILED


def _source(
    path: Path | None, socket_fd: int | None, socket_mode: int | None, *, connect: bool
) -> tuple[socket.socket | Path, str]:
    """Return the socket to listen at, or the path to connect to, and what to call it."""
    from virtiopy.vhost.user.server import listen

    if (path is None) == (socket_fd is None):
        raise ConfigError("Say where the device is to be had: give one of --socket, --socket-fd.")
    if socket_mode is not None and (path is None or connect):
        raise ConfigError("--socket-mode is for a --socket that virtiopy makes: leave it out.")
    if path is None:
        if connect:
            raise ConfigError("--connect needs a --socket to connect to.")
        return _inherited(socket_fd or 0), f"file descriptor {socket_fd}"
    mode = OWNER_ONLY if socket_mode is None else socket_mode
    return (path if connect else listen(path, mode)), str(path)


def _inherited(fd: int) -> socket.socket:
    """Take a socket that listens; raises ConfigError for what is none."""
    try:
        listener = socket.socket(fileno=fd)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"File descriptor {fd} is no socket: give the number of one that listens."
        ) from error
    listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family != socket.AF_UNIX or not listens:
        listener.detach()
        raise ConfigError(
            f"File descriptor {fd} is no Unix socket that listens: "
            "let the program that starts virtiopy bind one and listen."
        )
    return listener


def _build(
    entry: DeviceEntry, text: str, box: Sandbox
) -> "tuple[VirtioDevice, Lease | None, attachments.ModeChoice]":
    """Build the device, what its rings claim, and say what is to work them."""
    options = parse(entry, text, f"serve {entry.name}")
    if given := {"vhost", "vhost-user"} & set(options.keys):
        raise ConfigError(f"{given.pop()}=... is for virtiopy's own VM: leave it out.")
    if options.text("mode", "native") not in {"native", "ioeventfd", attachments.AUTO}:
        raise ConfigError("mode=... is for virtiopy's own VM: leave it out.")
    if vhost_user_path(options) is not None:
        raise ConfigError("What is served already can only be attached: name an image.")
    served, lease = build_served(entry, options)
    box.attaches(entry, options)
    return served, lease, attachments.mode_of(entry, options, attachments.AUTO)


@dataclass(slots=True)
class _Served:
    """The device, as a control socket is given it: the one of its frontend's guest."""

    name: str
    backend: "Backend"
    loop: EventLoop
    mode: str = "ioeventfd"

    @property
    def device(self) -> VirtioDevice:
        """The device."""
        return self.backend.device

    @property
    def memory(self) -> "GuestMemory":
        """What the frontend has given of the guest's memory."""
        return self.backend.memory

    @property
    def slots(self) -> "Sequence[_Served]":
        """The devices: this one."""
        return [self]

    @property
    def status(self) -> int:
        """The bits of the device status field, as far as the frontend has told of them."""
        return self.backend.lifecycle.status

    def change_mode(self, mode: str) -> None:
        """Refuse: raises ConfigError."""
        raise ConfigError(
            f"{self.name} is served, and stays in {self.mode} mode: serve it again with "
            f"mode={mode}."
        )


def _delegate(served: VirtioDevice, choice: attachments.ModeChoice) -> str:
    """Have a thread in C work the device's rings where that is the mode and can be had.

    Returns the mode that it is in.
    """
    from virtiopy.errors import HostError
    from virtiopy.worker.native import open_native

    if choice.mode == "native":
        try:
            served.delegate(open_native)
        except (ConfigError, HostError):
            if choice.required:
                raise
        else:
            return "native"
    return "ioeventfd"
