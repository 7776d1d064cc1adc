"""Between a frontend and a backend of vhost-user: what each says is passed on, and seen.

The proxy maps the memory that the frontend sends, and has eventfds of its own for kicks and calls:
before it passes one on it looks at the ring, and tells those who watch (passing.ProxyWatch) what
became available and what was used. It writes nothing into memory. A side that leaves, or says what
is no message, ends the session, and the proxy waits for the next frontend.

A ring that the driver or the device polls is looked at only where a notification passes: what was
made available and used between two of them can be missed.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from virtiopy import eventfds
from virtiopy.closing import Closing
from virtiopy.errors import ConfigError, DriverError, PeerError
from virtiopy.eventloop import READABLE, EventLoop, Watch
from virtiopy.sockets import SocketFile
from virtiopy.spec import Feature, has_feature
from virtiopy.vhost.user.connection import Connection, DisconnectedError, close_all
from virtiopy.vhost.user.memory import FrontendMemory
from virtiopy.vhost.user.messages import (
    Flag,
    MemoryRegion,
    Message,
    Request,
    RingAddresses,
    RingState,
    to_memory_table,
    to_ring_file,
    to_u64,
)
from virtiopy.vhost.user.passing import ProxyWatch
from virtiopy.vhost.user.seenqueue import SeenQueue
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.layout import RingFormat
from virtiopy.virtqueue.queue import QueueAreas, QueueState

log = logging.getLogger(__name__)

#: Messages of one side that are passed on before others have their turn.
_MESSAGES_A_TURN = 64


class _Notifier(Closing):
    """Takes notifications from one eventfd and passes them on to another; both are its to close.

    `pass_on` is called before.
    """

    def __init__(
        self, loop: EventLoop, listened: int, passed_to: int, pass_on: Callable[[], None], name: str
    ) -> None:
        self._loop = loop
        self._listened = listened
        self._passed_to = passed_to
        self._before = pass_on
        self._watch: Watch | None = loop.watch(
            listened, READABLE, lambda events: self.flush(), name
        )

    def flush(self) -> None:
        """Pass a notification on, if there is one."""
        count = eventfds.take(self._listened)
        if count is None:
            # The other end was closed: it would be ready for ever.
            self._unwatch()
        elif count:
            self._before()
            eventfds.signal(self._passed_to)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._loop.unwatch(self._watch)
            self._watch = None

    def close(self) -> None:
        """Pass on what is left, and close both."""
        with contextlib.suppress(OSError):
            self.flush()
        self._unwatch()
        os.close(self._listened)
        os.close(self._passed_to)


class _Ring(Closing):
    """What was said of a ring."""

    def __init__(self) -> None:
        self.size = 0
        self.base = 0
        self.addresses: RingAddresses | None = None
        self.kick: _Notifier | None = None
        self.call: _Notifier | None = None
        self.queue: SeenQueue | None = None
        self.is_seen = True

    def pause(self) -> None:
        """Forget where the ring is, and keep how far it has come."""
        if self.queue is not None:
            self.base = self.queue.state.vring_base
            self.forget(stopped=False)

    def forget(self, *, stopped: bool) -> None:
        """Look at the ring no more; `stopped` says that the frontend has stopped it."""
        if self.queue is not None:
            self.queue.close(stopped=stopped)
            self.queue = None

    def flush(self) -> None:
        """Pass on the notifications that there are."""
        for notifier in (self.kick, self.call):
            if notifier is not None:
                notifier.flush()

    def close(self) -> None:
        """Let go of the eventfds."""
        for notifier in (self.kick, self.call):
            if notifier is not None:
                notifier.close()
        self.kick = self.call = None


class Session(Closing):
    """One frontend and its backend.

    `ended` is called once, when one of them is gone or says what is no message.
    """

    def __init__(
        self,
        frontend: socket.socket,
        backend: socket.socket,
        loop: EventLoop,
        watches: Sequence[ProxyWatch],
        ended: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._seen_by = tuple(watches)
        self._ended = ended
        self._memory = FrontendMemory()
        for one in self._seen_by:
            one.began(self._memory)
        self._rings: dict[int, _Ring] = {}
        self._features = 0
        self._closed = False
        self._connections: dict[bool, Connection] = {}
        self._watches: list[Watch] = []
        for is_frontend, stream in ((True, frontend), (False, backend)):
            stream.setblocking(False)
            self._connections[is_frontend] = Connection(stream)
            name = "frontend" if is_frontend else "backend"
            readable = partial(self._readable, is_frontend)
            self._watches.append(loop.watch(stream.fileno(), READABLE, readable, name))

    def close(self) -> None:
        """Leave both."""
        if self._closed:
            return
        self._closed = True
        for watch in self._watches:
            self._loop.unwatch(watch)
        for index, ring in self._rings.items():
            self._look_at(index)
            ring.forget(stopped=False)
            ring.is_seen = False
            ring.close()
        for connection in self._connections.values():
            connection.close()
        for one in self._seen_by:
            one.ended()
        self._memory.close()

    def _end(self, reason: str, level: int = logging.WARNING) -> None:
        log.log(level, "the session has ended: %s", reason)
        self.close()
        self._ended()

    # Messages

    def _readable(self, is_frontend: bool, events: int) -> None:
        who = "frontend" if is_frontend else "backend"
        try:
            for _ in range(_MESSAGES_A_TURN):
                if self._closed:
                    return
                message = self._connections[is_frontend].receive()
                if message is None:
                    return
                self._pass_on(message, is_frontend)
        except DisconnectedError as error:
            self._end(f"the {who} is gone: {error}", logging.INFO)
        except (PeerError, DriverError) as error:
            self._end(f"the {who} breaks the protocol: {error}")
        except OSError as error:
            self._end(f"the host cannot pass on what the {who} sends: {error.strerror or error}")

    def _pass_on(self, message: Message, from_frontend: bool) -> None:
        try:
            # What was notified before the message is known before it.
            for ring in self._rings.values():
                ring.flush()
            if message.request == Request.GET_VRING_BASE and message.flags & Flag.REPLY:
                # The last that was used, of which the driver may not have been notified.
                self._look_at(RingState.decode(message).index)
            for one in self._seen_by:
                one.message(message, from_frontend)
            if from_frontend and (learn := _LEARNERS.get(message.request)) is not None:
                learn(self, message)
            elif message.request == Request.GET_VRING_BASE and message.flags & Flag.REPLY:
                self._stopped(RingState.decode(message))
            self._connections[not from_frontend].send(message)
        finally:
            close_all(message.fds)

    def _ring(self, index: int) -> _Ring:
        return self._rings.setdefault(index, _Ring())

    def _set_features(self, message: Message) -> None:
        self._features = to_u64(message)

    def _set_mem_table(self, message: Message) -> None:
        regions = to_memory_table(message)
        if len(regions) != len(message.fds):
            raise PeerError(f"{message.name} with {len(message.fds)} files")
        self._pause()
        copies = [os.dup(fd) for fd in message.fds]
        self._memory.replace(zip(regions, copies, strict=True))

    def _add_mem_reg(self, message: Message) -> None:
        if len(message.fds) != 1:
            raise PeerError(f"{message.name} with {len(message.fds)} files")
        self._memory.add(MemoryRegion.decode(message), os.dup(message.fds[0]))

    def _rem_mem_reg(self, message: Message) -> None:
        self._pause()
        self._memory.remove(MemoryRegion.decode(message))

    def _pause(self) -> None:
        for ring in self._rings.values():
            ring.pause()

    def _set_vring_num(self, message: Message) -> None:
        state = RingState.decode(message)
        self._ring(state.index).size = state.number

    def _set_vring_base(self, message: Message) -> None:
        state = RingState.decode(message)
        ring = self._ring(state.index)
        ring.forget(stopped=False)
        ring.base, ring.is_seen = state.number, True

    def _set_vring_addr(self, message: Message) -> None:
        addresses = RingAddresses.decode(message)
        ring = self._ring(addresses.index)
        ring.pause()
        ring.addresses = addresses

    def _set_vring_kick(self, message: Message) -> None:
        index = to_ring_file(message)
        ring = self._ring(index)
        if ring.kick is not None:
            ring.kick.close()
            ring.kick = None
        if message.fds:
            theirs, ours = message.fds.pop(), _eventfd()
            message.fds.append(os.dup(ours))
            before = partial(self._kicked, index)
            ring.kick = _Notifier(self._loop, theirs, ours, before, f"kicks of ring {index}")
        if ring.addresses is not None and ring.size:
            # Before the backend works it.
            self._look(index)

    def _set_vring_call(self, message: Message) -> None:
        index = to_ring_file(message)
        ring = self._ring(index)
        if ring.call is not None:
            ring.call.close()
            ring.call = None
        if message.fds:
            theirs, ours = message.fds.pop(), _eventfd()
            message.fds.append(os.dup(ours))
            before = partial(self._called, index)
            ring.call = _Notifier(self._loop, ours, theirs, before, f"calls of ring {index}")

    def _stopped(self, state: RingState) -> None:
        ring = self._ring(state.index)
        ring.forget(stopped=True)
        ring.base = state.number

    def _set_vring_enable(self, message: Message) -> None:
        # The backend may look at it now, without a kick.
        self._look_at(RingState.decode(message).index)

    # Rings

    def _look_at(self, index: int) -> None:
        """See what is new in a ring, where it is looked at already."""
        ring = self._rings.get(index)
        if ring is not None and ring.queue is not None:
            self._look(index)

    def _kicked(self, index: int) -> None:
        for one in self._seen_by:
            one.kicked(index)
        self._look(index)

    def _called(self, index: int) -> None:
        # libvhost-user notifies as soon as it has the eventfd, when there is no ring yet.
        if self._ring(index).addresses is not None:
            self._look(index, notified=True)
        for one in self._seen_by:
            one.called(index)

    def _look(self, index: int, *, notified: bool = False) -> None:
        """See what became available and what was used; a ring that cannot be seen is left alone."""
        ring = self._ring(index)
        if not ring.is_seen:
            return
        try:
            if ring.queue is None:
                ring.queue = self._open(index, ring)
            ring.queue.look(notified=notified)
        except (PeerError, DriverError) as error:
            log.warning("ring %d is passed on and not looked at any more: %s", index, error)
            ring.is_seen = False
            ring.queue = None
            for one in self._seen_by:
                one.unseen(index, error)

    def _open(self, index: int, ring: _Ring) -> SeenQueue:
        addresses = ring.addresses
        if addresses is None:
            raise PeerError(f"ring {index} is kicked, and has no addresses")
        if has_feature(self._features, Feature.VIRTIO_F_RING_PACKED):
            raise PeerError("it is a packed ring")
        areas = layout.areas(RingFormat.SPLIT, ring.size)
        translate = self._memory.translate
        return SeenQueue(
            self._memory,
            ring.size,
            QueueAreas(
                translate(addresses.descriptor_table, areas.descriptor.size),
                translate(addresses.available_ring, areas.driver.size),
                translate(addresses.used_ring, areas.device.size),
            ),
            index=index,
            event_idx=has_feature(self._features, Feature.VIRTIO_F_EVENT_IDX),
            indirect=has_feature(self._features, Feature.VIRTIO_F_INDIRECT_DESC),
            state=QueueState(ring.base),
            # The device's own limit is not known here.
            longest_chain=layout.QUEUE_SIZE_MAX,
            in_order=has_feature(self._features, Feature.VIRTIO_F_IN_ORDER),
            observers=[seen for one in self._seen_by for seen in one.observers],
            sure=[seen for one in self._seen_by for seen in one.sure],
        )


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


#: What is to be known of what a frontend says.
_LEARNERS: dict[int, Callable[[Session, Message], None]] = {
    Request.SET_FEATURES: Session._set_features,
    Request.SET_MEM_TABLE: Session._set_mem_table,
    Request.ADD_MEM_REG: Session._add_mem_reg,
    Request.REM_MEM_REG: Session._rem_mem_reg,
    Request.SET_VRING_NUM: Session._set_vring_num,
    Request.SET_VRING_BASE: Session._set_vring_base,
    Request.SET_VRING_ADDR: Session._set_vring_addr,
    Request.SET_VRING_ENABLE: Session._set_vring_enable,
    Request.SET_VRING_KICK: Session._set_vring_kick,
    Request.SET_VRING_CALL: Session._set_vring_call,
}


class Proxy(Closing):
    """Passes one frontend after the other on to a backend; `listener` is closed with it.

    `connect` connects to the backend, and raises ConfigError where there is none.
    """

    def __init__(
        self,
        listener: socket.socket,
        connect: Callable[[], socket.socket],
        loop: EventLoop,
        watches: Sequence[ProxyWatch],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._connect = connect
        self._seen_by = tuple(watches)
        self._session: Session | None = None
        self._made = SocketFile.at(Path(listener.getsockname()))
        listener.setblocking(False)
        self._accepting = loop.watch(listener.fileno(), READABLE, self._accept, "frontends")

    def close(self) -> None:
        """Leave the session that there is, and the socket."""
        if self._session is not None:
            self._session.close()
        self._loop.unwatch(self._accepting)
        self._made.close()
        self._listener.close()

    def _accept(self, events: int) -> None:
        try:
            frontend, _ = self._listener.accept()
        except OSError as error:
            log.info("a frontend could not be accepted: %s", error.strerror)
            return
        if self._session is not None:
            log.warning("a frontend is sent away: another one is here")
            frontend.close()
            return
        try:
            backend = self._connect()
        except ConfigError as error:
            log.warning("a frontend is sent away: %s", error)
            frontend.close()
            return
        log.info("a frontend is here")
        self._session = Session(frontend, backend, self._loop, self._seen_by, self._session_ended)

    def _session_ended(self) -> None:
        self._session = None
