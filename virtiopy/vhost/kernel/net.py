"""The kernel as the worker of a network device's rings: /dev/vhost-net (drivers/vhost/net.c).

One open /dev/vhost-net works one pair of virtqueues. A ring runs from `start_ring` to `stop_ring`.
"""

import errno

from virtiopy._native import ffi, lib
from virtiopy.errors import ConfigError
from virtiopy.spec import feature_mask
from virtiopy.vhost.kernel.device import Ioctl, VhostDevice
from virtiopy.vhost.vring import Vring
from virtiopy.virtqueue.queue import WORKER_FEATURES, QueueState

#: Virtqueues of one vhost-net file: receive and transmit.
RINGS = 2

#: What vhost takes for the header of each frame: virtio 1's, with num_buffers (5.1.9), bytes.
HEADER_SIZE = ffi.sizeof("struct virtio_net_hdr_v1")

_MRG_RXBUF = 15


class VhostNet(VhostDevice):
    """An open /dev/vhost-net: ring 0 is receiveq, ring 1 is transmitq."""

    path = "/dev/vhost-net"
    module = "vhost_net"
    worker_features = WORKER_FEATURES | feature_mask([_MRG_RXBUF])

    def set_backend(self, index: int, tap: int | None) -> None:
        """Run the ring on this queue of a tap, or stop it with None: VHOST_NET_SET_BACKEND.

        The tap is to have IFF_VNET_HDR, with headers of 12 bytes (TUNSETVNETHDRSZ). Starting, the
        kernel reads the used index from the ring; stopping, it waits for its thread to be done
        with the ring. Raises ConfigError for a file that is no tap.
        """
        number = lib.VHOST_FILE_UNBIND if tap is None else tap
        file = ffi.new("struct vhost_vring_file *", (index, number))
        argument = int(ffi.cast("uintptr_t", file))
        result = self._ioctl(self.fd, lib.VHOST_NET_SET_BACKEND, argument)
        if result == -errno.ENOTSOCK:
            raise ConfigError(
                f"File {tap} is no tap that vhost can serve: open /dev/net/tun with IFF_TAP."
            )
        why = {errno.EFAULT: "the ring is not in the memory that set_memory told of"}
        self._check("VHOST_NET_SET_BACKEND", result, why)

    def check_tap(self, tap: int) -> None:
        """Raise ConfigError unless `set_backend` can work on this: see the function."""
        check_tap(tap, ioctl=self._ioctl)

    def start_ring(self, index: int, ring: Vring, tap: int) -> None:
        """Delegate a ring to vhost: it works it from here on, what is available already included.

        (It starts to poll the tap, which wakes it, so that it does not matter which side read the
        last kick.) After set_features and set_memory. If it fails, the ring is not running.
        """
        self.prepare_ring(index, ring)
        self.set_backend(index, tap)

    def stop_ring(self, index: int) -> QueueState:
        """Reclaim a ring; returns where to go on.

        When this returns, vhost touches neither the ring nor its eventfds any more.
        """
        self.set_backend(index, None)
        return self.forget_ring(index)


def check_tap(tap: int, *, ioctl: Ioctl = lib.vp_ioctl) -> None:
    """Raise ConfigError unless this file is a queue of a tap with the headers that vhost needs.

    vhost would move frames without them, and take their first bytes for one.
    """
    request = ffi.new("struct ifreq *")
    if ioctl(tap, lib.TUNGETIFF, int(ffi.cast("uintptr_t", request))) < 0:
        raise ConfigError(
            f"File {tap} is no tap that vhost can serve: open /dev/net/tun with IFF_TAP, and see "
            "whether the tap is still there."
        )
    name = bytes(ffi.buffer(request.ifr_name)).partition(b"\0")[0].decode()
    size = ffi.new("int *")
    flags = request.ifr_flags
    if (
        not flags & lib.IFF_TAP
        or not flags & lib.IFF_VNET_HDR
        or ioctl(tap, lib.TUNGETVNETHDRSZ, int(ffi.cast("uintptr_t", size))) < 0
    ):
        raise ConfigError(
            f"The interface {name} is no tap whose frames have a struct virtio_net_hdr: "
            "open it with IFF_TAP and IFF_VNET_HDR."
        )
    if size[0] != HEADER_SIZE:
        raise ConfigError(
            f"The tap {name} has headers of {size[0]} bytes, not {HEADER_SIZE}: "
            "set TUNSETVNETHDRSZ, and let no other program use the tap."
        )
