"""One connection between a guest's port and a program of the host's (5.10.6.3, 5.10.6.5, 5.10.6.6).

What the guest sends goes straight to the program's socket; what that has no room for waits in an
outbox, no more than BUFFER_SIZE bytes. What the program sends is received into the driver's own
buffers, no more than the guest has room for. So neither side's data is ever dropped.
"""

import enum
from typing import Protocol

from virtiopy.devices.vsock.features import (
    HOST_CID,
    Boundary,
    Operation,
    Shutdown,
    SocketType,
)
from virtiopy.devices.vsock.outbox import Outbox
from virtiopy.devices.vsock.packet import COUNTER, Header
from virtiopy.devices.vsock.sockets import HostSocket
from virtiopy.virtqueue.buffers import Buffers, scatter, split_at, total

#: What a connection has room for of what the guest sends, bytes: `buf_alloc`. A message has to fit.
BUFFER_SIZE = 1 << 18

#: The largest payload of a packet to the guest, bytes.
PACKET_MAX = 1 << 16

#: The largest message of a program's, bytes.
MESSAGE_MAX = BUFFER_SIZE

#: The guest is told of room in the buffer before it believes that there is less than this, bytes.
LOW_CREDIT = BUFFER_SIZE // 2


class BreachError(Exception):
    """The driver broke the rules of a connection, which ends with a RST."""


class State(enum.Enum):
    """Where a connection stands."""

    #: A program wants it, and the guest has not answered.
    REQUESTED = "requested"
    ESTABLISHED = "established"
    #: The guest was told that the program is gone, and has to say RST.
    CLOSING = "closing"


class ConnectionOwner(Protocol):
    """What a connection asks of the device."""

    @property
    def guest_cid(self) -> int:
        """The guest's context ID."""

    def send_output(self) -> None:
        """Send the guest what there is for it: the host's side has told of something."""

    def has_output(self, connection: "Connection") -> None:
        """Send the guest what the connection has for it, when there are buffers."""

    def end(self, connection: "Connection", *, reset: bool) -> None:
        """Forget a connection, and say RST to the guest where that is to know."""

    def expect(self, connection: "Connection", seconds: float | None) -> None:
        """End the connection in so many seconds, unless told otherwise before; None for never."""


#: Seconds that the guest may take to answer a request, and to say RST in the end: Linux's own.
CONNECT_TIME = 5.0
CLOSE_TIME = 8.0


