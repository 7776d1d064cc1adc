"""Parameters of commands that follow from the registry: they are made when a command is called."""

from collections.abc import Callable, Sequence

import click

from virtiopy.devices.registry import entries

_KEY = "virtiopy.cli.devices"


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
    return [
        click.Option(
            [entry.option.name, entry.name],
            multiple=True,
            metavar=entry.option.metavar,
            help=entry.option.help,
            # The value may be left out.
            **({} if entry.option.has_main else {"is_flag": False, "flag_value": ""}),
        )
        for entry in entries()
    ]


def served_device() -> Sequence[click.Argument]:
    """Return the argument that names a device to be served."""
    served = [entry.name for entry in entries() if entry.served]
    return [click.Argument(["device"], type=click.Choice(served))]
