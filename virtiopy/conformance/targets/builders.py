"""virtiopy's own devices on the suite's side of a host: what `inproc:NAME` is.

A class that takes another's place is made with the same arguments, as a subclass of it is.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from virtiopy.conformance.targets.disks import BlkHost
from virtiopy.conformance.targets.hosts import BalloonHost, ConsoleHost, Host, Link, NetHost
from virtiopy.conformance.targets.ninep import VersionServer
from virtiopy.conformance.targets.scsi import ScsiHost
from virtiopy.conformance.targets.vsock import GUEST_CID, VsockHost
from virtiopy.devices.balloon import Balloon
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.blk import Blk
from virtiopy.devices.console import Console
from virtiopy.devices.entry import DeviceEntry, NoOptions, Options, find
from virtiopy.devices.net import Net
from virtiopy.devices.ninep import NineP
from virtiopy.devices.registry import entries
from virtiopy.devices.rng import Rng
from virtiopy.devices.scsi import Scsi
from virtiopy.devices.vsock import Vsock

#: The MAC address of `inproc:net`.
MAC = bytes.fromhex("020000000001")


@dataclass(slots=True)
class Rig:
    """A device, and the suite's hand in its host's side."""

    device: VirtioDevice
    host: Host = field(default_factory=Host)


#: What makes the device of a session; each session has one of its own.
Factory = Callable[[], VirtioDevice | Rig]


def build_blk(kind: type[Blk] = Blk) -> Rig:
    """Make a disk of 2 MiB, two queues wide."""
    host = BlkHost()
    device = kind(host.open(), serial="conformance", num_queues=2, queue_size=128)
    host.attach(device)
    return Rig(device, host)


def build_readonly_blk(kind: type[Blk] = Blk) -> Rig:
    """Make a disk that can only be read, with no ID, one queue wide."""
    host = BlkHost(sectors=256)
    device = kind(host.open(readonly=True))
    host.attach(device)
    return Rig(device, host)


def build_writethrough_blk(kind: type[Blk] = Blk) -> Rig:
    """Make a disk whose every write is stable, unless the driver says otherwise."""
    host = BlkHost(sectors=256)
    device = kind(host.open(), writeback=False, serial="20 characters of ID.", queue_size=16)
    host.attach(device)
    return Rig(device, host)


def build_net(kind: type[Net] = Net) -> Rig:
    """Make a network device with two pairs of virtqueues."""
    link = Link(pairs=2)
    device = kind(link, mac=MAC, queue_size=128)
    return Rig(device, NetHost(link, device.announce))


def build_console(kind: type[Console] = Console) -> Rig:
    """Make a console with a port more."""
    host = ConsoleHost()
    console, *others = host.terminals
    device = kind(console, dict(zip(host.names, others, strict=True)), max_nr_ports=3)
    host.ports = device
    return Rig(device, host)


def build_rng(kind: type[Rng] = Rng) -> Rig:
    """Make an entropy device."""
    return Rig(kind())


def build_balloon(kind: type[Balloon] = Balloon) -> Rig:
    """Make a balloon that has everything to offer."""
    device = kind(deflate_on_oom=True)
    return Rig(device, BalloonHost(device))


def build_ninep(kind: type[NineP] = NineP) -> Rig:
    """Make a 9P device whose server answers at once."""
    return Rig(kind(VersionServer(), "conformance"))


def build_scsi(kind: type[Scsi] = Scsi) -> Rig:
    """Make a SCSI host device with a disk at LUN 0, and a CD-ROM at LUN 1, of target 0."""
    host = ScsiHost()
    device = kind(host.open_units(), num_queues=2, queue_size=128)
    host.attach(device)
    return Rig(device, host)


def build_vsock(kind: type[Vsock] = Vsock) -> Rig:
    """Make a socket device with a program at each of a few ports of the host's."""
    host = VsockHost()
    device = kind(GUEST_CID, host.sockets)
    host.attach(device)
    return Rig(device, host)


class _Builders(Mapping[str, Factory]):
    """What makes each device of virtiopy's, and its variants, for the suite."""

    def __getitem__(self, name: str) -> Factory:
        for entry in entries():
            if (place := entry.rigs.get(name)) is not None:
                return cast("Factory", find(place))
            if not entry.rigs and entry.in_process and entry.name == name:
                return partial(_build_by_default, entry)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (
            name for entry in entries() if entry.in_process for name in entry.rigs or [entry.name]
        )

    def __len__(self) -> int:
        return len(list(iter(self)))


def _build_by_default(entry: DeviceEntry) -> VirtioDevice:
    return cast("Callable[[Options], VirtioDevice]", find(entry.build))(
        NoOptions(entry.option.name)
    )


#: By the name that stands in `inproc:NAME`.
BUILDERS = _Builders()
