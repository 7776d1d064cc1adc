"""virtiopy exits: what each way of doing I/O costs, on one workload."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import click

from virtiopy.cli import attachments
from virtiopy.cli.attachments import VHOST_USER, vhost_user_path
from virtiopy.cli.devices import (
    DeviceCommand,
    count_options,
    measured_by,
    measured_devices,
    measured_entries,
    parameter_of,
)
from virtiopy.cli.exits_linux import linux_setup
from virtiopy.cli.options import DeviceOptions, Seconds, accelerator_option, note
from virtiopy.devices.entry import DEPTH_MAX, DeviceEntry, find
from virtiopy.devices.entry import Workload as DeviceWorkload
from virtiopy.errors import ConfigError, HostError
from virtiopy.files import check_output, open_output, write_output

if TYPE_CHECKING:
    from virtiopy.devices.base import VirtioDevice
    from virtiopy.exits.backend import Served
    from virtiopy.exits.model import Comparison
    from virtiopy.exits.plots import Plot
    from virtiopy.exits.runner import Setup, Surroundings

Texts: TypeAlias = tuple[str, ...]

#: What --exit-free says: which of registers with exits and without are compared.
EXIT_FREE = {"off": (False,), "on": (True,), "both": (False, True)}

MODES = ("trapped", "ioeventfd", "native", "vhost", "vhost-user")


def _modes(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[str] | None:
    if value is None:
        return None
    modes = value.split(",")
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise ConfigError(
            f"--modes does not know {unknown[0]!r}: give some of {', '.join(MODES)}, with commas "
            "between."
        )
    if len(set(modes)) < len(modes):
        raise ConfigError(f"--modes has a mode twice in {value!r}: give each once.")
    return modes


@click.command(
    cls=DeviceCommand,
    device_params=measured_devices,
    epilog="""Examples: what a packet costs, and what a read from a disk does:

\b
  virtiopy exits --net tap=t0,create=on
  virtiopy exits --net tap=t0,create=on --direction receive --depth 32 --html exits.html
  virtiopy exits --disk disk.img --requests 1000 --modes trapped,ioeventfd --json exits.json

\b
And what the driver of Linux makes of it:

\b
  virtiopy exits --disk disk.img -- dd if=/dev/vda of=/dev/null bs=4k count=1000 iflag=direct
  virtiopy exits --net tap=t0,create=on,address=192.0.2.1/24 -- ping -c 100 -i 0.01 192.0.2.1
