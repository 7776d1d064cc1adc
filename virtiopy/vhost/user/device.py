"""A device of the VM's that another process is: its rings are worked at the end of a socket.

When the backend goes away, killed or stopped, the driver's buffers stay where they are. The socket
is tried again until a backend is there, and that one goes on where the other was: with the
requests that were in flight, where the backend tracks them (INFLIGHT_SHMFD), else from the used
ring's index on.
"""

import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from virtiopy import eventfds
from virtiopy._native import ffi
from virtiopy.devices.base import GONE_FOR, DeviceHost, Fact, VirtioDevice
from virtiopy.devices.blk import BlkFeature
from virtiopy.devices.delegation import Notifiers
from virtiopy.devices.net.features import NetFeature
from virtiopy.errors import ConfigError, PeerError
from virtiopy.eventloop import READABLE, EventLoop, Timer, Watch
from virtiopy.spec import DeviceId, DeviceStatus, Feature, feature_mask, has_feature
from virtiopy.vhost.user.frontend import InflightFile, VhostUserFrontend, connect
from virtiopy.vhost.user.messages import Message, ProtocolFeature
from virtiopy.vhost.vring import Vring
from virtiopy.virtqueue.queue import RING_FEATURES, Virtqueue

log = logging.getLogger(__name__)

#: Seconds between two tries to reach a backend that has gone.
RECONNECT_PAUSE = 0.1

#: What QEMU's vhost-user devices have, and the number that backends count on.
QUEUE_SIZE = 128

#: The most virtqueues that are made use of.
QUEUES_MAX = 64

#: What the device status is before features are negotiated (3.1.1).
_STARTED = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER


