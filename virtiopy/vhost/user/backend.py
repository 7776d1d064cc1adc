"""The backend of vhost-user: one virtio device, served to the frontend that is connected.

It follows QEMU's docs/interop/vhost-user. What the frontend may not do ends its connection, with
one logged reason, and the device waits for the next.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from virtiopy.closing import Closing
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import DriverError, PeerError
from virtiopy.eventloop import READABLE, EventLoop, Timer, Watch
from virtiopy.spec import DeviceId, DeviceStatus, Feature, feature_mask, has_feature
from virtiopy.vhost.user.connection import Connection, DisconnectedError, close_all
from virtiopy.vhost.user.inflight import Inflight
from virtiopy.vhost.user.memory import SLOTS_MAX, DirtyLog, FrontendMemory
from virtiopy.vhost.user.messages import (
    REGIONS_MAX,
    VHOST_F_LOG_ALL,
    VHOST_USER_F_PROTOCOL_FEATURES,
    BackendRequest,
    ConfigAccess,
    Flag,
    InflightArea,
    LogArea,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    RingAddresses,
    RingState,
    expect_fds,
    request_name,
    to_memory_table,
    to_ring_file,
    to_u64,
    u64,
)
from virtiopy.vhost.user.queue import Accounts
from virtiopy.vhost.user.ring import Ring
from virtiopy.virtqueue.layout import INDEX_MODULUS, valid_queue_size
from virtiopy.virtqueue.split import SplitQueue

log = logging.getLogger(__name__)

#: What rings and protocol offer, whatever the device.
BACKEND_FEATURES = feature_mask(
    [
        Feature.VIRTIO_F_VERSION_1,
        Feature.VIRTIO_F_INDIRECT_DESC,
        Feature.VIRTIO_F_EVENT_IDX,
        VHOST_F_LOG_ALL,
        VHOST_USER_F_PROTOCOL_FEATURES,
    ]
)

PROTOCOL_FEATURES = feature_mask(
    [
        ProtocolFeature.MQ,
        ProtocolFeature.LOG_SHMFD,
        ProtocolFeature.REPLY_ACK,
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.CONFIG,
        ProtocolFeature.INFLIGHT_SHMFD,
        ProtocolFeature.RESET_DEVICE,
        ProtocolFeature.CONFIGURE_MEM_SLOTS,
        ProtocolFeature.STATUS,
    ]
)

#: Seconds within which a message that has begun has to be whole.
MESSAGE_TIME = 5.0

#: The bits that are no virtio feature: the device is not told of them.
_NOT_VIRTIO = feature_mask([VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES])


class Backend(Closing):
    """`device` for one frontend after the other, worked on `loop`'s thread; it is the caller's.

    `on_disconnect` is called when a frontend has gone, whoever ended it.
    """

    def __init__(
        self, device: VirtioDevice, loop: EventLoop, on_disconnect: Callable[[], None]
    ) -> None:
        self.device = device
        #: The guest's memory (devices.base.DeviceHost).
        self.memory = FrontendMemory()
        self._loop = loop
        self._on_disconnect = on_disconnect
        self._rings = [
            Ring(device, loop, index, self._work, self._disconnect)
            for index in range(len(device.queue_sizes))
        ]
        self._connection: Connection | None = None
        self._watch: Watch | None = None
        self._deadline: Timer | None = None
        self._inflight: Inflight | None = None
        self._log: DirtyLog | None = None
        self._channel: Connection | None = None
        self._forget()
        device.attach(self, loop, may_block=False)
        self._lost = loop.watch(self.memory.lost, READABLE, self._memory_lost, "memory lost")

    def _forget(self) -> None:
        """Be as before any frontend."""
        self._features: int | None = None
        self._protocol_features = 0
        self._status = 0
        self._active = False
        self._broken = False

    def close(self) -> None:
        """Complete what is being done, and leave the frontend."""
        self._drop("this side ends")
        self._loop.unwatch(self._lost)
        self.memory.close()

    @property
    def connected(self) -> bool:
        """Whether there is a frontend."""
        return self._connection is not None

    @property
    def offered_features(self) -> int:
        """What GET_FEATURES answers."""
        return self.device.features | BACKEND_FEATURES

    # The frontend's connection

    def connect(self, stream: socket.socket) -> None:
        """Serve this frontend from now on; on the loop's thread."""
        stream.setblocking(False)
        self._connection = Connection(stream)
        self._watch = self._loop.watch(stream.fileno(), READABLE, self._readable, "frontend")

    def _readable(self, events: int) -> None:
        connection = self._connection
        try:
            while connection is not None and (message := connection.receive()) is not None:
                self._set_deadline(None)
                with self.device.lock:
                    self._handle(message)
                # It may have been the last.
                connection = self._connection
            if connection is not None and connection.in_a_message and self._deadline is None:
                self._set_deadline(MESSAGE_TIME)
        except DisconnectedError as error:
            log.info("the frontend is gone: %s", error)
            self._drop(None)
        except (PeerError, DriverError) as error:
            self._disconnect(str(error))

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None:
            reason = f"half a message came, and no more for {seconds:g} s"
            self._deadline = self._loop.call_later(
                seconds, lambda: self._disconnect(reason), "frontend's message"
            )

    def _memory_lost(self, events: int) -> None:
        os.eventfd_read(self.memory.lost)
        self._disconnect("it took memory away that it had given")

    def _disconnect(self, reason: str) -> None:
        if self._connection is not None:
            log.error("the frontend was disconnected: %s", reason)
            self._drop(None)

    def _drop(self, reason: str | None) -> None:
        """End the connection, and be ready for the next."""
        connection = self._connection
        if connection is None:
            return
        if reason is not None:
            log.info("the frontend is left: %s", reason)
        self._connection = None
        self._set_deadline(None)
        if self._watch is not None:
            self._loop.unwatch(self._watch)
            self._watch = None
        with self.device.lock:
            self._reset_device()
        for ring in self._rings:
            ring.close()
        self.memory.clear()
        self._set_inflight(None)
        self._set_log(None)
        self._set_channel(None)
        self._forget()
        connection.close()
        self._on_disconnect()

    def _reset_device(self) -> None:
        for ring in self._rings:
            ring.stop()
        self.device.reset()
        self._active = False
        self._broken = False
        self._status = 0

    # The device's side (devices.base.DeviceHost)

    def used_buffer_notification(self, queue: SplitQueue) -> None:
        """Write the ring's call eventfd."""
        if not self._broken:
            self._rings[queue.index].notify()

    def config_changed(self, *, notify: bool = True) -> None:
        """Send CONFIG_CHANGE_MSG, where the frontend has opened a channel for it."""
        if not notify or self._channel is None or not self._has(ProtocolFeature.CONFIG):
            return
        try:
            self._channel.send(Message(BackendRequest.CONFIG_CHANGE_MSG))
        except PeerError as error:
            log.warning("the frontend does not hear of a change of configuration: %s", error)
            self._set_channel(None)

    def needs_reset(self, reason: str) -> None:
        """Work no ring any more until the device is reset or the rings are stopped (2.1.2)."""
        log.warning("%s needs a reset: %s", self.device.device_id.name, reason)
        self._broken = True
        self.device.halt()
        self._status |= int(DeviceStatus.DEVICE_NEEDS_RESET)
        for ring in self._rings:
            if ring.queue is not None:
                ring.signal_error()

    def notifiers(self, index: int) -> None:
        """Lend no notifiers: they are the frontend's."""

    # Rings

    def _work(self, ring: Ring) -> None:
        with self.device.lock:
            queue = ring.queue
            if queue is None or self._broken:
                return
            try:
                self.device.handle(queue)
            except DriverError as error:
                self.needs_reset(str(error))

    def _start_if_ready(self, ring: Ring) -> None:
        """Start a ring that has everything which a start takes."""
        features = self._features
        if ring.queue is not None or not ring.kick_is_set or features is None:
            return
        has_states = has_feature(features, VHOST_USER_F_PROTOCOL_FEATURES)
        if has_states and not ring.enabled and not self._works_disabled(ring):
            return
        if not has_feature(features, Feature.VIRTIO_F_VERSION_1):
            log.warning("ring %d does not start: the driver has no VERSION_1", ring.index)
            return
        if not self.device.accepts(features & ~_NOT_VIRTIO | self.device.vmm_features):
            log.warning("ring %d does not start: features %#x (2.2.2)", ring.index, features)
            return
        inflight = None
        if self._inflight is not None:
            inflight = self._inflight.queue(ring.index, ring.size)
        queue = ring.start(
            self.memory,
            Accounts(inflight, *self._logs(ring)),
            event_idx=has_feature(features, Feature.VIRTIO_F_EVENT_IDX),
            indirect=has_feature(features, Feature.VIRTIO_F_INDIRECT_DESC),
        )
        if queue.inherited:
            log.info("ring %d: %d requests in flight go on", ring.index, queue.inherited)
        if self._active:
            self.device.start_queue(ring.index, queue)
        else:
            self._active = True
            self.device.activate({ring.index: queue})
        self._enable_queues()
        # The kick for what is in it may have gone to another backend, which may have been killed
        # before it could send the notification for what it used.
        if queue.used_index:
            ring.notify()
        self._work(ring)

    def _works_disabled(self, ring: Ring) -> bool:
        """Say whether a disabled ring is worked: what is sent is discarded (Ring states)."""
        return self.device.device_id is DeviceId.NETWORK and ring.index % 2 == 1

    def _enable_queues(self) -> None:
        if self._features is None or not self._active:
            return
        if has_feature(self._features, VHOST_USER_F_PROTOCOL_FEATURES):
            self.device.enable_queues([ring.index for ring in self._rings if ring.enabled])

    def _logs(self, ring: Ring) -> tuple[DirtyLog | None, int | None]:
        logs = self._features is not None and has_feature(self._features, VHOST_F_LOG_ALL)
        return (self._log, ring.used_log) if logs else (None, None)

    def _update_logs(self) -> None:
        for ring in self._rings:
            if ring.queue is not None:
                ring.queue.accounts.log, ring.queue.accounts.used_log = self._logs(ring)

    @contextlib.contextmanager
    def _rings_held(self) -> Iterator[None]:
        """Work no ring meanwhile: the memory under it may change."""
        held = [ring for ring in self._rings if ring.queue is not None]
        for ring in held:
            ring.stop()
        yield
        for ring in held:
            self._start_if_ready(ring)

    # Messages

    def _handle(self, message: Message) -> None:
        """Do what a message asks for, and answer; raises PeerError and QueueError."""
        try:
            handler = _HANDLERS.get(message.request)
            if handler is None:
                raise PeerError(f"{message.name}, which is not known here")
            if handler.needs is not None and not self._has(handler.needs):
                raise PeerError(f"{message.name} without {handler.needs.name} negotiated")
            expect_fds(message, *handler.fds)
            reply = handler.run(self, message)
        finally:
            close_all(message.fds)
        if isinstance(reply, Message):
            self._reply(reply)
        elif message.needs_reply and self._has(ProtocolFeature.REPLY_ACK):
            self._reply(Message(message.request, u64(0 if reply is None else 1)))
        if reply is not None and isinstance(reply, Message):
            close_all(reply.fds)

    def _reply(self, reply: Message) -> None:
        if self._connection is not None:
            reply.flags = Flag.REPLY
            self._connection.send(reply)

    def _has(self, feature: ProtocolFeature) -> bool:
        return has_feature(self._protocol_features, feature)

    def _ring(self, index: int, request: int) -> Ring:
        if index >= len(self._rings):
            raise PeerError(
                f"{request_name(request)} for ring {index} of a device with {len(self._rings)}"
            )
        return self._rings[index]

    def _stopped_ring(self, index: int, request: int) -> Ring:
        ring = self._ring(index, request)
        if ring.queue is not None:
            raise PeerError(f"{request_name(request)} for ring {index}, which is not stopped")
        return ring

    # What features and life are about

    def _get_features(self, message: Message) -> Message:
        return Message(message.request, u64(self.offered_features))

    def _set_features(self, message: Message) -> None:
        features = to_u64(message)
        if unknown := features & ~self.offered_features:
            raise PeerError(f"SET_FEATURES with {unknown:#x}, which was never offered")
        before, self._features = self._features, features
        if any(ring.queue is not None for ring in self._rings):
            # Only the log can be turned on and off while rings are worked (Migration).
            if before is None or (before ^ features) & ~feature_mask([VHOST_F_LOG_ALL]):
                raise PeerError("SET_FEATURES with other features while rings are worked")
            self._update_logs()
            return
        if before is not None and self._active and (before ^ features) & ~_NOT_VIRTIO:
            self._reset_device()
        self.device.negotiated(features & ~_NOT_VIRTIO)

    def _get_protocol_features(self, message: Message) -> Message:
        return Message(message.request, u64(PROTOCOL_FEATURES))

    def _set_protocol_features(self, message: Message) -> None:
        features = to_u64(message)
        if unknown := features & ~PROTOCOL_FEATURES:
            raise PeerError(f"SET_PROTOCOL_FEATURES with {unknown:#x}, which was never offered")
        self._protocol_features = features

    def _set_owner(self, message: Message) -> None:
        """Take the session's start: there is nothing to prepare."""

    def _reset_owner(self, message: Message) -> None:
        for ring in self._rings:
            ring.stop()
            ring.enabled = False

    def _do_reset_device(self, message: Message) -> None:
        self._reset_device()
        for ring in self._rings:
            ring.enabled = False

    def _get_queue_num(self, message: Message) -> Message:
        count = len(self._rings)
        if self.device.device_id is DeviceId.NETWORK:
            # Pairs, by custom.
            count //= 2
        return Message(message.request, u64(count))

    def _set_status(self, message: Message) -> None:
        status = to_u64(message)
        if status == 0:
            self._reset_device()
        else:
            needs_reset = self._status & int(DeviceStatus.DEVICE_NEEDS_RESET)
            self._status = status & 0xFF | needs_reset

    def _get_status(self, message: Message) -> Message:
        return Message(message.request, u64(self._status))

    # What memory is about

    def _set_mem_table(self, message: Message) -> None:
        regions = to_memory_table(message)
        expect_fds(message, len(regions))
        fds, message.fds = message.fds, []
        with self._rings_held():
            self.memory.replace(zip(regions, fds, strict=True))

    def _get_max_mem_slots(self, message: Message) -> Message:
        return Message(message.request, u64(SLOTS_MAX))

    def _add_mem_reg(self, message: Message) -> None:
        region = MemoryRegion.decode(message)
        with self._rings_held():
            self.memory.add(region, message.fds.pop())

    def _rem_mem_reg(self, message: Message) -> None:
        region = MemoryRegion.decode(message)
        with self._rings_held():
            self.memory.remove(region)

    def _set_log_base(self, message: Message) -> Message:
        area = LogArea.decode(message)
        self._set_log(DirtyLog(area, message.fds.pop(), self.memory.lost))
        return Message(message.request, u64(0))

    def _set_log(self, dirty_log: DirtyLog | None) -> None:
        before, self._log = self._log, dirty_log
        self._update_logs()
        if before is not None:
            before.close()

    def _set_log_fd(self, message: Message) -> None:
        """Take an eventfd for writes to the log: optional, and nobody waits for it."""

    # What rings are about

    def _set_vring_num(self, message: Message) -> None:
        state = RingState.decode(message)
        ring = self._stopped_ring(state.index, message.request)
        if not valid_queue_size(state.number):
            raise PeerError(f"SET_VRING_NUM {state.number}, no power of 2 up to 32768 (2.7)")
        ring.size = state.number

    def _set_vring_base(self, message: Message) -> None:
        state = RingState.decode(message)
        ring = self._stopped_ring(state.index, message.request)
        if state.number >= INDEX_MODULUS:
            raise PeerError(f"SET_VRING_BASE {state.number}, which is no index")
        ring.base = state.number

    def _set_vring_addr(self, message: Message) -> None:
        addresses = RingAddresses.decode(message)
        ring = self._ring(addresses.index, message.request)
        ring.addresses, before = addresses, ring.addresses
        if ring.queue is None:
            return
        if before is None or _without_log(before) != _without_log(addresses):
            raise PeerError(f"SET_VRING_ADDR moves ring {ring.index} while it is worked")
        self._update_logs()

    def _get_vring_base(self, message: Message) -> Message:
        ring = self._ring(RingState.decode(message).index, message.request)
        ring.stop()
        ring.set_kick(None)
        ring.kick_is_set = False
        if all(ring.queue is None for ring in self._rings):
            self._broken = False
        return Message(message.request, RingState(ring.index, ring.base).encode())

    def _set_vring_kick(self, message: Message) -> None:
        ring = self._ring(to_ring_file(message), message.request)
        if ring.addresses is None or not ring.size:
            raise PeerError(f"a kick for ring {ring.index}, which has no size or no addresses yet")
        ring.set_kick(message.take_fd())
        self._start_if_ready(ring)

    def _set_vring_call(self, message: Message) -> None:
        self._ring(to_ring_file(message), message.request).set_call(message.take_fd())

    def _set_vring_err(self, message: Message) -> None:
        self._ring(to_ring_file(message), message.request).set_error(message.take_fd())

    def _set_vring_enable(self, message: Message) -> None:
        state = RingState.decode(message)
        ring = self._ring(state.index, message.request)
        if state.number > 1:
            raise PeerError(f"SET_VRING_ENABLE {state.number}, neither 0 nor 1")
        ring.enabled = bool(state.number)
        if not ring.enabled and not self._works_disabled(ring):
            ring.stop()
        self._enable_queues()
        self._start_if_ready(ring)

    # What the configuration space is about

    def _get_config(self, message: Message) -> Message:
        access = ConfigAccess.decode(message)
        config = self.device.config_space()
        data = config[access.offset : access.offset + len(access.data)]
        # Newer frontends ask for fields that belong to features which are not offered.
        padded = data.ljust(len(access.data), b"\0")
        return Message(message.request, ConfigAccess(access.offset, padded, access.flags).encode())

    def _set_config(self, message: Message) -> str | None:
        access = ConfigAccess.decode(message)
        if access.offset + len(access.data) > len(self.device.config_space()):
            return "beyond the configuration space"
        self.device.write_config(access.offset, access.data)
        return None

    def _set_backend_req_fd(self, message: Message) -> None:
        self._set_channel(Connection(_stream(message.fds.pop())))

    def _set_channel(self, channel: Connection | None) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = channel

    # What requests in flight are about

    def _get_inflight_fd(self, message: Message) -> Message:
        area = InflightArea.decode(message)
        self._set_inflight(Inflight.create(area.num_queues, area.queue_size, self.memory.lost))
        assert self._inflight is not None
        fd = os.dup(self._inflight.file.fd)
        return Message(message.request, self._inflight.area.encode(), fds=[fd])

    def _set_inflight_fd(self, message: Message) -> None:
        area = InflightArea.decode(message)
        self._set_inflight(Inflight.attach(area, message.fds.pop(), self.memory.lost))

    def _set_inflight(self, inflight: Inflight | None) -> None:
        if inflight is not None and any(ring.queue is not None for ring in self._rings):
            inflight.close()
            raise PeerError("what is in flight moves while rings are worked")
        if self._inflight is not None:
            self._inflight.close()
        self._inflight = inflight


