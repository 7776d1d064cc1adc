"""The driver of each device type, as the suite has it: one file a device."""

from virtiopy.conformance.drivers.balloon import BalloonDriver
from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.drivers.blk import BlkDriver
from virtiopy.conformance.drivers.console import ConsoleDriver
from virtiopy.conformance.drivers.net import NetDriver
from virtiopy.conformance.drivers.rng import RngDriver

_ALL: tuple[type[DeviceDriver], ...] = (
    BlkDriver,
    NetDriver,
    ConsoleDriver,
    RngDriver,
    BalloonDriver,
)

#: By the name that a device has on the command line, which is also that of its fixture.
DRIVERS = {driver.name: driver for driver in _ALL}
