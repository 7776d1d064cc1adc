"""What a guest has sent to a program of the host's that has no room for it yet."""

from collections import deque

from virtiopy.devices.vsock.features import SocketType
from virtiopy.devices.vsock.sockets import HostSocket
from virtiopy.virtqueue.buffers import Buffers, split_at


class Outbox:
    """Sends to a socket, and keeps what has to wait. The caller sees to its bounds.

    Of a seqpacket socket what waits are messages, and the beginning of one that is not whole.
    """

    def __init__(self, socket: HostSocket, kind: SocketType) -> None:
        self.socket = socket
        self._is_stream = kind is SocketType.STREAM
        self._waiting = bytearray()
        # The lengths of the messages in it; what is beyond them is of one that is not whole.
        self._messages: deque[int] = deque()
        self._whole = 0

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return len(self._waiting)

    @property
    def messages(self) -> int:
        """Messages that wait, of which any number may be empty."""
        return len(self._messages)

    @property
    def blocked(self) -> bool:
        """Whether it waits for room."""
        return bool(self._waiting) if self._is_stream else bool(self._messages)

    def put(self, buffers: Buffers, *, ends_message: bool) -> None:
        """Send bytes now, or once there is room. Raises DriverError for buffers that are gone."""
        if self._is_stream:
            if not self._waiting:
                buffers = split_at(buffers, self.socket.send(buffers) or 0)[1]
            self._keep(buffers)
            return
        if ends_message and not self._waiting and not self._messages:
            if self.socket.send(buffers) is None:
                self._keep(buffers)
                self._end_message()
            return
        self._keep(buffers)
        if ends_message:
            self._end_message()
            self.flush()

    def _keep(self, buffers: Buffers) -> None:
        for piece in buffers:
            self._waiting += piece

    def _end_message(self) -> None:
        self._messages.append(len(self._waiting) - self._whole)
        self._whole = len(self._waiting)

    def flush(self) -> None:
        """Send what there is room for."""
        if self._is_stream:
            while self._waiting:
                # The views are let go of before the bytes are taken away.
                with memoryview(self._waiting) as whole:
                    taken = self.socket.send([whole])
                if taken is None:
                    return
                del self._waiting[:taken]
        else:
            self._flush_messages()

    def _flush_messages(self) -> None:
        while self._messages:
            length = self._messages[0]
            with memoryview(self._waiting) as whole, whole[:length] as message:
                if self.socket.send([message]) is None:
                    return
            self._messages.popleft()
            del self._waiting[:length]
            self._whole -= length

    def clear(self) -> None:
        """Drop what waits: no program receives it."""
        self._waiting.clear()
        self._messages.clear()
        self._whole = 0


class Remainder:
    """The rest of a connection that is over: what the program is still to receive, then its end.

    `done` is called when it is over too.
    """

    def __init__(self, outbox: Outbox, forget: "RemainderOwner") -> None:
        self._outbox, self._owner = outbox, forget
        outbox.socket.watch(self)
        outbox.socket.want(input=False, room=True)

    def input_ready(self) -> None:
        """Do nothing: there is no guest to receive it."""

    def room_ready(self) -> None:
        """Send more."""
        self._outbox.flush()
        if not self._outbox.blocked:
            self.close()

    def hung_up(self) -> None:
        """Give up."""
        self.close()

    def close(self) -> None:
        """Close the socket: what was sent to it is received all the same."""
        self._outbox.socket.close()
        self._owner.forget_remainder(self)


class RemainderOwner:
    """Keeps the rests of connections, for `count` and their end."""

    def __init__(self) -> None:
        self._remainders: set[Remainder] = set()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._remainders)

    def end(self, outbox: Outbox) -> None:
        """End a connection's socket, once all that the guest had sent is received."""
        outbox.flush()
        if outbox.blocked and not outbox.socket.gone:
            self._remainders.add(Remainder(outbox, self))
        else:
            outbox.socket.close()

    def forget_remainder(self, remainder: Remainder) -> None:
        """Take note that one is over."""
        self._remainders.discard(remainder)

    def close(self) -> None:
        """Close them all, whatever is left."""
        for remainder in list(self._remainders):
            remainder.close()
