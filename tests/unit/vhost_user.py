"""A backend on a loop of its own, and a driver that reaches it as a VMM does."""

import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.patience import PATIENCE
from virtiopy.closing import Closing
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import Feature, feature_mask
from virtiopy.vhost.user.frontend import InflightFile, VhostUserFrontend, connect
from virtiopy.vhost.user.messages import (
    LogArea,
    Message,
    ProtocolFeature,
    Request,
    RingAddresses,
)
from virtiopy.vhost.user.rings import Lease
from virtiopy.vhost.user.server import Server, listen
from virtiopy.vhost.vring import Vring
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece, Used
from virtiopy.virtqueue.queue import QueueState
from virtiopy.worker.native import open_native

FEATURES = feature_mask(
    [Feature.VIRTIO_F_VERSION_1, Feature.VIRTIO_F_INDIRECT_DESC, Feature.VIRTIO_F_EVENT_IDX]
)


class Served(Closing):
    """A device, served at `path` until it is closed.

    Threads in C work its rings where `native` says so and they can: the tests of conftest.NATIVE
    are run both ways.
    """

    native = False

    def __init__(self, device: VirtioDevice, path: Path, lease: Lease | None = None) -> None:
        self.path = path
        self.device = device
        self.loop = EventLoop("backend")
        self.server = Server(device, self.loop, listen(path), lease=lease)
        if self.native:
            with contextlib.suppress(ConfigError):
                device.delegate(open_native)
        self.loop.start()

    def close(self) -> None:
        self.loop.call(self.server.close, "close the server")
        self.loop.stop()
        self.loop.close()
        self.device.close()
        if self.loop.failure is not None:
            raise self.loop.failure

    def connect(self) -> socket.socket:
        stream = connect(self.path)
        stream.settimeout(PATIENCE)
        return stream


class Queue:
    """A virtqueue of the driver's, with its eventfds."""

    def __init__(self, memory: GuestMemory, size: int, allocator: Allocator) -> None:
        self.driver = DriverQueue(memory, size, allocator, event_idx=True)
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.error = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def close(self) -> None:
        for fd in (self.kick, self.call, self.error):
            os.close(fd)

    def ring(self, state: QueueState | None = None) -> Vring:
        driver = self.driver
        return Vring(
            driver.size, driver.areas, state or QueueState(), self.kick, self.call, self.error
        )

    def notify(self) -> None:
        os.eventfd_write(self.kick, 1)

    def wait(self, count: int = 1) -> list[Used]:
        """Return used buffers when there are `count`: an interrupt has come for the last."""
        used: list[Used] = []
        while len(used) < count:
            used += self.driver.take_all_used()
            if len(used) < count and not self.driver.enable_interrupts():
                readable(self.call)
                os.eventfd_read(self.call)
        return used


def readable(fd: int, seconds: float = PATIENCE) -> None:
    """Wait until a file is readable."""
    assert select.select([fd], [], [], seconds)[0], "nothing came"


class Driver(Closing):
    """A driver of a device that is served: `queue_count` queues of `queue_size` entries."""

    def __init__(
        self,
        stream: socket.socket,
        *,
        queue_count: int = 1,
        queue_size: int = 16,
        features: int = FEATURES,
        memory: GuestMemory | None = None,
    ) -> None:
        self.memory = memory or GuestMemory.allocate(4 << 20)
        self.allocator = Allocator(0x1000, 4 << 20)
        self.queues = [Queue(self.memory, queue_size, self.allocator) for _ in range(queue_count)]
        self.wanted = features
        self.inflight: InflightFile | None = None
        self.frontend = VhostUserFrontend(stream)

    def close(self) -> None:
        self.frontend.close()
        for queue in self.queues:
            queue.close()
        if self.inflight is not None:
            os.close(self.inflight.fd)
        self.memory.close()

    def start(self, bases: list[int] | None = None, *, enable_first: bool = False) -> None:
        """Do what a VMM does at DRIVER_OK; with `enable_first` no ring is ever disabled."""
        frontend = self.frontend
        frontend.set_features(self.wanted)
        frontend.set_memory(self.memory)
        if enable_first:
            for index in range(len(self.queues)):
                frontend.enable_ring(index)
        for index, queue in enumerate(self.queues):
            base = bases[index] if bases else 0
            frontend.start_ring(index, queue.ring(QueueState(base)), self.memory)

    def track_inflight(self) -> None:
        size = self.queues[0].driver.size
        self.inflight = self.frontend.get_inflight(len(self.queues), size)
        assert self.inflight is not None

    def reconnect(
        self,
        stream: socket.socket,
        bases: list[int] | None = None,
        *,
        enable_first: bool = False,
    ) -> None:
        """Go on with another backend: QEMU's way, with the used ring's index for a base.

        Unless there are other `bases`.
        """
        self.frontend.close()
        self.frontend = VhostUserFrontend(stream)
        if self.inflight is not None:
            self.frontend.set_inflight(self.inflight)
        used = [queue.driver.used.idx for queue in self.queues]
        self.start(bases or used, enable_first=enable_first)

    def piece(self, data: bytes | int) -> Piece:
        """Put bytes into memory for the device to read; a number makes room for so many."""
        if isinstance(data, int):
            return Piece(self.allocator.take(data, 16), data, writable=True)
        address = self.allocator.take(len(data), 16)
        self.memory.write(address, data)
        return Piece(address, len(data))


@contextlib.contextmanager
def log_writes(driver: Driver, index: int, used_log: int) -> Iterator[Callable[[], set[int]]]:
    """Have a driver started whose backend logs what it writes; yields what gives the dirty pages.

    `used_log` is the address by which writes to the used ring of queue `index` are logged.
    """
    log = os.memfd_create("log")
    os.ftruncate(log, 4096)
    frontend = driver.frontend
    frontend._protocol_features |= 1 << ProtocolFeature.LOG_SHMFD
    frontend._tell(Request.SET_PROTOCOL_FEATURES, frontend._protocol_features.to_bytes(8, "little"))
    frontend.connection.send(Message(Request.SET_LOG_BASE, LogArea(4096, 0).encode(), fds=[log]))
    frontend._answer(Request.SET_LOG_BASE)
    driver.start()
    addresses = driver.queues[index].driver.areas
    region = driver.memory.regions[0]
    logged = RingAddresses(
        index,
        1,
        region.host_address + addresses.descriptor,
        region.host_address + addresses.device,
        region.host_address + addresses.driver,
        used_log,
    )
    frontend._tell(Request.SET_VRING_ADDR, logged.encode())

    def dirty() -> set[int]:
        bits = os.pread(log, 4096, 0)
        return {page for page in range(4096 * 8) if bits[page // 8] >> page % 8 & 1}

    yield dirty
    os.close(log)