class Connection:
    """A connection, between the time that it is asked for and its end; it has a `socket`.

    The caller holds the device's lock, and those that tell it of the socket do.
    """

    def __init__(
        self,
        owner: ConnectionOwner,
        socket: HostSocket,
        kind: SocketType,
        *,
        host_port: int,
        guest_port: int,
    ) -> None:
        self.kind, self.host_port, self.guest_port = kind, host_port, guest_port
        self.outbox = Outbox(socket, kind)
        self.state = State.ESTABLISHED
        #: Bytes that came from the guest, and that went to it.
        self.received = self.sent = 0
        self._owner, self._socket = owner, socket
        # Operations that the guest is to be told, once each.
        self._controls: set[Operation] = set()
        # What the guest, and the device, do not do any more.
        self._guest_shutdown = self._own_shutdown = Shutdown.NONE
        # What the guest said of its buffer, and what it was told last of ours.
        self._peer_buf_alloc = self._peer_fwd_cnt = self._told = 0
        self._credit_asked = False
        # Whether the socket may have something, or came to its end; whether the program is gone.
        self._input, self._input_ended, self._hung_up = False, False, False
        # What is left of a message of the program's.
        self._message, self._position = b"", 0
        socket.watch(self)

    # Beginning

    def request(self) -> None:
        """Ask the guest: a program of the host's wants to talk to it."""
        self.state = State.REQUESTED
        self._tell(Operation.REQUEST)
        self._owner.expect(self, CONNECT_TIME)

    def accept(self, header: Header) -> None:
        """Tell the guest that the program is there: it has asked for it."""
        self._take_credit(header)
        self._tell(Operation.RESPONSE)
        self._socket.want(input=True)

    def _tell(self, operation: Operation) -> None:
        self._controls.add(operation)
        self._owner.has_output(self)

    # What the guest sends

    def take(self, header: Header, payload: Buffers) -> None:
        """Take a packet of the guest's. Raises BreachError, and DriverError for a bad buffer."""
        self._take_credit(header)
        if header.op == Operation.RST:
            self._owner.end(self, reset=False)
        elif self.state is State.REQUESTED:
            if header.op != Operation.RESPONSE:
                raise BreachError(f"operation {header.op} answers a REQUEST (5.10.6.5)")
            self.state = State.ESTABLISHED
            self._owner.expect(self, None)
            self._socket.established(self.host_port)
            self._socket.want(input=True)
        elif header.op == Operation.RW:
            self._take_data(header, payload)
        elif header.op == Operation.SHUTDOWN:
            self._take_shutdown(Shutdown(header.flags & Shutdown.BOTH))
        elif header.op == Operation.CREDIT_REQUEST:
            self._tell(Operation.CREDIT_UPDATE)
        elif header.op != Operation.CREDIT_UPDATE:
            raise BreachError(f"operation {header.op} on a connection (5.10.6.5)")

    def _take_credit(self, header: Header) -> None:
        self._peer_buf_alloc, self._peer_fwd_cnt = header.buf_alloc, header.fwd_cnt
        if self._credit:
            self._credit_asked = False
            if self._input:
                self._owner.has_output(self)

    def _take_data(self, header: Header, payload: Buffers) -> None:
        if self._guest_shutdown & Shutdown.SEND:
            raise BreachError("data after the end of data (5.10.6.5)")
        if header.length > BUFFER_SIZE - self.outbox.size:
            raise BreachError(
                f"{header.length} bytes for a buffer with room for "
                f"{BUFFER_SIZE - self.outbox.size} (5.10.6.3.1)"
            )
        self.received += header.length
        if not self._socket.gone:
            whole = bool(header.flags & Boundary.EOM)
            self.outbox.put(payload, ends_message=whole)
            # Empty messages take no room of what the guest counts.
            if self.outbox.messages > BUFFER_SIZE:
                raise BreachError("empty messages without end")
        self._outbox_changed()

    def _outbox_changed(self) -> None:
        """See to the socket, and tell the guest of room that it does not know of."""
        if self._socket.gone:
            self.outbox.clear()
            self._shut_down(Shutdown.RECEIVE)
        blocked = self.outbox.blocked
        self._socket.want(room=blocked)
        if not blocked and self._guest_shutdown & Shutdown.SEND:
            self._socket.end_output()
        believed = BUFFER_SIZE - (self.received - self._told)
        if believed < LOW_CREDIT and self._forwarded != self._told:
            self._tell(Operation.CREDIT_UPDATE)

    @property
    def _forwarded(self) -> int:
        """Bytes that take no room any more: `fwd_cnt`, but that it never wraps."""
        return self.received - self.outbox.size

    def _take_shutdown(self, flags: Shutdown) -> None:
        self._guest_shutdown |= flags
        if self._guest_shutdown == Shutdown.BOTH:
            # The outbox's end is not waited for: the program still gets what is in there.
            self._owner.end(self, reset=True)
            return
        if flags & Shutdown.RECEIVE:
            self._socket.want(input=False)
            self._socket.end_input()
        if flags & Shutdown.SEND:
            self._outbox_changed()

    # What the program does: SocketUser

    def input_ready(self) -> None:
        """Have what the program sent brought to the guest."""
        self._input = True
        # Until the socket is empty there is no need to hear of it again.
        self._socket.want(input=False)
        self._owner.has_output(self)
        self._owner.send_output()

    def room_ready(self) -> None:
        """Go on with what waits for the program."""
        self.outbox.flush()
        self._outbox_changed()
        self._owner.send_output()

    def hung_up(self) -> None:
        """Bring the guest what the program had sent, and then the end."""
        self._hung_up = True
        if self.state is State.REQUESTED:
            # Where it was not told of the request yet, it need not hear of its end.
            self._owner.end(self, reset=Operation.REQUEST not in self._controls)
        else:
            self.outbox.clear()
            if self._input_ended or self._guest_shutdown & Shutdown.RECEIVE:
                self._shut_down(Shutdown.BOTH)
            else:
                self._input = True
                self._owner.has_output(self)
        self._owner.send_output()

    def _shut_down(self, flags: Shutdown) -> None:
        """Tell the guest what will not be done any more; nothing of that is ever taken back."""
        if flags & ~self._own_shutdown:
            self._own_shutdown |= flags
            self._tell(Operation.SHUTDOWN)

    # What the guest is sent

    def next_packet(self, room: Buffers) -> Header | None:
        """Return the next packet to the guest, its payload in `room`; None where there is none.

        What is left to be told stays with the connection: ask again until there is none. Raises
        BreachError, and DriverError for a bad buffer.
        """
        for operation in (
            Operation.REQUEST,
            Operation.RESPONSE,
            Operation.CREDIT_UPDATE,
            Operation.CREDIT_REQUEST,
        ):
            if operation in self._controls:
                self._controls.discard(operation)
                return self._packet(operation)
        if self.state is State.ESTABLISHED and self._input:
            packet = self._next_data(room)
            if packet is not None:
                return packet
        if Operation.SHUTDOWN in self._controls:
            self._controls.discard(Operation.SHUTDOWN)
            if self._own_shutdown == Shutdown.BOTH:
                self.state = State.CLOSING
                self._owner.expect(self, CLOSE_TIME)
            return self._packet(Operation.SHUTDOWN, flags=self._own_shutdown)
        return None

    @property
    def _credit(self) -> int:
        """Bytes that the guest has room for (5.10.6.3); a driver may say what it likes."""
        in_flight = (self.sent - self._peer_fwd_cnt) % COUNTER
        return max(0, self._peer_buf_alloc - in_flight)

    def _next_data(self, room: Buffers) -> Header | None:
        if self._guest_shutdown & Shutdown.RECEIVE:
            self._input = False
            return None
        limit = min(self._credit, PACKET_MAX)
        if not limit:
            if self._credit_asked:
                return None
            self._credit_asked = True
            return self._packet(Operation.CREDIT_REQUEST)
        if not total(room):
            # A buffer for no more than a header: here is something that is one.
            return self._packet(Operation.CREDIT_UPDATE)
        pieces = split_at(room, limit)[0]
        if self.kind is SocketType.SEQPACKET:
            return self._next_fragment(pieces)
        length = self._receive(pieces)
        return self._packet(Operation.RW, length) if length else None

    def _receive(self, buffers: Buffers) -> int:
        """Receive of the program; 0 where there is nothing, for now or for good."""
        length = self._socket.receive(buffers)
        if length:
            return length
        self._input = False
        if length is None and not self._hung_up:
            self._socket.want(input=True)
        else:
            self._input_ended = True
            self._shut_down(Shutdown.BOTH if self._hung_up else Shutdown.SEND)
        return 0

    def _next_fragment(self, pieces: Buffers) -> Header | None:
        if not self._message:
            # A byte more than there may be tells one that is too long.
            buffer = bytearray(MESSAGE_MAX + 1)
            length = self._receive([memoryview(buffer)])
            if not length:
                return None
            if length > min(MESSAGE_MAX, self._peer_buf_alloc):
                raise BreachError(f"a message of more bytes than the guest ever takes: {length}")
            self._message, self._position = bytes(buffer[:length]), 0
        length = scatter(pieces, self._message[self._position : self._position + total(pieces)])
        self._position += length
        if self._position < len(self._message):
            return self._packet(Operation.RW, length)
        self._message = b""
        return self._packet(Operation.RW, length, Boundary.EOM)

    def _packet(self, operation: Operation, length: int = 0, flags: int = 0) -> Header:
        """Return a packet to the guest, with what there is to tell of our buffer."""
        self._told = self._forwarded
        self._controls.discard(Operation.CREDIT_UPDATE)
        self.sent += length
        return Header(
            src_cid=HOST_CID,
            dst_cid=self._owner.guest_cid,
            src_port=self.host_port,
            dst_port=self.guest_port,
            length=length,
            type=self.kind,
            op=operation,
            flags=flags,
            buf_alloc=BUFFER_SIZE,
            fwd_cnt=self._forwarded % COUNTER,
        )

    def reset_packet(self) -> Header:
        """Return the RST that ends it."""
        return self._packet(Operation.RST)
