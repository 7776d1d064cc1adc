"""What all vhost devices of the kernel have in common: memory, features and rings (linux/vhost.h).

The kernel has no document on vhost: linux/vhost.h says what each ioctl does, and
drivers/vhost/vhost.c what it refuses.
"""

import enum
import errno
import os
from collections.abc import Callable
from typing import ClassVar

from virtiopy._native import CData, ffi, lib
from virtiopy.closing import Closing
from virtiopy.errors import ConfigError, HostError
from virtiopy.memory import GuestMemory
from virtiopy.spec import Feature, feature_mask
from virtiopy.vhost.vring import Vring, host_areas
from virtiopy.virtqueue.layout import valid_queue_size
from virtiopy.virtqueue.queue import WORKER_FEATURES, QueueAreas, QueueError, QueueState

#: What vhost needs to have, for a driver of ours to be served by it at all.
_NEEDED = feature_mask([Feature.VIRTIO_F_VERSION_1])

#: Calls ioctl(fd, request, argument) and returns its result, or -errno.
Ioctl = Callable[[int, int, int], int]


class VhostFeature(enum.IntEnum):
    """Bits of VHOST_GET_FEATURES that are no virtio feature (linux/vhost_types.h)."""

    #: Log all writes to guest memory, for live migration.
    VHOST_F_LOG_ALL = lib.VHOST_F_LOG_ALL
    #: vhost-net adds and strips struct virtio_net_hdr itself: for a tap without IFF_VNET_HDR.
    VHOST_NET_F_VIRTIO_NET_HDR = lib.VHOST_NET_F_VIRTIO_NET_HDR


class BackendFeature(enum.IntFlag):
    """The set of VHOST_GET_BACKEND_FEATURES."""

    IOTLB_MSG_V2 = lib.VHOST_BACKEND_F_IOTLB_MSG_V2


class VhostDevice(Closing):
    """An open vhost device that this process owns: VHOST_SET_OWNER.

    The kernel works its rings on a thread of its own, named vhost-PID. What starts and stops them
    is each kind's own. What moves both ways is a QueueState; the rings stay where they are, in
    guest memory.

    Raises HostError, with the remedy, when there is none to open. Each method is one ioctl unless
    it says otherwise, and raises HostError when the kernel refuses.
    """

    #: The file, and the kernel's module that makes it.
    path: ClassVar[str]
    module: ClassVar[str]

    #: What a user writes to have the device's rings worked without vhost.
    otherwise: ClassVar[str] = "vhost=off"

    #: The feature bits that are vhost's business: what it lacks of these cannot be offered. All
    #: others are the device's.
    worker_features: ClassVar[int] = WORKER_FEATURES

    def __init__(self, path: str | None = None, *, ioctl: Ioctl = lib.vp_ioctl) -> None:
        path = path or self.path
        self._ioctl = ioctl
        self._memory: GuestMemory | None = None
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(self._why_not(path, error)) from error
        try:
            #: What vhost offers, a mask of virtio's feature bits and VhostFeature's.
            self.features = self._get_features(path)
            self.set_owner()
        except HostError:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close the file: the kernel stops the rings and ends its thread."""
        os.close(self.fd)

    @classmethod
    def offered_with(cls, device_features: int, vhost_features: int) -> int:
        """Return what a device can offer of `device_features` when vhost works its rings."""
        return device_features & ~(cls.worker_features & ~vhost_features)

    def offered(self, features: int) -> int:
        """Return what a device can offer of its features when this vhost works its rings."""
        return self.offered_with(features, self.features)

    @classmethod
    def _why_not(cls, path: str, error: OSError) -> str:
        if isinstance(error, FileNotFoundError):
            return (
                f"{path} does not exist: load the module with `modprobe {cls.module}`, pass the "
                f"device into this container, or use {cls.otherwise}."
            )
        if isinstance(error, PermissionError):
            return f"{path} may not be opened by this user: run as root, or use {cls.otherwise}."
        return f"{path} cannot be opened ({error.strerror}): use {cls.otherwise}."

    # Calling the kernel

    def _call(self, name: str, argument: int = 0, why: dict[int, str] | None = None) -> None:
        self._check(name, self._ioctl(self.fd, getattr(lib, name), argument), why)

    @classmethod
    def _check(cls, name: str, result: int, why: dict[int, str] | None = None) -> None:
        if result < 0:
            reason = (why or {}).get(-result)
            if reason is None:
                reason = f"see whether {cls.otherwise} works, and what dmesg says of vhost"
            raise HostError(f"{name} fails ({os.strerror(-result)}): {reason}.")

    def _set(self, name: str, struct: CData, why: dict[int, str] | None = None) -> None:
        self._check(name, self._try(name, struct), why)

    def _try(self, name: str, struct: CData) -> int:
        """Call with a structure; returns the result, or -errno."""
        return self._ioctl(self.fd, getattr(lib, name), int(ffi.cast("uintptr_t", struct)))

    def _get_u64(self, name: str) -> int:
        value = ffi.new("uint64_t *")
        self._set(name, value)
        return int(value[0])

    # The device as a whole

    def _get_features(self, path: str) -> int:
        features = self._get_u64("VHOST_GET_FEATURES")
        if _NEEDED & ~features:
            raise HostError(
                f"{path} knows no virtio 1 (features {features:#x}): "
                f"use a kernel since 4.0, or {self.otherwise}."
            )
        return features

    def set_owner(self) -> None:
        """Make this process, and its memory, what the rings are worked in: VHOST_SET_OWNER.

        The kernel makes its thread vhost-PID.
        """
        self._call("VHOST_SET_OWNER", why={errno.EBUSY: "this file has an owner already"})

    def reset_owner(self) -> None:
        """Stop all rings and forget all that was set: VHOST_RESET_OWNER."""
        self._call("VHOST_RESET_OWNER", why={errno.EPERM: "another process owns this file"})
        self._memory = None

    def set_features(self, driver_features: int) -> None:
        """Say what the driver negotiated, as far as it is vhost's business: VHOST_SET_FEATURES.

        Before the rings start. Raises HostError for a bit that vhost has not.
        """
        features = driver_features & self.worker_features
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

    # One ring, by its index in this file

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
        """Say where the three areas of the ring are: VHOST_SET_VRING_ADDR.

        After `set_memory`. Raises QueueError and AddressError as `host_areas` does.
        """
        if self._memory is None:
            raise ValueError("set_memory comes first")
        host = host_areas(self._memory, size, areas)
        vring = ffi.new("struct vhost_vring_addr *")
        vring.index = index
        vring.desc_user_addr = host.descriptor
        vring.avail_user_addr = host.driver
        vring.used_user_addr = host.device
        self._set("VHOST_SET_VRING_ADDR", vring, {errno.EINVAL: "a part is misaligned (2.7)"})

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

    # All of a ring, but for what starts and stops it

    def prepare_ring(self, index: int, ring: Vring) -> None:
        """Tell vhost all of a ring that it is to work: after set_features and set_memory."""
        self.set_size(index, ring.size)
        self.set_base(index, ring.state)
        self.set_addresses(index, ring.size, ring.areas)
        self.set_error(index, ring.error)
        self.set_call(index, ring.call)
        self.set_kick(index, ring.kick)

    def forget_ring(self, index: int) -> QueueState:
        """Let go of a stopped ring and its eventfds; returns where to go on."""
        state = self.get_base(index)
        self.set_kick(index, None)
        self.set_call(index, None)
        self.set_error(index, None)
        return state
