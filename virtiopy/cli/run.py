"""virtiopy run: a guest driver in a VM, with devices."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from virtiopy.cli.attachments import ATTACHMENTS
from virtiopy.cli.check import DriverChecking, driver_check_option
from virtiopy.cli.main import EXIT_GUEST_FAILED
from virtiopy.cli.options import Seconds, accelerator_option, note, parse_size
from virtiopy.errors import ConfigError
from virtiopy.files import STANDARD_OUTPUT, check_output

#: What --exit-free says, as Machine is told it.
EXIT_FREE = {"on": True, "off": False, "auto": None}

#: How long, in seconds without progress, a reader of the output is waited for when the guest did
#: not end by itself.
PATIENCE = 0.5

#: An option whose value may be left out.
_option_without_value = partial(click.option, is_flag=False, flag_value="")


def _attachment_options(function: Callable[..., int]) -> Callable[..., int]:
    for attachment in reversed(ATTACHMENTS):
        function = (click.option if attachment.has_main else _option_without_value)(
            attachment.option,
            attachment.prefix,
            multiple=True,
            metavar=attachment.metavar,
            help=attachment.help,
        )(function)
    return function


@click.command(
    epilog="""Example: exercise a scratch disk's driver and device, destroying what is on the disk:

\b
  truncate -s 64M scratch.img
  virtiopy run --disk scratch.img --guest blk
