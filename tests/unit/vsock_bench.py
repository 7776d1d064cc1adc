"""A socket device with host's sockets of the test's, and its driver."""

from collections.abc import Iterator
from contextlib import contextmanager

from virtiopy.devices.vsock import SocketType, Vsock
from virtiopy.devices.vsock.features import HOST_CID, Operation
from virtiopy.devices.vsock.packet import HEADER_SIZE, Header, pack_header, parse_header
from virtiopy.devices.vsock.sockets import HostSocket, SocketsUser, SocketUser
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, total
from virtiopy.virtqueue.driver import Allocator, Piece

MEMORY_SIZE = 32 << 20
RX, TX, EVENT = 0, 1, 2
CID, GUEST_PORT, HOST_PORT = 42, 1000, 52

#: What the guest says that it has room for.
ROOM = 1 << 16

STREAM, SEQPACKET = SocketType.STREAM, SocketType.SEQPACKET


class FakeSocket:
    """A program of the host's: it has things to say, and `room` for what it is told."""

    def __init__(self, kind: SocketType = STREAM) -> None:
        self.kind = kind
        self.gone = self.closed = self.input_ended = self.output_ended = False
        self.room = 1 << 30
        self.sent: list[bytes] = []
        self.said: list[bytes] = []
        self.ended = False
        self.host_port: int | None = None
        self.user: SocketUser | None = None
        self.wanted = {"input": False, "room": False}

    @property
    def received(self) -> bytes:
        return b"".join(self.sent)

    def watch(self, user: SocketUser) -> None:
        self.user = user

    def want(self, *, input: bool | None = None, room: bool | None = None) -> None:  # noqa: A002
        for key, on in (("input", input), ("room", room)):
            if on is not None:
                self.wanted[key] = on

    def established(self, host_port: int) -> None:
        self.host_port = host_port

    def receive(self, buffers: Buffers) -> int | None:
        if not self.said:
            return 0 if self.ended or self.gone else None
        data = self.said.pop(0)
        length = scatter(buffers, data)
        if self.kind is STREAM and length < len(data):
            self.said.insert(0, data[length:])
        return length

    def send(self, buffers: Buffers) -> int | None:
        if self.gone:
            return total(buffers)
        data = gather(buffers)
        taken = data[: self.room]
        if (data and not taken) or (self.kind is SEQPACKET and len(taken) < len(data)):
            return None
        self.room -= len(taken)
        self.sent.append(taken)
        return len(taken)

    def end_input(self) -> None:
        self.input_ended = True

    def end_output(self) -> None:
        self.output_ended = True

    def close(self) -> None:
        self.closed = True

    # What the program does

    def say(self, *data: bytes, end: bool = False) -> None:
        self.said += data
        self.ended |= end
        if self.wanted["input"] and self.user is not None:
            self.user.input_ready()

    def take(self, count: int) -> None:
        self.room += count
        if self.wanted["room"] and self.user is not None:
            self.user.room_ready()

    def hang_up(self) -> None:
        self.gone = True
        if self.user is not None:
            self.user.hung_up()


class FakeSockets:
    """The host: programs listen at `listening`."""

    def __init__(self) -> None:
        self.listening = {HOST_PORT}
        self.opened: list[FakeSocket] = []
        self.room = 1 << 30
        self.closed = False

    def open(self, loop: EventLoop, user: SocketsUser) -> None:
        """Do nothing: programs come by `Bench.call`."""

    def connect(self, port: int, kind: SocketType) -> HostSocket | None:
        if port not in self.listening:
            return None
        self.opened.append(FakeSocket(kind))
        self.opened[-1].room = self.room
        return self.opened[-1]

    def close(self) -> None:
        self.closed = True


