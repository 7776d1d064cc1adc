"""The console device (5.3), driven over its registers, between streams that the tests play."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtiopy.devices.console import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    EMERGENCY_BYTES,
    INPUT_BYTES,
    Console,
    ConsoleFeature,
    ControlEvent,
    receiveq,
    transmitq,
)
from virtiopy.devices.streams import Size, Stream, StreamUser
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature, has_feature
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.buffers import Buffers, gather
from virtiopy.virtqueue.driver import Allocator, Piece

MEMORY_SIZE = 16 << 20

F_SIZE = ConsoleFeature.VIRTIO_CONSOLE_F_SIZE
F_MULTIPORT = ConsoleFeature.VIRTIO_CONSOLE_F_MULTIPORT
F_EMERG_WRITE = ConsoleFeature.VIRTIO_CONSOLE_F_EMERG_WRITE
F_EVENT_IDX = Feature.VIRTIO_F_EVENT_IDX
F_RING_RESET = Feature.VIRTIO_F_RING_RESET

RX, TX = 0, 1
PORT1_RX, PORT1_TX = 4, 5

# struct virtio_console_config (5.3.4): offset and size of each field
COLS, ROWS, MAX_NR_PORTS, EMERG_WR = (0, 2), (2, 2), (4, 4), (8, 4)

DEVICE_READY, DEVICE_ADD = ControlEvent.DEVICE_READY, ControlEvent.DEVICE_ADD
DEVICE_REMOVE, PORT_READY = ControlEvent.DEVICE_REMOVE, ControlEvent.PORT_READY
CONSOLE_PORT, RESIZE = ControlEvent.CONSOLE_PORT, ControlEvent.RESIZE
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


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A console with one port, started."""
    with bench_of(FakeStream()) as bench:
        bench.driver.start([])
        yield bench


@pytest.fixture
def multiport() -> Iterator[Bench]:
    """A console with three ports, of which the last has nobody at it yet; not started."""
    streams = FakeStream(size=Size(80, 25)), FakeStream(), FakeStream(connected=False)
    with bench_of(*streams, names=("org.example.one", "größe.2")) as bench:
        yield bench


# What is offered, and the configuration space (5.3.3, 5.3.4)


def test_a_console_of_one_port_offers_emergency_writes_only() -> None:
    with bench_of(FakeStream()) as bench:
        offered = bench.driver.offered_features()
        assert [bit for bit in ConsoleFeature if has_feature(offered, bit)] == [F_EMERG_WRITE]


def test_a_terminal_offers_its_size(multiport: Bench) -> None:
    assert has_feature(multiport.driver.offered_features(), F_SIZE)
    assert (multiport.config(COLS), multiport.config(ROWS)) == (80, 25)


def test_max_nr_ports_counts_the_ports(multiport: Bench) -> None:
    assert has_feature(multiport.driver.offered_features(), F_MULTIPORT)
    assert multiport.config(MAX_NR_PORTS) == 3


def test_there_is_a_pair_of_queues_a_port_and_one_for_control(multiport: Bench) -> None:
    sizes = [multiport.driver.queue_size_max(index) for index in range(9)]
    assert sizes == [128] * 8 + [0]


@pytest.mark.parametrize(("port", "pair"), [(0, (0, 1)), (1, (4, 5)), (2, (6, 7))])
def test_the_control_queues_lie_between_the_first_ports_and_the_others(
    port: int, pair: tuple[int, int]
) -> None:
    assert (receiveq(port), transmitq(port)) == pair


def test_more_channels_than_ports_are_refused() -> None:
    with pytest.raises(ValueError, match="max_nr_ports"):
        Console(FakeStream(), {"one": FakeStream()}, max_nr_ports=1)


def test_the_fields_that_a_driver_may_not_write_stay(multiport: Bench) -> None:
    before = multiport.device.config_space()
    multiport.driver.write_config(*COLS, 7)
    multiport.driver.write_config(*MAX_NR_PORTS, 7)
    assert multiport.device.config_space() == before
    assert not multiport.stream.outgoing


