"""What the socket device and the host's sockets say to each other: neither knows the other's kind.

A connection has one socket of the host's. Which program is at its other end, and how that got
there, is the host's side's business: see `virtiopy/host/vsock.py`.
"""

import threading
from typing import Protocol

from virtiopy.devices.vsock.features import SocketType
from virtiopy.eventloop import EventLoop
from virtiopy.virtqueue.buffers import Buffers


class SocketUser(Protocol):
    """What a socket tells its connection, always with the device's lock held."""

    def input_ready(self) -> None:
        """Say that there is something to receive, or the end."""

    def room_ready(self) -> None:
        """Say that more can be sent."""

    def hung_up(self) -> None:
        """Say that the program is gone: it receives nothing more; what it sent can be received."""


class HostSocket(Protocol):
    """A socket of the host's. Its calls never wait, and raise nothing that the program did.

    The caller holds the device's lock.
    """

    @property
    def gone(self) -> bool:
        """Whether the program is known to receive nothing any more."""

    def watch(self, user: SocketUser) -> None:
        """Tell this user from now on, and no other."""

    def want(self, *, input: bool | None = None, room: bool | None = None) -> None:  # noqa: A002
        """Say what to tell of; None leaves it as it is."""

    def established(self, host_port: int) -> None:
        """Take note that the guest accepted the connection, which has this port at the host."""

    def receive(self, buffers: Buffers) -> int | None:
        """Receive bytes, or one message; 0 at the end, None where there is nothing now.

        Of a message that is longer than the buffers the rest is lost. Raises DriverError for
        buffers that are no memory any more.
        """

    def send(self, buffers: Buffers) -> int | None:
        """Send bytes, or one message whole, and return how many; None where that would wait.

        All are taken, to no end, where the program is gone. Raises DriverError for buffers that
        are no memory any more.
        """

    def end_input(self) -> None:
        """Let the program send nothing more: the guest does not receive it."""

    def end_output(self) -> None:
        """Show the program the end of what the guest sends."""

    def close(self) -> None:
        """Give the socket up."""


class SocketsUser(Protocol):
    """What the host's side tells the device, always with `lock` held."""

    lock: threading.RLock

    def connect(self, port: int, kind: SocketType, socket: HostSocket) -> None:
        """Connect a program of the host's to a guest's port.

        The socket is the device's from here on, which closes it where the guest refuses.
        """


class HostSockets(Protocol):
    """The host's programs that guests can talk to. The caller holds the device's lock."""

    def open(self, loop: EventLoop, user: SocketsUser) -> None:
        """Let programs of the host's connect, from here on."""

    def connect(self, port: int, kind: SocketType) -> HostSocket | None:
        """Connect a guest to the program that listens at a port; None where there is none."""

    def close(self) -> None:
        """Let no program connect any more."""


class NoSockets:
    """A host without programs: each connection is refused."""

    def open(self, loop: EventLoop, user: SocketsUser) -> None:
        """Do nothing."""

    def connect(self, port: int, kind: SocketType) -> HostSocket | None:
        """Refuse."""
        return None

    def close(self) -> None:
        """Do nothing."""
