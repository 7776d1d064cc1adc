"""The machine that a command line describes: its options, and what they make."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virtiopy.cli import attachments
from virtiopy.cli.check import DriverChecking, driver_check_option, unusual_device_options
from virtiopy.cli.options import Seconds, accelerator_option, note, parse_size
from virtiopy.cli.sandboxed import Sandbox, sandbox_option
from virtiopy.cli.signals import ended_by_signals
from virtiopy.cli.trace import TraceChoice, Tracing, trace_options
from virtiopy.devices.registry import entries
from virtiopy.errors import ConfigError

if TYPE_CHECKING:
    from virtiopy.transport.placement import Transport
    from virtiopy.vm.machine import Machine
    from virtiopy.vm.slots import WatchTransport

#: What --exit-free says, as Machine is told it.
EXIT_FREE = {"on": True, "off": False, "auto": None}


@dataclass(slots=True, frozen=True)
class MachineOptions:
    """The machine that a subcommand's options ask for, but for its devices.

    A field has the name of its option; `memory` is None where it was not given.
    """

    accel: str
    mode: str
    exit_free: str
    cpus: int
    memory: int | None
    memory_path: Path | None
    memory_reset: bool
    hugepages: bool
    control: Path | None
    pcap: Path | None
    check_driver: str | None
    sandbox: Sandbox
    device_variant: str | None
    hostile: str | None
    trace: TraceChoice


def machine_options(function: Callable[..., int]) -> Callable[..., int]:
    """Give a subcommand the options of a machine with devices, and of a run's time and report.

    It gets the machine's as one MachineOptions, `options`, and `timeout` and `json_path` beside it.
    """

    @functools.wraps(function)
    def command(
        *,
        sandbox: str,
        user: str | None,
        trace: str | None,
        trace_only: tuple[str, ...],
        **given: Any,  # noqa: ANN401 - what click has parsed, of every option's type
    ) -> int:
        names = {part.name for part in fields(MachineOptions)} - {"sandbox", "trace"}
        options = MachineOptions(
            **{name: given.pop(name) for name in names},
            sandbox=Sandbox(sandbox, user),
            trace=TraceChoice(trace, trace_only),
        )
        return function(options=options, **given)

    given_options: list[Callable[[Callable[..., int]], Callable[..., int]]] = [
        driver_check_option,
        sandbox_option,
        unusual_device_options,
        trace_options,
        accelerator_option,
        click.option(
            "--mode",
            type=click.Choice(["auto", "trapped", "ioeventfd", "native"]),
            default="auto",
            show_default=True,
            help="How kicks travel: as exits to the CPU's thread, as eventfds to the event loop, "
            "or for disks and network devices as eventfds to a thread in C, auto's choice where it "
            "can be had. A device's own mode=... goes before.",
        ),
        click.option(
            "--exit-free",
            type=click.Choice(list(EXIT_FREE)),
            default="auto",
            show_default=True,
            help="Let the guest read registers from memory, and the kernel take InterruptACK, "
            "without exits; auto does where KVM can.",
        ),
        click.option(
            "--cpus",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            metavar="N",
            help="How many CPUs the guest has. The first boots, and the guest starts the others.",
        ),
        click.option(
            "--memory",
            type=parse_size,
            metavar="SIZE",
            help="Guest memory, as in 64M or 1G; 64M where it is not given, and 512M for a kernel.",
        ),
        click.option(
            "--memory-path",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Keep the guest's memory in this file, to look at while it runs and afterwards.",
        ),
        click.option(
            "--memory-reset",
            is_flag=True,
            help="Let --memory-path lose what its file holds, if that is no earlier guest's "
            "memory.",
        ),
        click.option("--hugepages", is_flag=True, help="Take the guest's memory in huge pages."),
        click.option(
            "--timeout",
            type=Seconds(min=0),
            metavar="SECONDS",
            help="Stop a guest that runs longer; 0 lets it run for ever. 60 where it is not given, "
            "and no end for a kernel.",
        ),
        click.option(
            "--control",
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="Take commands on a Unix socket here, while the guest runs: see `virtiopy ctl`.",
        ),
        click.option(
            "--pcap",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Record the frames of the one --net in this file, as its pcap=FILE does.",
        ),
        click.option(
            "--json",
            "json_path",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Write results and exit counts to this file.",
        ),
    ]
    return functools.reduce(lambda made, option: option(made), reversed(given_options), command)


def open_machine(
    stack: contextlib.ExitStack,
    options: MachineOptions,
    attached: dict[str, tuple[str, ...]],
    *,
    console: Callable[[bytes], None],
    default_memory: int,
    ignore_unassigned: bool,
    for_kernel: bool = False,
) -> "tuple[Machine, DriverChecking]":
    """Make the machine with its devices, and the judge of their drivers; `stack` ends both.

    Raises ConfigError or HostError.
    """
    from virtiopy.accel import select
    from virtiopy.control.server import ControlServer
    from virtiopy.memory import GuestMemory
    from virtiopy.vm.machine import Machine
    from virtiopy.vm.slots import IoMode

    stack.enter_context(ended_by_signals())
    size = default_memory if options.memory is None else options.memory
    ram = stack.enter_context(
        GuestMemory.allocate(
            size,
            path=options.memory_path,
            huge_pages=options.hugepages,
            reset=options.memory_reset,
        )
    )
    accelerator = select(options.accel, ram, cpus=options.cpus, for_kernel=for_kernel, note=note)
    stack.callback(accelerator.close)
    machine = stack.enter_context(
        Machine(
            ram,
            accelerator,
            console=console,
            cpus=options.cpus,
            ignore_unassigned=ignore_unassigned,
            exit_free=EXIT_FREE[options.exit_free],
        )
    )
    checking = DriverChecking.open(
        options.check_driver,
        exit_free=machine.exit_free,
        variant=options.device_variant,
        hostile=options.hostile,
    )
    options.sandbox.writes(checking.path)
    tracing = Tracing.open(options.trace, stack)
    machine.on_stop.append(tracing.hurry)
    if options.pcap is not None:
        attached["net"] = with_pcap(attached["net"], options.pcap)
    # What watches the queues watches them in Python.
    watched = options.mode == attachments.AUTO and (checking.watches or tracing.watches)
    mode = "ioeventfd" if watched else options.mode
    if accelerator.translates and options.mode == attachments.AUTO:
        # The interpreter is at hand where code is translated, and another thread would wait for it.
        mode = "trapped"
    for entry in entries():
        for number, text in enumerate(attached[entry.name]):
            parsed = attachments.parse(entry, text)
            choice = attachments.mode_of(entry, parsed, mode)
            device = attachments.build(entry, parsed)
            options.sandbox.attaches(entry, parsed)
            machine.add_device(
                device,
                f"{entry.name}{number}",
                IoMode(choice.mode),
                refused=_refused(choice),
                watch=one_after_the_other(
                    checking.prepare(device),
                    tracing.prepare(device, sees_acknowledgements=not machine.exit_free),
                ),
            )
    tracing.check_devices([slot.name for slot in machine.slots])
    if tracing.watches:
        _say_what_is_not_traced(machine)
    if options.control is not None:
        stack.enter_context(ControlServer(machine, options.control))
    return machine, checking


def one_after_the_other(
    *watches: "WatchTransport | None",
) -> "WatchTransport | None":
    """Return what puts several watchers before a device: the last sees what its driver sees."""
    given = [watch for watch in watches if watch is not None]
    if not given:
        return None

    def watch(name: str, transport: "Transport", trapped: bool) -> "Transport":
        for one in given:
            transport = one(name, transport, trapped)
        return transport

    return watch


def _say_what_is_not_traced(machine: "Machine") -> None:
    from virtiopy.vm.slots import IoMode

    if machine.exit_free:
        note(
            "the guest reads registers without exits, so its reads are not in the trace: "
            "--exit-free off has them."
        )
    for slot in machine.slots:
        if slot.mode not in (IoMode.TRAPPED, IoMode.IOEVENTFD):
            note(f"the rings of {slot.name} are in {slot.mode} mode, and not in the trace.")


def _refused(choice: attachments.ModeChoice) -> Callable[[str], None] | None:
    """Return what is told why a device is not in the mode that was chosen; None for an error."""
    if choice.required:
        return None
    return (lambda why: None) if choice.quiet else note


def with_pcap(nets: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Give the one network device its record; raises ConfigError when there is not one."""
    if len(nets) != 1:
        raise ConfigError(
            f"--pcap is for one --net, and there are {len(nets)}: give each a pcap=FILE of its own."
        )
    escaped = str(path).replace(",", ",,")
    return (f"{nets[0]},pcap={escaped}",)
