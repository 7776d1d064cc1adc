"""The VM's side of a socket device that a backend serves."""

import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from virtiopy._native import ffi
from virtiopy.devices.base import Fact
from virtiopy.devices.vsock.events import EVENT_QUEUE, Events
from virtiopy.devices.vsock.features import VsockFeature
from virtiopy.errors import PeerError
from virtiopy.spec import DeviceId, feature_mask
from virtiopy.vhost.user.device import VhostUserDevice
from virtiopy.vhost.user.frontend import VhostUserFrontend, connect
from virtiopy.vhost.user.messages import ProtocolFeature
from virtiopy.virtqueue.queue import Virtqueue

#: rx, tx, and the event queue (5.10.2).
_QUEUES = 3


class VhostUserVsock(VhostUserDevice):
    """A socket device of a backend's (5.10), which works rx and tx, and knows the context ID.

    The event queue is worked here, as QEMU has it: the driver is told by it that all connections
    are over when another backend takes the place of one that has gone.
    """

    device_id = DeviceId.SOCKET
    feature_bits = VsockFeature
    config_size = ffi.sizeof("struct virtio_vsock_config")
    usable = feature_mask(VsockFeature)
    own_queues = frozenset({EVENT_QUEUE})

    def __init__(self, stream: socket.socket, reconnect: Callable[[], socket.socket]) -> None:
        self._events = Events(self)
        super().__init__(stream, reconnect)

    def _count_queues(self, said: int | None) -> int:
        return _QUEUES

    def _read_config(self, frontend: VhostUserFrontend) -> bytes:
        if not frontend.has(ProtocolFeature.CONFIG):
            raise PeerError("it has no context ID to tell (VHOST_USER_PROTOCOL_F_CONFIG)")
        return super()._read_config(frontend)

    def handle(self, queue: Virtqueue) -> None:
        """Serve the event queue; other kicks go to the backend. Raises QueueError."""
        if queue.index in self.own_queues:
            self._events.send()

    def taken_over(self) -> None:
        """Tell the driver that its connections are over: another backend knows none of them."""
        self._events.interrupted()

    def reset(self) -> None:
        """Forget what the driver was to be told."""
        super().reset()
        self._events.forget()

    def facts(self) -> Mapping[str, Fact]:
        """Tell the guest's context ID besides."""
        return {"guest_cid": int.from_bytes(self.config_space(), "little"), **super().facts()}


def open_vsock(path: Path) -> VhostUserVsock:
    """Make the socket device that is served at a socket; raises ConfigError."""
    backend = "virtiopy serve vsock cid=3,path=vm.sock --socket {socket}"
    return VhostUserVsock(connect(path, backend), lambda: connect(path, backend))
