"""The socket device (5.10): queues, connections, its life.

A packet's life is parse, execute, complete: a header and a payload, the connection that they are
for, the buffer back to the driver. What the guest is to be told waits with the connections, as what
is to be told and not as packets: that has bounds. Of what belongs to no connection, RESETS_MAX
packets wait; where there are more, the tx queue waits for the driver to take them (5.10.6.1).
"""

import contextlib
import enum
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.devices.base import DeviceHost, Fact, VirtioDevice
from virtiopy.devices.delegation import OpenWorker
from virtiopy.devices.vsock.commands import COMMANDS
from virtiopy.devices.vsock.connection import BreachError, Connection
from virtiopy.devices.vsock.delegation import RINGS, DelegatedPackets
from virtiopy.devices.vsock.events import EVENT_QUEUE, Events
from virtiopy.devices.vsock.features import (
    CID_MAX,
    CID_MIN,
    HOST_CID,
    Operation,
    SocketType,
    VsockFeature,
)
from virtiopy.devices.vsock.outbox import RemainderOwner
from virtiopy.devices.vsock.packet import (
    HEADER_SIZE,
    Header,
    pack_header,
    parse_header,
    reset_for,
)
from virtiopy.devices.vsock.sockets import HostSocket, HostSockets, NoSockets
from virtiopy.errors import DriverError, VirtiopyError
from virtiopy.eventloop import EventLoop, Timer
from virtiopy.spec import DeviceId, feature_mask, has_feature
from virtiopy.virtqueue.buffers import gather, scatter, split_at, total
from virtiopy.virtqueue.queue import BATCH, Chain, Completion, Virtqueue, batches_of_a_turn

log = logging.getLogger(__name__)

#: Connections at a time, with those of which a program has yet to receive the rest.
CONNECTIONS_MAX = 1023

#: RSTs that wait for buffers.
RESETS_MAX = 256

#: The host's ports of connections that a program began: from here on, by turns.
PORT_MIN, PORT_COUNT = 1 << 30, 1 << 30

#: Seconds between looks at what takes too long, while anything may.
TICK = 1.0


class VsockQueue(enum.IntEnum):
    """The virtqueues (5.10.2)."""

    rx = 0
    tx = 1
    event = EVENT_QUEUE


