"""What the tests of the balloon share."""

import errno
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from virtiopy.devices.balloon import (
    Balloon,
    BalloonFeature,
    BalloonQueue,
)
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.virtqueue.driver import Allocator, Piece, Used

PAGE = 4096
MIB = 1 << 20
MEMORY_SIZE = 16 * MIB
#: The driver's own part of memory; what is above goes into the balloon.
DRIVER_END = 8 * MIB
FIRST = DRIVER_END // PAGE
NUM_PAGES, ACTUAL, FREE_PAGE_HINT_CMD_ID, POISON_VAL = 0, 4, 8, 12
F_STATS = BalloonFeature.VIRTIO_BALLOON_F_STATS_VQ
F_POISON = BalloonFeature.VIRTIO_BALLOON_F_PAGE_POISON
F_REPORTING = BalloonFeature.VIRTIO_BALLOON_F_PAGE_REPORTING
inflateq, deflateq, statsq, _, reporting_vq = BalloonQueue


class WatchedMemory(GuestMemory):
    """Guest memory that records what is given back, and refuses it when told to."""

    discards: list[tuple[int, int]]
    refuses = False

    def discard(self, address: int, length: int) -> None:
        self.discards.append((address, length))
        if self.refuses:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        super().discard(address, length)


class Bench:
    """A balloon and its driver."""

    def __init__(
        self,
        memory: WatchedMemory,
        device: Balloon,
        loop: EventLoop | None = None,
    ) -> None:
        self.memory = memory
        self.device = device
        self.interrupted = threading.Event()
        self.transport = MmioTransport(
            device, memory, LevelInterrupt(self._set_interrupt), loop=loop, may_block=loop is None
        )
        self.driver = MmioDriver(self.transport, memory, Allocator(PAGE, DRIVER_END))

    def _set_interrupt(self, level: bool) -> None:
        if level:
            self.interrupted.set()

    def place(self, data: bytes) -> Piece:
        address = self.driver.allocator.take(max(1, len(data)))
        self.memory.write(address, data)
        return Piece(address, len(data))

    def send(self, queue: int, *pieces: bytes) -> list[Used]:
        """Offer a buffer of device-readable pieces, kick, and take what is used."""
        self.driver.queues[queue].add([self.place(piece) for piece in pieces])
        return self.driver.collect(queue)

    def inflate(self, *pfns: int) -> None:
        assert [used.length for used in self.send(inflateq, pfn_array(pfns))] == [0]

    def deflate(self, *pfns: int) -> None:
        assert [used.length for used in self.send(deflateq, pfn_array(pfns))] == [0]

    def report(self, *ranges: tuple[int, int]) -> None:
        """Report free memory: address and length of each piece."""
        self.driver.queues[reporting_vq].add([Piece(*piece, writable=True) for piece in ranges])
        assert [used.length for used in self.driver.collect(reporting_vq)] == [0]

    def fill(self, start: int = DRIVER_END, end: int = MEMORY_SIZE) -> None:
        """Give pages content, and so memory of the host's."""
        self.memory.write(start, b"\xab" * (end - start))

    def is_zero(self, pfn: int) -> bool:
        content = self.memory.read(pfn * PAGE, PAGE)
        assert content in {bytes(PAGE), b"\xab" * PAGE}
        return content == bytes(PAGE)

    def works(self) -> bool:
        """Say whether a good page goes into the balloon and back."""
        pfn = MEMORY_SIZE // PAGE - 1
        self.memory.write(pfn * PAGE, b"\xab" * PAGE)
        before = self.device.ballooned
        self.inflate(pfn)
        inflated = self.device.ballooned
        self.deflate(pfn)
        return (
            self.is_zero(pfn)
            and (inflated, self.device.ballooned) == (before + PAGE, before)
            and not self.driver.status & DeviceStatus.DEVICE_NEEDS_RESET
        )


def pfn_array(pfns: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(pfns)}I", *pfns)


def statistics_array(*entries: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<HQ", *entry) for entry in entries)


@contextmanager
def watched_memory(size: int = MEMORY_SIZE, **options: object) -> Iterator[WatchedMemory]:
    with WatchedMemory.allocate(size, **options) as memory:  # type: ignore[arg-type]
        assert isinstance(memory, WatchedMemory)
        memory.discards = []
        # What the driver works with has the host's memory from the start.
        memory.write(0, b"\xab" * DRIVER_END)
        yield memory
