"""The kernel as the worker of a socket device's rings: /dev/vhost-vsock (drivers/vhost/vsock.c).

One open /dev/vhost-vsock is one guest: programs of the host's reach it by AF_VSOCK sockets, at its
context ID, and it reaches them at CID 2. The event queue stays with the device.
"""

import errno
import os
from collections.abc import Sequence

from virtiopy._native import ffi
from virtiopy.closing import Closing
from virtiopy.devices.delegation import Backing, DelegatedQueue
from virtiopy.devices.vsock.delegation import RINGS, GuestBacking
from virtiopy.devices.vsock.features import VsockFeature
from virtiopy.errors import ConfigError, VirtiopyError
from virtiopy.eventfds import take
from virtiopy.memory import GuestMemory
from virtiopy.spec import feature_mask
from virtiopy.vhost.kernel.device import VhostDevice
from virtiopy.vhost.vring import Vring
from virtiopy.virtqueue.queue import WORKER_FEATURES


class VhostVsock(VhostDevice):
    """An open /dev/vhost-vsock: ring 0 is rx, ring 1 is tx."""

    path = "/dev/vhost-vsock"
    module = "vhost_vsock"
    otherwise = "mode=ioeventfd"
    # Which types of sockets there are is the kernel's to say.
    worker_features = WORKER_FEATURES | feature_mask(VsockFeature)

    def set_guest_cid(self, cid: int) -> None:
        """Say which guest this is: VHOST_VSOCK_SET_GUEST_CID.

        Raises ConfigError for a context ID that another guest of this host has.
        """
        value = ffi.new("uint64_t *", cid)
        result = self._try("VHOST_VSOCK_SET_GUEST_CID", value)
        if result == -errno.EADDRINUSE:
            raise ConfigError(f"Another guest of this host has the CID {cid}: use another one.")
        self._check("VHOST_VSOCK_SET_GUEST_CID", result)

    def set_running(self, *, running: bool) -> None:
        """Work both rings, or stop: VHOST_VSOCK_SET_RUNNING.

        Stopped, the kernel touches neither any more. Connections stay.
        """
        why = {errno.EFAULT: "a ring is not in the memory that set_memory told of"}
        self._set("VHOST_VSOCK_SET_RUNNING", ffi.new("int *", int(running)), why)


class VhostPackets(Closing):
    """vhost as the worker of a socket device's queues, between `delegate` and `reclaim`.

    It is a devices.vsock.delegation.PacketWorker. `vhost` is from here on this object's to close.
    Raises HostError, and ConfigError for a context ID that is taken.

    `errors` are two eventfds, rx and tx: one is written when vhost finds its ring broken.
    """

    name = "vhost"

    def __init__(
        self, memory: GuestMemory, guest_cid: int, *, vhost: VhostVsock | None = None
    ) -> None:
        self._memory = memory
        self._delegated: list[DelegatedQueue] = []
        self.vhost = vhost or VhostVsock()
        self.errors: Sequence[int] = [
            os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in RINGS
        ]
        try:
            self.vhost.set_guest_cid(guest_cid)
        except VirtiopyError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the rings, for good; the kernel ends all connections."""
        self.vhost.close()
        for eventfd in self.errors:
            os.close(eventfd)

    def set_guest_cid(self, cid: int) -> None:
        """Take another context ID."""
        self.vhost.set_guest_cid(cid)

    def offered(self, features: int) -> int:
        """Return what can be offered where vhost works the rings."""
        return self.vhost.offered(features)

    def delegate(self, queues: Sequence[DelegatedQueue], driver_features: int) -> None:
        """Have vhost work the virtqueues, and take their kicks, from here on.

        If vhost refuses it works none, and the device can work all: HostError, or DriverError for
        the driver's fault.
        """
        for one in queues:
            if one.queue.in_flight:
                raise ValueError(f"{one.queue.in_flight} chains are in flight")
        for error in self.errors:
            # Of rings that are no more.
            take(error)
        self.vhost.set_features(driver_features)
        self.vhost.set_memory(self._memory)
        try:
            for one in queues:
                queue = one.queue
                ring = Vring(
                    *(queue.size, queue.areas, queue.state, one.kick, one.call),
                    self.errors[one.ring],
                )
                self._delegated.append(one)
                self.vhost.prepare_ring(one.ring, ring)
            self.vhost.set_running(running=True)
        except VirtiopyError:
            self._forget()
            raise
        for one in queues:
            # The kick for what is in there may have gone to the device.
            os.eventfd_write(one.kick, 1)

    def _forget(self) -> None:
        while self._delegated:
            self.vhost.forget_ring(self._delegated.pop().ring)

    def reclaim(self) -> None:
        """Have the virtqueues back, each to go on with where vhost left it."""
        if self._delegated:
            self.vhost.set_running(running=False)
        while self._delegated:
            one = self._delegated.pop()
            one.queue.resume(self.vhost.forget_ring(one.ring))


def open_packets(memory: GuestMemory, backing: Backing) -> VhostPackets:
    """Open a vhost-vsock for a guest in `memory`: an OpenWorker.

    Raises HostError where there is none, ConfigError for a device that it cannot work.
    """
    if not isinstance(backing, GuestBacking):
        raise ConfigError(
            f"vhost-vsock works socket devices, and this is a {backing.kind}: use another mode."
        )
    return VhostPackets(memory, backing.guest_cid)
