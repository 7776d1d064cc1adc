"""What the tests of split virtqueues share."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from virtiopy._native import CData
from virtiopy.memory import HOLE_START, GuestMemory
from virtiopy.virtqueue import layout
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece
from virtiopy.virtqueue.formats import split_queue_type
from virtiopy.virtqueue.layout import (
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    AreaLayout,
    RingFormat,
)
from virtiopy.virtqueue.malformed import BUFFER, CHAINS, TABLES, Ground, Malformed
from virtiopy.virtqueue.native import NativeQueue
from virtiopy.virtqueue.queue import Chain, QueueState
from virtiopy.virtqueue.split import SplitQueue

NEXT, WRITE, INDIRECT = VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VIRTQ_DESC_F_INDIRECT
MEMORY_SIZE = 4 << 20
PAGE = 4096
ALL_SIZES = [1 << exponent for exponent in range(16)]
# Where indexes start: at the beginning, mid-ring, and so that they wrap at 2^16 during the test.
STARTS = [0, 5, 32766, 65533, 65535]
# What Python reads and writes can be watched; test_native_queue.py holds C to the same.
python_only = pytest.mark.parametrize("native", ["off"], indirect=True)


@dataclass
class Rig:
    memory: GuestMemory
    driver: DriverQueue
    device: SplitQueue | NativeQueue
    allocator: Allocator

    def readable(self, data: bytes) -> Piece:
        address = self.allocator.take(len(data))
        self.memory.write(address, data)
        return Piece(address, len(data))

    def writable(self, length: int) -> Piece:
        return Piece(self.allocator.take(length), length, writable=True)

    def room(self, count: int) -> int:
        return self.allocator.take(16 * count)

    def table(self, *entries: tuple[int, int, int, int]) -> int:
        address = self.room(len(entries))
        self.memory.write(address, b"".join(struct.pack("<QIHH", *entry) for entry in entries))
        return address

    def offer(self, *pieces: Piece) -> int:
        return self.driver.add(pieces or [self.writable(64)])

    def pop(self) -> Chain:
        chain = self.device.pop()
        assert chain is not None
        return chain

    def successor(self) -> SplitQueue | NativeQueue:
        return split_queue_type()(
            self.memory,
            self.device.size,
            self.device.areas,
            event_idx=self.device.event_idx,
            indirect=self.device.indirect,
            state=self.device.state,
        )

    def field16(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 2), "little")


def build(
    memory: GuestMemory,
    size: int = 8,
    *,
    event_idx: bool = False,
    indirect: bool = True,
    start: int = 0,
) -> Rig:
    allocator = Allocator(PAGE, memory.regions[0].end)
    driver = DriverQueue(memory, size, allocator, event_idx=event_idx)
    driver.available.idx = driver.next_available = start
    driver.used.idx = driver.last_used = start
    driver.should_kick()
    device = split_queue_type()(
        memory,
        size,
        driver.areas,
        event_idx=event_idx,
        indirect=indirect,
        state=QueueState(start),
    )
    return Rig(memory, driver, device, allocator)


def _layout(size: int) -> AreaLayout:
    return layout.areas(RingFormat.SPLIT, size)


BAD = 4
BADS = (BAD, 5, 6, 7)
Malform = Callable[[Rig], None]


def _malform(malformed: Malformed) -> Malform:
    def malform(rig: Rig) -> None:
        ground = Ground(
            BADS,
            rig.device.size,
            buffer=rig.allocator.take(BUFFER),
            table=rig.room(rig.device.size + 1),
            end=MEMORY_SIZE,
            hole=HOLE_START,
        )
        chain, table = malformed.write(ground)
        for index, entry in zip(BADS, chain, strict=False):
            rig.driver.write_descriptor(index, *entry)
        rig.memory.write(ground.table, b"".join(struct.pack("<QIHH", *one) for one in table))

    return malform


#: A hole that has memory before it is not here: this one is behind the end of memory.
MALFORMED = [pytest.param(_malform(one), one.section, id=one.name) for one in (*CHAINS, *TABLES)]


def _python_queue(rig: Rig) -> SplitQueue:
    assert isinstance(rig.device, SplitQueue)
    return rig.device


class _Recorder:
    # Notes every store to the used ring's idx, and the first used entry at that moment.
    def __init__(self, queue: SplitQueue, monkeypatch: pytest.MonkeyPatch) -> None:
        from virtiopy._native import lib as real

        self.values: list[int] = []
        self.entries: list[tuple[int, int]] = []
        recorder = self

        class Library:
            def __getattr__(self, name: str) -> object:
                return getattr(real, name)

            def vp_store_release(self, location: CData, value: int) -> None:
                recorder.values.append(value)
                recorder.entries.append((queue._used.ring[0].id, queue._used.ring[0].len))
                real.vp_store_release(location, value)

        monkeypatch.setattr("virtiopy.virtqueue.split.lib", Library())