class Vsock(VirtioDevice):
    """A socket device of the guest with this context ID, whose programs at the host `sockets` has.

    Raises ValueError for a context ID that is reserved.
    """

    device_id: ClassVar[DeviceId] = DeviceId.SOCKET
    feature_bits = VsockFeature
    features = feature_mask(VsockFeature)
    queue_sizes = (128, 128, 16)
    commands = COMMANDS
    workers: ClassVar[frozenset[str]] = frozenset({"vhost"})

    #: What connections are.
    connection_class: ClassVar[type[Connection]] = Connection

    def __init__(self, guest_cid: int, sockets: HostSockets | None = None) -> None:
        super().__init__()
        self._check_cid(guest_cid)
        self.guest_cid = guest_cid
        self._sockets: HostSockets = sockets or NoSockets()
        #: The connections, by the host's port and the guest's.
        self.connections: dict[tuple[int, int], Connection] = {}
        self._remainders = RemainderOwner()
        # Those that have something for the guest, in the order of their turns.
        self._ready: dict[Connection, None] = {}
        self._resets: deque[Header] = deque()
        self._tx_waits = False
        self._ports = 0
        # When connections end by themselves; what looks after it.
        self._deadlines: dict[Connection, float] = {}
        self._timer: Timer | None = None
        self._events = Events(self)
        self._packets = DelegatedPackets(self)
        self._opened = self._refused = self._dropped = 0
        self._received = self._sent = 0

    @staticmethod
    def _check_cid(cid: int) -> None:
        if not CID_MIN <= cid <= CID_MAX:
            raise ValueError(f"context ID {cid} is reserved (5.10.4)")

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        """Let programs of the host's connect; without a loop none can."""
        super().attach(host, loop, may_block=may_block)
        if loop is not None:
            with self.lock:
                self._sockets.open(loop, self)

    def config_space(self) -> bytes:
        """Return struct virtio_vsock_config (5.10.4)."""
        config = ffi.new("struct virtio_vsock_config *")
        config.guest_cid = self.guest_cid
        return bytes(ffi.buffer(config))

    # Queues

    def handle(self, queue: Virtqueue) -> None:
        """Serve a queue. Raises QueueError."""
        if self._packets.delegated and queue.index in RINGS:
            return
        if queue.index == VsockQueue.tx:
            self._transmit(queue)
        elif queue.index == VsockQueue.rx:
            self._supply()
            tx = self.queues.get(VsockQueue.tx)
            if self._tx_waits and tx is not None and not self._is_full:
                self._transmit(tx)
        else:
            self._events.send()

    def activate(self, queues: Mapping[int, Virtqueue]) -> None:
        """Start, or have the worker start."""
        super().activate(queues)
        self._delegate_if_due()
        self.send_output()

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Take a queue, and what may wait for it."""
        super().start_queue(index, queue)
        self._delegate_if_due()
        self.send_output()

    def stop_queue(self, index: int) -> None:
        """Forget a queue; a worker has both of its own, or neither."""
        if index in RINGS:
            self._packets.reclaim()
        super().stop_queue(index)

    # Another worker

    def offered(self, features: int) -> int:
        """Leave out what the worker has not."""
        return self._packets.offered(features)

    def delegate(self, open_worker: OpenWorker) -> None:
        """Have another worker take the packets; connections of the device's end."""
        with self.lock:
            self.refusal = None
            self._packets.close()
            self._packets.open(open_worker, self.guest_cid)
            try:
                self._packets.delegate()
            except VirtiopyError:
                self._packets.close()
                self.refusal = None
                raise
            if self._packets.delegated:
                self.interrupt()

    def reclaim(self) -> None:
        """Have the device take the packets; connections of the worker's end."""
        with self.lock:
            self.refusal = None
            was_delegated = self._packets.delegated
            self._packets.close()
            if was_delegated:
                self.interrupt()

    def _delegate_if_due(self) -> None:
        try:
            self._packets.delegate()
        except DriverError as error:
            self.host.needs_reset(str(error))
        except VirtiopyError as error:
            log.warning("the device itself works its queues: %s", error)

    @contextlib.contextmanager
    def undelegated(self, index: int) -> Iterator[None]:
        """Have the device itself have a queue meanwhile; it does nothing with it."""
        was_delegated = self._packets.delegated
        self._packets.reclaim()
        yield
        if was_delegated:
            self._delegate_if_due()

    # What the guest sends: parse, execute, complete

    @property
    def _is_full(self) -> bool:
        return len(self._resets) >= RESETS_MAX

    def _transmit(self, queue: Virtqueue) -> None:
        self._tx_waits = False
        for _ in batches_of_a_turn():
            queue.disable_kicks()
            if self._is_full:
                self._tx_waits = True
                return
            # Each packet has one answer at most.
            chains = queue.pop_many(min(BATCH, RESETS_MAX - len(self._resets)))
            for chain in chains:
                self._execute(chain)
            queue.push_many([(chain, 0) for chain in chains])
            self.notify(queue)
            self._supply()
            if not chains and not queue.enable_kicks():
                return
        self.handle_soon(queue)

    def _execute(self, chain: Chain) -> None:
        head, payload = split_at(chain.readable, HEADER_SIZE)
        data = gather(head)
        if len(data) < HEADER_SIZE:
            self._drop(f"a packet of {len(data)} bytes, which is no header (5.10.6)")
            return
        header = parse_header(data)
        if header.src_cid != self.guest_cid:
            self._drop(f"a packet of CID {header.src_cid}, in guest {self.guest_cid} (5.10.6.4.1)")
            return
        connection = self.connections.get((header.dst_port, header.src_port))
        if header.dst_cid != HOST_CID or header.type not in self._types:
            # A flow between others, or of a type that there is not: no connection's (5.10.6.4.2).
            self._refuse(header)
        elif connection is None:
            if header.op == Operation.REQUEST:
                self._accept(header)
            else:
                self._refuse(header)
        elif header.length > total(payload):
            self._breach(
                connection, f"{header.length} bytes of payload in {total(payload)} (5.10.6)"
            )
        elif header.type != connection.kind:
            self._breach(connection, f"type {header.type} on a connection of another (5.10.6.2)")
        else:
            try:
                connection.take(header, split_at(payload, header.length)[0])
            except BreachError as error:
                self._breach(connection, str(error))

    @property
    def _types(self) -> set[int]:
        """The types of sockets that were negotiated (5.10.3)."""
        features, types = self.driver_features, set()
        if has_feature(features, VsockFeature.VIRTIO_VSOCK_F_SEQPACKET):
            types.add(SocketType.SEQPACKET)
        if has_feature(features, VsockFeature.VIRTIO_VSOCK_F_STREAM) or not has_feature(
            features, VsockFeature.VIRTIO_VSOCK_F_NO_IMPLIED_STREAM
        ):
            types.add(SocketType.STREAM)
        return {int(kind) for kind in types}

    def _drop(self, reason: str) -> None:
        self._dropped += 1
        log.warning("a socket device's driver sends %s: it is dropped", reason)

    def _breach(self, connection: Connection, reason: str) -> None:
        log.warning(
            "a socket device's driver breaks the connection of its port %d with the host's %d: %s",
            connection.guest_port,
            connection.host_port,
            reason,
        )
        self.end(connection, reset=True)

    def _refuse(self, header: Header) -> None:
        """Answer a packet that is for no connection; a RST has no answer."""
        if header.op != Operation.RST:
            self._refused += header.op == Operation.REQUEST
            self._resets.append(reset_for(header))

    def _accept(self, header: Header) -> None:
        """Connect the guest to a program of the host's (5.10.6.5)."""
        kind = SocketType(header.type)
        socket = None if self._has_all else self._sockets.connect(header.dst_port, kind)
        if socket is None:
            self._refuse(header)
            return
        self._add(socket, kind, header.dst_port, header.src_port).accept(header)

    # Connections: SocketsUser, ConnectionOwner

    @property
    def _has_all(self) -> bool:
        return len(self.connections) + self._remainders.count >= CONNECTIONS_MAX

    def _add(
        self, socket: HostSocket, kind: SocketType, host_port: int, guest_port: int
    ) -> Connection:
        make = self.connection_class
        connection = make(self, socket, kind, host_port=host_port, guest_port=guest_port)
        self.connections[host_port, guest_port] = connection
        self._opened += 1
        return connection

    def connect(self, port: int, kind: SocketType, socket: HostSocket) -> None:
        """Connect a program of the host's to a guest's port; the device has the socket."""
        here = self.queues and not self.halted and not self._packets.delegated
        if self._has_all or kind not in self._types or not here:
            self._refused += 1
            socket.close()
            return
        while True:
            host_port = PORT_MIN + self._ports % PORT_COUNT
            self._ports += 1
            if (host_port, port) not in self.connections:
                break
        self._add(socket, kind, host_port, port).request()
        self.send_output()

    def has_output(self, connection: Connection) -> None:
        """Send the guest what a connection has for it, in its turn."""
        if self._has(connection):
            self._ready.setdefault(connection)

    def _has(self, connection: Connection) -> bool:
        """Say whether a connection is not over."""
        key = connection.host_port, connection.guest_port
        return self.connections.get(key) is connection

    def end(self, connection: Connection, *, reset: bool) -> None:
        """Forget a connection; its program still gets what the guest sent it."""
        if not self._has(connection):
            return
        del self.connections[connection.host_port, connection.guest_port]
        self._ready.pop(connection, None)
        self._deadlines.pop(connection, None)
        self._received += connection.received
        self._sent += connection.sent
        if reset:
            self._resets.append(connection.reset_packet())
        self._remainders.end(connection.outbox)

    def expect(self, connection: Connection, seconds: float | None) -> None:
        """End a connection in so many seconds, unless told otherwise before."""
        self._deadlines.pop(connection, None)
        if seconds is not None:
            self._deadlines[connection] = time.monotonic() + seconds
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is None and self._deadlines and self.loop is not None:
            self._timer = self.loop.call_later(TICK, self._expire, "socket device deadlines")

    def _expire(self) -> None:
        with self.lock:
            self._timer = None
            now = time.monotonic()
            for connection in [one for one, due in self._deadlines.items() if due <= now]:
                log.info("port %d of the guest does not answer", connection.guest_port)
                self.end(connection, reset=True)
            self._set_timer()
            self.send_output()

    def send_output(self) -> None:
        """Send the guest what there is for it, where no kick has brought us here."""
        if self.halted:
            return
        try:
            self._supply()
        except DriverError as error:
            self.host.needs_reset(str(error))

    # What the guest is sent

    def _supply(self) -> None:
        """Fill the driver's buffers while there is anything for it. Raises QueueError."""
        queue = self.queues.get(VsockQueue.rx)
        if queue is None or self._packets.delegated:
            return
        for _ in batches_of_a_turn():
            done: list[Completion] = []
            while len(done) < BATCH and self._has_output and (chain := queue.pop()) is not None:
                length = self._fill(chain)
                if length is None:
                    queue.unpop(1)
                    break
                done.append((chain, length))
            queue.push_many(done)
            self.notify(queue)
            if not self._has_output:
                queue.disable_kicks()
                return
            if not queue.enable_kicks():
                return
        self.handle_soon(queue)

    @property
    def _has_output(self) -> bool:
        return bool(self._resets or self._ready)

    def _fill(self, chain: Chain) -> int | None:
        """Put the next packet into a buffer; None where there is none after all."""
        head, room = split_at(chain.writable, HEADER_SIZE)
        if total(head) < HEADER_SIZE:
            self._drop(f"a buffer of {total(head)} bytes, with no room for a header (5.10.6)")
            return 0
        packet = self._resets.popleft() if self._resets else self._next_packet(room)
        if packet is None:
            return None
        scatter(head, pack_header(packet))
        return HEADER_SIZE + packet.length

    def _next_packet(self, room: list[memoryview]) -> Header | None:
        while self._ready:
            connection = next(iter(self._ready))
            del self._ready[connection]
            try:
                packet = connection.next_packet(room)
            except BreachError as error:
                self._breach(connection, str(error))
                return self._resets.popleft()
            if packet is not None:
                # It goes on behind the others.
                self._ready[connection] = None
                return packet
        return None

    # Events (5.10.6.7)

    def change_cid(self, cid: int) -> None:
        """Give the guest another context ID, as after a migration: all connections are over.

        The driver is told by TRANSPORT_RESET. From any thread. Raises ValueError for a context ID
        that is reserved, ConfigError for one that another guest has.
        """
        self._check_cid(cid)
        with self.lock:
            was_delegated = self._packets.delegated
            self._packets.reclaim()
            try:
                if self._packets.worker is not None:
                    self._packets.worker.set_guest_cid(cid)
                self.guest_cid = cid
                self.interrupt()
            finally:
                if was_delegated:
                    self._delegate_if_due()

    def interrupt(self) -> None:
        """End all connections, and tell the driver that they are over; the caller holds the lock.

        The driver is told once it has a buffer for that.
        """
        self._forget()
        self._events.interrupted()

    # Life

    def _forget(self) -> None:
        for connection in list(self.connections.values()):
            self.end(connection, reset=False)
        self._resets.clear()
        self._tx_waits = False

    def reset(self) -> None:
        """Forget the driver and its connections; programs still get what it has sent."""
        self._packets.reclaim()
        self.refusal = None
        super().reset()
        self._forget()
        self._events.forget()

    def halt(self) -> None:
        """Stop; connections are over with the reset that follows."""
        self._packets.reclaim()
        super().halt()
        self._forget()

    def close(self) -> None:
        """Let no program connect any more, and close the connections."""
        with self.lock:
            self._packets.close()
            self.queues = {}
            self._forget()
            self._remainders.close()
            self._sockets.close()
            if self._timer is not None:
                self._timer.cancel()

    def facts(self) -> Mapping[str, Fact]:
        """Tell the context ID, and how many connections, bytes and dropped packets there were."""
        live = self.connections.values()
        return {
            "guest_cid": self.guest_cid,
            "delegated": int(self._packets.delegated),
            **({"delegation_refused": self.refusal} if self.refusal else {}),
            "connections": len(self.connections),
            "opened": self._opened,
            "refused": self._refused,
            "dropped": self._dropped,
            "received": self._received + sum(one.received for one in live),
            "sent": self._sent + sum(one.sent for one in live),
        }