""",
)
@click.option(
    "--depth",
    type=click.IntRange(1, DEPTH_MAX),
    metavar="N",
    help="Requests in flight: one kick and one interrupt for so many.  [default: 1]",
)
@click.option(
    "--kernel",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Measure COMMAND in this Linux, as `virtiopy linux` takes it; where none is named, in the "
    "one that it finds.",
)
@click.option("--append", metavar="WORDS", help="More for the kernel's command line.")
@click.option(
    "--with",
    "programs",
    multiple=True,
    metavar="PROGRAM",
    help="A program of the host's that COMMAND needs in Linux, besides its first word.",
)
@click.option(
    "--modes",
    callback=_modes,
    metavar="MODE,...",
    help=f"What to compare, of {', '.join(MODES)}: all that the device can have where it is not "
    "given. A mode that this host lacks becomes a row that says why.",
)
@click.option(
    "--exit-free",
    type=click.Choice(list(EXIT_FREE)),
    default="both",
    show_default=True,
    help="Whether the guest reads registers from memory, and the kernel takes InterruptACK, "
    "without exits: each mode so, or not, or once each way.",
)
@accelerator_option
@click.option(
    "--timeout",
    type=Seconds(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Give a guest up that takes longer, in one mode.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write all counts to this file, under names that stay.",
)
@click.option(
    "--html",
    "html_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page with plots to this file, which needs nothing from elsewhere.",
)
@click.option(
    "--plots",
    "plots_path",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write each plot to this folder, as PNG and as SVG.",
)
@click.argument("words", nargs=-1, metavar="[-- COMMAND...]")
def command(
    *,
    direction: str | None,
    depth: int | None,
    kernel: Path | None,
    append: str | None,
    programs: tuple[str, ...],
    words: tuple[str, ...],
    modes: list[str] | None,
    exit_free: str,
    accel: str,
    timeout: float,
    json_path: Path | None,
    html_path: Path | None,
    plots_path: Path | None,
    **given: tuple[str, ...] | int | None,
) -> int:
    """Compare what each way of doing I/O costs, in exits and in time.

    The same guest runs the same workload in each mode, on the same VM, one request in flight unless
    told otherwise. Its set-up is not counted. Shown are the exits to userspace by register, the
    exits that the kernel counted, interrupts and kicks, time, and the CPU time of each thread, all
    for one request. With COMMAND the guest is Linux, with its drivers, and what COMMAND does is
    counted. The page exits.md explains every column: it is in docs/ of the sources, and in
    share/doc/virtiopy of an installation.
    """
    from datetime import UTC, datetime

    from rich.console import Console

    from virtiopy.cli.exits_table import show
    from virtiopy.cli.signals import ended_by_signals
    from virtiopy.exits.document import document
    from virtiopy.exits.model import Comparison, Host
    from virtiopy.exits.runner import compare
    from virtiopy.vm.slots import IoMode

    entry, text = _device(given)
    count = _count(entry, given)
    if words:
        own = {"--depth": depth, "--direction": direction, _workload(entry).count_option: count}
        for option, value in own.items():
            if value is not None:
                raise ConfigError(
                    f"{option} is for virtiopy's own guest: leave it out, or leave COMMAND out."
                )
        options = _options(entry, _with_additions(entry, text))
        setup = linux_setup(
            *(entry, text, options, words),
            kernel=kernel,
            append=append or "",
            programs=programs,
            serve=_backend(entry, text),
        )
    elif kernel is not None or append is not None or programs:
        raise ConfigError(
            "--kernel, --append and --with are for a command in Linux: give one after --."
        )
    else:
        setup = device_setup(entry, text, count, depth or 1, direction)
    setup = replace(setup, accelerator=accel, timeout=timeout, note=note)
    render = None if html_path is None else _page()
    draw = None if plots_path is None else _plots(plots_path)
    for path in (json_path, html_path):
        if path is not None:
            check_output(path, "The report")
    begun = datetime.now(UTC).astimezone()
    with ended_by_signals():
        rows, accelerator = compare(
            setup,
            [IoMode(mode) for mode in modes or _modes_of(entry)],
            EXIT_FREE[exit_free],
            progress=note,
        )
    comparison = Comparison(
        command=shlex.join(["virtiopy", *sys.argv[1:]]),
        date=begun,
        host=Host.current(),
        accelerator=accelerator,
        workload=setup.workload,
        rows=rows,
    )
    show(Console(), comparison)
    if json_path is not None:
        _write(json_path, json.dumps(document(comparison), indent=2) + "\n")
    if html_path is not None and render is not None:
        _write(html_path, render(comparison))
    if plots_path is not None and draw is not None:
        _write_plots(plots_path, draw(comparison))
    return 0


def _modes_of(entry: DeviceEntry) -> list[str]:
    """Return the modes that a device can have, whatever this host has."""
    workers = cast("type[VirtioDevice]", find(entry.device)).workers
    return [
        mode
        for mode in MODES
        if mode in workers
        or mode in entry.built_in
        or (mode in {"trapped", "ioeventfd"} and entry.in_process)
        or (mode == "vhost-user" and entry.vhost_user is not None)
    ]


def _device(given: Mapping[str, object]) -> tuple[DeviceEntry, str]:
    """Return the one device to measure, and the value of its option; raises ConfigError."""
    measured = measured_entries()
    found = [(entry, text) for entry in measured for text in cast("Texts", given[entry.name])]
    if len(found) != 1:
        options = ", ".join(entry.option.name for entry in measured)
        raise ConfigError(
            f"There is one device to measure, and {len(found)} are given: give one of {options}, "
            "once."
        )
    return found[0]


def _count(entry: DeviceEntry, given: Mapping[str, object]) -> int | None:
    """Return how many requests the user wants; raises ConfigError where it is not said so."""
    option = _workload(entry).count_option
    for other in count_options():
        if other != option and given[parameter_of(other)] is not None:
            those = "/".join(each.option.name for each in measured_by(other))
            raise ConfigError(f"{other} is for {those}: with {entry.option.name}, give {option}.")
    count = given[parameter_of(option)]
    assert count is None or isinstance(count, int)
    return count


def device_setup(
    entry: DeviceEntry, text: str, count: int | None, depth: int, direction: str | None
) -> "Setup":
    """Describe the workload of a device that `text`, its option's value, says."""
    from virtiopy.exits.guest import OwnGuest
    from virtiopy.exits.model import Workload
    from virtiopy.exits.runner import Setup, nothing_else

    workload = _workload(entry)
    if direction is not None and direction not in workload.directions:
        raise ConfigError(
            f"--direction {direction} is not for {entry.option.name}: leave it out, or give one of "
            f"{', '.join(workload.directions)}."
        )
    if depth > workload.depth_max:
        raise ConfigError(
            f"--depth {depth} is more than the guest's driver has in flight for "
            f"{entry.option.name}: give {workload.depth_max} or less."
        )
    way = workload.directions[direction or next(iter(workload.directions))]
    text = _with_additions(entry, text)
    options = _options(entry, text)
    count = count or workload.count
    return Setup(
        workload=Workload(entry.name, workload.unit, way.what, count, depth),
        guest=OwnGuest(entry.guest_driver, way.arguments.format(count=count, depth=depth)),
        name=f"{entry.name}0",
        build=attachments.builder(entry, text),
        serve=_backend(entry, text),
        surroundings=_surroundings(way.surroundings, options) or nothing_else,
    )


