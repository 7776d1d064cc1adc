"""The kernel as a SCSI host device: /dev/vhost-scsi and the kernel's own target (LIO).

drivers/vhost/scsi.c works every virtqueue, and the target that is set up in configfs, by targetcli
or by hand, has the logical units. The device here has the configuration space and the life.
"""

import errno
import os
from collections.abc import Callable, Mapping
from typing import ClassVar

from virtiopy import eventfds
from virtiopy._native import CData, ffi, lib
from virtiopy.devices.base import DeviceHost, Fact, VirtioDevice
from virtiopy.devices.delegation import Notifiers, OpenWorker
from virtiopy.devices.scsi.features import (
    CDB_SIZE_AT,
    SENSE_SIZE_AT,
    SIZE_FIELD,
    ScsiFeature,
    make_config,
)
from virtiopy.errors import ConfigError, HostError
from virtiopy.eventloop import READABLE, EventLoop
from virtiopy.spec import DeviceId, feature_mask
from virtiopy.vhost.kernel.device import VhostDevice
from virtiopy.vhost.vring import Vring
from virtiopy.virtqueue.queue import WORKER_FEATURES, QueueState, Virtqueue

#: controlq and eventq, before the request queues (5.6.2).
FIXED_QUEUES = 2

#: Entries of each virtqueue.
QUEUE_SIZE = 128

#: The longest name of a target, bytes, with the zero at its end.
_NAME_SIZE = len(ffi.new("struct vhost_scsi_target *").vhost_wwpn)

_HOTPLUG = feature_mask([ScsiFeature.VIRTIO_SCSI_F_HOTPLUG])


class VhostScsi(VhostDevice):
    """An open /dev/vhost-scsi. All its rings run from `set_endpoint` to `clear_endpoint`."""

    path = "/dev/vhost-scsi"
    module = "vhost_scsi"
    otherwise = "disk=IMAGE without mode=vhost"
    worker_features = WORKER_FEATURES | _HOTPLUG

    def set_endpoint(self, wwpn: str) -> None:
        """Work the rings, on the target of this name: VHOST_SCSI_SET_ENDPOINT.

        After `prepare_ring` of each. Raises ConfigError where there is no such target to have.
        """
        target = _target(wwpn)
        argument = int(ffi.cast("uintptr_t", target))
        result = self._ioctl(self.fd, lib.VHOST_SCSI_SET_ENDPOINT, argument)
        if -result in {errno.EEXIST, errno.ENODEV, errno.ENOENT}:
            raise ConfigError(
                f"The kernel has no target {wwpn} for vhost, with a nexus, that no other VM has: "
                "make one with targetcli (/vhost create), and end who has it."
            )
        self._check("VHOST_SCSI_SET_ENDPOINT", result)

    def check_target(self, wwpn: str) -> None:
        """Raise ConfigError unless there is a target of this name to have; before any ring."""
        # The kernel wants a table of memory first. No ring is set up, so none runs.
        self._set("VHOST_SET_MEM_TABLE", ffi.new("struct vhost_memory *", {"regions": 0}))
        self.set_endpoint(wwpn)
        self.clear_endpoint(wwpn)

    def clear_endpoint(self, wwpn: str) -> None:
        """Stop the rings, once what is in flight is done: VHOST_SCSI_CLEAR_ENDPOINT."""
        self._set("VHOST_SCSI_CLEAR_ENDPOINT", _target(wwpn))


def _target(wwpn: str) -> CData:
    target = ffi.new("struct vhost_scsi_target *")
    target.abi_version = lib.VHOST_SCSI_ABI_VERSION
    target.vhost_wwpn = wwpn.encode()
    return target


