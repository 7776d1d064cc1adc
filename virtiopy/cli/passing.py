"""The option --check of `virtiopy proxy`: both sides of a connection judged."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virtiopy.cli.check import report_path
from virtiopy.cli.options import note
from virtiopy.errors import ConfigError

if TYPE_CHECKING:
    from virtiopy.check.passing.check import PassingCheck


@dataclass(slots=True, frozen=True)
class PassingChecking:
    """The judge of a proxy, where one is asked for, and where its report goes."""

    check: "PassingCheck | None"
    path: Path | None

    @classmethod
    def open(cls, choice: str | None, device: str | None) -> "PassingChecking":
        """Take the options' values; raises ConfigError, before the proxy is there."""
        if choice is None:
            if device is not None:
                raise ConfigError("--device is for the judge: give --check with it.")
            return cls(None, None)
        from virtiopy.check.passing.check import PassingCheck
        from virtiopy.devices.registry import entry_named

        path = report_path("--check", choice)
        return cls(PassingCheck(None if device is None else entry_named(device).device_id), path)

    def finish(self) -> bool:
        """Show and write the verdict; says whether no MUST was broken."""
        if self.check is None:
            return True
        from virtiopy.check import report

        verdict = self.check.finish()
        for line in report.lines(verdict):
            click.echo(line)
        if self.check.missed:
            note(f"{self.check.missed} chains were seen too late, and are not judged.")
        if self.path is not None:
            report.write(verdict, self.path, told=note)
        return not verdict.errors
