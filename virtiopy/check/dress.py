"""How a variant or a hostile device is put over a device of virtiopy's own."""

from virtiopy.devices.base import VirtioDevice
from virtiopy.memory import GuestMemory
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.transport.placement import Transport
from virtiopy.virtqueue.formats import OpenQueue
from virtiopy.virtqueue.queue import Virtqueue


class Dressing:
    """What is changed of one device; each method changes nothing unless it is overridden."""

    lifecycle: Lifecycle

    @property
    def has_acted(self) -> bool:
        """Whether the driver came to what is unusual, and so was put to the test."""
        return True

    def device(self, device: VirtioDevice) -> None:
        """Change the device before a transport has it."""

    def plugged(self) -> None:
        """Do something to the device before its driver does."""

    def queue(self, queue: Virtqueue) -> Virtqueue:
        """Return what the device works in place of a queue."""
        return queue

    def read(self, offset: int, data: bytes) -> bytes:
        """Return what the driver reads in place of `data`, at `offset` of the registers."""
        return data

    def write(self, offset: int, data: bytes) -> bool:
        """Say whether what the driver writes at `offset` of the registers has its effect."""
        return True

    def dress(self, transport: Transport) -> Transport:
        """Put the changes before a transport; returns what is to stand on the bus."""
        self.lifecycle = lifecycle = transport.lifecycle
        lifecycle.open_queue = _opening(lifecycle.open_queue, self)
        self.plugged()
        return DressedTransport(transport, self)


def _opening(open_queue: OpenQueue, dressing: Dressing) -> OpenQueue:
    def opened(memory: GuestMemory, *arguments: object, **keywords: object) -> Virtqueue:
        return dressing.queue(open_queue(memory, *arguments, **keywords))  # type: ignore[arg-type]

    return opened


class DressedTransport:
    """A transport whose registers read as a Dressing says."""

    def __init__(self, transport: Transport, dressing: Dressing) -> None:
        self.lifecycle = transport.lifecycle
        self._transport = transport
        self._dressing = dressing

    def register_name(self, offset: int) -> str:
        """Name the register at `offset`."""
        return self._transport.register_name(offset)

    def read(self, offset: int, size: int) -> bytes:
        """Return what the driver reads."""
        return self._dressing.read(offset, self._transport.read(offset, size))

    def write(self, offset: int, data: bytes) -> None:
        """Take what the driver writes."""
        if self._dressing.write(offset, data):
            self._transport.write(offset, data)


def used_index(queue: Virtqueue, lifecycle: Lifecycle) -> int:
    """Return idx of a queue's used ring, as the driver sees it."""
    return int.from_bytes(lifecycle.memory.read(queue.areas.device + 2, 2), "little")
