"""Devices for the conformance suite whose rings threads in C work."""

from virtiopy.conformance.targets.builders import Rig, build_blk, build_net
from virtiopy.devices.base import DeviceHost, VirtioDevice
from virtiopy.devices.blk import Blk
from virtiopy.devices.net import Net
from virtiopy.eventloop import EventLoop
from virtiopy.worker.native import open_native


class Delegating(VirtioDevice):
    """A device that delegates its rings as soon as it has an event loop."""

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        super().attach(host, loop, may_block=may_block)
        self.delegate(open_native)


class NativeBlk(Delegating, Blk):
    """A block device whose rings threads in C work."""


class NativeNet(Delegating, Net):
    """A network device whose rings threads in C work."""


def blk() -> Rig:
    return build_blk(NativeBlk)


def net() -> Rig:
    return build_net(NativeNet)
