"""virtiopy exits: what each way of doing I/O costs, on one workload."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virtiopy.cli.attachments import ATTACHMENTS, VHOST_USER, Attachment, vhost_user_path
from virtiopy.cli.options import DeviceOptions, Seconds, accelerator_option, note
from virtiopy.errors import ConfigError
from virtiopy.files import check_output, write_output

if TYPE_CHECKING:
    from virtiopy.devices.base import VirtioDevice
    from virtiopy.exits.backend import Backend
    from virtiopy.exits.model import Comparison
    from virtiopy.exits.runner import Setup

#: What --exit-free says: which of registers with exits and without are compared.
EXIT_FREE = {"off": (False,), "on": (True,), "both": (False, True)}

MODES = ("trapped", "ioeventfd", "native", "vhost", "vhost-user")

#: Requests in flight at most: what the guest has room for (guest_drivers/virtio/workload.h).
DEPTH_MAX = 128

_DEFAULT_PACKETS = 10_000
_DEFAULT_REQUESTS = 1_000


def _modes(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
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
    epilog="""Examples: what a packet costs, and what a read from a disk does:

\b
  virtiopy exits --net tap=t0,create=on
  virtiopy exits --net tap=t0,create=on --direction receive --depth 32 --html exits.html
  virtiopy exits --disk disk.img --requests 1000 --modes trapped,ioeventfd --json exits.json
