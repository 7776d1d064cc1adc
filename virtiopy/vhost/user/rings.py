"""All virtqueues of a backend's device, and what decides together whether they are worked."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Protocol

from virtiopy.closing import Closing
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.gate import Gate
from virtiopy.errors import ConfigError, PeerError
from virtiopy.eventloop import EventLoop
from virtiopy.spec import DeviceStatus, feature_mask, has_feature
from virtiopy.transport.interrupts import CONFIG, InterruptSource, Progress
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.vhost.user.inflight import Inflight
from virtiopy.vhost.user.memory import DirtyLog, FrontendMemory
from virtiopy.vhost.user.messages import (
    VHOST_F_LOG_ALL,
    VHOST_USER_F_PROTOCOL_FEATURES,
    RingAddresses,
    request_name,
)
from virtiopy.vhost.user.ring import Ring
from virtiopy.virtqueue.queue import QueueState

log = logging.getLogger(__name__)

#: The bits that are no virtio feature: the device is not told of them.
_NOT_VIRTIO = feature_mask([VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES])


class Lease(Protocol):
    """What the rings' device may use only while one of them is worked, as a disk's image."""

    def claim(self) -> None:
        """Have it, also if it is had already; raises ConfigError where another has it."""

    def release(self) -> None:
        """Let others have it."""


class Rings(Closing):
    """The virtqueues of `device`, in `memory`, for one frontend after the other.

    They lead the device's `lifecycle`, and its notifications go to the rings' call eventfds.
    `fail` is called with the reason where the frontend's session cannot go on. The `lease` is
    claimed while any ring is worked, so that a guest can migrate to a backend on the same host.
    The `gate` is shut while a message of the frontend's waits. The caller holds the device's lock.
    """

    def __init__(
        self,
        device: VirtioDevice,
        loop: EventLoop,
        memory: FrontendMemory,
        *,
        fail: Callable[[str], None],
        lease: Lease | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.memory = memory
        self.lifecycle = Lifecycle(
            device,
            memory,
            self,
            assumed_features=device.vmm_features,
            transitional=True,
            loop=loop,
            may_block=False,
            gate=gate,
        )
        self.lifecycle.find_notifiers = lambda index: self._rings[index].notifiers
        #: What SET_FEATURES said, in this session.
        self.features: int | None = None
        self.inflight: Inflight | None = None
        self.log: DirtyLog | None = None
        self._device = device
        self._lease = lease
        self._rings = [
            Ring(self.lifecycle, loop, index, self._work, fail)
            for index in range(len(device.queue_sizes))
        ]

    def __len__(self) -> int:
        return len(self._rings)

    def close(self) -> None:
        """Complete what is being done, and be as before any frontend."""
        self.reset()
        for ring in self._rings:
            ring.close()
        self.memory.clear()
        self.set_inflight(None)
        self.set_log(None)
        self.features = None
        self.lifecycle.driver_features = 0

    @property
    def are_worked(self) -> bool:
        """Whether any is."""
        return any(ring.queue is not None for ring in self._rings)

    def ring(self, index: int, request: int) -> Ring:
        """Return a ring that a request is for; raises PeerError."""
        if index >= len(self._rings):
            raise PeerError(
                f"{request_name(request)} for ring {index} of a device with {len(self._rings)}"
            )
        return self._rings[index]

    def stopped_ring(self, index: int, request: int) -> Ring:
        """Return a ring that is not worked; raises PeerError."""
        ring = self.ring(index, request)
        if ring.queue is not None:
            raise PeerError(f"{request_name(request)} for ring {index}, which is not stopped")
        return ring

    @property
    def broken(self) -> bool:
        """Whether no ring is worked any more until a reset, or until all are stopped."""
        return bool(self.lifecycle.status & DeviceStatus.DEVICE_NEEDS_RESET)

    # Notifications: an InterruptSink

    def trigger(self, source: InterruptSource) -> None:
        """Send a used buffer notification.

        The frontend hears of the configuration by a message, whether its driver is up or not.
        """
        if source is not CONFIG:
            self._rings[source].notify()

    def delegate(self, index: int, progress: Progress | None) -> None:
        """Take no note: notifiers that are the frontend's are delegated to no worker."""

    def reclaim(self, index: int) -> None:
        """Take no note."""

    def clear(self) -> None:
        """Forget nothing: an eventfd that was written is the driver's to read."""

    # The device as a whole

    def set_features(self, features: int) -> None:
        """Take what was negotiated; raises PeerError for another outcome while rings are worked."""
        before, self.features = self.features, features
        if self.are_worked:
            # Only the log can be turned on and off then (Migration).
            if before is None or (before ^ features) & ~feature_mask([VHOST_F_LOG_ALL]):
                raise PeerError("SET_FEATURES with other features while rings are worked")
            self._update_logs()
            return
        if before is not None and self.lifecycle.active and (before ^ features) & ~_NOT_VIRTIO:
            self._reset_driver()
        self.lifecycle.driver_features = features & ~_NOT_VIRTIO
        # Features that the device cannot work with are refused aloud when a ring is to start, or at
        # FEATURES_OK: a frontend may have others to say before that.
        if not self.lifecycle.objections():
            self.lifecycle.negotiate()

    def set_status(self, status: int) -> None:
        """Take what the driver wrote to its device status field."""
        if status == 0:
            self._reset_driver()
            return
        self.lifecycle.write_status(status)
        self._enable_queues()

    def reset(self) -> None:
        """Reset the device: its rings are stopped, and start only when they are set up again."""
        self._reset_driver()
        for ring in self._rings:
            ring.base = QueueState()

    def _reset_driver(self) -> None:
        """Forget the driver; each ring's base stays for GET_VRING_BASE.

        QEMU also writes a device status of 0 where it stops a guest that goes on later, here or
        in another VMM, and asks for the bases afterwards.
        """
        for ring in self._rings:
            self._stop(ring)
            ring.forget_kick()
        self._reset_device()

    def _reset_device(self) -> None:
        self.lifecycle.reset()
        if self.features is not None:
            # The frontend does not say them again.
            self.lifecycle.driver_features = self.features & ~_NOT_VIRTIO

    def disable(self) -> None:
        """Disable all rings."""
        for ring in self._rings:
            self._stop(ring)
            ring.enabled = False

    def signal_errors(self) -> None:
        """Say of each ring that is worked that it is broken: the device needs a reset (2.1.2)."""
        for ring in self._rings:
            if ring.queue is not None:
                ring.signal_error()

    # One ring's life (Ring states)

    def _work(self, ring: Ring) -> None:
        with self._device.lock:
            if ring.queue is not None and self.lifecycle.running:
                self.lifecycle.kick(ring.index)

    def set_addresses(self, ring: Ring, addresses: RingAddresses) -> None:
        """Take the addresses; of a ring that is worked, how it is logged. Raises PeerError."""
        before, ring.addresses = ring.addresses, addresses
        if ring.queue is not None:
            if before is None or _without_log(before) != _without_log(addresses):
                raise PeerError(f"SET_VRING_ADDR moves ring {ring.index} while it is worked")
            self._update_logs()

    def set_kick(self, ring: Ring, fd: int | None) -> None:
        """Start a ring that is enabled, or go on with this kick; raises PeerError or QueueError."""
        ring.set_kick(fd)
        if ring.addresses is None or not ring.size:
            raise PeerError(f"a kick for ring {ring.index}, which has no size or no addresses yet")
        if self.features is None:
            raise PeerError(f"a kick for ring {ring.index} before SET_FEATURES")
        self._start_if_ready(ring)
        # Of one that is worked, a kick may be in the file before, which is read no more.
        self._work(ring)

    def enable(self, ring: Ring, enabled: bool) -> None:
        """Enable or disable a ring; raises PeerError or QueueError where it cannot start."""
        ring.enabled = enabled
        if not enabled and not self._device.discards_while_disabled(ring.index):
            self._stop(ring)
        self._enable_queues()
        self._start_if_ready(ring)

    def stop(self, ring: Ring) -> QueueState:
        """Stop a ring; returns where to go on."""
        self._stop(ring)
        ring.forget_kick()
        if self.broken and not self.are_worked:
            # Some frontends have no other way to reset a device.
            self._reset_device()
        return ring.base

    def _stop(self, ring: Ring) -> None:
        ring.stop()
        if self._lease is not None and not self.are_worked:
            self._lease.release()

    def _claim(self) -> None:
        """Have what the device uses for itself; raises PeerError where another has it."""
        if self._lease is not None:
            try:
                self._lease.claim()
            except ConfigError as error:
                raise PeerError(f"no ring can start: {error}") from error

    def _start_if_ready(self, ring: Ring) -> None:
        """Start a ring that has everything which a start takes."""
        features = self.features
        if ring.queue is not None or not ring.kick_is_set or features is None:
            return
        has_states = has_feature(features, VHOST_USER_F_PROTOCOL_FEATURES)
        if has_states and not ring.enabled and not self._device.discards_while_disabled(ring.index):
            return
        if not self.lifecycle.active and not self.lifecycle.accepts(
            f"ring {ring.index} does not start"
        ):
            return
        self._claim()
        inflight = None
        if self.inflight is not None:
            inflight = self.inflight.queue(ring.index, ring.size)
        queue = ring.start(
            self.memory,
            inflight,
            features=features,
        )
        ring.log_writes(*self._logs(ring))
        if ring.inherited:
            log.info("ring %d: %d requests in flight go on", ring.index, ring.inherited)
        self.lifecycle.negotiate()
        self.lifecycle.start_queue(ring.index, queue)
        self._enable_queues()
        # The kick for what is in it may have gone to another backend, which may have been killed
        # before it could send the notification for what it used.
        if ring.was_used:
            ring.notify()
        self._work(ring)

    def _enable_queues(self) -> None:
        if self.features is None or not self.lifecycle.active:
            return
        if has_feature(self.features, VHOST_USER_F_PROTOCOL_FEATURES):
            self._device.enable_queues([ring.index for ring in self._rings if ring.enabled])

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Work no ring meanwhile: the memory under it may change."""
        held = [ring for ring in self._rings if ring.queue is not None]
        for ring in held:
            ring.stop()
        yield
        for ring in held:
            self._start_if_ready(ring)

    # What is kept account of

    def set_log(self, dirty_log: DirtyLog | None) -> None:
        """Mark what is written in this log from now on, which is closed with the next one."""
        before, self.log = self.log, dirty_log
        self._update_logs()
        if before is not None:
            before.close()

    def _logs(self, ring: Ring) -> tuple[DirtyLog | None, int | None]:
        logs = self.features is not None and has_feature(self.features, VHOST_F_LOG_ALL)
        return (self.log, ring.used_log) if logs else (None, None)

    def _update_logs(self) -> None:
        for ring in self._rings:
            if ring.queue is not None:
                ring.log_writes(*self._logs(ring))

    def set_inflight(self, inflight: Inflight | None) -> None:
        """Track what is in flight in this area; raises PeerError while rings are worked."""
        if inflight is not None and self.are_worked:
            inflight.close()
            raise PeerError("what is in flight moves while rings are worked")
        if self.inflight is not None:
            self.inflight.close()
        self.inflight = inflight


def _without_log(addresses: RingAddresses) -> tuple[int, int, int]:
    return addresses.descriptor_table, addresses.used_ring, addresses.available_ring
