"""Devices for the conformance suite whose rings threads in C work."""

from virtiopy.conformance.targets.builders import Rig, build_blk
from virtiopy.devices.base import DeviceHost
from virtiopy.devices.blk import Blk
from virtiopy.eventloop import EventLoop
from virtiopy.worker.native import open_native


class NativeBlk(Blk):
    """A block device that delegates its rings as soon as it has an event loop."""

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        super().attach(host, loop, may_block=may_block)
        self.delegate(open_native)


def blk() -> Rig:
    return build_blk(NativeBlk)
