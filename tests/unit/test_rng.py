"""The entropy device (5.4), driven over its registers by the driver side of virtio-mmio."""

from collections.abc import Iterator

import pytest

from virtiopy.devices.rng import REQUEST_MAX, Rng
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.driver import Allocator, Piece

MEMORY_SIZE = 1 << 20
REQUESTQ = 0
STALE = 0xEE


class Bench:
    """An entropy device and its driver."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        transport = MmioTransport(Rng(), memory, LevelInterrupt(lambda level: None))
        self.driver = MmioDriver(transport, memory, Allocator(0x1000, MEMORY_SIZE))

    def room(self, length: int, *, writable: bool = True) -> Piece:
        address = self.driver.allocator.take(length)
        self.memory.write(address, bytes([STALE]) * length)
        return Piece(address, length, writable=writable)

    def ask(self, *lengths: int) -> tuple[int, bytes]:
        """Offer one buffer in pieces; returns the used length, and what is in the pieces now."""
        pieces = [self.room(length) for length in lengths]
        self.driver.queues[REQUESTQ].add(pieces)
        [used] = self.driver.collect(REQUESTQ)
        return used.length, b"".join(self.memory.read(p.address, p.length) for p in pieces)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        bench = Bench(memory)
        bench.driver.start()
        yield bench


def test_the_device_is_an_entropy_device_with_one_queue(bench: Bench) -> None:
    assert bench.driver.read(Register.DeviceID) == DeviceId.ENTROPY
    assert bench.driver.queue_size_max(REQUESTQ) > 0
    assert bench.driver.queue_size_max(REQUESTQ + 1) == 0


def test_a_buffer_is_filled_with_what_the_kernel_gives(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getrandom", lambda length: bytes(range(length)))
    assert bench.ask(64) == (64, bytes(range(64)))


def test_two_buffers_get_different_bytes(bench: Bench) -> None:
    assert bench.ask(32) != bench.ask(32)


def test_a_buffer_in_pieces_is_filled_from_the_front(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getrandom", lambda length: bytes(range(length)))
    assert bench.ask(1, 2, 60, 1) == (64, bytes(range(64)))


def test_a_large_buffer_is_filled_in_part_and_says_how_much(bench: Bench) -> None:
    length, data = bench.ask(REQUEST_MAX + 100)
    assert length == REQUEST_MAX
    assert data[REQUEST_MAX:] == bytes([STALE]) * 100


def test_every_buffer_of_a_full_ring_is_filled_for_one_kick(bench: Bench) -> None:
    queue = bench.driver.queues[REQUESTQ]
    pieces = [bench.room(16) for _ in range(queue.size)]
    for piece in pieces:
        queue.add([piece])
    assert [used.length for used in bench.driver.collect(REQUESTQ)] == [16] * queue.size
    assert len({bench.memory.read(p.address, p.length) for p in pieces}) == queue.size


def test_a_used_buffer_is_told_by_an_interrupt(bench: Bench) -> None:
    bench.ask(8)
    assert bench.driver.interrupts() is Interrupt.USED_BUFFER


def test_a_device_readable_buffer_comes_back_untouched(bench: Bench) -> None:
    piece = bench.room(32, writable=False)
    bench.driver.queues[REQUESTQ].add([piece])
    [used] = bench.driver.collect(REQUESTQ)
    assert used.length == 0
    assert bench.memory.read(piece.address, 32) == bytes([STALE]) * 32
    assert bench.ask(8)[0] == 8


def test_a_device_readable_piece_is_left_out(bench: Bench) -> None:
    readable, writable = bench.room(32, writable=False), bench.room(16)
    bench.driver.queues[REQUESTQ].add([readable, writable])
    [used] = bench.driver.collect(REQUESTQ)
    assert used.length == 16
    assert bench.memory.read(readable.address, 32) == bytes([STALE]) * 32


def test_a_buffer_outside_memory_is_given_back_and_the_device_goes_on(bench: Bench) -> None:
    bench.driver.queues[REQUESTQ].add([Piece(MEMORY_SIZE - 8, 16, writable=True)])
    assert [used.length for used in bench.driver.collect(REQUESTQ)] == [0]
    assert bench.ask(8)[0] == 8


def test_a_reset_device_serves_its_next_driver(bench: Bench) -> None:
    bench.ask(8)
    bench.driver.reset()
    bench.driver.start()
    assert bench.ask(8)[0] == 8