# Emergency writes (5.3.5.1)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_lower_byte_of_an_emergency_write_is_printed_before_any_setup(size: int) -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.write_config(EMERG_WR[0], size, 0x41 | (0x4243_4400 & (1 << 8 * size) - 1))
        assert bench.stream.outgoing == b"A"


def test_an_emergency_write_goes_ahead_of_what_waits(bench: Bench) -> None:
    bench.stream.room = 2
    bench.transmit(b"ordinary")
    bench.driver.write_config(*EMERG_WR, ord("!"))
    bench.stream.take(100)
    assert bench.stream.outgoing == b"or!dinary"


def test_emergency_writes_wait_for_the_host_and_are_bounded(bench: Bench) -> None:
    bench.stream.room = 0
    for _ in range(EMERGENCY_BYTES + 100):
        bench.driver.write_config(*EMERG_WR, ord("!"))
    bench.stream.take(1 << 20)
    assert bench.stream.outgoing == b"!" * EMERGENCY_BYTES
    assert not bench.stream.wants_room


def test_an_emergency_write_that_waits_survives_a_reset(bench: Bench) -> None:
    bench.stream.room = 0
    bench.driver.write_config(*EMERG_WR, ord("!"))
    bench.driver.reset()
    bench.stream.take(1)
    assert bench.stream.outgoing == b"!"


# From the guest to the host


def test_output_is_written_and_its_buffer_used_with_length_0(bench: Bench) -> None:
    head = bench.transmit(b"hello")
    assert bench.stream.outgoing == b"hello"
    assert bench.transmitted() == [(head, 0)]
    assert bench.driver.interrupts() & Interrupt.USED_BUFFER


def test_output_may_come_in_any_pieces(bench: Bench) -> None:
    bench.transmit([b"h", b"el", b"", b"lo"])
    assert bench.stream.outgoing == b"hello"


def test_output_made_available_before_driver_ok_is_written_after_it() -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.negotiate([])
        for index in (RX, TX):
            bench.driver.set_up_queue(index, 8)
        bench.transmit(b"early")
        assert not bench.stream.outgoing
        bench.driver.set_status(DeviceStatus.DRIVER_OK)
        assert bench.stream.outgoing == b"early"


def test_an_empty_buffer_is_used_at_once(bench: Bench) -> None:
    head = bench.transmit([b""])
    assert bench.transmitted() == [(head, 0)]


def test_writable_bytes_in_a_transmit_buffer_are_left_alone(bench: Bench) -> None:
    room = bench.place(b"\xee" * 4)
    pieces = [bench.place(b"out"), Piece(room.address, 4, writable=True)]
    bench.driver.queues[TX].add(pieces)
    bench.driver.kick(TX)
    assert [length for _, length in bench.transmitted()] == [0]
    assert bench.stream.outgoing == b"out"
    assert bench.memory.read(room.address, 4) == b"\xee" * 4


def test_a_buffer_stays_unused_until_the_host_took_its_last_byte(bench: Bench) -> None:
    bench.stream.room = 3
    head = bench.transmit([b"ab", b"cdef"])
    assert bench.transmitted() == []
    bench.stream.take(2)
    assert bench.transmitted() == []
    assert bench.stream.wants_room
    bench.stream.take(1)
    assert bench.transmitted() == [(head, 0)]
    assert bench.stream.outgoing == b"abcdef"
    assert not bench.stream.wants_room


def test_a_slow_host_gets_buffers_that_came_meanwhile_in_their_order(bench: Bench) -> None:
    bench.stream.room = 0
    heads = [bench.transmit(b"%d;" % number) for number in range(100)]
    assert bench.transmitted() == []
    bench.stream.take(1 << 20)
    assert bench.stream.outgoing == b"".join(b"%d;" % number for number in range(100))
    assert [head for head, _ in bench.transmitted()] == heads


