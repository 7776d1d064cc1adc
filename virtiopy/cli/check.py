"""virtiopy check: the statements to drivers; and the option that has a run's drivers judged."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from virtiopy.cli.options import note
from virtiopy.errors import ConfigError

if TYPE_CHECKING:
    from virtiopy.check.watch import DriverCheck
    from virtiopy.transport.placement import Transport
    from virtiopy.vm.slots import WatchTransport

#: What `--check-driver` without a file says.
_NO_FILE = "-"

_Command = TypeVar("_Command", bound=Callable[..., int])


@click.command(
    epilog="""Examples: what the specification asks of a driver of virtqueues; and a guest judged:

\b
  virtiopy check --statements 2.7
  virtiopy run --disk scratch.img --guest my-kernel.elf --check-driver=report.html
"""
)
@click.option(
    "--statements",
    "part",
    is_flag=False,
    flag_value="",
    metavar="[PART]",
    help="List the statements that virtio 1.4 makes to drivers, or those of a section (2.7) or a "
    "part (basic, split, mmio, net, blk, console, rng, balloon).",
)
def command(*, part: str | None) -> int:
    """Say what drivers are held against; `run --check-driver` holds them.

    Each statement is watched, or takes an unusual device, or no device can see it, with the reason.
    """
    from virtiopy.check.listing import listing

    for line in listing(part or None):
        click.echo(line)
    return 0


def driver_check_option(function: _Command) -> _Command:
    """Give a subcommand the option --check-driver."""
    return click.option(
        "--check-driver",
        is_flag=False,
        flag_value=_NO_FILE,
        metavar="[FILE]",
        help="Hold the driver against every statement that virtio 1.4 makes to it, and say which "
        "it broke; FILE.html, .json or .xml is the whole report. The status is 1 where a MUST is "
        "broken.",
    )(function)


@dataclass(slots=True)
class DriverChecking:
    """The judge of a run, where one is asked for; `exit_free` says that reads are not exits."""

    check: "DriverCheck | None"
    path: Path | None
    exit_free: bool

    @classmethod
    def open(cls, choice: str | None, *, exit_free: bool) -> "DriverChecking":
        """Take the option's value; raises ConfigError, before the run, for what cannot be."""
        if choice is None:
            return cls(None, None, exit_free)
        from virtiopy.check.report import FORMS
        from virtiopy.check.watch import DriverCheck
        from virtiopy.files import check_output

        path = None if choice == _NO_FILE else Path(choice)
        if path is not None:
            if path.suffix not in FORMS:
                raise ConfigError(
                    f"--check-driver={choice}: end the report's name with one of "
                    f"{', '.join(FORMS)}."
                )
            check_output(path, "The report")
        if exit_free:
            note(
                "the guest reads registers without exits, so what it reads is not judged: "
                "--exit-free off has all judged."
            )
        return cls(DriverCheck(), path, exit_free)

    @property
    def watch(self) -> "WatchTransport | None":
        """What `Machine.add_device` puts before a device's registers."""
        if self.check is None:
            return None
        return functools.partial(_watch, self.check, self.exit_free)

    def finish(self) -> bool:
        """Show and write the verdict; says whether no MUST was broken."""
        if self.check is None:
            return True
        from virtiopy.check import report

        verdict = self.check.finish()
        for line in report.lines(verdict):
            click.echo(line)
        if self.path is not None:
            report.write(verdict, self.path, told=note)
        return not verdict.errors


def _watch(
    check: "DriverCheck", exit_free: bool, name: str, transport: "Transport", trapped: bool
) -> "Transport":
    return check.watch_registers(name, transport, sees_reads=not exit_free, sees_kicks=trapped)
