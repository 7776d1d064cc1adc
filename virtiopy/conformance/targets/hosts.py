"""The host's side of a device, played by the suite: what a driver's requests come to."""

import contextlib
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from virtiopy.closing import Closing
from virtiopy.devices.balloon import Balloon
from virtiopy.devices.streams import Size, StreamUser
from virtiopy.eventloop import EventLoop
from virtiopy.host.stream import Channel
from virtiopy.virtqueue.buffers import Buffers

#: How long something is waited for that a device is to hand to its host, seconds.
PATIENCE = 5.0

#: Bytes of a socket's buffer: a frame of the greatest length, and some more.
_SOCKET_BUFFER = 1 << 20


class Host(Closing):
    """A host's side that the suite has no hand in: that of a backend in another process."""

    def close(self) -> None:
        """Give back what is held."""


class Link:
    """A link whose other end the suite has (devices.net.FrameLink), one queue a pair.

    Frames have a struct virtio_net_hdr before them, both ways.
    """

    name = "conformance"

    def __init__(self, *, mtu: int = 1500, pairs: int = 1) -> None:
        self.mtu = mtu
        self.pairs = pairs
        #: What the device lets the link put into frames.
        self.offloads: set[str] = set()
        #: By how many of the queues frames come now.
        self.active = pairs
        self._ends = [_socket_pair(socket.SOCK_SEQPACKET) for _ in range(pairs)]
        self._state = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._up = True

    # What the suite does

    def inject(self, data: bytes, pair: int = 0) -> None:
        """Have the link receive a frame, its header before it."""
        self._ends[pair][1].send(data)

    def inject_flow(self, data: bytes, flow: int) -> None:
        """Have the link receive a frame of one of many flows, by a queue that it may come by."""
        self.inject(data, flow % self.active)

    def sent(self, pair: int = 0, *, seconds: float = PATIENCE) -> bytes | None:
        """Return the next frame that the device sent, header and all; None without one in time."""
        end = self._ends[pair][1]
        if not select.select([end], [], [], seconds)[0]:
            return None
        return end.recv(_SOCKET_BUFFER)

    def set_up(self, *, up: bool) -> None:
        """Have the link go up or down."""
        self._up = up
        os.eventfd_write(self._state, 1)

    def release(self) -> None:
        """Close the suite's ends."""
        for _, ours in self._ends:
            ours.close()

    # What the device does

    def fileno(self, pair: int) -> int:
        """Return the file that is readable, writable when a queue is."""
        return self._ends[pair][0].fileno()

    def read(self, pair: int, buffers: Buffers) -> int:
        """Read the next frame over `buffers`."""
        return self._ends[pair][0].recvmsg_into(buffers)[0]

    def write(self, pair: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Send one frame."""
        self._ends[pair][0].sendmsg(buffers)

    def set_offloads(self, *, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
        """Take note of what may be in the frames that are read."""
        offloads = {"checksum": checksum, "tso4": tso4, "tso6": tso6, "ecn": ecn}
        self.offloads = {name for name, wanted in offloads.items() if wanted}

    def set_pairs(self, count: int) -> None:
        """Let flows come by the first `count` queues only; what is in the others is lost."""
        self.active = count
        for end, _ in self._ends[count:]:
            with contextlib.suppress(BlockingIOError):
                while end.recv(1):
                    pass

    def worker_file(self, pair: int, mtu: int) -> int:
        """Return the file of a queue."""
        return self.fileno(pair)

    def state_fileno(self) -> int:
        """Return a file that is readable when `is_up` should be asked again."""
        return self._state

    def is_up(self) -> bool:
        """Say whether the link is up."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._state)
        return self._up

    def dropped(self) -> int:
        """Count no frames: none is dropped here."""
        return 0

    def close(self) -> None:
        """Close the device's ends."""
        for theirs, _ in self._ends:
            theirs.close()
        os.close(self._state)


class NetHost(Host):
    """The network at the other end of a device's link.

    `announce` has the device ask its driver to announce itself (5.1.9.5.4), where it ever does.
    """

    def __init__(self, link: Link, announce: Callable[[], None] | None = None) -> None:
        self.link = link
        self.announce = announce

    def close(self) -> None:
        """Close the suite's ends."""
        self.link.release()


class Terminal:
    """A stream (virtiopy.devices.streams.Stream) whose other end the suite has."""

    connected = True

    def __init__(self, size: Size | None = None) -> None:
        self.size = size
        theirs, self._ours = _socket_pair(socket.SOCK_STREAM)
        self._channel = Channel(theirs.detach(), "conformance")
        self._user: StreamUser | None = None

    # What the suite does

    def type(self, data: bytes) -> None:
        """Write to the guest."""
        self._ours.sendall(data)

    def printed(self, until: bytes, *, seconds: float = PATIENCE) -> bytes:
        """Return what the guest wrote, up to `until` and with it, or as far as it comes in time."""
        data = b""
        while until not in data and select.select([self._ours], [], [], seconds)[0]:
            # No more than may belong to it.
            more = self._ours.recv(1 if data else len(until))
            if not more:
                break
            data += more
        return data

    def taken(self, most: int, *, seconds: float = PATIENCE) -> bytes:
        """Return what the guest wrote, up to `most` bytes; none where nothing comes in time."""
        return self._ours.recv(most) if select.select([self._ours], [], [], seconds)[0] else b""

    def resize(self, cols: int, rows: int) -> None:
        """Change the terminal's size."""
        self.size = Size(cols, rows)
        if self._user is not None:
            with self._user.lock:
                self._user.size_changed()

    def release(self) -> None:
        """Close the suite's end."""
        self._ours.close()

    # What the device does

    def open(self, loop: EventLoop, user: StreamUser) -> None:
        """Start."""
        self._user = user
        self._channel.start(
            loop,
            user.lock,
            input_ready=user.input_ready,
            room_ready=user.room_ready,
            hung_up=user.connection_changed,
        )

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes."""
        return self._channel.read(count)

    def write(self, buffers: Buffers) -> int:
        """Take bytes, and return how many."""
        return self._channel.write(buffers)

    def watch_input(self, on: bool) -> None:
        """Say when there is something to read."""
        self._channel.want(input=on)

    def watch_room(self, on: bool) -> None:
        """Say when more can be written."""
        self._channel.want(room=on)

    def close(self) -> None:
        """Close the device's end."""
        self._channel.close()


class Ports(Protocol):
    """A console device whose ports come and go."""

    def add_port(self, number: int, stream: Terminal, name: str) -> object:
        """Plug a port in, whose host's side is `stream`."""

    def remove_port(self, number: int) -> None:
        """Unplug a port."""


class ConsoleHost(Host):
    """Terminals by port number: port 0, the console, has a size; the others have names.

    With `ports` they can be plugged in and unplugged.
    """

    def __init__(self, names: Sequence[str] = ("conformance.1",)) -> None:
        self.names = names
        self.terminals = [Terminal(Size(80, 25)), *(Terminal() for _ in names)]
        self.ports: Ports | None = None
        self._plugged: list[Terminal] = []

    def plug(self, number: int) -> None:
        """Plug a port in."""
        if self.ports is not None:
            self._plugged.append(Terminal())
            self.ports.add_port(number, self._plugged[-1], f"conformance.{number}")

    def unplug(self, number: int) -> None:
        """Unplug a port."""
        if self.ports is not None:
            self.ports.remove_port(number)

    def close(self) -> None:
        """Close the suite's ends."""
        for terminal in [*self.terminals, *self._plugged]:
            terminal.release()


class BalloonHost(Host):
    """The host that wants memory back, and asks for statistics."""

    def __init__(self, device: Balloon) -> None:
        self._device = device

    def set_target(self, target: int) -> None:
        """Ask the driver for `target` bytes in all."""
        self._device.set_target(target)

    def request_statistics(self) -> None:
        """Ask the driver for new statistics."""
        self._device.request_statistics()

    @property
    def statistics(self) -> dict[str, int]:
        """The driver's latest statistics, by name."""
        return dict(self._device.statistics)

    @property
    def ballooned(self) -> int:
        """Bytes in the balloon, as the device counts."""
        return self._device.ballooned


def _socket_pair(kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    """Return two ends: the device's, which does not wait, and the suite's."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, kind)
    for end in (theirs, ours):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
    theirs.setblocking(False)
    ours.settimeout(PATIENCE)
    return theirs, ours
