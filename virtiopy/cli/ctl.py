"""virtiopy ctl: commands to a guest's devices while it runs."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

import click

from virtiopy.cli.options import Seconds, parse_size
from virtiopy.devices.base import DeviceCommand
from virtiopy.devices.entry import find
from virtiopy.devices.registry import device_commands
from virtiopy.sizes import format_size

_Words: TypeAlias = Mapping[str, str | None]
_Open: TypeAlias = Callable[[_Words], tuple[_Words, Sequence[int]]]

#: How often a status is looked at that is waited for.
POLL_SECONDS = 0.02


class _Commands(click.Group):
    """The commands here, and those that devices have of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name them all."""
        return sorted({*super().list_commands(ctx), *device_commands()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; a device's own is sent as it is given."""
        found = super().get_command(ctx, cmd_name)
        if found is None and (own := device_commands().get(cmd_name)) is not None:
            return _device_command(cmd_name, own)
        return found


def _device_command(name: str, command: DeviceCommand) -> click.Command:
    keys = [*command.keys, "device"]

    def send(**given: str | None) -> int:
        from virtiopy.control.client import ask

        path = click.get_current_context().obj
        words: _Words = {key: given[key.replace("-", "_")] for key in keys}
        with contextlib.ExitStack() as opened:
            files: Sequence[int] = ()
            if command.opens is not None:
                words, files = cast("_Open", find(command.opens))(words)
                for fd in files:
                    opened.callback(os.close, fd)
            answer = ask(path, {"command": name, **words}, files=files)
        told = " ".join(f"{key} {value}" for key, value in answer.items() if key != "device")
        click.echo(f"{answer['device']}: {told}")
        return 0

    options = [click.Option([f"--{key}"], metavar=key.upper()) for key in command.keys]
    device = click.Option(["--device"], metavar="NAME", help="Which one, where there are several.")
    return click.Command(name, callback=send, params=[*options, device], help=command.help)


@click.group(
    cls=_Commands,
    epilog="""Example: take half of a guest's memory back, and see how far it is:

\b
  virtiopy run --guest balloon --append balloon.mode=follow --balloon --control vm.sock &
  virtiopy ctl vm.sock balloon --target 8M
  virtiopy ctl vm.sock status
  virtiopy ctl vm.sock balloon --target 0
""",
)
@click.argument("path", type=click.Path(path_type=Path))
@click.pass_context
def command(ctx: click.Context, path: Path) -> None:
    """Give commands to the devices of a guest that was started with --control PATH."""
    ctx.obj = path


@command.command("status")
@click.option("--json", "as_json", is_flag=True, help="Write it as the machine does.")
@click.pass_obj
def show_status(path: Path, *, as_json: bool) -> int:
    """Show the memory and every device; sizes are in bytes."""
    from virtiopy.control.client import Json, ask

    def show(name: str, value: Json, indent: str = "") -> None:
        if isinstance(value, dict):
            click.echo(f"{indent}{name}:")
            for key, item in value.items():
                show(key, item, indent + "  ")
        elif isinstance(value, list):
            click.echo(f"{indent}{name}: {' '.join(map(str, value))}")
        else:
            click.echo(f"{indent}{name}: {value}")

    answer = ask(path, {"command": "status"})
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        for name, value in answer.items():
            show(name, value)
    return 0


@command.command("balloon")
@click.option("--target", type=parse_size, required=True, metavar="SIZE", help="As in 64M.")
@click.option("--device", metavar="NAME", help="Which balloon, where there are several.")
@click.option(
    "--wait",
    type=Seconds(min=0),
    metavar="SECONDS",
    help="Wait until the driver has done it, at most so long.",
)
@click.pass_obj
def set_balloon(path: Path, *, target: int, device: str | None, wait: float | None) -> int:
    """Ask the guest for SIZE of its memory in all; its driver gives it when it can."""
    from virtiopy.control.client import ask

    answer = ask(path, {"command": "balloon", "device": device, "target": target})
    name = str(answer["device"])
    if wait is not None:
        _wait_for_balloon(path, name, target, wait)
    click.echo(f"{name}: target {format_size(target)}")
    return 0


@command.command("mode", epilog="Example: virtiopy ctl vm.sock mode vhost")
@click.argument("mode", type=click.Choice(["ioeventfd", "native", "vhost"]))
@click.option("--device", metavar="NAME", help="Which network device or disk.")
@click.pass_obj
def change_mode(path: Path, *, mode: str, device: str | None) -> int:
    """Have a device's rings worked by the event loop, a thread in C, or the kernel's vhost.

    A thread in C works disks, and vhost works network devices. No request and no frame is lost by
    it. Where the driver has not started the device yet, it will be in this
    mode when it does.
    """
    from virtiopy.control.client import ask

    answer = ask(path, {"command": "mode", "device": device, "mode": mode})
    click.echo(f"{answer['device']}: {answer['mode']}")
    return 0


def _wait_for_balloon(path: Path, name: str, target: int, seconds: float) -> None:
    """Look until the driver says that the balloon has its target. Raises GuestError."""
    from virtiopy.control.client import ask, device_facts
    from virtiopy.errors import GuestError

    end = time.monotonic() + seconds
    while (actual := device_facts(ask(path, {"command": "status"}), name)["actual"]) != target:
        if time.monotonic() > end:
            raise GuestError(
                f"{name} holds {actual} bytes after {seconds:g} seconds, not {target}: "
                "see whether the guest has a driver for it, and so much memory to spare."
            )
        time.sleep(POLL_SECONDS)