def test_a_driver_is_told_not_to_kick_while_the_host_is_full(bench: Bench) -> None:
    bench.stream.room = 0
    bench.transmit(b"x")
    bench.transmit(b"y", kick=False)
    assert not bench.driver.queues[TX].should_kick()
    bench.stream.take(2)
    bench.transmit(b"z", kick=False)
    assert bench.driver.queues[TX].should_kick()


def test_a_reset_forgets_the_buffers_that_waited(bench: Bench) -> None:
    bench.stream.room = 0
    bench.transmit(b"lost")
    bench.driver.reset()
    assert not bench.stream.wants_room
    bench.driver.start([])
    bench.stream.take(1 << 20)
    assert bench.works()
    assert bench.stream.outgoing == b"works"


def test_a_queue_reset_forgets_the_buffers_that_waited() -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.start([F_RING_RESET])
        bench.stream.room = 0
        bench.transmit(b"lost")
        bench.driver.write(Register.QueueSel, TX)
        bench.driver.write(Register.QueueReset, 1)
        bench.driver.set_up_queue(TX, 8)
        bench.stream.take(1 << 20)
        assert bench.works()
        assert bench.stream.outgoing == b"works"


# From the host to the guest


def test_input_fills_a_buffer_with_what_there_is(bench: Bench) -> None:
    bench.supply(64, 64)
    bench.stream.send(b"hello")
    assert bench.received() == [b"hello"]
    bench.stream.send(b"again")
    assert bench.received() == [b"again"]
    assert bench.driver.interrupts() & Interrupt.USED_BUFFER


def test_input_is_cut_to_the_size_of_the_buffers(bench: Bench) -> None:
    bench.supply(2, [1, 1, 1], 64)
    bench.stream.send(b"abcdefgh")
    assert bench.received() == [b"ab", b"cde", b"fgh"]


def test_the_host_is_not_read_without_a_driver() -> None:
    with bench_of(FakeStream()) as bench:
        bench.stream.send(b"early")
        assert bench.stream.incoming == b"early"
        bench.driver.start([])
        bench.supply(64)
        bench.stream.run()
        assert bench.received() == [b"early"]


def test_without_receive_buffers_no_more_is_read_than_a_bounded_amount(bench: Bench) -> None:
    bench.stream.send(bytes(3 * INPUT_BYTES))
    assert len(bench.stream.incoming) == 2 * INPUT_BYTES
    assert not bench.stream.wants_input


def test_the_host_is_read_on_once_the_guest_took_everything(bench: Bench) -> None:
    data = bytes(range(256)) * 1024
    bench.stream.send(data)
    seen = b""
    while len(seen) < len(data):
        bench.supply(*[4096] * 8)
        bench.stream.run()
        seen += b"".join(bench.received())
    assert seen == data
    assert bench.stream.wants_input


def test_kicks_for_receive_buffers_are_asked_for_only_while_input_waits() -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.start([])
        bench.supply(64, kick=False)
        assert not bench.driver.queues[RX].should_kick()
        bench.stream.send(bytes(100))
        bench.supply(64, kick=False)
        assert bench.driver.queues[RX].should_kick()


@pytest.mark.parametrize("sizes", [[0], [[0, 0]]])
def test_a_receive_buffer_without_room_goes_back_empty(
    bench: Bench, sizes: list[int | Sequence[int]]
) -> None:
    bench.supply(*sizes, 64)
    bench.stream.send(b"hello")
    assert bench.received() == [b"", b"hello"]


def test_a_receive_buffer_that_is_only_readable_goes_back_empty(bench: Bench) -> None:
    bench.driver.queues[RX].add([bench.place(b"wrong")])
    bench.supply(64)
    bench.stream.send(b"hello")
    assert [used.length for used in bench.driver.queues[RX].take_all_used()] == [0, 5]


def test_input_that_was_read_for_a_driver_that_reset_goes_to_the_next(bench: Bench) -> None:
    bench.stream.send(b"typed ahead")
    bench.driver.reset()
    assert not bench.stream.wants_input
    bench.driver.start([])
    bench.supply(64)
    assert bench.received() == [b"typed ahead"]


