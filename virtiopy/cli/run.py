"""virtiopy run: a guest driver or a kernel in a VM, with devices."""

import contextlib
from functools import partial
from pathlib import Path

import click

from virtiopy.cli.devices import DeviceCommand, attach_options
from virtiopy.cli.inturn import asks_for_turns, run_in_turn
from virtiopy.cli.machines import MachineOptions, machine_options, open_machine
from virtiopy.cli.main import EXIT_GUEST_FAILED
from virtiopy.cli.sandboxed import AT_THE_END
from virtiopy.cli.until import Until, until_options
from virtiopy.errors import ConfigError
from virtiopy.files import check_output

#: What a guest of our own has where it is not said: memory in bytes, time in seconds.
_GUEST_MEMORY = 64 << 20
_GUEST_TIMEOUT = 60.0


@click.command(
    cls=DeviceCommand,
    device_params=attach_options,
    epilog="""Example: exercise a scratch disk's driver and device, destroying what is on the disk:

\b
  truncate -s 64M scratch.img
  virtiopy run --disk scratch.img --guest blk

\b
A kernel, its console on the terminal; Ctrl-a x ends it:
  virtiopy run --kernel vmlinuz --initrd initrd.img --disk disk.img
""",
)
@click.option(
    "--guest",
    metavar="NAME|ELF",
    help="What to run: a guest of virtiopy's or a PVH ELF file. `probe`, which is run where "
    "nothing is named, looks at every device and writes to none; `blk` OVERWRITES the disks.",
)
@click.option(
    "--kernel",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run a kernel in place of a guest: Linux's bzImage or vmlinux, or another ELF file with a "
    "PVH note or a multiboot header.",
)
@click.option(
    "--initrd",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The kernel's initial ramdisk.",
)
@click.option(
    "--serial",
    metavar="TARGET",
    help="The host's side of a kernel's serial port, its console: stdio (the default; Ctrl-a x "
    "ends the run), stdout, pty[:LINK], socket:PATH, file:PATH or none.",
)
@click.option("--append", default="", metavar="TEXT", help="More for the guest's command line.")
@click.option(
    "--unassigned",
    type=click.Choice(["error", "ignore"]),
    help="What an access to an address is where no device is: an error, unless said otherwise, or "
    "all ones as on a PC, which is a kernel's default.",
)
@until_options
@machine_options
def command(
    *,
    options: MachineOptions,
    guest: str | None,
    kernel: Path | None,
    initrd: Path | None,
    serial: str | None,
    append: str,
    until: str | None,
    until_failure: str | None,
    timeout: float | None,
    unassigned: str | None,
    json_path: Path | None,
    **attached: tuple[str, ...],
) -> int:
    """Run a guest driver or a kernel in a VM with virtio devices, and count its exits.

    The guest's output is shown as it comes, then its test results, and what left the VM: by
    device and register, and as the kernel counted it. The status is 0 when the guest passes, 1
    when it reports failure, 2 when it could not be run to its end; a signal's is 128 and its
    number. Whatever ends the run, what was counted until then is shown and written.

    A kernel's status is 0 when it switches itself off, and 1 when it panics.
    """
    if asks_for_turns(options.device_variant, options.hostile):
        return run_in_turn(click.get_current_context(), with_console=kernel is not None)
    if kernel is not None:
        if guest is not None:
            raise ConfigError("There are --guest and --kernel: leave one of them out.")
        return _run_kernel(
            kernel,
            initrd,
            serial or "stdio",
            options,
            attached,
            append=append,
            timeout=timeout,
            unassigned=unassigned or "ignore",
            json_path=json_path,
            until=Until(until, until_failure),
        )
    for option, value in (("--initrd", initrd), ("--serial", serial)):
        if value is not None:
            raise ConfigError(f"{option} is for a kernel: name one with --kernel.")
    return _run_guest(
        guest or "probe",
        append,
        options,
        attached,
        timeout=_GUEST_TIMEOUT if timeout is None else timeout,
        unassigned=unassigned or "error",
        json_path=json_path,
        until=Until(until, until_failure),
    )


