"""The kernel as the one who works a network device's rings: /dev/vhost-net (linux/vhost.h).

The kernel has no document on vhost: linux/vhost.h says what each ioctl does, and
drivers/vhost/vhost.c and net.c what it refuses.

One open /dev/vhost-net works one pair of virtqueues, on a kernel thread of its own named
vhost-PID. A ring runs from `start_ring` to `stop_ring`; what moves both ways is the last available
index, and the rings themselves stay where they are, in guest memory.
"""

import enum
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from virtiopy._native import CData, ffi, lib
from virtiopy.closing import Closing
from virtiopy.errors import ConfigError, HostError
from virtiopy.memory import GuestMemory
from virtiopy.spec import Feature, feature_mask
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.layout import RingFormat, valid_queue_size
from virtiopy.virtqueue.queue import WORKER_FEATURES, QueueAreas, QueueError, QueueState

DEVICE = "/dev/vhost-net"

#: Virtqueues of one vhost-net file: receive and transmit.
RINGS = 2

#: What vhost takes for the header of each frame: virtio 1's, with num_buffers (5.1.9), bytes.
HEADER_SIZE = ffi.sizeof("struct virtio_net_hdr_v1")

_MRG_RXBUF = 15

#: The feature bits that are the business of whoever works the rings of a network device: what
#: vhost lacks of these cannot be offered. All others are the device's, or the tap's.
DATA_PLANE_FEATURES = WORKER_FEATURES | feature_mask([_MRG_RXBUF])

#: What vhost needs to have, for a driver of ours to be served by it at all.
_NEEDED = feature_mask([Feature.VIRTIO_F_VERSION_1])

#: Calls ioctl(fd, request, argument) and returns its result, or -errno.
Ioctl = Callable[[int, int, int], int]


class VhostFeature(enum.IntEnum):
    """Bits of VHOST_GET_FEATURES that are no virtio feature (linux/vhost_types.h)."""

    #: Log all writes to guest memory, for live migration.
    VHOST_F_LOG_ALL = lib.VHOST_F_LOG_ALL
    #: vhost adds and strips struct virtio_net_hdr itself: for a tap without IFF_VNET_HDR.
    VHOST_NET_F_VIRTIO_NET_HDR = lib.VHOST_NET_F_VIRTIO_NET_HDR


class BackendFeature(enum.IntFlag):
    """The set of VHOST_GET_BACKEND_FEATURES."""

    IOTLB_MSG_V2 = lib.VHOST_BACKEND_F_IOTLB_MSG_V2


@dataclass(slots=True, frozen=True)
class Ring:
    """A virtqueue as vhost is told of it.

    `state` is where it is to go on. The eventfds stay the caller's: `kick` is read by vhost, `call`
    is written for a used buffer notification, `error` when the ring is broken.
    """

    size: int
    areas: QueueAreas
    state: QueueState
    kick: int
    call: int
    error: int | None = None


def offered_with(device_features: int, vhost_features: int) -> int:
    """Return what a device can offer of `device_features` when vhost works its rings."""
    return device_features & ~(DATA_PLANE_FEATURES & ~vhost_features)


