"""The driver of each device type, as the suite has it: one file a device."""

from virtiopy.conformance.drivers.balloon import BalloonDriver
from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.drivers.blk import BlkDriver
from virtiopy.conformance.drivers.console import ConsoleDriver
from virtiopy.conformance.drivers.net import NetDriver
from virtiopy.conformance.drivers.rng import RngDriver
from virtiopy.conformance.sessions.base import Session
from virtiopy.errors import ConfigError

_ALL: tuple[type[DeviceDriver], ...] = (
    BlkDriver,
    NetDriver,
    ConsoleDriver,
    RngDriver,
    BalloonDriver,
)

#: By the name that a device has on the command line, which is also that of its fixture.
DRIVERS = {driver.name: driver for driver in _ALL}

_BY_ID = {driver.device_id: driver for driver in _ALL}


def driver_of(session: Session) -> DeviceDriver:
    """Return a driver for the session's device, which has done nothing yet.

    Raises ConfigError for a device that the suite has no driver of.
    """
    kind = _BY_ID.get(session.device_id)
    if kind is None:
        raise ConfigError(
            f"The suite has no driver of {session.device_id.name.lower()} devices: "
            f"it knows {', '.join(DRIVERS)}."
        )
    return kind(session)