"""
)
@_attachment_options
@click.option(
    "--guest",
    default="probe",
    show_default=True,
    metavar="NAME|ELF",
    help="What to run: a guest of virtiopy's or a PVH ELF file. `probe` looks at every device "
    "and writes to none; `blk` OVERWRITES the disks.",
)
@accelerator_option
@click.option(
    "--mode",
    type=click.Choice(["trapped", "ioeventfd"]),
    default="ioeventfd",
    show_default=True,
    help="How kicks travel: as exits to the CPU's thread, or as eventfds to the event loop. A "
    "device's own mode=... goes before.",
)
@click.option(
    "--exit-free",
    type=click.Choice(list(EXIT_FREE)),
    default="auto",
    show_default=True,
    help="Let the guest read registers from memory, and the kernel take InterruptACK, without "
    "exits; auto does where KVM can.",
)
@click.option(
    "--cpus",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many CPUs the guest has. The first boots, and the guest starts the others.",
)
@click.option("--append", default="", metavar="TEXT", help="More for the guest's command line.")
@click.option(
    "--memory",
    type=parse_size,
    default="64M",
    show_default=True,
    metavar="SIZE",
    help="Guest memory, as in 64M or 1G.",
)
@click.option(
    "--memory-path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep the guest's memory in this file, to look at while it runs and afterwards.",
)
@click.option(
    "--memory-reset",
    is_flag=True,
    help="Let --memory-path lose what its file holds, if that is no earlier guest's memory.",
)
@click.option("--hugepages", is_flag=True, help="Take the guest's memory in huge pages.")
@click.option(
    "--timeout",
    type=Seconds(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Stop a guest that runs longer; 0 lets it run for ever.",
)
@click.option(
    "--unassigned",
    type=click.Choice(["error", "ignore"]),
    default="error",
    show_default=True,
    help="What an access to an address is where no device is.",
)
@click.option(
    "--control",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Take commands on a Unix socket here, while the guest runs: see `virtiopy ctl`.",
)
@click.option(
    "--pcap",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Record the frames of the one --net in this file, as its pcap=FILE does.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write results and exit counts to this file.",
)
@driver_check_option
def command(
    *,
    guest: str,
    accel: str,
    mode: str,
    exit_free: str,
    cpus: int,
    append: str,
    memory: int,
    memory_path: Path | None,
    memory_reset: bool,
    hugepages: bool,
    timeout: float,
    unassigned: str,
    control: Path | None,
    pcap: Path | None,
    json_path: Path | None,
    check_driver: str | None,
    **attached: tuple[str, ...],
) -> int:
    """Run a guest driver in a VM with virtio devices, and count its exits.

    The guest's output is shown as it comes, then its test results, and what left the VM: by
    device and register, and as the kernel counted it. The status is 0 when the guest passes, 1
    when it reports failure, 2 when it could not be run to its end; a signal's is 128 and its
    number. Whatever ends the run, what was counted until then is shown and written.
    """
    from rich.console import Console

    from virtiopy.accel import select
    from virtiopy.boot.elf import GuestImage
    from virtiopy.boot.guests import guest_path
    from virtiopy.cli import report
    from virtiopy.cli.ending import run_to_end
    from virtiopy.cli.guestoutput import GuestOutput
    from virtiopy.cli.output import OutputError, patient_output
    from virtiopy.cli.signals import ended_by_signals
    from virtiopy.cli.tapresults import parse_tap
    from virtiopy.control.server import ControlServer
    from virtiopy.memory import GuestMemory
    from virtiopy.vm.machine import Machine
    from virtiopy.vm.slots import IoMode

    image = GuestImage.open(guest_path(guest))
    output = GuestOutput()
    with contextlib.ExitStack() as stack:
        stack.enter_context(ended_by_signals())
        shown = stack.enter_context(patient_output())
        ram = stack.enter_context(
            GuestMemory.allocate(memory, path=memory_path, huge_pages=hugepages, reset=memory_reset)
        )
        accelerator = select(accel, ram, note=note)
        stack.callback(accelerator.close)
        machine = stack.enter_context(
            Machine(
                ram,
                accelerator,
                console=output.write,
                cpus=cpus,
                ignore_unassigned=unassigned == "ignore",
                exit_free=EXIT_FREE[exit_free],
            )
        )
        checking = DriverChecking.open(check_driver, exit_free=machine.exit_free)
        if pcap is not None:
            attached["net"] = with_pcap(attached["net"], pcap)
        for attachment in ATTACHMENTS:
            for number, text in enumerate(attached[attachment.prefix]):
                options = attachment.parse(text)
                choice = attachment.choose_mode(options, mode)
                machine.add_device(
                    attachment.build(options),
                    f"{attachment.prefix}{number}",
                    IoMode(choice.mode),
                    refused=None if choice.required else note,
                    watch=checking.watch,
                )
        if control is not None:
            stack.enter_context(ControlServer(machine, control))
        if json_path is not None:
            # Now, and not when the guest has run for nothing.
            check_output(json_path, "The report")
        machine.boot(image, append)
        if shown is not None:
            machine.on_stop.append(shown.hurry)
        ending = run_to_end(machine, timeout)
        results = parse_tap(output.text, whole=output.is_whole)
        passed = ending.result.status == 0 and results.passed
        save = partial(report.write_json, machine, ending, results, guest=guest, passed=passed)
        unsaved: ConfigError | None = None
        # To a file first: standard output may have no reader.
        if json_path is not None and json_path != STANDARD_OUTPUT:
            try:
                save(json_path)
            except ConfigError as error:
                unsaved = error
        kept = True
        try:
            output.finish()
            kept = checking.finish()
            console = Console()
            report.show_tests(console, results)
            report.show_exits(console, ending.result)
            report.show_facts(console, machine)
            if json_path == STANDARD_OUTPUT:
                save(json_path)
            if shown is not None:
                shown.finish(None if ending.error is None else PATIENCE)
        except (BrokenPipeError, OutputError):
            if ending.error is None:
                raise
        if (raised := ending.error or unsaved) is not None:
            raise raised
    if results.complaint:
        click.echo(f"virtiopy: the guest's report is not whole: {results.complaint}.", err=True)
    if not passed:
        click.echo(f"virtiopy: the guest failed, with status {ending.result.status}.", err=True)
        return EXIT_GUEST_FAILED
    return 0 if kept else EXIT_GUEST_FAILED


def with_pcap(nets: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Give the one network device its record; raises ConfigError when there is not one."""
    if len(nets) != 1:
        raise ConfigError(
            f"--pcap is for one --net, and there are {len(nets)}: give each a pcap=FILE of its own."
        )
    escaped = str(path).replace(",", ",,")
    return (f"{nets[0]},pcap={escaped}",)