def _workload(entry: DeviceEntry) -> DeviceWorkload:
    assert entry.workload is not None
    return entry.workload


def _with_additions(entry: DeviceEntry, text: str) -> str:
    """Add what a measurement sets where the user did not, as that a disk is only read."""
    options = _options(entry, text)
    for key, value in _workload(entry).adds.items():
        if not options.text(key, ""):
            text = f"{text},{key}={value}"
    return text


def _surroundings(place: str | None, options: DeviceOptions) -> "Surroundings | None":
    if place is None:
        return None
    return cast("Callable[[DeviceOptions], Surroundings]", find(place))(options)


def _options(entry: DeviceEntry, text: str) -> DeviceOptions:
    options = attachments.parse(entry, text)
    if given := {"mode", "vhost"} & set(options.keys):
        raise ConfigError(
            f"{entry.option.name} has {given.pop()}=...: name the modes with --modes instead."
        )
    if vhost_user_path(options) is not None:
        raise ConfigError(
            f"{entry.option.name} names a vhost-user backend, which has no other mode to compare: "
            "name what it serves, and a backend is started for it."
        )
    return options


def _backend(entry: DeviceEntry, text: str) -> "Callable[[], Served]":
    """Return what starts a process that serves the device which `text` describes."""
    from virtiopy.exits.backend import Backend

    if entry.served_by is not None:
        start = cast("Callable[[DeviceOptions], Served]", find(entry.served_by))
        return partial(start, _options(entry, text))

    def attach(socket: Path) -> "VirtioDevice":
        path = str(socket).replace(",", ",,")
        return attachments.build(entry, attachments.parse(entry, f"{VHOST_USER}{path}"))

    def serve() -> Backend:
        if entry.vhost_user is None or not entry.served:
            raise HostError(f"virtiopy has no {entry.kind} that another process serves.")
        return Backend(entry.name, text, attach)

    return serve


def _page() -> "Callable[[Comparison], str]":
    try:
        from virtiopy.exits.page import render
    except ImportError as error:
        raise _no_plots(error) from error
    return render


def _plots(folder: Path) -> "Callable[[Comparison], list[Plot]]":
    """Return what draws the plots; raises ConfigError where they cannot be drawn or put there."""
    try:
        from virtiopy.exits.plots import every_plot
    except ImportError as error:
        raise _no_plots(error) from error
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The folder {folder} for plots cannot be made ({error.strerror}): name another."
        ) from error
    return every_plot


def _no_plots(error: ImportError) -> ConfigError:
    return ConfigError(
        f"The plots need what is not here ({error}): install it with pip install 'virtiopy[plots]'."
    )


def _write_plots(folder: Path, plots: "list[Plot]") -> None:
    for plot in plots:
        for suffix, content in (("svg", plot.svg_file()), ("png", plot.png_file())):
            with open_output(folder / f"{plot.name}.{suffix}", "The plot") as stream:
                stream.write(content)


def _write(path: Path, text: str) -> None:
    write_output(path, "The report", text, told=note)