def test_a_receive_queue_that_is_reset_stops_the_reading() -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.start([F_RING_RESET])
        bench.supply(64)
        bench.driver.write(Register.QueueSel, RX)
        bench.driver.write(Register.QueueReset, 1)
        bench.stream.send(b"kept")
        assert bench.stream.incoming == b"kept"
        bench.driver.set_up_queue(RX, 8)
        bench.supply(64)
        bench.stream.run()
        assert bench.received() == [b"kept"]


# Both ways, byte for byte

chunks = st.lists(st.binary(max_size=300), max_size=30)
counts = st.lists(st.integers(0, 200), max_size=60)


@given(chunks=chunks, room=counts, event_idx=st.booleans())
def test_whatever_the_host_takes_at_a_time_it_gets_every_byte(
    chunks: list[bytes], room: list[int], event_idx: bool
) -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.start([F_EVENT_IDX] if event_idx else [], queue_size=4)
        bench.stream.room = 0
        sent, waiting, step = b"", list(chunks), iter(room)
        while waiting:
            while waiting and bench.driver.queues[TX].free:
                sent += waiting[0]
                bench.transmit(waiting.pop(0), kick=False)
            if bench.driver.queues[TX].should_kick():
                bench.driver.kick(TX)
            # Out of steps, the host takes all that there is.
            bench.stream.take(next(step, 1 << 20))
            bench.transmitted()
        bench.stream.take(1 << 20)
        assert bench.stream.outgoing == sent
        assert len(bench.transmitted()) <= 4
        assert bench.driver.queues[TX].free == 4


@given(
    chunks=chunks,
    sizes=st.lists(st.lists(st.integers(0, 70), min_size=1, max_size=3), max_size=40),
    event_idx=st.booleans(),
)
def test_whatever_buffers_the_guest_supplies_it_gets_every_byte(
    chunks: list[bytes], sizes: list[list[int]], event_idx: bool
) -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.start([F_EVENT_IDX] if event_idx else [], queue_size=4)
        queue, seen = bench.driver.queues[RX], b""
        waiting = list(chunks)
        expected, supplies = b"".join(chunks), iter(sizes)
        while waiting or len(seen) < len(expected):
            if waiting:
                bench.stream.send(waiting.pop(0))
            if queue.free >= 3:
                bench.supply(next(supplies, [100]), kick=False)
            if queue.should_kick():
                bench.driver.kick(RX)
            bench.stream.run()
            seen += b"".join(bench.received())
        assert seen == expected


# Control messages (5.3.6.2)


def test_a_driver_that_is_ready_is_told_of_every_port(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 8, queue=CONTROL_RECEIVEQ)
    assert multiport.messages() == []
    multiport.control(0, DEVICE_READY)
    assert multiport.messages() == [(number, DEVICE_ADD, 0, b"") for number in range(3)]


