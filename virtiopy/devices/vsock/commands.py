"""What a user can do to a running socket device, by `virtiopy ctl`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from virtiopy.devices.base import CommandArguments, DeviceCommand, Fact, VirtioDevice
from virtiopy.devices.vsock.events import EVENT_QUEUE
from virtiopy.devices.vsock.features import CID_MAX, CID_MIN
from virtiopy.errors import ConfigError


@runtime_checkable
class HasCid(Protocol):
    """A device whose guest has a context ID."""

    def change_cid(self, cid: int) -> None:
        """Give the guest another one."""


def parse_cid(text: str, where: str) -> int:
    """Return the context ID that a text is; raises ConfigError, as of `where`, for none."""
    # Python makes no number of more than 4300 digits.
    digits = text.isascii() and text.isdecimal() and len(text) <= 20
    if digits and CID_MIN <= int(text) <= CID_MAX:
        return int(text)
    raise ConfigError(
        f"{where} {text[:20] or 'nothing'}: give a context ID from {CID_MIN} to {CID_MAX}."
    )


def _change(device: VirtioDevice, arguments: CommandArguments) -> Mapping[str, Fact]:
    assert isinstance(device, HasCid)
    cid = parse_cid(arguments.text("cid") or "", "vsock-cid has")
    if device.queues and EVENT_QUEUE not in device.queues:
        raise ConfigError(
            "The guest's VMM has the event queue, and cannot be had to tell the driver of another "
            "context ID: end the guest before that."
        )
    device.change_cid(cid)
    return {"guest_cid": cid}


COMMANDS: Mapping[str, DeviceCommand] = MappingProxyType(
    {
        "vsock-cid": DeviceCommand(
            "Give the guest another context ID; its connections end, as after a migration.",
            ("cid",),
            _change,
        )
    }
)