class Bench:
    """The device, its host and its driver."""

    def __init__(self, memory: GuestMemory, loop: EventLoop | None = None) -> None:
        self.memory = memory
        self.host = FakeSockets()
        self.device = Vsock(CID, self.host)
        transport = MmioTransport(
            self.device, memory, LevelInterrupt(lambda level: None), loop=loop
        )
        self.driver = MmioDriver(transport, memory, Allocator(0x1000, MEMORY_SIZE))
        self.buffers: dict[int, tuple[Piece, Piece]] = {}
        self.came: list[tuple[Header, bytes]] = []

    # The guest's side

    def piece(self, data: bytes | int) -> Piece:
        """Return a buffer with these bytes, or with room for so many."""
        length = data if isinstance(data, int) else len(data)
        piece = Piece(self.driver.allocator.take(max(1, length)), length, isinstance(data, int))
        if isinstance(data, bytes):
            self.memory.write(piece.address, data)
        return piece

    def supply(self, count: int = 1, room: int = 4096, *, kick: bool = True) -> None:
        """Give the device buffers to fill."""
        for _ in range(count):
            head, payload = self.piece(HEADER_SIZE), self.piece(room)
            added = self.driver.queues[RX].add([head, payload] if room else [head])
            self.buffers[added] = head, payload
        if kick:
            self.driver.kick(RX)

    def transmit(self, *pieces: Piece) -> int:
        """Send a packet as it stands; returns the used length."""
        self.driver.queues[TX].add(list(pieces))
        [used] = self.driver.collect(TX)
        return used.length

    def send(
        self,
        op: int,
        data: bytes = b"",
        *,
        kind: int = STREAM,
        src_cid: int = CID,
        dst_cid: int = HOST_CID,
        src_port: int = GUEST_PORT,
        dst_port: int = HOST_PORT,
        length: int | None = None,
        flags: int = 0,
        buf_alloc: int = ROOM,
        fwd_cnt: int = 0,
    ) -> None:
        """Send a packet."""
        header = Header(
            *(src_cid, dst_cid, src_port, dst_port, len(data) if length is None else length),
            *(kind, op, flags, buf_alloc, fwd_cnt),
        )
        pieces = [self.piece(pack_header(header))]
        if data:
            pieces.append(self.piece(data))
        assert self.transmit(*pieces) == 0

    def packets(self) -> list[tuple[Header, bytes]]:
        """Return the packets that have come since the last call."""
        came = []
        for used in self.driver.queues[RX].take_all_used():
            head, payload = self.buffers.pop(used.head)
            if used.length:
                header = parse_header(self.memory.read(head.address, HEADER_SIZE))
                assert used.length == HEADER_SIZE + header.length
                assert (header.src_cid, header.dst_cid & 0xFFFF_FFFF) != (0, 0)
                came.append((header, self.memory.read(payload.address, header.length)))
        return came

    def ops(self) -> list[int]:
        """Return the operations of the packets that have come."""
        return [header.op for header, _ in self.packets()]

    # Connections

    def connect(
        self,
        kind: SocketType = STREAM,
        *,
        src_cid: int = CID,
        src_port: int = GUEST_PORT,
        dst_port: int = HOST_PORT,
        buf_alloc: int = ROOM,
        fwd_cnt: int = 0,
    ) -> FakeSocket:
        """Have the guest connect to the program; returns the program's side."""
        self.send(
            Operation.REQUEST,
            kind=kind,
            src_cid=src_cid,
            src_port=src_port,
            dst_port=dst_port,
            buf_alloc=buf_alloc,
            fwd_cnt=fwd_cnt,
        )
        [(header, _)] = self.packets()
        assert header.op == Operation.RESPONSE
        return self.host.opened[-1]

    def call(self, port: int = GUEST_PORT, kind: SocketType = STREAM) -> FakeSocket:
        """Have a program connect to the guest."""
        socket = FakeSocket(kind)
        with self.device.lock:
            self.device.connect(port, kind, socket)
        return socket


@contextmanager
def open_bench(loop: EventLoop | None = None) -> Iterator[Bench]:
    """Make a bench whose driver has started, with a few buffers for packets to it."""
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        bench = Bench(memory, loop)
        bench.driver.start()
        bench.supply(8)
        yield bench
