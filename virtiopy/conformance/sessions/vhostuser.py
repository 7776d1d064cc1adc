"""Sessions with a vhost-user backend: a driver and its VMM in one."""

import contextlib
import os
import select
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import ClassVar

from virtiopy.closing import Closing
from virtiopy.conformance.drivers import driver_class_of
from virtiopy.conformance.problems import LeftError, NotApplicableError, WedgedError
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.frontend import SuiteFrontend, own_address
from virtiopy.conformance.sessions.queue import SessionQueue
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.targets.backends import Backend
from virtiopy.conformance.targets.hosts import Host
from virtiopy.errors import PeerError
from virtiopy.memory import Region
from virtiopy.spec import DeviceId, DeviceStatus, Feature, feature_mask
from virtiopy.vhost.user.connection import Connection, close_all
from virtiopy.vhost.user.frontend import (
    WANTED,
    InflightFile,
    RefusedError,
)
from virtiopy.vhost.user.messages import BackendRequest, Message, ProtocolFeature
from virtiopy.vhost.vring import Vring
from virtiopy.virtqueue.layout import INDEX_MODULUS
from virtiopy.virtqueue.queue import QueueState

#: Entries that a queue may have, where the backend cannot be asked: what VMMs set up.
QUEUE_SIZE_MAX = 256


def traced(stream: socket.socket, trace: Trace) -> Connection:
    """Return a connection to a backend whose messages are traced."""
    connection = Connection(stream)
    connection.on_message = lambda message, sent: trace.note(
        f"{'->' if sent else '<-'} {message.describe()}"
    )
    return connection


class Line(Closing):
    """The eventfds of a virtqueue: kick, call and error."""

    def __init__(self) -> None:
        self.kick, self.call, self.error = (
            os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(3)
        )

    def close(self) -> None:
        """Close them."""
        for fd in (self.kick, self.call, self.error):
            os.close(fd)


