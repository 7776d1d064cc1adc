"""The VM's side of a file system device that virtiofsd serves."""

import enum
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.devices.base import Fact
from virtiopy.errors import ConfigError, PeerError
from virtiopy.spec import DeviceId
from virtiopy.vhost.user.device import VhostUserDevice
from virtiopy.vhost.user.frontend import VhostUserFrontend, connect
from virtiopy.virtqueue.queue import Virtqueue

#: The longest tag, bytes (5.11.4): a shorter one has zeroes after it.
TAG_MAX = ffi.sizeof("struct virtio_fs_config") - ffi.sizeof("uint32_t")

#: hiprio and one request queue (5.11.2): QEMU's virtiofsd works no more.
_QUEUES = 2


class FsFeature(enum.IntEnum):
    """Feature bits (5.11.3)."""

    VIRTIO_FS_F_NOTIFICATION = 0


class VhostUserFs(VhostUserDevice):
    """A file system device of a backend's (5.11); drivers know it by its `tag`.

    Its configuration space is the frontend's, as QEMU has it. There is no shared memory region: a
    driver has no DAX window. With `renews` each driver has a session of its own, which `reconnect`
    begins: virtiofsd takes a FUSE_INIT after another for a fault, and a driver that was reset has
    sent no FUSE_DESTROY.
    """

    device_id = DeviceId.FILE_SYSTEM
    feature_bits = FsFeature
    config_size = ffi.sizeof("struct virtio_fs_config")
    #: Notifications have a queue of their own, which no backend here works.
    usable: ClassVar[int] = 0

    def __init__(
        self,
        stream: socket.socket,
        reconnect: Callable[[], socket.socket],
        *,
        tag: str,
        renews: bool = False,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        if not 0 < len(tag.encode()) <= TAG_MAX:
            raise ValueError(f"a tag has 1 to {TAG_MAX} bytes")
        self.tag = tag
        self._renews = renews
        self._had_driver = False
        super().__init__(stream, reconnect, release=release)

    def _count_queues(self, said: int | None) -> int:
        return _QUEUES

    def _read_config(self, frontend: VhostUserFrontend) -> bytes:
        config = ffi.new("struct virtio_fs_config *")
        ffi.memmove(config.tag, self.tag.encode(), len(self.tag.encode()))
        config.num_request_queues = _QUEUES - 1
        return bytes(ffi.buffer(config))

    def negotiated(self, driver_features: int) -> None:
        """Begin a session for another driver, and pass the outcome on."""
        if self._had_driver and self._renews:
            self._renew()
        super().negotiated(driver_features)

    def _renew(self) -> None:
        self._had_driver = False
        self._drop_frontend()
        try:
            self._take(VhostUserFrontend(self._reconnect()))
        except (ConfigError, PeerError) as error:
            self._gone(str(error))
        else:
            self._watch_frontend()

    def activate(self, queues: Mapping[int, Virtqueue]) -> None:
        """Delegate the rings."""
        self._had_driver = True
        super().activate(queues)

    def facts(self) -> Mapping[str, Fact]:
        """Tell the tag besides."""
        return {"tag": self.tag, **super().facts()}


def open_fs(path: Path, tag: str) -> VhostUserFs:
    """Make the file system device that is served at a socket; raises ConfigError."""
    backend = "/usr/lib/qemu/virtiofsd -f --socket-path={socket} -o source=PATH"
    return VhostUserFs(connect(path, backend), lambda: connect(path, backend), tag=tag)