"""
)
@click.option(
    "--net",
    metavar="tap=NAME[,create=on][,netns=NAME]...",
    help="Measure a network device, on this tap: written as for `virtiopy run`.",
)
@click.option(
    "--disk",
    metavar="PATH[,cache=MODE]...",
    help="Measure a block device on this image, by random reads of 4 KiB. It is opened for "
    "reading, and nothing on it changes.",
)
@click.option(
    "--packets",
    type=click.IntRange(1),
    metavar="N",
    help=f"Packets to count, with --net.  [default: {_DEFAULT_PACKETS}]",
)
@click.option(
    "--requests",
    type=click.IntRange(1),
    metavar="N",
    help=f"Requests to count, with --disk.  [default: {_DEFAULT_REQUESTS}]",
)
@click.option(
    "--direction",
    type=click.Choice(["send", "receive"]),
    help="What the guest does with packets. To be received they are sent to the tap from here, "
    "which takes root.  [default: send]",
)
@click.option(
    "--depth",
    type=click.IntRange(1, DEPTH_MAX),
    default=1,
    show_default=True,
    metavar="N",
    help="Requests in flight: one kick and one interrupt for so many.",
)
@click.option(
    "--modes",
    default=",".join(MODES),
    show_default=True,
    callback=_modes,
    metavar="MODE,...",
    help="What to compare. A mode that this host lacks becomes a row that says why.",
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
def command(
    *,
    net: str | None,
    disk: str | None,
    packets: int | None,
    requests: int | None,
    direction: str | None,
    depth: int,
    modes: list[str],
    exit_free: str,
    accel: str,
    timeout: float,
    json_path: Path | None,
    html_path: Path | None,
) -> int:
    """Compare what each way of doing I/O costs, in exits and in time.

    The same guest runs the same workload in each mode, on the same VM, one request in flight unless
    told otherwise. Its set-up is not counted. Shown are the exits to userspace by register, the
    exits that the kernel counted, interrupts and kicks, time, and the CPU time of each thread, all
    for one request. docs/exits.md explains every column.
    """
    from datetime import UTC, datetime

    from rich.console import Console

    from virtiopy.cli.exits_table import show
    from virtiopy.cli.signals import ended_by_signals
    from virtiopy.exits.document import document
    from virtiopy.exits.model import Comparison, Host
    from virtiopy.exits.runner import compare
    from virtiopy.vm.slots import IoMode

    if (net is None) == (disk is None):
        raise ConfigError("There is one device to measure: give either --net or --disk.")
    if net is not None:
        if requests is not None:
            raise ConfigError("--requests is for --disk: with --net, give --packets.")
        setup = network_setup(net, packets or _DEFAULT_PACKETS, depth, direction or "send")
    else:
        assert disk is not None
        if packets is not None or direction is not None:
            what = "--direction" if packets is None else "--packets"
            raise ConfigError(f"{what} is for --net: with --disk, give --requests.")
        setup = disk_setup(disk, requests or _DEFAULT_REQUESTS, depth)
    setup = replace(setup, accelerator=accel, timeout=timeout, note=note)
    render = None if html_path is None else _page()
    for path in (json_path, html_path):
        if path is not None:
            check_output(path, "The report")
    begun = datetime.now(UTC).astimezone()
    with ended_by_signals():
        rows, accelerator = compare(
            setup, [IoMode(mode) for mode in modes], EXIT_FREE[exit_free], progress=note
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
    return 0


def network_setup(text: str, packets: int, depth: int, direction: str) -> "Setup":
    """Describe a workload on the tap that `text` names, as --net does."""
    from virtiopy.exits.model import Workload
    from virtiopy.exits.runner import Setup, nothing_else
    from virtiopy.exits.traffic import frames_for

    attachment = _attachment("net")
    options = _options(attachment, text)
    receives = direction == "receive"
    frames = frames_for(options.text("tap", ""), options.text("netns", "") or None)
    return Setup(
        workload=Workload("net", "packet", "received" if receives else "sent", packets, depth),
        guest="net",
        arguments=f"net.mode=measure net.frames={packets} net.depth={depth} "
        f"net.receive={int(receives)}",
        name="net0",
        build=partial(attachment.build, options),
        serve=_backend(attachment, text),
        surroundings=frames if receives else nothing_else,
    )


def disk_setup(text: str, requests: int, depth: int) -> "Setup":
    """Describe a workload on the image that `text` names, as --disk does."""
    from virtiopy.exits.model import Workload
    from virtiopy.exits.runner import Setup

    attachment = _attachment("blk")
    options = _options(attachment, text)
    if not options.text("readonly", ""):
        text = f"{text},readonly=on"
        options = attachment.parse(text)
    return Setup(
        workload=Workload("blk", "read", "of 4 KiB", requests, depth),
        guest="blk",
        arguments=f"blk.requests={requests} blk.depth={depth}",
        name="blk0",
        build=partial(attachment.build, options),
        serve=_backend(attachment, text),
    )


def _attachment(prefix: str) -> Attachment:
    return next(each for each in ATTACHMENTS if each.prefix == prefix)


def _options(attachment: Attachment, text: str) -> DeviceOptions:
    options = attachment.parse(text)
    if given := {"mode", "vhost"} & set(options.keys):
        raise ConfigError(
            f"{attachment.option} has {given.pop()}=...: name the modes with --modes instead."
        )
    if vhost_user_path(options) is not None:
        raise ConfigError(
            f"{attachment.option} names a vhost-user backend, which has no other mode to compare: "
            "name what it serves, and a backend is started for it."
        )
    return options


def _backend(attachment: Attachment, text: str) -> "Callable[[], Backend]":
    """Return what starts a process that serves the device which `text` describes."""
    from virtiopy.exits.backend import Backend

    def attach(socket: Path) -> "VirtioDevice":
        path = str(socket).replace(",", ",,")
        return attachment.build(attachment.parse(f"{VHOST_USER}{path}"))

    return lambda: Backend(attachment.prefix, text, attach)


def _page() -> "Callable[[Comparison], str]":
    try:
        from virtiopy.exits.page import render
    except ImportError as error:
        raise ConfigError(
            f"The plots of a page need what is not here ({error}): "
            "install it with pip install 'virtiopy[plots]'."
        ) from error
    return render


def _write(path: Path, text: str) -> None:
    write_output(path, "The report", text, told=note)