def _stream(fd: int) -> socket.socket:
    """Make a socket of a file descriptor, which is closed where it is none."""
    try:
        stream = socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise PeerError(f"a channel that is no socket: {error.strerror}") from error
    stream.setblocking(False)
    return stream


def _without_log(addresses: RingAddresses) -> tuple[int, int, int]:
    return addresses.descriptor_table, addresses.used_ring, addresses.available_ring


@dataclass(slots=True, frozen=True)
class _Handler:
    """What does a request: its answer is a message, a reason to refuse, or None for done.

    `fds` are how many file descriptors may come with it, `needs` what has to be negotiated.
    """

    run: Callable[[Backend, Message], Message | str | None]
    fds: tuple[int, ...] = (0,)
    needs: ProtocolFeature | None = None


_HANDLERS: dict[int, _Handler] = {
    Request.GET_FEATURES: _Handler(Backend._get_features),
    Request.SET_FEATURES: _Handler(Backend._set_features),
    Request.SET_OWNER: _Handler(Backend._set_owner),
    Request.RESET_OWNER: _Handler(Backend._reset_owner),
    Request.SET_MEM_TABLE: _Handler(Backend._set_mem_table, fds=tuple(range(1, REGIONS_MAX + 1))),
    Request.SET_LOG_BASE: _Handler(Backend._set_log_base, (1,), ProtocolFeature.LOG_SHMFD),
    Request.SET_LOG_FD: _Handler(Backend._set_log_fd, (0, 1)),
    Request.SET_VRING_NUM: _Handler(Backend._set_vring_num),
    Request.SET_VRING_ADDR: _Handler(Backend._set_vring_addr),
    Request.SET_VRING_BASE: _Handler(Backend._set_vring_base),
    Request.GET_VRING_BASE: _Handler(Backend._get_vring_base),
    Request.SET_VRING_KICK: _Handler(Backend._set_vring_kick, (0, 1)),
    Request.SET_VRING_CALL: _Handler(Backend._set_vring_call, (0, 1)),
    Request.SET_VRING_ERR: _Handler(Backend._set_vring_err, (0, 1)),
    Request.GET_PROTOCOL_FEATURES: _Handler(Backend._get_protocol_features),
    Request.SET_PROTOCOL_FEATURES: _Handler(Backend._set_protocol_features),
    Request.GET_QUEUE_NUM: _Handler(Backend._get_queue_num, needs=ProtocolFeature.MQ),
    Request.SET_VRING_ENABLE: _Handler(Backend._set_vring_enable),
    Request.SET_BACKEND_REQ_FD: _Handler(
        Backend._set_backend_req_fd, (1,), ProtocolFeature.BACKEND_REQ
    ),
    Request.GET_CONFIG: _Handler(Backend._get_config, needs=ProtocolFeature.CONFIG),
    Request.SET_CONFIG: _Handler(Backend._set_config, needs=ProtocolFeature.CONFIG),
    Request.GET_INFLIGHT_FD: _Handler(
        Backend._get_inflight_fd, needs=ProtocolFeature.INFLIGHT_SHMFD
    ),
    Request.SET_INFLIGHT_FD: _Handler(
        Backend._set_inflight_fd, (1,), ProtocolFeature.INFLIGHT_SHMFD
    ),
    Request.RESET_DEVICE: _Handler(Backend._do_reset_device, needs=ProtocolFeature.RESET_DEVICE),
    Request.GET_MAX_MEM_SLOTS: _Handler(
        Backend._get_max_mem_slots, needs=ProtocolFeature.CONFIGURE_MEM_SLOTS
    ),
    Request.ADD_MEM_REG: _Handler(Backend._add_mem_reg, (1,), ProtocolFeature.CONFIGURE_MEM_SLOTS),
    # A descriptor too many is a known fault of some (VHOST_USER_REM_MEM_REG).
    Request.REM_MEM_REG: _Handler(
        Backend._rem_mem_reg, (0, 1), ProtocolFeature.CONFIGURE_MEM_SLOTS
    ),
    Request.SET_STATUS: _Handler(Backend._set_status, needs=ProtocolFeature.STATUS),
    Request.GET_STATUS: _Handler(Backend._get_status, needs=ProtocolFeature.STATUS),
}
