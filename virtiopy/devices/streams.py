"""What a port of bytes and its host's side say to each other: neither knows the other's kind."""

import threading
from dataclasses import dataclass
from typing import Protocol

from virtiopy.eventloop import EventLoop
from virtiopy.virtqueue.buffers import Buffers


@dataclass(slots=True, frozen=True)
class Size:
    """The size of a terminal, in characters."""

    cols: int
    rows: int


class StreamUser(Protocol):
    """What a stream tells its port, always with `lock` held."""

    lock: threading.RLock

    def input_ready(self) -> None:
        """Say that there is something to read."""

    def room_ready(self) -> None:
        """Say that more can be written."""

    def connection_changed(self) -> None:
        """Say that a reader came to the host's side, or went."""

    def size_changed(self) -> None:
        """Say that the terminal has another size."""


class Stream(Protocol):
    """The host's side of a port. Its calls never wait, and raise nothing that the host did.

    The caller holds the port's lock.
    """

    @property
    def connected(self) -> bool:
        """Whether there is a reader at the host's side."""

    @property
    def size(self) -> Size | None:
        """The size of the terminal, where it is one."""

    def open(self, loop: EventLoop, user: StreamUser) -> None:
        """Start, with nothing watched; called once, before the loop runs or while it does."""

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes; none where there are none now."""

    def write(self, buffers: Buffers) -> int:
        """Take bytes, and return how many; fewer than there are where more would block.

        With no reader at the host's side they are all taken, and dropped. Raises DriverError
        for a buffer that is no memory any more: nothing of it is written.
        """

    def watch_input(self, on: bool) -> None:
        """Say `input_ready`, from now on, whenever `read` would return something; or do not."""

    def watch_room(self, on: bool) -> None:
        """Say `room_ready`, from now on, whenever `write` would take something; or do not."""

    def close(self) -> None:
        """Give up the host's side."""