class KernelScsi(VirtioDevice):
    """A SCSI host device (5.6) that is the kernel's: its units are those of the target `wwpn`.

    A target's portal group has the SCSI target number of its own, which is 1 for tpgt_1. `release`
    is called when the device is closed. Raises HostError where there is no /dev/vhost-scsi,
    ConfigError where there is no such target.
    """

    device_id: ClassVar[DeviceId] = DeviceId.SCSI_HOST
    feature_bits = ScsiFeature
    features = _HOTPLUG

    def __init__(
        self,
        wwpn: str,
        *,
        num_queues: int = 1,
        vhost: VhostScsi | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._release = release
        if not wwpn.isascii() or not 0 < len(wwpn) < _NAME_SIZE:
            raise ConfigError(
                f"The target {wwpn[:40]} is none: name one as in naa.5001405000000001."
            )
        self.wwpn = wwpn
        self.queue_sizes = [QUEUE_SIZE] * (FIXED_QUEUES + num_queues)
        self._running = False
        self._delegated: dict[int, Notifiers] = {}
        self._vhost = vhost or VhostScsi()
        try:
            # Whether there is such a target is known before the guest runs.
            self._vhost.check_target(wwpn)
        except (ConfigError, HostError):
            self._vhost.close()
            raise
        self._errors = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in self.queue_sizes]

    # What the transport asks

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        """Watch for rings that vhost finds broken; raises ConfigError in trapped mode."""
        if may_block or loop is None:
            raise ConfigError("vhost cannot take kicks that are exits: leave out mode=trapped.")
        super().attach(host, loop, may_block=may_block)
        for index, eventfd in enumerate(self._errors):
            loop.watch(
                eventfd,
                READABLE,
                lambda events, index=index: self._broken(index),  # type: ignore[misc]
                f"vhost-scsi ring {index}",
            )

    def delegate(self, open_worker: OpenWorker) -> None:
        """Do nothing: the rings are the kernel's from the start."""

    def reclaim(self) -> None:
        """Refuse: raises ConfigError."""
        raise ConfigError("the kernel has its units, and no other can work its rings.")

    def offered(self, features: int) -> int:
        """Leave out what vhost has not."""
        return self._vhost.offered(features)

    def config_space(self) -> bytes:
        """Return struct virtio_scsi_config; vhost has the sizes that it begins with."""
        return make_config(len(self.queue_sizes) - FIXED_QUEUES, QUEUE_SIZE)

    def write_config(self, offset: int, data: bytes) -> bool:
        """Take a size that is there already, as Linux writes it: vhost has no other (5.6.4)."""
        if offset not in (SENSE_SIZE_AT, CDB_SIZE_AT) or len(data) != SIZE_FIELD:
            return False
        return data == self.config_space()[offset : offset + SIZE_FIELD]

    def handle(self, queue: Virtqueue) -> None:
        """Serve nothing: kicks go to the kernel."""

    # Life: the kernel starts and stops all rings together

    def activate(self, queues: Mapping[int, Virtqueue]) -> None:
        """Have the kernel work the rings."""
        super().activate(queues)
        self._start()

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Have the kernel work one more."""
        self._stop()
        super().start_queue(index, queue)
        self._start()

    def stop_queue(self, index: int) -> None:
        """Take a ring from the kernel, which goes on with the others."""
        self._stop()
        super().stop_queue(index)
        self._start()

    def halt(self) -> None:
        """Take the rings from the kernel."""
        super().halt()
        self._stop()

    def reset(self) -> None:
        """Take the rings from the kernel, and forget the driver."""
        self._stop()
        super().reset()

    def close(self) -> None:
        """Let go of the kernel's device."""
        self._stop()
        self._vhost.close()
        for eventfd in self._errors:
            os.close(eventfd)
        self._release()

    def _start(self) -> None:
        if self.halted or not self.queues:
            return
        try:
            self._vhost.set_features(self.driver_features)
            self._vhost.set_memory(self.host.memory)
            for index, queue in self.queues.items():
                self._vhost.prepare_ring(index, self._ring(index, queue))
            self._vhost.set_endpoint(self.wwpn)
            self._running = True
        except (ConfigError, HostError) as error:
            self.host.needs_reset(str(error))

    def _ring(self, index: int, queue: Virtqueue) -> Vring:
        notifiers = self.host.notifiers(index)
        assert notifiers is not None, "in trapped mode attach() has refused"
        notifiers.delegate()
        self._delegated[index] = notifiers
        return Vring(
            queue.size,
            queue.areas,
            queue.state,
            notifiers.kick,
            notifiers.call,
            self._errors[index],
        )

    def _stop(self) -> None:
        if self._running:
            self._running = False
            self._vhost.clear_endpoint(self.wwpn)
            for index in self._delegated:
                self._go_on(index, self._vhost.forget_ring(index))
        while self._delegated:
            _, notifiers = self._delegated.popitem()
            notifiers.reclaim()

    def _go_on(self, index: int, state: QueueState) -> None:
        if (queue := self.queues.get(index)) is not None:
            queue.resume(state)

    def _broken(self, index: int) -> None:
        with self.lock:
            eventfds.take(self._errors[index])
            if index in self._delegated:
                self.host.needs_reset(f"vhost-scsi finds ring {index} broken")

    def facts(self) -> Mapping[str, Fact]:
        """Tell the target."""
        return {"target": self.wwpn}