def _take(fd: int) -> int:
    """Return what is in an eventfd, and leave 0."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


class VhostUserSession(Session):
    """A session with a backend, which is closed with it."""

    transport: ClassVar[str] = "vhost-user"

    def __init__(
        self, device_id: DeviceId, backend: Backend, host: Host, trace: Trace, patience: float
    ) -> None:
        super().__init__(device_id, host, trace, patience)
        # Over vhost-user rings are reset by the frontend's ring messages.
        self.understood &= ~(1 << Feature.VIRTIO_F_RING_RESET)
        self.backend = backend
        self._lines: dict[int, Line] = {}
        self._running: set[int] = set()
        self._broken = False
        self._driver_ok = False
        self._inflight: InflightFile | None = None
        self._frontend: SuiteFrontend | None = None
        #: Whether the frontend is one that knows of protocol features.
        self.knows_protocol_features = True
        #: Whether a session begins with a table of all memory.
        self.shares_memory = True
        #: The guest address by which used rings are logged, where they are.
        self.used_log = 0
        #: The protocol features that are negotiated, where they are offered.
        self.wanted_protocol = WANTED
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the backend, and end it."""
        with contextlib.ExitStack() as stack:
            stack.callback(super().close)
            stack.callback(self.host.close)
            stack.callback(self.backend.close)
            self._hang_up()
            self._forget_queues()
            self._forget_inflight()

    # The connection

    def _open(self) -> None:
        stream = self.backend.connect(self.patience)
        stream.settimeout(self.patience)
        with self._peer():
            self._frontend = SuiteFrontend(
                traced(stream, self.trace),
                wanted=self.wanted_protocol,
                knows_protocol_features=self.knows_protocol_features,
            )
            self._frontend.used_log = self.used_log
            if self.shares_memory:
                self._frontend.set_memory(self.memory)

    def leave(self) -> None:
        """End the session, of a backend that may have done so already; a reset begins another."""
        self._hang_up()

    def _hang_up(self) -> None:
        if self._frontend is not None:
            self._frontend.close()
            self._frontend = None

    @contextlib.contextmanager
    def _peer(self) -> Iterator[None]:
        """Turn what a peer does wrong into the session's end."""
        try:
            yield
        except RefusedError as error:
            raise LeftError(f"the backend refuses: {error}") from error
        except PeerError as error:
            self._hang_up()
            self.backend.check()
            if isinstance(error.__cause__, TimeoutError):
                raise WedgedError(f"the backend does not answer: {error}") from error
            raise LeftError(f"the backend ended the session: {error}") from error

    @property
    def frontend(self) -> SuiteFrontend:
        """The vhost-user session that there is; raises LeftError when it is over."""
        if self._frontend is None:
            raise LeftError("the backend ended the session")
        return self._frontend

    def raise_failure(self) -> None:
        """Raise the DeviceError that is known of."""
        stream = self.frontend.connection.socket
        if not select.select([stream], [], [], 0)[0]:
            return
        try:
            peeked = stream.recv(1, socket.MSG_PEEK)
        except OSError as error:
            peeked = b""
            self.trace.note(f"the connection failed: {error.strerror}")
        self._hang_up()
        self.backend.check()
        what = "said what it was not asked for" if peeked else "ended the connection"
        self.trace.note(f"the backend {what}")
        raise LeftError(f"the backend {what}")

    def check_alive(self) -> None:
        """Ask the backend something, if there is anything wrong raise the DeviceError."""
        self.raise_failure()
        self.backend.check()
        with self._peer():
            self.frontend.get_features()

    def reconnect(self) -> None:
        """Leave the backend, as a VMM that was restarted, and have it go on with the rings.

        The rings go on at the used ring's index; what was in flight is served again, and a backend
        that tracks it knows what it was.
        """
        self._hang_up()
        self.trace.note("reconnect")
        self._open()
        self._running.clear()
        if not self._driver_ok:
            return
        with self._peer():
            self.frontend.set_features(self.features)
            if self._inflight is not None:
                self.frontend.set_inflight(self._inflight)
        for index, queue in self.queues.items():
            self._start_ring(index, QueueState(queue.used_idx))

    def _track_inflight(self) -> None:
        """Have the backend track what is in flight, where it can, as VMMs do at DRIVER_OK.

        One built on libvhost-user starts no ring without the area that it offers.
        """
        self._forget_inflight()
        with self._peer():
            self._inflight = self.frontend.get_inflight(self.queue_count, QUEUE_SIZE_MAX)

    @property
    def inflight(self) -> InflightFile:
        """Where the backend tracks what is in flight; not applicable where it does not."""
        if self._inflight is None:
            raise NotApplicableError("the backend does not offer INFLIGHT_SHMFD")
        return self._inflight

    def _forget_inflight(self) -> None:
        if self._inflight is not None:
            os.close(self._inflight.fd)
            self._inflight = None

    def _forget_queues(self) -> None:
        for line in self._lines.values():
            line.close()
        self._lines.clear()
        self.queues = {}
        self._running.clear()

    def require_protocol(self, *features: ProtocolFeature) -> None:
        """Have these protocol features negotiated from here on, in a session that begins anew.

        Not applicable where the backend does not offer them.
        """
        self.wanted_protocol |= feature_mask(features)
        self._hang_up()
        self._forget_queues()
        self._open()
        if missing := [feature.name for feature in features if not self.frontend.has(feature)]:
            raise NotApplicableError(f"the backend does not offer {' and '.join(missing)}")

    def forget_protocol_features(self) -> None:
        """Be a frontend from before there were protocol features, in a session that begins anew."""
        self.knows_protocol_features = False
        self._hang_up()
        self._forget_queues()
        self._open()

    # Features and life

    @property
    def offered(self) -> int:
        """The feature bits that the backend offers."""
        return self.frontend.features

    def accepts(self, features: int) -> bool:
        """Reset, and ask for just these feature bits; say whether the backend takes them.

        One that does not refuses the message, ends the connection, or does not keep FEATURES_OK.
        """
        self.reset()
        try:
            with self._peer():
                frontend = self.frontend
                frontend.set_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
                frontend.set_features(features)
                frontend.set_status(
                    DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK
                )
                status = frontend.get_status()
        except LeftError:
            return False
        if status is not None and not status & DeviceStatus.FEATURES_OK:
            return False
        self.features = features
        return True

    @property
    def queue_count(self) -> int:
        """How many virtqueues there are with what was negotiated."""
        with self._peer():
            said = self.frontend.queue_count()
        return driver_class_of(self.device_id).count_queues(said, self.features)

    def queue_size_max(self, index: int) -> int:
        """Return what a queue may have; vhost-user has no message to ask."""
        return QUEUE_SIZE_MAX if index < self.queue_count else 0

    def announce_queue(self, queue: SessionQueue) -> None:
        """Take a queue; the backend is told at DRIVER_OK, or now where that was."""
        self.queues[queue.index] = queue
        if (line := self._lines.pop(queue.index, None)) is not None:
            line.close()
        self._lines[queue.index] = Line()
        if self._driver_ok:
            self._start_ring(queue.index)

    def driver_ok(self, but: Collection[int] = ()) -> None:
        """Start the rings, as a VMM does at DRIVER_OK; some may be left to `start_queue`."""
        self._driver_ok = True
        self._track_inflight()
        for index in self.queues:
            if index not in but:
                self._start_ring(index)
        with self._peer():
            self.frontend.set_status(
                DeviceStatus.ACKNOWLEDGE
                | DeviceStatus.DRIVER
                | DeviceStatus.FEATURES_OK
                | DeviceStatus.DRIVER_OK
            )

    def start_queue(self, index: int, base: int = 0, *, enable: bool = True) -> None:
        """Start a ring that was not started, or was stopped, at an entry of the available ring."""
        self._start_ring(index, QueueState(base), enable=enable)

    def _start_ring(
        self, index: int, state: QueueState | None = None, *, enable: bool = True
    ) -> None:
        with self._peer():
            self._running.add(index)
            ring = self._vring(index, state or QueueState())
            self.frontend.start_ring(index, ring, self.memory, enable=enable)

    def _vring(self, index: int, state: QueueState) -> Vring:
        queue, line = self.queues[index], self._lines[index]
        return Vring(queue.size, queue.areas, state, line.kick, line.call, line.error)

    def share(
        self,
        user_address: Callable[[Region], int] = own_address,
        replaced: Mapping[int, int] | None = None,
    ) -> None:
        """Send the memory again, with these user addresses of its regions; no ring may run.

        `replaced` has other files of regions, by the region's guest address: they are all of it.
        """
        with self._peer():
            self.frontend.user_address = user_address
            self.frontend.replaced = replaced or {}
            self.frontend.set_memory(self.memory)

    def log_used_ring(self, index: int) -> None:
        """Have writes to a ring's used ring logged, from `used_log` on.

        The address is said when a ring starts, as by VMMs, and is not another one here.
        """
        self.frontend.logged.add(index)
        with self._peer():
            self.frontend.set_addresses(index, self._vring(index, QueueState()), self.memory)

    def set_call(self, index: int) -> None:
        """Have the backend write the ring's own call eventfd, again."""
        with self._peer():
            self.frontend.set_call(index, self._lines[index].call)

    def reset_queue(self, index: int) -> int:
        """Stop a virtqueue, and forget it; it is started from its beginning again.

        Returns how many of the requests before its base were not used when the backend replied.
        """
        base = self.stop_queue(index)
        queue = self.queues.pop(index, None)
        return 0 if queue is None else (base - queue.used_idx) % INDEX_MODULUS

    def stop_queue(self, index: int) -> int:
        """Stop a virtqueue; returns the next entry of the available ring to look at."""
        with self._peer():
            state = self.frontend.stop_ring(index)
        self._running.discard(index)
        return state.vring_base

    @property
    def status(self) -> int:
        """The device status field, where the backend follows it."""
        with self._peer():
            status = self.frontend.get_status()
        if status is None:
            raise NotApplicableError("the backend has no VHOST_USER_PROTOCOL_F_STATUS")
        return status

    @property
    def needs_reset(self) -> bool:
        """Whether the backend has found a ring broken: by the status, or a ring's error eventfd."""
        if any(_take(line.error) for line in self._lines.values()):
            self.trace.note("a ring's error eventfd was written")
            self._broken = True
        with self._peer(), self.trace.quiet():
            status = self.frontend.get_status() or 0
        if not self._broken and status & DeviceStatus.DEVICE_NEEDS_RESET:
            self.trace.note("DEVICE_NEEDS_RESET is set")
            self._broken = True
        return self._broken

    def reset(self) -> None:
        """Stop the rings, and reset the device; one that has left is connected to again.

        A backend without RESET_DEVICE and STATUS has only a new session to be reset by.
        """
        self.trace.note("reset")
        try:
            self._stop_all()
        except LeftError:
            self._hang_up()
        if self._frontend is None:
            self._open()
        self.forget()

    def forget(self) -> None:
        """Know of nothing that was set up: the device was reset."""
        self._forget_queues()
        self._forget_inflight()
        self._driver_ok = False
        self._broken = False
        self.features = 0

    def _stop_all(self) -> None:
        for index in sorted(self._running):
            self.stop_queue(index)
        frontend = self.frontend
        if frontend.has(ProtocolFeature.RESET_DEVICE) or frontend.has(ProtocolFeature.STATUS):
            with self._peer():
                frontend.reset_device()
        elif self.features:
            self._hang_up()

    # Operation

    def kick(self, index: int) -> None:
        """Write the ring's kick eventfd; not applicable where the ring was not set up."""
        if (line := self._lines.get(index)) is None:
            raise NotApplicableError("a ring that was not set up has nothing to be kicked by")
        self.trace.note(f"kick {index}")
        os.eventfd_write(line.kick, 1)

    def take_notifications(self, index: int) -> int:
        """Return how often the ring's call eventfd was written since the last call."""
        count = _take(self._lines[index].call)
        if count:
            self.trace.note(f"queue {index}: {count} used buffer notifications")
        return count

    def take_config_change(self) -> bool:
        """Say whether CONFIG_CHANGE_MSG came since the last call."""
        channel = self.frontend.channel
        if channel is None:
            raise NotApplicableError("the backend cannot say that its configuration changed")
        if not select.select([channel.socket], [], [], 0)[0]:
            return False
        with self._peer():
            return self.frontend.config_has_changed()

    def spoken(self) -> list[Message]:
        """Return what the backend has said on its channel since the last call, but for CONFIG's."""
        said: list[Message] = []
        channel = self.frontend.channel
        while channel is not None and select.select([channel.socket], [], [], 0)[0]:
            with self._peer():
                message = channel.receive()
            if message is None:
                break
            close_all(message.fds)
            config = message.request == BackendRequest.CONFIG_CHANGE_MSG
            if not config or not self.frontend.has(ProtocolFeature.CONFIG):
                said.append(message)
        return said

    # Configuration space

    def _need_config(self) -> None:
        if not self.frontend.has(ProtocolFeature.CONFIG):
            raise NotApplicableError("the backend leaves the configuration space to its frontend")

    def read_config(self, offset: int, size: int) -> bytes:
        """Read bytes of the configuration space; not applicable where the backend has none."""
        self._need_config()
        # From the start, as QEMU does: there are backends that take no heed of the offset.
        with self._peer():
            return self.frontend.get_config(offset + size)[offset:]

    def write_config(self, offset: int, data: bytes) -> None:
        """Write a field of the configuration space."""
        self._need_config()
        with self._peer():
            self.frontend.set_config(offset, data)
