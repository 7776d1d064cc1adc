"""What the tests of the console device share."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from virtiopy.devices.console import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    Console,
    ConsoleFeature,
    ControlEvent,
)
from virtiopy.devices.streams import Size, Stream, StreamUser
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.virtqueue.buffers import Buffers, gather
from virtiopy.virtqueue.driver import Allocator, Piece

MEMORY_SIZE = 16 << 20
F_SIZE = ConsoleFeature.VIRTIO_CONSOLE_F_SIZE
F_MULTIPORT = ConsoleFeature.VIRTIO_CONSOLE_F_MULTIPORT
RX, TX = 0, 1
PORT1_RX, PORT1_TX = 4, 5
# struct virtio_console_config (5.3.4): offset and size of each field
COLS, ROWS, MAX_NR_PORTS, EMERG_WR = (0, 2), (2, 2), (4, 4), (8, 4)
DEVICE_READY, DEVICE_ADD = ControlEvent.DEVICE_READY, ControlEvent.DEVICE_ADD
DEVICE_REMOVE, PORT_READY = ControlEvent.DEVICE_REMOVE, ControlEvent.PORT_READY
PORT_OPEN, PORT_NAME = ControlEvent.PORT_OPEN, ControlEvent.PORT_NAME


class FakeStream:
    """A host's side that takes `room` bytes before it is full, and has `incoming` to read."""

    def __init__(self, *, connected: bool = True, size: Size | None = None) -> None:
        self.connected = connected
        self.size = size
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.room = 1 << 30
        self.wants_input = False
        self.wants_room = False
        self.closed = False
        self.reads = 0
        self.user: StreamUser

    def open(self, loop: EventLoop, user: StreamUser) -> None:
        self.user = user

    def read(self, count: int) -> bytes:
        self.reads += 1
        data = bytes(self.incoming[:count])
        del self.incoming[:count]
        return data

    def write(self, buffers: Buffers) -> int:
        data = gather(buffers)[: self.room] if self.connected else gather(buffers)
        if self.connected:
            self.room -= len(data)
            self.outgoing += data
        return len(data)

    def watch_input(self, on: bool) -> None:
        self.wants_input = on

    def watch_room(self, on: bool) -> None:
        self.wants_room = on

    def close(self) -> None:
        self.closed = True

    # What the world does

    def send(self, data: bytes) -> None:
        """Write to the guest, as its reader is ready for it."""
        self.incoming += data
        self.run()

    def take(self, count: int) -> None:
        """Make room for `count` more bytes."""
        self.room += count
        self.run()

    def run(self) -> None:
        """Do what the event loop does, until nothing is ready."""
        while self.wants_input and self.incoming:
            self.user.input_ready()
        while self.wants_room and self.room:
            self.user.room_ready()

    def connect(self, *, connected: bool) -> None:
        self.connected = connected
        self.user.connection_changed()

    def resize(self, cols: int, rows: int) -> None:
        self.size = Size(cols, rows)
        self.user.size_changed()


@dataclass
class Bench:
    """A console device and its driver."""

    memory: GuestMemory
    device: Console
    driver: MmioDriver
    streams: list[FakeStream]
    posted: dict[tuple[int, int], list[Piece]] = field(default_factory=dict)

    @property
    def stream(self) -> FakeStream:
        return self.streams[0]

    def place(self, data: bytes) -> Piece:
        address = self.driver.allocator.take(max(1, len(data)))
        self.memory.write(address, data)
        return Piece(address, len(data))

    # The driver's side of a port

    def transmit(self, data: bytes | Sequence[bytes], queue: int = TX, *, kick: bool = True) -> int:
        """Make a buffer available, in these pieces; returns its head."""
        pieces = [data] if isinstance(data, bytes) else data
        head = self.driver.queues[queue].add([self.place(piece) for piece in pieces])
        if kick:
            self.driver.kick(queue)
        return head

    def transmitted(self, queue: int = TX) -> list[tuple[int, int]]:
        """Take used buffers: head and length."""
        return [(used.head, used.length) for used in self.driver.queues[queue].take_all_used()]

    def supply(self, *sizes: int | Sequence[int], queue: int = RX, kick: bool = True) -> None:
        """Make receive buffers available, each of one size or in pieces."""
        for size in sizes:
            lengths = [size] if isinstance(size, int) else size
            pieces = [
                Piece(self.driver.allocator.take(max(1, length)), length, writable=True)
                for length in lengths
            ]
            self.posted[queue, self.driver.queues[queue].add(pieces)] = pieces
        if kick:
            self.driver.kick(queue)

    def received(self, queue: int = RX) -> list[bytes]:
        """Take what the device wrote, a buffer at a time."""
        found = []
        for used in self.driver.queues[queue].take_all_used():
            pieces = self.posted.pop((queue, used.head))
            data = b"".join(self.memory.read(piece.address, piece.length) for piece in pieces)
            found.append(data[: used.length])
        return found

    # Control messages

    def control(self, number: int, event: int, value: int = 1, extra: bytes = b"") -> None:
        self.transmit(struct.pack("<IHH", number, event, value) + extra, CONTROL_TRANSMITQ)
        assert [length for _, length in self.transmitted(CONTROL_TRANSMITQ)] == [0]

    def messages(self) -> list[tuple[int, int, int, bytes]]:
        return [
            (*struct.unpack_from("<IHH", data), data[8:])
            for data in self.received(CONTROL_RECEIVEQ)
        ]

    def start_multiport(self, *features: int) -> None:
        """Bring the device up to where every port is ready, and the messages are read."""
        self.driver.start([F_MULTIPORT, *features])
        self.supply(*[64] * 32, queue=CONTROL_RECEIVEQ)
        self.control(0, DEVICE_READY)
        for number in sorted(self.device.ports):
            self.control(number, PORT_READY)
        self.messages()

    def works(self) -> bool:
        """Say whether a buffer of port 0 goes out."""
        before = len(self.stream.outgoing)
        self.transmit(b"works")
        return self.transmitted()[-1:] != [] and self.stream.outgoing[before:] == b"works"

    def config(self, field: tuple[int, int]) -> int:
        return self.driver.read_config(*field)

    @property
    def needs_reset(self) -> bool:
        return bool(self.driver.status & DeviceStatus.DEVICE_NEEDS_RESET)


@contextmanager
def bench_of(
    *streams: FakeStream, names: Sequence[str] = (), max_nr_ports: int | None = None
) -> Iterator[Bench]:
    channels: dict[str, Stream] = dict(zip(names, streams[1:], strict=True))
    with GuestMemory.allocate(MEMORY_SIZE) as memory, EventLoop() as loop:
        device = Console(streams[0], channels, max_nr_ports=max_nr_ports)
        transport = MmioTransport(device, memory, LevelInterrupt(lambda level: None), loop=loop)
        driver = MmioDriver(transport, memory, Allocator(0x1000, MEMORY_SIZE))
        yield Bench(memory, device, driver, list(streams))
