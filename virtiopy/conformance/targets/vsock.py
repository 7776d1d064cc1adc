"""The host's side of a socket device, played by the suite: programs at the ends of its sockets."""

import select
import socket
import threading

from virtiopy.conformance.targets.hosts import PATIENCE, Host
from virtiopy.devices.vsock import SocketType, Vsock
from virtiopy.devices.vsock.sockets import HostSocket, SocketsUser
from virtiopy.eventloop import EventLoop
from virtiopy.host.vsock import UnixSocket

#: The guest's context ID, and the ports at which programs of the suite's listen.
GUEST_CID = 42
PORTS = range(50, 60)

_KINDS = {SocketType.STREAM: socket.SOCK_STREAM, SocketType.SEQPACKET: socket.SOCK_SEQPACKET}


class Program:
    """A program of the host's: the suite's end of a socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.settimeout(PATIENCE)

    def say(self, data: bytes) -> None:
        """Send bytes, or a message, to the guest."""
        self._end.sendall(data)

    def heard(self, count: int, *, seconds: float = PATIENCE) -> bytes:
        """Return `count` bytes of what the guest sent, or as many as come in time."""
        data = b""
        while len(data) < count and select.select([self._end], [], [], seconds)[0]:
            more = self._end.recv(count - len(data))
            if not more:
                break
            data += more
        return data

    def message(self) -> bytes:
        """Return the next message that the guest sent; nothing where it has ended."""
        return self._end.recv(1 << 20)

    def shut_down(self) -> None:
        """Send no more."""
        self._end.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        """Close the socket."""
        self._end.close()


class SuiteSockets:
    """The programs (virtiopy.devices.vsock.sockets.HostSockets) that listen at PORTS."""

    def __init__(self) -> None:
        self.programs: list[Program] = []
        self.arrived = threading.Semaphore(0)
        self._loop: EventLoop
        self._user: SocketsUser
        self._is_open = False

    def open(self, loop: EventLoop, user: SocketsUser) -> None:
        """Let guests connect."""
        self._loop, self._user, self._is_open = loop, user, True

    def pair(self, kind: SocketType, name: str) -> HostSocket:
        """Return the device's end of a new program's socket."""
        theirs, ours = socket.socketpair(socket.AF_UNIX, _KINDS[kind])
        self.programs.append(Program(ours))
        return UnixSocket(theirs, self._loop, self._user.lock, kind, name)

    def connect(self, port: int, kind: SocketType) -> HostSocket | None:
        """Connect a guest to the program at a port."""
        if port not in PORTS or not self._is_open:
            return None
        found = self.pair(kind, f"conformance port {port}")
        self.arrived.release()
        return found

    def close(self) -> None:
        """Do nothing: the programs are the suite's."""


class VsockHost(Host):
    """The host's programs, and a hand on the guest's context ID."""

    def __init__(self) -> None:
        self.sockets = SuiteSockets()
        self._device: Vsock

    def attach(self, device: Vsock) -> None:
        """Say whose programs they are."""
        self._device = device

    def accept(self) -> Program:
        """Return the program that a guest has connected to."""
        if not self.sockets.arrived.acquire(timeout=PATIENCE):
            raise TimeoutError("no connection arrived at the host's side")
        return self.sockets.programs[-1]

    def call(self, port: int, kind: SocketType = SocketType.STREAM) -> Program:
        """Be a program that connects to a port of the guest's."""
        with self._device.lock:
            self._device.connect(port, kind, self.sockets.pair(kind, f"to the guest's port {port}"))
        return self.sockets.programs[-1]

    def change_cid(self, cid: int) -> None:
        """Give the guest another context ID, as after a migration."""
        self._device.change_cid(cid)

    def close(self) -> None:
        """Close the programs' sockets."""
        for program in self.sockets.programs:
            program.leave()
