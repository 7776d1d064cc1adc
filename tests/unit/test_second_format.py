"""A throw-away second ring format, and a device that works over it and knows nothing of it.

The format is split with its descriptor table upside down. What it takes to have another format is
between the two lines below: a device side and a driver side, and nothing in devices/.
"""

import inspect
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar

import pytest

from tests.unit.blk.bench import SECTOR, FakeDisk, header, pattern
from virtiopy.devices.blk import Blk, RequestType
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece, Used
from virtiopy.virtqueue.formats import OpenQueue
from virtiopy.virtqueue.queue import (
    BATCH,
    Chain,
    Completion,
    QueueAreas,
    QueueObserver,
    QueueState,
)
from virtiopy.virtqueue.split import SplitChain

# ---------------------------------------------------------------------------------- the format


class UpsideDownQueue:
    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        areas: QueueAreas,
        *,
        features: int,
        index: int = 0,
        state: QueueState | None = None,
        longest_chain: int = 0,
        observers: Sequence[QueueObserver] = (),
    ) -> None:
        self.memory, self.size, self.areas, self.index = memory, size, areas, index
        self.rejected: Counter[str] = Counter()
        self.in_flight = self._used = self._signalled = 0
        self.state = state or QueueState()

    def _u16(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 2), "little")

    def pop(self) -> Chain | None:
        return next(iter(self.pop_many(1)), None)

    def pop_many(self, limit: int | None = None) -> list[Chain]:
        position = self.state.vring_base
        pending = (self._u16(self.areas.driver + 2) - position) % 65536
        count = min(pending, BATCH if limit is None else limit)
        chains = [self._walk((position + ahead) % 65536) for ahead in range(count)]
        self.state = QueueState((position + count) % 65536)
        self.in_flight += count
        return chains

    def _walk(self, position: int) -> Chain:
        head = following = self._u16(self.areas.driver + 4 + 2 * (position % self.size))
        sides: tuple[list[memoryview], list[memoryview]] = [], []
        flags = 1
        while flags & 1:
            entry = self.areas.descriptor + 16 * (self.size - 1 - following)
            address, length, flags, following = struct.unpack("<QIHH", self.memory.read(entry, 16))
            sides[flags >> 1 & 1].extend(self.memory.views(address, length))
        return SplitChain(head, *sides)

    def push(self, chain: Chain, written: int) -> None:
        self.push_many([(chain, written)])

    def push_many(self, completions: Iterable[Completion]) -> None:
        for chain, written in completions:
            entry = self.areas.device + 4 + 8 * (self._used % self.size)
            self.memory.write(entry, struct.pack("<II", chain.token, written))
            self._used = (self._used + 1) % 65536
            self.in_flight -= 1
        self.memory.write(self.areas.device + 2, struct.pack("<H", self._used))

    def should_interrupt(self) -> bool:
        before, self._signalled = self._signalled, self._used
        return before != self._used

    def disable_kicks(self) -> None: ...

    def enable_kicks(self) -> bool:
        return self._u16(self.areas.driver + 2) != self.state.vring_base

    def resume(self, state: QueueState) -> None:
        self.state = state

    def recover(self, unfinished: Sequence[int] = ()) -> None:
        self.state = QueueState(self._used)

    @property
    def can_unpop(self) -> int:
        return self.in_flight

    def unpop(self, count: int) -> None:
        self.state = QueueState((self.state.vring_base - count) % 65536)
        self.in_flight -= count

    def unpop_all(self) -> None:
        self.unpop(self.in_flight)

    def next_fault(self) -> str | None:
        return None


class UpsideDownDriverQueue(DriverQueue):
    def write_descriptor(
        self, index: int, address: int, length: int, flags: int, following: int
    ) -> None:
        super().write_descriptor(self.size - 1 - index, address, length, flags, following)


# -------------------------------------------------------------------------------- and its use


class Transport(MmioTransport):
    open_queue: ClassVar[OpenQueue] = UpsideDownQueue


class Driver(MmioDriver):
    def set_up_queue(self, index: int, size: int) -> DriverQueue:
        queue = UpsideDownDriverQueue(self.memory, size, self.allocator)
        self.announce_queue(index, queue)
        return queue


def test_another_format_takes_less_than_100_lines() -> None:
    lines = [inspect.getsource(part) for part in (UpsideDownQueue, UpsideDownDriverQueue)]
    assert len("".join(lines).splitlines()) < 100


@pytest.mark.parametrize("may_block", [True, False], ids=["in place", "on workers"])
def test_a_block_device_works_over_another_format(may_block: bool) -> None:
    disk = FakeDisk()
    with GuestMemory.allocate(1 << 20) as memory, EventLoop("devices") as loop:
        interrupts: list[bool] = []
        transport = Transport(
            Blk(disk), memory, LevelInterrupt(interrupts.append), loop=loop, may_block=may_block
        )
        driver = Driver(transport, memory, Allocator(0x1000, 1 << 20))
        driver.start([], queue_size=16)
        loop.start()
        queue, allocator = driver.queues[0], driver.allocator
        rooms = []
        # Three times round the ring, three requests at a time.
        for sector in range(48):
            request, room, status = (allocator.take(size) for size in (16, SECTOR, 1))
            memory.write(request, header(RequestType.IN, sector))
            memory.write(status, b"\xff")
            queue.add([Piece(request, 16), Piece(room, SECTOR, True), Piece(status, 1, True)])
            rooms.append((room, status))
            if sector % 3 == 2:
                driver.kick(0)
                used: list[Used] = []
                while len(used) < 3:
                    loop.call(lambda: None, "turn")
                    used += queue.take_all_used()
                assert [one.length for one in used] == [SECTOR + 1] * 3
        assert b"".join(memory.read(room, SECTOR) for room, _ in rooms) == pattern(48)
        assert all(memory.read(status, 1) == b"\0" for _, status in rooms)
        assert True in interrupts
        loop.stop()
        driver.reset()
