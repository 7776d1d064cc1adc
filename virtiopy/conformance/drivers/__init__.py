"""The driver of each device type, as the suite has it: one file a device."""

from virtiopy.conformance.drivers.balloon import BalloonDriver
from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.drivers.blk import BlkDriver
from virtiopy.conformance.drivers.console import ConsoleDriver
from virtiopy.conformance.drivers.net import NetDriver
from virtiopy.conformance.drivers.rng import RngDriver

#: By the name that a device has on the command line, which is also that of its fixture.
DRIVERS: dict[str, type[DeviceDriver]] = {
    "blk": BlkDriver,
    "net": NetDriver,
    "console": ConsoleDriver,
    "rng": RngDriver,
    "balloon": BalloonDriver,
}