class VhostUserDevice(VirtioDevice):
    """The device at the other end of `stream`, a connection to a backend; the socket is closed.

    `reconnect` makes another connection, and raises ConfigError where no backend is; `release`
    is called when the device is closed. Raises ConfigError for a backend that is of no use here.
    """

    #: The device type's feature bits that can be carried: those whose requests go by the rings that
    #: there are, and whose fields are in `config_size`. A bit that is not here is not offered.
    usable: ClassVar[int]

    #: Bytes of the configuration space.
    config_size: int

    #: The queues that the device itself works: their rings are not the backend's.
    own_queues: ClassVar[frozenset[int]] = frozenset()

    def __init__(
        self,
        stream: socket.socket,
        reconnect: Callable[[], socket.socket],
        *,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._reconnect = reconnect
        self._release = release
        #: How often another backend took over.
        self.reconnects = 0
        self._frontend: VhostUserFrontend | None = None
        self._on_message: Callable[[Message, bool], None] | None = None
        #: When the last backend left (time.monotonic), if none is there.
        self._left_at: float | None = None
        self._inflight: InflightFile | None = None
        self._delegated: dict[int, Notifiers] = {}
        self._watches: list[Watch] = []
        self._retry: Timer | None = None
        #: A connection on which no backend has answered yet.
        self._trying: socket.socket | None = None
        self._closed = False
        try:
            frontend = VhostUserFrontend(stream)
            self._take(frontend)
            self._backend_features = _checked(frontend.features)
            self.features = frontend.features & self.usable
            self.queue_sizes = [QUEUE_SIZE] * self._count_queues(frontend.queue_count())
        except PeerError as error:
            self._drop_frontend()
            raise ConfigError(
                f"The vhost-user backend cannot be used: {error}: see what it says."
            ) from error
        except ConfigError:
            self._drop_frontend()
            raise
        self._errors = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in self.queue_sizes]

    def _count_queues(self, said: int | None) -> int:
        """Return how many virtqueues there are, by what the backend said."""
        return min(said or 1, QUEUES_MAX)

    def _take(self, frontend: VhostUserFrontend) -> None:
        """Have this session from now on; raises PeerError."""
        self._frontend = frontend
        frontend.connection.on_message = self._on_message
        self._config = self._read_config(frontend)

    def watch_messages(self, on_message: Callable[[Message, bool], None]) -> None:
        """Have each message to this backend and the next told: see Connection.on_message."""
        self._on_message = on_message
        if self._frontend is not None:
            self._frontend.connection.on_message = on_message

    def _read_config(self, frontend: VhostUserFrontend) -> bytes:
        if not frontend.has(ProtocolFeature.CONFIG):
            return bytes(self.config_size)
        return frontend.get_config(self.config_size)

    # What the transport asks

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        """Follow what the backend does by itself; raises ConfigError in trapped mode."""
        if may_block or loop is None:
            raise ConfigError(
                "A vhost-user backend cannot take kicks that are exits: leave out mode=trapped."
            )
        super().attach(host, loop, may_block=may_block)
        for index, eventfd in enumerate(self._errors):
            loop.watch(eventfd, READABLE, self._error_reader(index, eventfd), f"ring {index} error")
        self._watch_frontend()

    def offered(self, features: int) -> int:
        """Leave out what the backend's rings have not."""
        return features & ~(RING_FEATURES & ~self._backend_features)

    def config_space(self) -> bytes:
        """Return what the backend said last."""
        return self._config

    def write_config(self, offset: int, data: bytes) -> bool:
        """Pass a write on."""
        taken = False

        def write(frontend: VhostUserFrontend) -> None:
            nonlocal taken
            if frontend.has(ProtocolFeature.CONFIG):
                taken = frontend.set_config(offset, data)
                self._config = self._read_config(frontend)

        self._do(write)
        return taken

    def _for_backend(self, driver_features: int) -> int:
        """Leave out what the driver has of its VMM and not of the backend.

        That is VIRTIO_F_RING_RESET, which the transport does by stopping a ring, and a MAC address.
        """
        return driver_features & self._backend_features

    def negotiated(self, driver_features: int) -> None:
        """Pass the outcome on: fields of the configuration space may depend on it."""
        super().negotiated(driver_features)

        def tell(frontend: VhostUserFrontend) -> None:
            frontend.set_features(self._for_backend(driver_features))
            self._config = self._read_config(frontend)

        self._do(tell)

    def activate(self, queues: Mapping[int, Virtqueue]) -> None:
        """Delegate the rings, or as soon as there is a backend."""
        super().activate(queues)
        self._do(self._begin)

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Delegate one more ring."""
        super().start_queue(index, queue)
        if index not in self.own_queues:
            self._do(lambda frontend: self._start_ring(frontend, index))

    def stop_queue(self, index: int) -> None:
        """Reclaim a ring, which the driver has reset."""
        if index in self._delegated:
            self._do(lambda frontend: self._stop_ring(frontend, index))
            self._reclaim_notifiers(index)
        super().stop_queue(index)

    def halt(self) -> None:
        """Reclaim all rings, until a reset."""
        super().halt()
        for index in list(self._delegated):
            self._do(lambda frontend, index=index: self._stop_ring(frontend, index))  # type: ignore[misc]
            self._reclaim_notifiers(index)

    def reset(self) -> None:
        """Reclaim all rings, and have the backend reset the device."""
        was_used = bool(self._delegated or self.driver_features)
        self.halt()
        super().reset()
        if was_used:
            self._do(lambda frontend: frontend.reset_device())
        self._drop_inflight()

    def close(self) -> None:
        """Leave the backend."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        trying = self._trying
        if trying is not None:
            # A worker that waits for an answer there waits no more.
            with contextlib.suppress(OSError):
                trying.shutdown(socket.SHUT_RDWR)
        self._drop_frontend()
        self._drop_inflight()
        for eventfd in self._errors:
            os.close(eventfd)
        self._release()

    def facts(self) -> Mapping[str, Fact]:
        """Tell whether there is a backend, else since when, in seconds, and how many there were."""
        if self._left_at is None:
            return {"backend": "connected", "reconnects": self.reconnects}
        gone_for = round(time.monotonic() - self._left_at, 1)
        return {"backend": "gone", GONE_FOR: gone_for, "reconnects": self.reconnects}

    def handle(self, queue: Virtqueue) -> None:
        """Serve nothing: kicks go to the backend."""

    def taken_over(self) -> None:
        """See to what the driver had of the backend before, which another one has not."""

    # The session

    def _do(self, request: Callable[[VhostUserFrontend], None]) -> None:
        """Ask the backend for something; one that fails is given up, and another looked for."""
        if self._frontend is None:
            return
        try:
            request(self._frontend)
        except PeerError as error:
            self._gone(str(error))

    def _begin(self, frontend: VhostUserFrontend) -> None:
        """Set a session up for the driver that there is, from the start or in the middle."""
        frontend.set_status(_STARTED)
        frontend.set_features(self._for_backend(self.driver_features))
        frontend.set_status(_STARTED | DeviceStatus.FEATURES_OK)
        frontend.set_memory(self.host.memory)
        if self._inflight is not None:
            frontend.set_inflight(self._inflight)
        elif self.queues:
            rings = len(self.queue_sizes) - len(self.own_queues)
            self._inflight = frontend.get_inflight(rings, QUEUE_SIZE)
        for index, queue in self.queues.items():
            if index not in self.own_queues:
                queue.recover()
                self._start_ring(frontend, index)
        # Backends as DPDK's work no ring before.
        frontend.set_status(_STARTED | DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK)

    def _start_ring(self, frontend: VhostUserFrontend, index: int) -> None:
        notifiers = self._delegated.get(index)
        if notifiers is None:
            notifiers = self.host.notifiers(index)
            assert notifiers is not None, "in trapped mode attach() has refused"
            notifiers.delegate()
            self._delegated[index] = notifiers
        queue = self.queues[index]
        frontend.start_ring(
            index,
            Vring(
                queue.size,
                queue.areas,
                queue.state,
                notifiers.kick,
                notifiers.call,
                self._errors[index],
            ),
            self.host.memory,
        )

    @staticmethod
    def _stop_ring(frontend: VhostUserFrontend, index: int) -> None:
        frontend.stop_ring(index)

    def _reclaim_notifiers(self, index: int) -> None:
        notifiers = self._delegated.pop(index, None)
        if notifiers is not None:
            notifiers.reclaim()

    def _drop_inflight(self) -> None:
        if self._inflight is not None:
            os.close(self._inflight.fd)
            self._inflight = None

    # The backend goes and comes

    def _watch_frontend(self) -> None:
        frontend, loop = self._frontend, self.loop
        if frontend is None or loop is None:
            return
        events = select.EPOLLIN | select.EPOLLRDHUP
        watched = frontend.connection.socket
        self._watches = [loop.watch(watched.fileno(), events, self._look, "vhost-user backend")]
        if frontend.channel is not None:
            # Half a message there is not waited for.
            frontend.channel.socket.setblocking(False)
            channel = frontend.channel.socket.fileno()
            self._watches.append(
                loop.watch(channel, READABLE, self._listen, "vhost-user backend's channel")
            )

    def _look(self, events: int) -> None:
        """See whether the backend has gone: it says nothing that it was not asked for."""
        with self.lock:
            if self._frontend is None:
                return
            watched = self._frontend.connection.socket
            poll = select.poll()
            poll.register(watched, select.POLLIN)
            if not poll.poll(0):
                # It was an answer, which was taken meanwhile.
                return
            try:
                peeked = watched.recv(1, socket.MSG_PEEK)
            except OSError as error:
                self._gone(error.strerror or str(error))
                return
            self._gone("it said what it was not asked for" if peeked else "it left")

    def _listen(self, events: int) -> None:
        with self.lock:
            frontend = self._frontend
            if frontend is None:
                return
            try:
                if frontend.config_has_changed():
                    self._config = self._read_config(frontend)
                    self.host.config_changed()
            except PeerError as error:
                self._gone(str(error))

    def _gone(self, reason: str) -> None:
        """Give the backend up, and look for another; from any thread."""
        log.warning("the vhost-user backend is gone: %s", reason)
        if self._left_at is None:
            self._left_at = time.monotonic()
        self._drop_frontend()
        if self.loop is not None and not self._closed:
            self.loop.call_soon(self._retry_later, "vhost-user reconnect")

    def _drop_frontend(self) -> None:
        if self.loop is not None:
            for watch in self._watches:
                self.loop.unwatch(watch)
        self._watches = []
        if self._frontend is not None:
            self._frontend.close()
            self._frontend = None

    def _retry_later(self) -> None:
        if self.loop is not None and not self._closed:
            self._retry = self.loop.call_later(
                RECONNECT_PAUSE, self._try_again, "vhost-user reconnect"
            )

    def _try_again(self) -> None:
        """Look for another backend, on a worker: one that says nothing is waited for."""
        if self._frontend is not None or self._closed or self.loop is None:
            return
        found: list[VhostUserFrontend] = []

        def look() -> None:
            try:
                self._trying = self._reconnect()
                frontend = VhostUserFrontend(self._trying)
            except (ConfigError, PeerError, OSError) as error:
                # The last for what this process lacks: it may have too many files open just now.
                log.debug("no vhost-user backend yet: %s", error)
                return
            if self._closed:
                frontend.close()
            else:
                found.append(frontend)

        def done() -> None:
            with self.lock:
                self._trying = None
                if self._closed:
                    for frontend in found:
                        frontend.close()
                elif not found or not self._accept(found[0]):
                    self._retry_later()

        self.loop.run_blocking(look, done, "vhost-user reconnect")

    def _accept(self, frontend: VhostUserFrontend) -> bool:
        """Go on with another backend; False for one that cannot be taken."""
        missing = self._backend_features & ~frontend.features
        if missing:
            log.warning("a vhost-user backend without features %#x is left", missing)
            frontend.close()
            return False
        self.reconnects += 1
        log.info("a vhost-user backend is there again")
        self._do_first(frontend)
        return True

    def _do_first(self, frontend: VhostUserFrontend) -> None:
        before = self._config
        try:
            self._take(frontend)
            if self.queues and not self.halted:
                self._begin(frontend)
        except PeerError as error:
            self._gone(str(error))
            return
        self._left_at = None
        self._watch_frontend()
        self.taken_over()
        if self._config != before:
            self.host.config_changed()
        # A kick may have been taken by the one that has gone.
        for notifiers in self._delegated.values():
            eventfds.signal(notifiers.kick)

    def _error_reader(self, index: int, eventfd: int) -> Callable[[int], None]:
        def on_error(events: int) -> None:
            with self.lock:
                # The backend has it too, and may have read it again.
                eventfds.take(eventfd)
                if index in self._delegated:
                    self.host.needs_reset(f"the vhost-user backend finds ring {index} broken")

        return on_error


