"""The option --sandbox, and what the other options need of it."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import click

from virtiopy.cli.attachments import needs_storage_daemon, vhost_user_path
from virtiopy.cli.options import DeviceOptions, note
from virtiopy.devices.entry import DeviceEntry
from virtiopy.errors import ConfigError
from virtiopy.sandbox.calls import Ability
from virtiopy.sandbox.files import removed, written
from virtiopy.sandbox.landlock import READ, Rule
from virtiopy.sandbox.process import SandboxMode, User, enter


def sandbox_option(function: Callable[..., int]) -> Callable[..., int]:
    """Give a subcommand the options --sandbox and --user."""
    function = click.option(
        "--user",
        metavar="NAME",
        help="Become this user, once all is set up: for root, whose files and devices are open "
        "then. What is written at the end has to be in a folder of the user's.",
    )(function)
    return click.option(
        "--sandbox",
        type=click.Choice([mode.value for mode in SandboxMode]),
        default=SandboxMode.AUTO.value,
        show_default=True,
        help="Give up, once all is set up, every capability, file and system call that is not "
        "needed any more; auto does with what the kernel has, on refuses one that lacks a part.",
    )(function)


def _images(entry: DeviceEntry, options: DeviceOptions) -> list[DeviceOptions]:
    """Return the options of each image that may be of any format."""
    if entry.name == "blk":
        return [options]
    return [part for _, part in options.parts]


class Sandbox:
    """Collects what the options of a command line need, and then enters the sandbox."""

    #: Whether this process was to enter one: what it has not open then it cannot open.
    entered: ClassVar[bool] = False

    def __init__(self, mode: str, user: str | None) -> None:
        self.mode = SandboxMode(mode)
        self.user = None if user is None else User.named(user)
        self.abilities = Ability.NONE
        self.rules: list[Rule] = []

    def reads(self, path: Path) -> None:
        """Keep a file that is read again."""
        self.rules.append(Rule(path, READ))

    def writes(self, path: Path | None) -> None:
        """Keep a file that is written at the end."""
        if path is not None:
            self.rules.append(written(path))

    def attaches(self, entry: DeviceEntry, options: DeviceOptions) -> None:
        """Keep what a device of the command line needs."""
        if vhost_user_path(options) is not None:
            self.abilities |= Ability.CONNECT
        elif any(needs_storage_daemon(one) for one in _images(entry, options)):
            from virtiopy.host.storage import running

            self.abilities |= Ability.START
            for daemon in running:
                self.rules += daemon.rules()
        if entry.starts and vhost_user_path(options) is None:
            # Each driver gets one of its own, in a root of its own: both are started later on.
            starts = f"{entry.option.name} starts {entry.starts} while the VM runs"
            if self.mode is SandboxMode.ON:
                raise ConfigError(f"{starts}, which --sandbox on forbids: leave one of them out.")
            if self.mode is SandboxMode.AUTO:
                note(f"No sandbox: {starts}.")
            self.mode = SandboxMode.OFF
        if entry.name == "console":
            for target in (
                options.main,
                *(text.partition(":")[2] for text in options.texts("port")),
            ):
                self.opens(target)

    def opens(self, target: str) -> None:
        """Keep what the host's side of a port takes away at its end: a link to a terminal."""
        kind, _, rest = target.partition(":")
        if kind == "pty" and rest:
            self.rules.append(removed(Path(rest)))

    def enter(self) -> None:
        """Enter it, for good; raises ConfigError and HostError."""
        # Threads that work rings let it through.
        from virtiopy.worker.thread import REMINDER

        Sandbox.entered = self.mode is not SandboxMode.OFF
        enter(
            self.mode,
            self.abilities,
            self.rules,
            signal_number=REMINDER,
            note=note,
            user=self.user,
        )
