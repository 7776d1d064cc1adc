"""What a user can do to the logical units of a running device, by `virtiopy ctl`."""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TypeAlias, runtime_checkable

from virtiopy.devices.base import CommandArguments, DeviceCommand, Fact, VirtioDevice
from virtiopy.devices.scsi.address import Address
from virtiopy.devices.scsi.spc import PrimaryUnit
from virtiopy.errors import ConfigError

#: Makes a logical unit of a value as `disk=PATH,lun=1`, and of the files that the user has opened
#: for it: its address, where that is given, and the unit. Raises ConfigError.
OpenUnit: TypeAlias = Callable[[str, "UnitAddresses", Sequence[int]], tuple[Address, PrimaryUnit]]

#: The addresses that are taken.
UnitAddresses: TypeAlias = Mapping[Address, object]


@runtime_checkable
class HasUnits(Protocol):
    """A device whose logical units come and go."""

    open_unit: OpenUnit | None

    @property
    def units(self) -> Mapping[Address, PrimaryUnit]:
        """The logical units."""

    def add_unit(self, address: Address, unit: PrimaryUnit) -> None:
        """Plug a unit in."""

    def remove_unit(self, address: Address) -> None:
        """Unplug a unit."""

    def capacity_changed(self, address: Address) -> None:
        """Take the size that a unit has now."""


def _address(device: HasUnits, arguments: CommandArguments) -> Address:
    """Return the unit that is meant; raises ConfigError for one that is not there."""
    text = arguments.text("unit") or ""
    match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text)
    address = Address(int(match[1]), int(match[2])) if match else None
    if address not in device.units:
        there = ", ".join(map(str, sorted(device.units))) or "none is there"
        raise ConfigError(f"There is no unit {text!r}: give its target and LUN ({there}).")
    assert address is not None
    return address


def _resize(device: VirtioDevice, arguments: CommandArguments) -> Mapping[str, Fact]:
    assert isinstance(device, HasUnits)
    address = _address(device, arguments)
    device.capacity_changed(address)
    return {"unit": str(address), "size": device.units[address].medium_size}


def _remove(device: VirtioDevice, arguments: CommandArguments) -> Mapping[str, Fact]:
    assert isinstance(device, HasUnits)
    address = _address(device, arguments)
    device.remove_unit(address)
    return {"removed": str(address)}


def _add(device: VirtioDevice, arguments: CommandArguments) -> Mapping[str, Fact]:
    assert isinstance(device, HasUnits)
    text = arguments.text("attach")
    if not text or device.open_unit is None:
        raise ConfigError("There is nothing to attach: write it as in --attach disk=b.img,lun=1.")
    address, unit = device.open_unit(text, device.units, arguments.files())
    device.add_unit(address, unit)
    return {"unit": str(address), "size": unit.medium_size}


COMMANDS: Mapping[str, DeviceCommand] = MappingProxyType(
    {
        "scsi-resize": DeviceCommand(
            "Take the size that the image of a SCSI unit (TARGET:LUN) has now.", ("unit",), _resize
        ),
        "scsi-remove": DeviceCommand("Unplug a SCSI unit (TARGET:LUN).", ("unit",), _remove),
        "scsi-add": DeviceCommand(
            "Plug a SCSI unit in, written as for --scsi: disk=PATH,lun=1.",
            ("attach",),
            _add,
            opens="virtiopy.cli.scsi:open_for_plugging",
        ),
    }
)