def _checked(features: int) -> int:
    if not has_feature(features, Feature.VIRTIO_F_VERSION_1):
        raise ConfigError(
            "The vhost-user backend has no VIRTIO_F_VERSION_1: use one of virtio 1.0 or later."
        )
    return features


class VhostUserBlk(VhostUserDevice):
    """A block device of a backend's (5.2)."""

    device_id = DeviceId.BLOCK
    #: Up to the fields for secure erase: backends refuse to read beyond what they know.
    config_size = ffi.offsetof("struct virtio_blk_config", "write_zeroes_may_unmap") + 4
    #: All but SECURE_ERASE and ZONED, whose fields come later.
    usable = feature_mask(
        [
            BlkFeature.VIRTIO_BLK_F_SIZE_MAX,
            BlkFeature.VIRTIO_BLK_F_SEG_MAX,
            BlkFeature.VIRTIO_BLK_F_GEOMETRY,
            BlkFeature.VIRTIO_BLK_F_RO,
            BlkFeature.VIRTIO_BLK_F_BLK_SIZE,
            BlkFeature.VIRTIO_BLK_F_FLUSH,
            BlkFeature.VIRTIO_BLK_F_TOPOLOGY,
            BlkFeature.VIRTIO_BLK_F_CONFIG_WCE,
            BlkFeature.VIRTIO_BLK_F_MQ,
            BlkFeature.VIRTIO_BLK_F_DISCARD,
            BlkFeature.VIRTIO_BLK_F_WRITE_ZEROES,
            BlkFeature.VIRTIO_BLK_F_LIFETIME,
        ]
    )


