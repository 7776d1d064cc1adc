"""The backend of vhost-user: one virtio device, served to the frontend that is connected.

It follows QEMU's docs/interop/vhost-user. What the frontend may not do ends its connection, with
one logged reason, and the device waits for the next.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from virtiopy.closing import Closing
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.gate import Gate
from virtiopy.errors import DriverError, PeerError
from virtiopy.eventloop import READABLE, EventLoop, Timer, Watch
from virtiopy.spec import DeviceId, feature_mask, has_feature
from virtiopy.transport.observer import LifecycleObserver
from virtiopy.vhost.user.connection import Connection, DisconnectedError, close_all
from virtiopy.vhost.user.inflight import Inflight
from virtiopy.vhost.user.memory import SLOTS_MAX, DirtyLog, FrontendMemory
from virtiopy.vhost.user.messages import (
    REGIONS_MAX,
    VHOST_F_LOG_ALL,
    VHOST_USER_F_PROTOCOL_FEATURES,
    BackendRequest,
    ConfigAccess,
    ConfigFlags,
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
    to_memory_table,
    to_ring_file,
    to_u64,
    u64,
)
from virtiopy.vhost.user.rings import Lease, Rings
from virtiopy.virtqueue.layout import INDEX_MODULUS, valid_queue_size
from virtiopy.virtqueue.queue import QueueState

log = logging.getLogger(__name__)

#: What the protocol offers besides virtio's features.
BACKEND_FEATURES = feature_mask([VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES])

#: Devices whose configuration space QEMU keeps itself, where they have one.
_CONFIGURED_BY_QEMU = {DeviceId.NETWORK, DeviceId.SCSI_HOST, DeviceId.ENTROPY}

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

#: Messages that are handled before others have their turn on the loop.
MESSAGES_A_TURN = 64


class Backend(LifecycleObserver, Closing):
    """`device` for one frontend after the other, worked on `loop`'s thread; it is the caller's.

    `on_disconnect` is called when a frontend has gone, or was disconnected.
    """

    def __init__(
        self,
        device: VirtioDevice,
        loop: EventLoop,
        on_disconnect: Callable[[], None],
        lease: Lease | None = None,
    ) -> None:
        self.device = device
        #: The guest's memory (devices.base.DeviceHost).
        self.memory = FrontendMemory()
        self._loop = loop
        self._on_disconnect = on_disconnect
        self._gate = Gate()
        self._rings = Rings(
            device, loop, self.memory, fail=self._disconnect, lease=lease, gate=self._gate
        )
        self.lifecycle = self._rings.lifecycle
        self.lifecycle.observers.append(self)
        self._connection: Connection | None = None
        self._watch: Watch | None = None
        self._deadline: Timer | None = None
        self._channel: Connection | None = None
        #: Told of each message of a frontend that is connected from now on: Connection.on_message.
        self.on_message: Callable[[Message, bool], None] | None = None
        self._protocol_features = 0
        #: Whether SET_OWNER came.
        self._is_owned = False
        self._lost = loop.watch(self.memory.lost, READABLE, self._memory_lost, "memory lost")

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
        return self.lifecycle.offered | BACKEND_FEATURES

    # The frontend's connection

    def connect(self, stream: socket.socket) -> None:
        """Serve this frontend from now on; on the loop's thread."""
        stream.setblocking(False)
        self._connection = Connection(stream)
        self._connection.on_message = self.on_message
        self._gate.set_file(stream.fileno())
        self._watch = self._loop.watch(stream.fileno(), READABLE, self._readable, "frontend")

    def _readable(self, events: int) -> None:
        with self._gate.handling():
            self._take_messages()

    def _take_messages(self) -> None:
        connection = self._connection
        try:
            for _ in range(MESSAGES_A_TURN):
                if connection is None or (message := connection.receive()) is None:
                    break
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
        except OSError as error:
            self._disconnect(f"the host cannot do what it asks for: {error.strerror or error}")

    def host_failed(self, error: OSError, name: str) -> bool:
        """End the session whose work, called `name`, met an error of the host's.

        Returns whether there was a session to end.
        """
        if self._connection is None:
            return False
        self._disconnect(f"{name} met an error of the host's: {error.strerror or error}")
        return True

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
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.memory.lost)
        if self._rings.log is not None and self._rings.log.is_too_small:
            self._disconnect("its dirty log has no bit for memory that was written")
        else:
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
            self._rings.close()
        self._gate.set_file(None)
        self._set_channel(None)
        self._protocol_features = 0
        self._is_owned = False
        connection.close()
        self._on_disconnect()

    # What the device does of itself (transport.observer.LifecycleObserver)

    def config_changed(self, *, notify: bool) -> None:
        """Send CONFIG_CHANGE_MSG, where the frontend has opened a channel for it."""
        if not notify or self._channel is None or not self._has(ProtocolFeature.CONFIG):
            return
        try:
            self._channel.send(Message(BackendRequest.CONFIG_CHANGE_MSG))
        except PeerError as error:
            log.warning("the frontend does not hear of a change of configuration: %s", error)
            self._set_channel(None)

    def needs_reset(self, reason: str) -> None:
        """Say that the rings are broken until a reset, or until they are stopped (2.1.2)."""
        self._rings.signal_errors()
        if self.memory.was_shrunk:
            # Later: the caller has buffers of it.
            os.eventfd_write(self.memory.lost, 1)

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
            if reply is not None:
                log.info("%s is refused: %s", message.name, reply)
            self._reply(Message(message.request, u64(0 if reply is None else 1)))

    def _reply(self, reply: Message) -> None:
        reply.flags = Flag.REPLY
        try:
            if self._connection is not None:
                self._connection.send(reply)
        finally:
            close_all(reply.fds)

    def _has(self, feature: ProtocolFeature) -> bool:
        return has_feature(self._protocol_features, feature)

    # What features and life are about

    def _get_features(self, message: Message) -> Message:
        return Message(message.request, u64(self.offered_features))

    def _set_features(self, message: Message) -> None:
        features = to_u64(message)
        if unknown := features & ~self.offered_features:
            raise PeerError(f"SET_FEATURES with {unknown:#x}, which was never offered")
        self._rings.set_features(features)

    def _get_protocol_features(self, message: Message) -> Message:
        offered = PROTOCOL_FEATURES
        if self.device.device_id in _CONFIGURED_BY_QEMU and not self._is_owned:
            # Which alone asks before it owns the session, and warns of each backend that offers it.
            offered &= ~feature_mask([ProtocolFeature.CONFIG])
        return Message(message.request, u64(offered))

    def _set_protocol_features(self, message: Message) -> None:
        features = to_u64(message)
        if unknown := features & ~PROTOCOL_FEATURES:
            raise PeerError(f"SET_PROTOCOL_FEATURES with {unknown:#x}, which was never offered")
        self._protocol_features = features

    def _set_owner(self, message: Message) -> None:
        """Take the session's start."""
        self._is_owned = True

    def _reset_owner(self, message: Message) -> None:
        self._rings.disable()

    def _reset_device(self, message: Message) -> None:
        self._rings.reset()
        self._rings.disable()

    def _get_queue_num(self, message: Message) -> Message:
        return Message(message.request, u64(len(self._rings) // self.device.queues_in_one))

    def _set_status(self, message: Message) -> None:
        self._rings.set_status(to_u64(message) & 0xFF)

    def _get_status(self, message: Message) -> Message:
        return Message(message.request, u64(self.lifecycle.status))

    # What memory is about

    def _set_mem_table(self, message: Message) -> None:
        regions = to_memory_table(message)
        expect_fds(message, len(regions))
        fds, message.fds = message.fds, []
        with self._rings.held():
            self.memory.replace(zip(regions, fds, strict=True))

    def _get_max_mem_slots(self, message: Message) -> Message:
        return Message(message.request, u64(SLOTS_MAX))

    def _add_mem_reg(self, message: Message) -> None:
        region = MemoryRegion.decode(message)
        with self._rings.held():
            self.memory.add(region, message.fds.pop())

    def _rem_mem_reg(self, message: Message) -> None:
        region = MemoryRegion.decode(message)
        with self._rings.held():
            self.memory.remove(region)

    def _set_log_base(self, message: Message) -> Message:
        area = LogArea.decode(message)
        self._rings.set_log(DirtyLog(area, message.fds.pop(), self.memory.lost))
        return Message(message.request, u64(0))

    def _set_log_fd(self, message: Message) -> None:
        """Take an eventfd for writes to the log: optional, and no answer waits for it."""

    # What rings are about

    def _set_vring_num(self, message: Message) -> None:
        state = RingState.decode(message)
        ring = self._rings.stopped_ring(state.index, message.request)
        if not valid_queue_size(state.number):
            raise PeerError(f"SET_VRING_NUM {state.number}, no power of 2 up to 32768 (2.7)")
        ring.size = state.number

    def _set_vring_base(self, message: Message) -> None:
        state = RingState.decode(message)
        ring = self._rings.stopped_ring(state.index, message.request)
        if state.number >= INDEX_MODULUS:
            raise PeerError(f"SET_VRING_BASE {state.number}, which is no index")
        ring.base = QueueState(state.number)

    def _set_vring_addr(self, message: Message) -> None:
        addresses = RingAddresses.decode(message)
        ring = self._rings.ring(addresses.index, message.request)
        self._rings.set_addresses(ring, addresses)

    def _get_vring_base(self, message: Message) -> Message:
        ring = self._rings.ring(RingState.decode(message).index, message.request)
        base = self._rings.stop(ring)
        return Message(message.request, RingState(ring.index, base.vring_base).encode())

    def _set_vring_kick(self, message: Message) -> None:
        ring = self._rings.ring(to_ring_file(message), message.request)
        self._rings.set_kick(ring, message.take_fd())

    def _set_vring_call(self, message: Message) -> None:
        self._rings.ring(to_ring_file(message), message.request).set_call(message.take_fd())

    def _set_vring_err(self, message: Message) -> None:
        self._rings.ring(to_ring_file(message), message.request).set_error(message.take_fd())

    def _set_vring_enable(self, message: Message) -> None:
        state = RingState.decode(message)
        ring = self._rings.ring(state.index, message.request)
        if state.number > 1:
            raise PeerError(f"SET_VRING_ENABLE {state.number}, neither 0 nor 1")
        self._rings.enable(ring, bool(state.number))

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
        if not access.data:
            raise PeerError("SET_CONFIG of 0 bytes")
        if access.offset + len(access.data) > len(self.device.config_space()):
            return "beyond the configuration space"
        if access.flags not in (ConfigFlags.WRITABLE, ConfigFlags.LIVE_MIGRATION):
            return f"flags {access.flags:#x}"
        taken = self.device.write_config(access.offset, access.data)
        # A migrated device's other fields are what they are here.
        if not taken and access.flags != ConfigFlags.LIVE_MIGRATION:
            return "nothing that can be written is there"
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
        inflight = Inflight.create(area.num_queues, area.queue_size, self.memory.lost)
        self._rings.set_inflight(inflight)
        return Message(message.request, inflight.area.encode(), fds=[os.dup(inflight.file.fd)])

    def _set_inflight_fd(self, message: Message) -> None:
        area = InflightArea.decode(message)
        self._rings.set_inflight(Inflight.attach(area, message.fds.pop(), self.memory.lost))


def _stream(fd: int) -> socket.socket:
    """Make a socket of a file descriptor, which is closed where it is none."""
    try:
        stream = socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise PeerError(f"a channel that is no socket: {error.strerror}") from error
    stream.setblocking(False)
    return stream


@dataclass(slots=True, frozen=True)
class _Handler:
    """What does a request: its answer is a message, a reason to refuse, or None for done.

    `fds` are how many file descriptors may come with it, `needs` what has to be negotiated: for
    some it is enough that it is offered (Front-end message types).
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
    Request.GET_QUEUE_NUM: _Handler(Backend._get_queue_num),
    Request.SET_VRING_ENABLE: _Handler(Backend._set_vring_enable),
    Request.SET_BACKEND_REQ_FD: _Handler(Backend._set_backend_req_fd, (1,)),
    Request.GET_CONFIG: _Handler(Backend._get_config, needs=ProtocolFeature.CONFIG),
    Request.SET_CONFIG: _Handler(Backend._set_config, needs=ProtocolFeature.CONFIG),
    Request.GET_INFLIGHT_FD: _Handler(
        Backend._get_inflight_fd, needs=ProtocolFeature.INFLIGHT_SHMFD
    ),
    Request.SET_INFLIGHT_FD: _Handler(
        Backend._set_inflight_fd, (1,), ProtocolFeature.INFLIGHT_SHMFD
    ),
    Request.RESET_DEVICE: _Handler(Backend._reset_device),
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
