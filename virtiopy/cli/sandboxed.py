"""The option --sandbox, and what the other options need of it."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import click

from virtiopy.cli.attachments import needs_storage_daemon, vhost_user_path
from virtiopy.cli.deferred import import_deferred
from virtiopy.cli.options import DeviceOptions, note
from virtiopy.devices.entry import DeviceEntry, find
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


#: What is imported when a guest has run, which need not wait for it.
AT_THE_END = ("virtiopy.cli.report", "virtiopy.cpu.rare_exits", "tap.parser")


@dataclass(slots=True, frozen=True)
class Needs:
    """What a device does of its own once it is set up: abilities, and files.

    `beyond` is what no sandbox lets it do, as a clause: there is none then.
    """

    abilities: Ability = Ability.NONE
    rules: Sequence[Rule] = ()
    beyond: str = ""


def needs_of_disk(options: DeviceOptions) -> Needs:
    """Say what a disk needs: its qemu-storage-daemon, where it has one, is started again."""
    return _needs_of_images([options])


def needs_of_units(options: DeviceOptions) -> Needs:
    """Say what the units of a SCSI host device need: root takes the kernel's target away."""
    if options.text("mode", "") == "vhost" and options.parts:
        return Needs(beyond="--scsi mode=vhost takes its target away at the end, as root")
    return _needs_of_images([part for _, part in options.parts])


def _needs_of_images(images: Sequence[DeviceOptions]) -> Needs:
    if not any(needs_storage_daemon(image) for image in images):
        return Needs()
    from virtiopy.host.storage import running

    return Needs(Ability.START, [rule for daemon in running for rule in daemon.rules()])


def needs_of_vsock(options: DeviceOptions) -> Needs:
    """Say what a socket device needs: it connects to the program at the port that a guest wants."""
    return Needs(Ability.CONNECT)


def needs_of_console(options: DeviceOptions) -> Needs:
    """Say what the ports of a console need."""
    ports = (text.partition(":")[2] for text in options.texts("port"))
    return Needs(rules=[rule for target in (options.main, *ports) for rule in _link_rules(target)])


def _link_rules(target: str) -> Iterator[Rule]:
    """Let a link to a pseudoterminal be taken away at the end."""
    kind, _, rest = target.partition(":")
    if kind == "pty" and rest:
        yield removed(Path(rest))


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
        elif entry.needs is not None:
            needs = cast("Callable[[DeviceOptions], Needs]", find(entry.needs))(options)
            self.abilities |= needs.abilities
            self.rules += needs.rules
            if needs.beyond:
                self._leave_out(needs.beyond)

    def _leave_out(self, why: str) -> None:
        """Have no sandbox; raises ConfigError where it was asked for."""
        if self.mode is SandboxMode.ON:
            raise ConfigError(f"{why}, which --sandbox on forbids: leave one of them out.")
        if self.mode is SandboxMode.AUTO:
            note(f"No sandbox: {why}.")
        self.mode = SandboxMode.OFF

    def opens(self, target: str) -> None:
        """Keep what the host's side of a port takes away at its end: a link to a terminal."""
        self.rules += _link_rules(target)

    def imports(self, *modules: str) -> None:
        """Keep modules that are imported when a guest has run."""
        if self.user is not None:
            # The user might not be let into their folders.
            import_deferred()
            for module in modules:
                importlib.import_module(module)

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