#: GUEST_UFO, HOST_UFO, GUEST_USO4, GUEST_USO6, HOST_USO and GUEST_HDRLEN (5.1.3), which no device
#: of virtiopy's own offers.
_FURTHER_OFFLOADS = (10, 14, 54, 55, 56, 59)

#: Bytes of a MAC address.
MAC_SIZE = 6


class VhostUserNet(VhostUserDevice):
    """A network device of a backend's (5.1), with one pair of virtqueues and no controlq.

    What a driver commands by controlq is between it and its VMM for most backends: none of it is
    offered. Without a configuration space of the backend's the driver finds `mac`.
    """

    device_id = DeviceId.NETWORK
    config_size = ffi.offsetof("struct virtio_net_config", "max_virtqueue_pairs")

    #: Offloads and mergeable buffers, which go with each frame, and `mac`. What takes a controlq
    #: (RSS, hash reports, coalescing, offloads at run time) cannot be commanded; MTU, SPEED_DUPLEX
    #: and STATUS are in the VMM's hand.
    usable = feature_mask(
        [
            NetFeature.VIRTIO_NET_F_CSUM,
            NetFeature.VIRTIO_NET_F_GUEST_CSUM,
            NetFeature.VIRTIO_NET_F_MAC,
            NetFeature.VIRTIO_NET_F_GUEST_TSO4,
            NetFeature.VIRTIO_NET_F_GUEST_TSO6,
            NetFeature.VIRTIO_NET_F_GUEST_ECN,
            NetFeature.VIRTIO_NET_F_HOST_TSO4,
            NetFeature.VIRTIO_NET_F_HOST_TSO6,
            NetFeature.VIRTIO_NET_F_HOST_ECN,
            NetFeature.VIRTIO_NET_F_MRG_RXBUF,
            *_FURTHER_OFFLOADS,
        ]
    )

    def __init__(
        self, stream: socket.socket, reconnect: Callable[[], socket.socket], *, mac: bytes | None
    ) -> None:
        self._mac = mac
        super().__init__(stream, reconnect)
        mac_bit = feature_mask([NetFeature.VIRTIO_NET_F_MAC])
        if mac is not None:
            self.features |= mac_bit
        elif not any(self._config[:MAC_SIZE]):
            # The backend has no configuration space to say its address in.
            self.features &= ~mac_bit

    def _count_queues(self, said: int | None) -> int:
        return 2

    def _read_config(self, frontend: VhostUserFrontend) -> bytes:
        config = super()._read_config(frontend)
        return config if self._mac is None else self._mac + config[len(self._mac) :]


def open_blk(path: Path) -> VhostUserBlk:
    """Make the block device that is served at a socket; raises ConfigError."""
    return VhostUserBlk(connect(path), lambda: connect(path))


def open_net(path: Path, mac: bytes | None) -> VhostUserNet:
    """Make the network device that is served at a socket; raises ConfigError."""
    backend = "virtiopy serve net tap=tap0,create=on --socket {socket}"
    return VhostUserNet(connect(path, backend), lambda: connect(path, backend), mac=mac)