def _run_guest(
    guest: str,
    append: str,
    options: MachineOptions,
    attached: dict[str, tuple[str, ...]],
    *,
    timeout: float,
    unassigned: str,
    json_path: Path | None,
    until: Until,
) -> int:
    from virtiopy.boot.elf import GuestImage
    from virtiopy.boot.guests import guest_path
    from virtiopy.cli.ending import run_to_end, tell
    from virtiopy.cli.guestoutput import GuestOutput
    from virtiopy.cli.output import patient_output
    from virtiopy.cli.tapresults import parse_tap

    image = GuestImage.open(guest_path(guest))
    output = GuestOutput()
    with contextlib.ExitStack() as stack:
        printed = stack.enter_context(patient_output())
        machine, checking = open_machine(
            stack,
            options,
            attached,
            console=until.watching(output.write),
            default_memory=_GUEST_MEMORY,
            ignore_unassigned=unassigned == "ignore",
        )
        until.end = machine.end
        if json_path is not None:
            # Now, and not when the guest has run for nothing.
            check_output(json_path, "The report")
        machine.boot(image, append)
        if printed is not None:
            machine.on_stop.append(printed.hurry)
        options.sandbox.reads(Path(image.path))
        options.sandbox.writes(json_path)
        options.sandbox.imports(*AT_THE_END)
        options.sandbox.enter()
        ending = run_to_end(machine, timeout, Path(image.path))
        results = parse_tap(output.text, whole=output.is_whole)
        passed = until.passed(ending.result.status == 0 and results.passed)
        kept = True

        from rich.console import Console

        from virtiopy.cli import report

        def show() -> None:
            nonlocal kept
            output.finish()
            kept = checking.finish(passed=passed)
            console = Console()
            report.show_tests(console, results)
            report.show_exits(console, ending.result)
            report.show_facts(console, machine)
            report.show_standing(console, ending)

        save = partial(report.write_json, machine, ending, results, guest=guest, passed=passed)
        tell(ending, show, save, json_path, printed)
    if until.missed():
        click.echo(f"virtiopy: the guest ended and did not print {until.success!r}.", err=True)
    elif results.complaint and until.status is None:
        click.echo(f"virtiopy: the guest's report is not whole: {results.complaint}.", err=True)
    if not passed:
        click.echo(f"virtiopy: the guest failed, with status {ending.result.status}.", err=True)
        return EXIT_GUEST_FAILED
    return 0 if kept else EXIT_GUEST_FAILED


def _run_kernel(
    path: Path,
    initrd_path: Path | None,
    serial: str,
    options: MachineOptions,
    attached: dict[str, tuple[str, ...]],
    *,
    append: str,
    timeout: float | None,
    unassigned: str,
    json_path: Path | None,
    until: Until,
) -> int:
    from virtiopy.boot.kernel import open_kernel
    from virtiopy.boot.parameters import Initrd
    from virtiopy.cli import kernelrun
    from virtiopy.cli.ending import tell
    from virtiopy.cli.guestoutput import GuestOutput
    from virtiopy.cli.output import patient_output
    from virtiopy.cli.tapresults import parse_tap
    from virtiopy.vm.pc import Pc

    kernel = open_kernel(path)
    initrd = None if initrd_path is None else Initrd.read(initrd_path)
    with contextlib.ExitStack() as stack:
        printed = stack.enter_context(patient_output())
        stream, shown = kernelrun.open_serial(serial)
        output = kernelrun.SerialOutput(shown=shown)
        debug = GuestOutput()
        machine, checking = open_machine(
            stack,
            options,
            attached,
            console=until.watching(debug.write),
            default_memory=kernelrun.DEFAULT_MEMORY,
            ignore_unassigned=unassigned == "ignore",
            for_kernel=True,
        )
        until.end = machine.end
        if json_path is not None:
            check_output(json_path, "The report")
        with Pc(machine, until.watching(output.write), stream) as pc:
            pc.boot(kernel, f"{kernelrun.DEFAULT_WORDS} {append}".strip(), initrd)
            if printed is not None:
                machine.on_stop.append(printed.hurry)
            options.sandbox.reads(path)
            options.sandbox.opens(serial)
            options.sandbox.writes(json_path)
            options.sandbox.imports(*AT_THE_END)
            options.sandbox.enter()
            status, ending = kernelrun.run_to_the_end(machine, pc, output, path, timeout or 0)
        if ending.error is None and until.missed():
            click.echo(f"virtiopy: the guest ended and did not print {until.success!r}.", err=True)
            status = max(status, EXIT_GUEST_FAILED)
        kept = True

        from rich.console import Console

        from virtiopy.cli import report

        def show() -> None:
            nonlocal kept
            debug.finish()
            kept = checking.finish(passed=ending.error is None and status == 0)
            console = Console(stderr=shown or serial == "stdio")
            report.show_exits(console, ending.result)
            report.show_facts(console, machine)
            report.show_standing(console, ending)

        save = partial(
            report.write_json,
            machine,
            ending,
            parse_tap(debug.text, whole=debug.is_whole),
            guest=str(path),
            passed=status == 0,
        )
        tell(ending, show, save, json_path, printed)
    return status if kept else max(status, EXIT_GUEST_FAILED)