def test_a_driver_that_is_ready_twice_is_told_once(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.control(0, DEVICE_READY)
    assert multiport.messages() == []


def test_a_driver_that_failed_is_told_of_no_port(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(64, queue=CONTROL_RECEIVEQ)
    multiport.control(0, DEVICE_READY, 0)
    multiport.control(0, DEVICE_READY, 2)
    assert multiport.messages() == []


def test_a_port_that_is_ready_is_told_what_it_is(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 16, queue=CONTROL_RECEIVEQ)
    multiport.control(0, DEVICE_READY)
    multiport.messages()

    multiport.control(0, PORT_READY)
    assert multiport.messages() == [
        (0, CONSOLE_PORT, 1, b""),
        (0, RESIZE, 0, struct.pack("<HH", 80, 25)),
        (0, PORT_OPEN, 1, b""),
    ]
    multiport.control(1, PORT_READY)
    assert multiport.messages() == [
        (1, PORT_NAME, 1, b"org.example.one"),
        (1, PORT_OPEN, 1, b""),
    ]
    multiport.control(2, PORT_READY)
    assert multiport.messages() == [(2, PORT_NAME, 1, "größe.2".encode())]


def test_a_port_that_failed_or_is_ready_already_is_told_nothing(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.control(0, PORT_READY)
    multiport.control(1, PORT_READY, 0)
    assert multiport.messages() == []


def test_the_driver_is_told_when_somebody_comes_and_goes(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.streams[2].connect(connected=True)
    assert multiport.messages() == [(2, PORT_OPEN, 1, b"")]
    multiport.streams[2].connect(connected=False)
    assert multiport.messages() == [(2, PORT_OPEN, 0, b"")]


def test_nothing_is_said_of_a_port_that_is_not_ready(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 8, queue=CONTROL_RECEIVEQ)
    multiport.control(0, DEVICE_READY)
    multiport.messages()
    multiport.streams[2].connect(connected=True)
    multiport.stream.resize(100, 30)
    assert multiport.messages() == []


def test_the_named_ports_are_channels_of_their_own(multiport: Bench) -> None:
    multiport.start_multiport()
    for number, stream in enumerate(multiport.streams[:2]):
        multiport.control(number, PORT_OPEN)
        multiport.supply(64, queue=receiveq(number))
        multiport.transmit(b"out %d" % number, transmitq(number))
        stream.send(b"in %d" % number)
        assert multiport.received(receiveq(number)) == [b"in %d" % number]
        assert stream.outgoing == b"out %d" % number


def test_the_host_is_not_read_until_the_guest_opens_the_port(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.supply(64, queue=PORT1_RX)
    multiport.streams[1].send(b"kept")
    assert multiport.streams[1].incoming == b"kept"
    multiport.control(1, PORT_OPEN)
    multiport.streams[1].run()
    assert multiport.received(PORT1_RX) == [b"kept"]
    multiport.control(1, PORT_OPEN, 0)
    multiport.streams[1].send(b"kept too")
    assert multiport.received(PORT1_RX) == []
    assert multiport.streams[1].incoming == b"kept too"


def test_what_waits_for_a_host_that_goes_is_given_up(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.streams[1].room = 0
    head = multiport.transmit(b"too late", PORT1_TX)
    assert multiport.transmitted(PORT1_TX) == []
    multiport.streams[1].connect(connected=False)
    assert multiport.transmitted(PORT1_TX) == [(head, 0)]


def test_one_port_that_is_stuck_holds_up_no_other(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.streams[1].room = 0
    multiport.transmit(b"stuck", PORT1_TX)
    assert multiport.works()


def test_messages_wait_for_buffers_and_only_the_last_of_a_kind_is_kept(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.control(0, DEVICE_READY)
    multiport.control(2, PORT_READY)
    for _ in range(1000):
        multiport.streams[2].connect(connected=True)
        multiport.streams[2].connect(connected=False)
    multiport.supply(*[64] * 16, queue=CONTROL_RECEIVEQ)
    assert multiport.messages() == [
        *((number, DEVICE_ADD, 0, b"") for number in range(3)),
        (2, PORT_NAME, 1, "größe.2".encode()),
        (2, PORT_OPEN, 0, b""),
    ]


def test_a_control_buffer_that_is_too_small_goes_back_empty_and_the_message_waits(
    multiport: Bench,
) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(7, 0, [3, 5], 64, 64, queue=CONTROL_RECEIVEQ)
    multiport.control(0, DEVICE_READY)
    received = multiport.received(CONTROL_RECEIVEQ)
    assert [len(data) for data in received] == [0, 0, 8, 8, 8]


def test_a_control_message_is_cut_to_a_buffer_that_has_room_for_its_header_alone(
    multiport: Bench,
) -> None:
    # As SerenityOS's driver gives them: what follows a long message does not wait for ever.
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[8] * 16, queue=CONTROL_RECEIVEQ)
    multiport.control(0, DEVICE_READY)
    for number in range(3):
        multiport.control(number, PORT_READY)
    assert multiport.messages() == [
        *((number, DEVICE_ADD, 0, b"") for number in range(3)),
        (0, CONSOLE_PORT, 1, b""),
        (0, RESIZE, 0, b""),
        (0, PORT_OPEN, 1, b""),
        (1, PORT_NAME, 1, b""),
        (1, PORT_OPEN, 1, b""),
        (2, PORT_NAME, 1, b""),
    ]


def test_a_control_message_may_come_in_one_byte_pieces(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 3, queue=CONTROL_RECEIVEQ)
    message = struct.pack("<IHH", 0, DEVICE_READY, 1)
    multiport.transmit([message[i : i + 1] for i in range(8)], CONTROL_TRANSMITQ)
    assert len(multiport.messages()) == 3


@pytest.mark.parametrize("number", [3, 4, 31, 0xFFFF_FFFF])
@pytest.mark.parametrize("event", [PORT_READY, PORT_OPEN])
def test_messages_about_ports_that_do_not_exist_are_ignored(
    multiport: Bench, number: int, event: int
) -> None:
    multiport.start_multiport()
    multiport.control(number, event)
    assert multiport.messages() == []
    assert multiport.works()


@pytest.mark.parametrize("event", [DEVICE_ADD, DEVICE_REMOVE, CONSOLE_PORT, RESIZE, PORT_NAME])
def test_messages_that_are_the_devices_to_send_are_ignored(multiport: Bench, event: int) -> None:
    multiport.start_multiport()
    multiport.control(0, event)
    assert multiport.messages() == []
    assert sorted(multiport.device.ports) == [0, 1, 2]
    assert multiport.works()


@pytest.mark.parametrize("event", [8, 0xEEEE, 0xFFFF])
def test_unknown_messages_are_ignored(multiport: Bench, event: int) -> None:
    multiport.start_multiport()
    multiport.control(0, event)
    assert multiport.messages() == []
    assert multiport.works()


@pytest.mark.parametrize("length", range(8))
def test_truncated_messages_are_ignored(multiport: Bench, length: int) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 3, queue=CONTROL_RECEIVEQ)
    multiport.transmit(struct.pack("<IHH", 0, DEVICE_READY, 1)[:length], CONTROL_TRANSMITQ)
    assert [used for _, used in multiport.transmitted(CONTROL_TRANSMITQ)] == [0]
    assert multiport.messages() == []
    assert multiport.works()


def test_what_follows_a_message_is_ignored(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 3, queue=CONTROL_RECEIVEQ)
    multiport.control(0, DEVICE_READY, 1, bytes(1000))
    assert len(multiport.messages()) == 3


@pytest.mark.parametrize("value", [2, 0xFFFF])
def test_a_port_open_that_is_neither_open_nor_closed_is_ignored(
    multiport: Bench, value: int
) -> None:
    multiport.start_multiport()
    multiport.control(1, PORT_OPEN, value)
    assert not multiport.device.ports[1].guest_open


def test_ports_do_not_exist_before_the_driver_is_ready(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(64, queue=CONTROL_RECEIVEQ)
    multiport.control(1, PORT_READY)
    multiport.control(1, PORT_OPEN)
    assert multiport.messages() == []
    assert not multiport.device.ports[1].guest_open


def test_without_multiport_only_port_0_is_served(multiport: Bench) -> None:
    multiport.driver.start([])
    multiport.supply(64, queue=CONTROL_RECEIVEQ)
    for queue in (CONTROL_TRANSMITQ, PORT1_TX):
        multiport.transmit(struct.pack("<IHH", 0, DEVICE_READY, 1), queue)
        assert multiport.transmitted(queue) == []
    assert multiport.received(CONTROL_RECEIVEQ) == []
    assert not multiport.streams[1].outgoing
    assert multiport.works()


def test_a_reset_makes_the_ports_new_to_the_driver(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.control(1, PORT_OPEN)
    multiport.driver.reset()
    assert not multiport.streams[1].wants_input
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 8, queue=CONTROL_RECEIVEQ)
    multiport.streams[2].connect(connected=True)
    assert multiport.messages() == []
    multiport.control(0, DEVICE_READY)
    assert [event for _, event, _, _ in multiport.messages()] == [DEVICE_ADD] * 3


# The size (5.3.6)


def test_a_resize_changes_the_configuration_and_says_so() -> None:
    with bench_of(FakeStream(size=Size(80, 25))) as bench:
        bench.driver.start([F_SIZE])
        bench.driver.interrupts()
        generation = bench.driver.read(Register.ConfigGeneration)
        bench.stream.resize(132, 43)
        assert bench.driver.interrupts() == Interrupt.CONFIG_CHANGE
        assert bench.driver.read(Register.ConfigGeneration) != generation
        assert (bench.config(COLS), bench.config(ROWS)) == (132, 43)


def test_a_resize_before_there_is_a_driver_only_changes_the_configuration() -> None:
    with bench_of(FakeStream(size=Size(80, 25))) as bench:
        bench.stream.resize(132, 43)
        assert not bench.driver.interrupts()
        assert bench.config(COLS) == 132


def test_a_resize_of_a_multiport_console_is_a_control_message_too(multiport: Bench) -> None:
    multiport.start_multiport(F_SIZE)
    multiport.driver.interrupts()
    multiport.stream.resize(132, 43)
    assert multiport.messages() == [(0, RESIZE, 0, struct.pack("<HH", 132, 43))]
    assert multiport.driver.interrupts() == Interrupt.CONFIG_CHANGE | Interrupt.USED_BUFFER


def test_only_the_last_of_several_sizes_is_sent(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.control(0, DEVICE_READY)
    multiport.control(0, PORT_READY)
    for cols in range(81, 200):
        multiport.stream.resize(cols, 25)
    multiport.supply(*[64] * 16, queue=CONTROL_RECEIVEQ)
    resizes = [extra for _, event, _, extra in multiport.messages() if event == RESIZE]
    assert resizes == [struct.pack("<HH", 199, 25)]


# Ports that come and go


@pytest.fixture
def pluggable() -> Iterator[Bench]:
    """A console of one port that can have two more; started."""
    with bench_of(FakeStream(), max_nr_ports=3) as bench:
        bench.start_multiport()
        yield bench


def test_a_port_that_is_plugged_in_is_announced_and_works(pluggable: Bench) -> None:
    stream = FakeStream()
    pluggable.device.add_port(1, stream, "late")
    assert pluggable.messages() == [(1, DEVICE_ADD, 0, b"")]
    pluggable.control(1, PORT_READY)
    assert pluggable.messages() == [(1, PORT_NAME, 1, b"late"), (1, PORT_OPEN, 1, b"")]
    pluggable.control(1, PORT_OPEN)
    pluggable.supply(64, queue=PORT1_RX)
    stream.send(b"in")
    assert pluggable.received(PORT1_RX) == [b"in"]


@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_port_that_exists_or_is_above_the_maximum_cannot_be_plugged_in(
    pluggable: Bench, number: int
) -> None:
    with pytest.raises(ValueError, match=f"port {number}"):
        pluggable.device.add_port(number, FakeStream(), "wrong")
    assert pluggable.messages() == []


def test_a_port_that_is_unplugged_gives_its_buffers_back_and_says_so(pluggable: Bench) -> None:
    stream = FakeStream()
    pluggable.device.add_port(1, stream, "late")
    pluggable.messages()
    stream.room = 0
    head = pluggable.transmit(b"stuck", PORT1_TX)
    pluggable.device.remove_port(1)
    assert pluggable.transmitted(PORT1_TX) == [(head, 0)]
    assert pluggable.messages() == [(1, DEVICE_REMOVE, 0, b"")]
    assert stream.closed


@pytest.mark.parametrize("number", [0, 1, 7])
def test_port_0_and_ports_that_do_not_exist_cannot_be_unplugged(
    pluggable: Bench, number: int
) -> None:
    with pytest.raises(KeyError):
        pluggable.device.remove_port(number)
    assert pluggable.messages() == []
    assert pluggable.works()


def test_what_is_sent_to_a_port_that_does_not_exist_is_used_and_dropped(pluggable: Bench) -> None:
    head = pluggable.transmit(b"nobody", PORT1_TX)
    assert pluggable.transmitted(PORT1_TX) == [(head, 0)]
    pluggable.supply(64, queue=PORT1_RX)
    assert pluggable.received(PORT1_RX) == []


def test_a_port_that_came_and_went_unseen_is_not_mentioned(pluggable: Bench) -> None:
    pluggable.driver.start([F_MULTIPORT])
    pluggable.control(0, DEVICE_READY)
    pluggable.device.add_port(1, FakeStream(), "short-lived")
    pluggable.device.remove_port(1)
    pluggable.supply(*[64] * 8, queue=CONTROL_RECEIVEQ)
    assert pluggable.messages() == [(0, DEVICE_ADD, 0, b"")]


def test_a_port_is_removed_before_its_successor_is_added(pluggable: Bench) -> None:
    pluggable.device.add_port(1, FakeStream(), "first")
    pluggable.messages()
    pluggable.driver.queues[CONTROL_RECEIVEQ].take_all_used()
    with_no_buffers = pluggable.driver.queues[CONTROL_RECEIVEQ]
    while pluggable.device.queues[CONTROL_RECEIVEQ].pop() is not None:
        pass
    pluggable.device.remove_port(1)
    pluggable.device.add_port(1, FakeStream(), "second")
    pluggable.supply(*[64] * min(4, with_no_buffers.free), queue=CONTROL_RECEIVEQ)
    assert [event for _, event, _, _ in pluggable.messages()] == [DEVICE_REMOVE, DEVICE_ADD]


# Broken rings (2.1.2)


@pytest.mark.parametrize("queue", [RX, TX, CONTROL_RECEIVEQ, CONTROL_TRANSMITQ, PORT1_TX])
def test_a_ring_that_cannot_be_right_needs_a_reset_and_works_after_it(
    multiport: Bench, queue: int
) -> None:
    multiport.start_multiport()
    multiport.control(0, PORT_OPEN)
    multiport.driver.queues[queue].available.idx += 1000
    multiport.driver.kick(queue)
    multiport.stream.send(b"input")
    # More messages than there were buffers: the ring is read again.
    for cols in range(40):
        multiport.stream.resize(cols, 1)
    assert multiport.needs_reset
    multiport.start_multiport()
    assert not multiport.needs_reset
    assert multiport.works()


def test_a_ring_that_breaks_when_the_host_writes_stops_the_device_without_spinning(
    bench: Bench,
) -> None:
    bench.driver.queues[RX].available.idx += 1000
    bench.stream.send(b"input")
    assert bench.needs_reset
    assert not bench.stream.wants_input
    bench.stream.send(b" and more")
    bench.driver.start([])
    bench.supply(64, 64)
    bench.stream.run()
    assert b"".join(bench.received()) == b"input and more"


def test_a_ring_that_breaks_while_the_host_is_full_stops_the_device_without_spinning(
    bench: Bench,
) -> None:
    bench.stream.room = 0
    bench.transmit(b"stuck")
    bench.driver.queues[TX].available.idx += 1000
    bench.stream.take(100)
    assert bench.needs_reset
    assert not bench.stream.wants_room
    bench.driver.start([])
    assert bench.works()


def test_a_malformed_chain_goes_back_and_the_next_is_served(bench: Bench) -> None:
    bench.driver.queues[TX].add([Piece(MEMORY_SIZE + 0x1000, 10)])
    bench.transmit(b"good")
    assert [length for _, length in bench.transmitted()] == [0, 0]
    assert bench.stream.outgoing == b"good"


def test_closing_the_device_closes_every_stream(multiport: Bench) -> None:
    multiport.device.close()
    assert all(stream.closed for stream in multiport.streams)
