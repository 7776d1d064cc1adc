"""What the tests of consoles' streams share."""

import fcntl
import os
import struct
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.descriptors import write_all
from tests.patience import PATIENCE
from virtiopy.devices.streams import Size, Stream
from virtiopy.eventloop import EventLoop
from virtiopy.host.terminal import StdioStream

MIB = bytes(range(256)) * 4096


class Guest:
    """A port: takes all input while it `reads`, and writes what it is given as there is room."""

    def __init__(self, stream: Stream, loop: EventLoop) -> None:
        self.lock = threading.RLock()
        self.stream = stream
        self.reads = True
        self.received = bytearray()
        self.connections: list[bool] = []
        self.sizes: list[Size | None] = []
        self._output = b""
        self._changed = threading.Condition(self.lock)
        with self.lock:
            stream.open(loop, self)
            stream.watch_input(True)

    def input_ready(self) -> None:
        if self.reads:
            self.received += self.stream.read(1 << 16)
        self.stream.watch_input(self.reads)
        self._changed.notify_all()

    def room_ready(self) -> None:
        taken = self.stream.write([memoryview(self._output)]) if self._output else 0
        self._output = self._output[taken:]
        self.stream.watch_room(bool(self._output))
        self._changed.notify_all()

    def connection_changed(self) -> None:
        self.connections.append(self.stream.connected)
        self.room_ready()

    def size_changed(self) -> None:
        self.sizes.append(self.stream.size)
        self._changed.notify_all()

    # What the tests do

    def write(self, data: bytes) -> None:
        with self.lock:
            self._output += data
            self.room_ready()

    def read_from_now_on(self, on: bool) -> None:
        with self.lock:
            self.reads = on
            self.stream.watch_input(on)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.lock:
            assert self._changed.wait_for(condition, PATIENCE)

    def wait_for_input(self, data: bytes) -> None:
        self.wait(lambda: len(self.received) >= len(data))
        assert self.received == data

    def wait_written(self) -> None:
        self.wait(lambda: not self._output)

    def wait_connections(self, *connections: bool) -> None:
        self.wait(lambda: self.connections == list(connections))


@contextmanager
def guest_of(stream: Stream) -> Iterator[Guest]:
    """A guest on `stream`, whose loop runs."""
    with EventLoop() as loop:
        guest = Guest(stream, loop)
        loop.start()
        try:
            yield guest
        finally:
            loop.stop()
            stream.close()


class Terminal:
    """A pseudoterminal that plays the user's: `user` is where they type, `fd` is ours."""

    def __init__(self) -> None:
        self.user, self.fd = os.openpty()
        self.resize(80, 25)
        self.mode = termios.tcgetattr(self.fd)

    def resize(self, cols: int, rows: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    @property
    def is_raw(self) -> bool:
        local = termios.tcgetattr(self.fd)[tty.LFLAG]
        return not local & (termios.ECHO | termios.ICANON | termios.ISIG)

    @property
    def is_restored(self) -> bool:
        return termios.tcgetattr(self.fd) == self.mode

    def type(self, data: bytes) -> None:
        write_all(self.user, data)


@contextmanager
def console(terminal: Terminal, on_leave: Callable[[], None] = lambda: None) -> Iterator[Guest]:
    with guest_of(StdioStream(terminal.fd, terminal.fd, on_leave=on_leave)) as guest:
        yield guest
