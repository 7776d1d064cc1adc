"""virtiopy hello: the smallest guest of each CPU mode."""

from typing import TYPE_CHECKING

import click

from virtiopy.cli.main import EXIT_ERROR, EXIT_GUEST_FAILED
from virtiopy.cli.options import accelerator_option, note

if TYPE_CHECKING:
    from virtiopy.metrics.exitlog import ExitLog

TIMEOUT_SECONDS = 10.0
MODES = ("real", "protected", "paged", "long")


def _exits(log: "ExitLog") -> str:
    """Count the exits by what they were about, as in "14 of the console port, 1 HLT"."""
    counts = []
    for kind, count in sorted(log.counts.items()):
        counts.append(f"{count} of the {kind.device}" if kind.device else f"{count} {kind.reason}")
    return f"exits: {', '.join(counts)}"


@click.command(epilog="Example: virtiopy hello --mode long")
@click.option(
    "--mode",
    "modes",
    type=click.Choice(MODES),
    multiple=True,
    help="The CPU mode; may be given several times. Default: each.",
)
@accelerator_option
def command(modes: tuple[str, ...], accel: str) -> int:
    """Run the smallest guest of each CPU mode.

    Each guest prints a line through port 0xE9, stores 42 at address 0x400, and halts with 42 in
    its accumulator; all three are checked. A mode that the host cannot execute at all is told
    apart from a guest that goes wrong: asked for by name it is an error (2), else it is shown.
    """
    from functools import partial

    from virtiopy.accel import select
    from virtiopy.vm.hello import Mode, mode_works, run_hello

    make_accelerator = partial(select, accel, interrupts=False, note=note)
    status = 0
    for name in modes or MODES:
        mode = Mode(name)
        result = run_hello(mode, make_accelerator, TIMEOUT_SECONDS)
        if result.passed:
            click.echo(f"{mode}: {result.output.strip()} ({_exits(result.exits)})")
        elif mode_works(mode, make_accelerator, TIMEOUT_SECONDS):
            click.echo(f"virtiopy: {result.explain()}", err=True)
            status = max(status, EXIT_GUEST_FAILED)
        else:
            end = result.last_exit.describe() if result.last_exit else "no exit"
            sentence = (
                f"this host's KVM cannot execute {mode} mode: even a lone HLT ends with {end}; "
                "use --accel tcg, or a machine whose KVM has VT-x or SVM under it."
            )
            if modes:
                click.echo(f"virtiopy: {sentence}", err=True)
                status = EXIT_ERROR
            else:
                click.echo(f"{mode}: {sentence}")
    return status
