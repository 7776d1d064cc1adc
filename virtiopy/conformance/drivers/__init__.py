"""The driver of each device type, as the suite has it: one file a device."""

from collections.abc import Iterator, Mapping

from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.drivers.example import example_driver
from virtiopy.conformance.sessions.base import Session
from virtiopy.devices.entry import find_class
from virtiopy.devices.registry import entries, entry_named, entry_of
from virtiopy.errors import ConfigError
from virtiopy.spec import DeviceId


class _Drivers(Mapping[str, type[DeviceDriver]]):
    """The driver of each device that the suite can test, by the device's name."""

    def __getitem__(self, name: str) -> type[DeviceDriver]:
        if name not in list(self):
            raise KeyError(name)
        entry = entry_named(name)
        if entry.suite_driver is None:
            return example_driver(entry)
        return find_class(entry.suite_driver, DeviceDriver)  # type: ignore[type-abstract]

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in entries() if entry.suite_driver or entry.example)

    def __len__(self) -> int:
        return len(list(iter(self)))


#: By the name that a device has on the command line, which is also that of its fixture.
DRIVERS = _Drivers()


def driver_class_of(device_id: DeviceId) -> type[DeviceDriver]:
    """Return the driver of a device type; raises ConfigError for one that the suite has none of."""
    entry = entry_of(device_id)
    if entry is None or entry.name not in DRIVERS:
        raise ConfigError(
            f"The suite has no driver of {device_id.name.lower()} devices: "
            f"it knows {', '.join(DRIVERS)}."
        )
    return DRIVERS[entry.name]


def driver_of(session: Session) -> DeviceDriver:
    """Return a driver for the session's device, which has done nothing yet; raises ConfigError."""
    return driver_class_of(session.device_id)(session)
