"""Parameters of commands that follow from the registry: they are made when a command is called."""

from collections.abc import Callable, Sequence

import click

from virtiopy.devices.entry import DeviceEntry
from virtiopy.devices.registry import entries

_KEY = "virtiopy.cli.devices"

#: Requests that a run can be told to count: days of them.
COUNT_MAX = 10**9


class DeviceCommand(click.Command):
    """A command that has `device_params` before its own: what they return, at each call."""

    def __init__(
        self,
        name: str | None,
        *,
        device_params: Callable[[], Sequence[click.Parameter]],
        **attributes: object,
    ) -> None:
        super().__init__(name, **attributes)  # type: ignore[arg-type]
        self._device_params = device_params

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return all parameters, the same for one context."""
        made: list[click.Parameter] = ctx.meta.setdefault(_KEY, list(self._device_params()))
        return [*made, *super().get_params(ctx)]


def attach_options() -> Sequence[click.Option]:
    """Return the options that attach devices, each as often as it is given."""
    return [_device_option(entry, entry.option.metavar, entry.option.help) for entry in entries()]


def _device_option(entry: DeviceEntry, metavar: str, text: str) -> click.Option:
    names = [entry.option.name, entry.name]
    if entry.option.has_main:
        return click.Option(names, multiple=True, metavar=metavar, help=text)
    # The value may be left out.
    return click.Option(
        names, multiple=True, metavar=metavar, help=text, is_flag=False, flag_value=""
    )


def served_device() -> Sequence[click.Argument]:
    """Return the argument that names a device to be served."""
    served = [entry.name for entry in entries() if entry.served]
    return [click.Argument(["device"], type=click.Choice(served))]


def measured_entries() -> Sequence[DeviceEntry]:
    """Return the devices that `virtiopy exits` has a workload for."""
    return [entry for entry in entries() if entry.workload is not None]


def measured_by(option: str) -> Sequence[DeviceEntry]:
    """Return the devices whose requests are counted by an option, as "--requests"."""
    return [
        entry
        for entry in measured_entries()
        if entry.workload is not None and entry.workload.count_option == option
    ]


def count_options() -> Sequence[str]:
    """Return the options that say how many requests are counted."""
    options = [entry.workload.count_option for entry in entries() if entry.workload is not None]
    return list(dict.fromkeys(options))


def parameter_of(option: str) -> str:
    """Return the name of an option's parameter."""
    return option.removeprefix("--").replace("-", "_")


def measured_devices() -> Sequence[click.Option]:
    """Return the options of `virtiopy exits` that say what is measured, and how much of it."""
    options: list[click.Option] = []
    directions: dict[str, None] = {}
    for entry in measured_entries():
        assert entry.workload is not None
        # Several are refused by the command: click would take the last in silence.
        options.append(_device_option(entry, entry.workload.metavar, entry.workload.help))
        if len(entry.workload.directions) > 1:
            directions.update(dict.fromkeys(entry.workload.directions))
    for name in count_options():
        those = measured_by(name)
        defaults = {entry.workload.count for entry in those if entry.workload is not None}
        with_ = " or ".join(entry.option.name for entry in those)
        options.append(
            click.Option(
                [name],
                type=click.IntRange(1, COUNT_MAX),
                metavar="N",
                help=f"{name.removeprefix('--').capitalize()} to count, with {with_}.  "
                f"[default: {'/'.join(map(str, sorted(defaults)))}]",
            )
        )
    options.append(
        click.Option(
            ["--direction"],
            type=click.Choice(list(directions)),
            help="What the guest does with packets. To be received they are sent to the tap from "
            "here, which takes root.  [default: send]",
        )
    )
    return options