class VhostNet(Closing):
    """An open /dev/vhost-net that this process owns: VHOST_SET_OWNER.

    Raises HostError, with the remedy, when there is none to open. Each method is one ioctl unless
    it says otherwise, and raises HostError when the kernel refuses.
    """

    def __init__(self, device: str = DEVICE, *, ioctl: Ioctl = lib.vp_ioctl) -> None:
        self._ioctl = ioctl
        self._memory: GuestMemory | None = None
        try:
            self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(_why_not(device, error)) from error
        try:
            #: What vhost offers, a mask of virtio's feature bits and VhostFeature's.
            self.features = self._get_features(device)
            self.set_owner()
        except HostError:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close the file: the kernel stops both rings and ends its thread."""
        os.close(self.fd)

    # Calling the kernel

    def _call(self, name: str, argument: int = 0, why: dict[int, str] | None = None) -> None:
        self._check(name, self._ioctl(self.fd, getattr(lib, name), argument), why)

    @staticmethod
    def _check(name: str, result: int, why: dict[int, str] | None = None) -> None:
        if result < 0:
            reason = (why or {}).get(-result)
            if reason is None:
                reason = "see whether vhost=off works, and what dmesg says of vhost"
            raise HostError(f"{name} fails ({os.strerror(-result)}): {reason}.")

    def _set(self, name: str, struct: CData, why: dict[int, str] | None = None) -> None:
        self._call(name, int(ffi.cast("uintptr_t", struct)), why)

    def _get_u64(self, name: str) -> int:
        value = ffi.new("uint64_t *")
        self._set(name, value)
        return int(value[0])

    # The device as a whole

    def _get_features(self, device: str) -> int:
        features = self._get_u64("VHOST_GET_FEATURES")
        if _NEEDED & ~features:
            raise HostError(
                f"{device} knows no virtio 1 (features {features:#x}): "
                "use a kernel since 4.0, or vhost=off."
            )
        return features

    def set_owner(self) -> None:
        """Make this process, and its memory, what the rings are worked in: VHOST_SET_OWNER.

        The kernel makes its thread vhost-PID.
        """
        self._call("VHOST_SET_OWNER", why={errno.EBUSY: "this file has an owner already"})

    def reset_owner(self) -> None:
        """Stop both rings and forget all that was set: VHOST_RESET_OWNER."""
        self._call("VHOST_RESET_OWNER", why={errno.EPERM: "another process owns this file"})
        self._memory = None

    def set_features(self, driver_features: int) -> None:
        """Say what the driver negotiated, as far as it is vhost's business: VHOST_SET_FEATURES.

        Before the rings start. Raises HostError for a bit that vhost has not.
        """
        features = driver_features & DATA_PLANE_FEATURES
        lacking = features & ~self.features
        if lacking:
            raise HostError(
                f"vhost lacks features {lacking:#x} that the driver negotiated: offer only what "
                "offered_with() leaves, or use a newer kernel."
            )
        self._set("VHOST_SET_FEATURES", ffi.new("uint64_t *", features))

    def get_backend_features(self) -> BackendFeature:
        """Ask what vhost's own protocol can: VHOST_GET_BACKEND_FEATURES."""
        return BackendFeature(self._get_u64("VHOST_GET_BACKEND_FEATURES"))

    def set_backend_features(self, features: BackendFeature) -> None:
        """Choose among them: VHOST_SET_BACKEND_FEATURES."""
        self._set("VHOST_SET_BACKEND_FEATURES", ffi.new("uint64_t *", int(features)))

    def set_memory(self, memory: GuestMemory) -> None:
        """Say where the guest's memory is in this process: VHOST_SET_MEM_TABLE.

        The whole table is replaced; running rings go on with the new one.
        """
        table = ffi.new("struct vhost_memory *", {"regions": len(memory.regions)})
        table.nregions = len(memory.regions)
        for index, region in enumerate(memory.regions):
            entry = table.regions[index]
            entry.guest_phys_addr = region.guest_address
            entry.memory_size = region.size
            entry.userspace_addr = region.host_address
        why = {errno.E2BIG: "raise the module vhost's parameter max_mem_regions"}
        self._set("VHOST_SET_MEM_TABLE", table, why)
        self._memory = memory

    # One ring: index 0 is receiveq, 1 is transmitq

    def _set_state(self, name: str, index: int, value: int) -> None:
        busy = {errno.EBUSY: "the ring runs: stop it first"}
        self._set(name, ffi.new("struct vhost_vring_state *", (index, value)), busy)

    def _set_file(self, name: str, index: int, fd: int | None) -> None:
        number = lib.VHOST_FILE_UNBIND if fd is None else fd
        self._set(name, ffi.new("struct vhost_vring_file *", (index, number)))

    def set_size(self, index: int, size: int) -> None:
        """Set the queue size: VHOST_SET_VRING_NUM. Raises QueueError for none (2.7)."""
        if not valid_queue_size(size):
            raise QueueError(f"queue size {size} is no power of 2 up to 32768 (2.7)")
        self._set_state("VHOST_SET_VRING_NUM", index, size)

    def set_base(self, index: int, state: QueueState) -> None:
        """Say where a stopped ring is to go on: VHOST_SET_VRING_BASE."""
        self._set_state("VHOST_SET_VRING_BASE", index, state.vring_base)

    def get_base(self, index: int) -> QueueState:
        """Return where a stopped ring is to go on: VHOST_GET_VRING_BASE."""
        state = ffi.new("struct vhost_vring_state *", (index, 0))
        self._set("VHOST_GET_VRING_BASE", state)
        return QueueState(int(state.num))

    def set_addresses(self, index: int, size: int, areas: QueueAreas) -> None:
        """Say where the three parts of the ring are: VHOST_SET_VRING_ADDR.

        After `set_memory`. Raises QueueError when a part is not contiguous guest memory, and
        AddressError when it is no guest memory at all: the driver's fault both.
        """
        vring = ffi.new("struct vhost_vring_addr *")
        vring.index = index
        expected = layout.areas(RingFormat.SPLIT, size)
        vring.desc_user_addr = self._pointer(areas.descriptor, expected.descriptor.size)
        vring.avail_user_addr = self._pointer(areas.driver, expected.driver.size)
        vring.used_user_addr = self._pointer(areas.device, expected.device.size)
        self._set("VHOST_SET_VRING_ADDR", vring, {errno.EINVAL: "a part is misaligned (2.7)"})

    def _pointer(self, address: int, length: int) -> int:
        if self._memory is None:
            raise ValueError("set_memory comes first")
        pointer = self._memory.pointer(address, length)
        if pointer is None:
            raise QueueError(f"{length} bytes at {address:#x} are not contiguous memory (2.7)")
        return pointer

    def set_kick(self, index: int, eventfd: int | None) -> None:
        """Set what vhost waits for to look at the ring: VHOST_SET_VRING_KICK."""
        self._set_file("VHOST_SET_VRING_KICK", index, eventfd)

    def set_call(self, index: int, eventfd: int | None) -> None:
        """Set what vhost writes for a used buffer notification: VHOST_SET_VRING_CALL."""
        self._set_file("VHOST_SET_VRING_CALL", index, eventfd)

    def set_error(self, index: int, eventfd: int | None) -> None:
        """Set what vhost writes when the ring is broken: VHOST_SET_VRING_ERR."""
        self._set_file("VHOST_SET_VRING_ERR", index, eventfd)

    def set_busy_poll(self, index: int, microseconds: int) -> None:
        """Let vhost poll so long before it sleeps; 0 is never: VHOST_SET_VRING_BUSYLOOP_TIMEOUT."""
        if not 0 <= microseconds < 1 << 32:
            raise ConfigError(f"A busy-poll timeout of {microseconds} us: use 0 to 4294967295.")
        self._set_state("VHOST_SET_VRING_BUSYLOOP_TIMEOUT", index, microseconds)

    def get_busy_poll(self, index: int) -> int:
        """Return the busy-poll timeout in microseconds: VHOST_GET_VRING_BUSYLOOP_TIMEOUT."""
        state = ffi.new("struct vhost_vring_state *", (index, 0))
        self._set("VHOST_GET_VRING_BUSYLOOP_TIMEOUT", state)
        return int(state.num)

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

    # All of the above

    def start_ring(self, index: int, ring: Ring, tap: int) -> None:
        """Hand a ring over: from here on vhost works it, what is available already included.

        (It starts to poll the tap, which wakes it, so that it does not matter who read the last
        kick.) After set_features and set_memory. If it fails, the ring is not running.
        """
        self.set_size(index, ring.size)
        self.set_base(index, ring.state)
        self.set_addresses(index, ring.size, ring.areas)
        self.set_error(index, ring.error)
        self.set_call(index, ring.call)
        self.set_kick(index, ring.kick)
        self.set_backend(index, tap)

    def stop_ring(self, index: int) -> QueueState:
        """Take a ring back; returns where to go on.

        When this returns, vhost touches neither the ring nor its eventfds any more.
        """
        self.set_backend(index, None)
        state = self.get_base(index)
        self.set_kick(index, None)
        self.set_call(index, None)
        self.set_error(index, None)
        return state


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
            "set TUNSETVNETHDRSZ, and let nobody else use the tap."
        )


def _why_not(device: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return (
            f"{device} does not exist: load the module with `modprobe vhost_net`, pass the device "
            "into this container, or use vhost=off."
        )
    if isinstance(error, PermissionError):
        return f"{device} may not be opened by this user: run as root, or use vhost=off."
    return f"{device} cannot be opened ({error.strerror}): use vhost=off."
