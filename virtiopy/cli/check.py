"""virtiopy check: the statements to drivers; and the option that has a run's drivers judged."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from virtiopy.cli.options import note
from virtiopy.errors import ConfigError

if TYPE_CHECKING:
    from virtiopy.check.dress import Dressing
    from virtiopy.check.watch import DriverCheck
    from virtiopy.devices.base import VirtioDevice
    from virtiopy.transport.lifecycle import Lifecycle
    from virtiopy.transport.placement import Transport
    from virtiopy.vm.slots import WatchTransport

#: What `--check-driver` without a file says.
NO_FILE = "-"

_Command = TypeVar("_Command", bound=Callable[..., int])


@click.command(
    epilog="""Examples: what the specification asks of a driver of virtqueues; and a guest judged:

\b
  virtiopy check --statements 2.7
  virtiopy run --disk scratch.img --guest my-kernel.elf --check-driver=report.html
"""
)
@click.option("--variants", is_flag=True, help="List the unusual and the hostile devices of `run`.")
@click.option(
    "--statements",
    "part",
    is_flag=False,
    flag_value="",
    metavar="[PART]",
    help="List the statements that virtio 1.4 makes to drivers, or those of a section (2.7) or a "
    "part (basic, split, mmio, net, blk, console, rng, balloon).",
)
def command(*, part: str | None, variants: bool) -> int:
    """Say what drivers are held against; `run --check-driver` holds them.

    Each statement is watched, or takes an unusual device, or no device can see it, with the reason.
    """
    from virtiopy.check.listing import listing, variant_listing

    if part is None and not variants:
        raise ConfigError("Say what to list: --statements or --variants.")
    for line in variant_listing() if variants else listing(part or None):
        click.echo(line)
    return 0


def driver_check_option(function: _Command) -> _Command:
    """Give a subcommand the option --check-driver."""
    return click.option(
        "--check-driver",
        is_flag=False,
        flag_value=NO_FILE,
        metavar="[FILE]",
        help="Hold the driver against every statement that virtio 1.4 makes to it, and say which "
        "it broke; FILE.html, .json or .xml is the whole report. The status is 1 where a MUST is "
        "broken.",
    )(function)


def unusual_device_options(function: _Command) -> _Command:
    """Give a subcommand the options that make its devices unusual or hostile."""
    function = click.option(
        "--hostile",
        metavar="NAME",
        help="Have the devices break the specification, to harden a driver: `virtiopy check "
        "--variants` lists how; `all`, or several names with commas, runs the guest with each in "
        "turn.",
    )(function)
    return click.option(
        "--device-variant",
        metavar="NAME",
        help="Have the devices be legal but unusual, which a right driver takes: `virtiopy check "
        "--variants` lists how; `all`, or several names with commas, runs the guest with each in "
        "turn, and ends with a table. `all` also withholds each feature that a device offers.",
    )(function)


def find_dressing(variant: str | None, hostile: str | None) -> "Callable[[], Dressing] | None":
    """Return what is put over each device; raises ConfigError for a name that is none."""
    if variant and hostile:
        raise ConfigError("A device is either unusual or hostile: leave one of the options out.")
    if variant:
        from virtiopy.check.variants import find

        return find(variant).dressing
    if hostile:
        from virtiopy.check import hostile as devices

        return devices.find(hostile).dressing
    return None


def report_path(option: str, choice: str) -> Path | None:
    """Return where the report goes that an option asks for; None where it asks for none.

    Raises ConfigError for one that cannot be written.
    """
    from virtiopy.check.report import FORMS
    from virtiopy.files import check_output

    if choice == NO_FILE:
        return None
    path = Path(choice)
    if path.suffix not in FORMS:
        raise ConfigError(
            f"{option}={choice}: end the report's name with one of {', '.join(FORMS)}."
        )
    check_output(path, "The report")
    return path


@dataclass(slots=True)
class DriverChecking:
    """The judge of a run, where one is asked for, and what is put over each of its devices.

    `exit_free` says that reads of registers are not exits.
    """

    check: "DriverCheck | None"
    path: Path | None
    exit_free: bool
    make_dressing: "Callable[[], Dressing] | None" = None
    variant: str | None = None
    _dressings: "dict[str, Dressing]" = field(default_factory=dict)

    @property
    def watches(self) -> bool:
        """Whether there is a judge, or anything put over the devices."""
        return self.check is not None or self.make_dressing is not None

    @classmethod
    def open(
        cls,
        choice: str | None,
        *,
        exit_free: bool,
        variant: str | None = None,
        hostile: str | None = None,
    ) -> "DriverChecking":
        """Take the options' values; raises ConfigError, before the run, for what cannot be."""
        dressing = find_dressing(variant, hostile)
        if choice is None:
            return cls(None, None, exit_free, dressing, variant)
        from virtiopy.check.watch import DriverCheck

        path = report_path("--check-driver", choice)
        if exit_free:
            note(
                "the guest reads registers without exits, so what it reads is not judged: "
                "--exit-free off has all judged."
            )
        return cls(DriverCheck(), path, exit_free, dressing, variant)

    def prepare(self, device: "VirtioDevice") -> "WatchTransport | None":
        """Make a device unusual; returns what `Machine.add_device` puts before its registers."""
        dressing = None if self.make_dressing is None else self.make_dressing()
        if dressing is not None:
            dressing.device(device)
        if dressing is None and self.check is None:
            return None

        def watch(name: str, transport: "Transport", trapped: bool) -> "Transport":
            if dressing is not None:
                transport = dressing.dress(transport)
                self._dressings[name] = dressing
            if self.check is None:
                return transport
            return self.check.watch_registers(
                name, transport, sees_reads=not self.exit_free, sees_kicks=trapped
            )

        return watch

    def watch_frontend(self, name: str, lifecycle: "Lifecycle") -> None:
        """Judge the driver that a vhost-user frontend speaks for, where that is asked for."""
        if self.check is not None:
            self.check.watch_frontend(name, lifecycle)

    def finish(self, *, passed: bool) -> bool:
        """Show and write the verdict; says whether no MUST was broken.

        `passed` says whether the guest did what it was to do.
        """
        if self.check is None:
            return True
        from virtiopy.check import report

        if passed and self.variant is not None:
            acted = [name for name, one in self._dressings.items() if one.has_acted]
            self.check.survived(self.variant, acted)
        verdict = self.check.finish()
        for line in report.lines(verdict):
            click.echo(line)
        if self.path is not None:
            report.write(verdict, self.path, told=note)
        return not verdict.errors
