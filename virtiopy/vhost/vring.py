"""A virtqueue as vhost is told of it, by the kernel's ioctls as by vhost-user's messages."""

from dataclasses import dataclass

from virtiopy.memory import GuestMemory
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.layout import RingFormat
from virtiopy.virtqueue.queue import QueueAreas, QueueError, QueueState


@dataclass(slots=True, frozen=True)
class Vring:
    """A virtqueue of `size` entries that goes on at `state`.

    The eventfds stay the caller's: vhost reads `kick`, and writes `call` for a used buffer
    notification and `error` when it finds the ring broken.
    """

    size: int
    areas: QueueAreas
    state: QueueState
    kick: int
    call: int | None
    error: int | None = None


def host_areas(memory: GuestMemory, size: int, areas: QueueAreas) -> QueueAreas:
    """Return the addresses of a queue's areas in this process: vhost takes no others.

    Raises QueueError when an area is not contiguous guest memory, and AddressError when it is no
    guest memory at all: the driver's fault both.
    """
    expected = layout.areas(RingFormat.SPLIT, size)
    return QueueAreas(
        _pointer(memory, areas.descriptor, expected.descriptor.size),
        _pointer(memory, areas.driver, expected.driver.size),
        _pointer(memory, areas.device, expected.device.size),
    )


def _pointer(memory: GuestMemory, address: int, length: int) -> int:
    pointer = memory.pointer(address, length)
    if pointer is None:
        raise QueueError(f"{length} bytes at {address:#x} are not contiguous memory (2.7)")
    return pointer
