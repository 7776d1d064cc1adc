"""The 9P transport device, driven over its registers, with a file server of the test's."""

import errno
import struct
from collections.abc import Callable, Iterator

import pytest

from virtiopy.devices import ninep
from virtiopy.devices.ninep import (
    ERROR_SIZE,
    HEADER_SIZE,
    HELD_MAX,
    MESSAGE_MAX,
    MOMENT,
    MOMENTS,
    RLERROR,
    SETTLING_TIME,
    FileServerUser,
    NineP,
)
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.driver import Allocator, Piece

MEMORY_SIZE = 4 << 20
TREAD = 116
STALE = 0xEE


class HeldServer:
    """A file server that answers when the test says so."""

    def __init__(self) -> None:
        self.can_start = True
        self.sessions = 0
        self.requests: list[bytes] = []
        self.user: FileServerUser | None = None
        self.ends = 0
        #: What happens while the device waits, one thing a time; time passes where nothing does.
        self.when_waited_for: list[Callable[[], None]] = []
        self.waited: list[float] = []
        self.clock = 0.0
        #: Whether a loop looks for answers, at each turn of that.
        self.held: list[bool] = []

    def start(self, loop: EventLoop | None, user: FileServerUser) -> bool:
        self.user = user
        self.sessions += self.can_start
        return self.can_start

    def send(self, message: bytes) -> None:
        self.requests.append(message)

    def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        if self.when_waited_for:
            self.when_waited_for.pop(0)()
            return True
        self.clock += seconds
        return False

    def hold(self, *, held: bool) -> None:
        self.held.append(held)

    def end(self) -> None:
        self.requests.clear()
        self.ends += 1

    def close(self) -> None:
        self.user = None

    def answer(self, tag: int, body: bytes = b"") -> None:
        assert self.user is not None
        self.user.answered(message(tag, body, kind=TREAD + 1))


def message(tag: int, body: bytes = b"", *, kind: int = TREAD) -> bytes:
    return struct.pack("<IBH", HEADER_SIZE + len(body), kind, tag) + body


def error(tag: int, number: int) -> bytes:
    return struct.pack("<IBHI", ERROR_SIZE, RLERROR, tag, number)


class Bench:
    """A 9P device, its server and its driver."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.server = HeldServer()
        self.device = NineP(self.server, "files")
        transport = MmioTransport(self.device, memory, LevelInterrupt(lambda level: None))
        self.driver = MmioDriver(transport, memory, Allocator(0x1000, MEMORY_SIZE))

    def offer(self, data: bytes, room: int = 64) -> Piece:
        """Offer a request; returns the room for its answer."""
        readable = Piece(self.driver.allocator.take(max(1, len(data))), len(data), writable=False)
        self.memory.write(readable.address, data)
        writable = Piece(self.driver.allocator.take(max(1, room)), room, writable=True)
        self.memory.write(writable.address, bytes([STALE]) * room)
        self.driver.queues[0].add([readable, writable] if room else [readable])
        return writable

    def lengths(self) -> list[int]:
        return [used.length for used in self.driver.collect(0)]

    def ask(self, data: bytes, room: int = 64) -> bytes:
        """Return what the device itself answers at once."""
        piece = self.offer(data, room)
        [length] = self.lengths()
        content = self.memory.read(piece.address, room)
        assert content[length:] == bytes([STALE]) * (room - length)
        return content[:length]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        bench = Bench(memory)
        monkeypatch.setattr(ninep, "monotonic", lambda: bench.server.clock)
        bench.driver.start()
        yield bench


def test_the_device_has_the_tag_that_it_is_mounted_by(bench: Bench) -> None:
    assert bench.driver.read(Register.DeviceID) == DeviceId.NINE_P
    assert bench.device.config_space() == b"\x05\x00files"


@pytest.mark.parametrize("tag", ["", "x" * 256])
def test_a_tag_that_no_driver_takes_is_none(tag: str) -> None:
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        NineP(HeldServer(), tag)


def test_answers_go_to_their_requests_in_the_servers_order(bench: Bench) -> None:
    first, second = bench.offer(message(1)), bench.offer(message(2))
    assert bench.lengths() == []
    assert bench.server.requests == [message(1), message(2)]
    bench.server.answer(2, b"two")
    bench.server.answer(1, b"one")
    assert bench.lengths() == [HEADER_SIZE + 3] * 2
    for piece, body in ((first, b"one"), (second, b"two")):
        assert bench.memory.read(piece.address + HEADER_SIZE, 3) == body


@pytest.mark.parametrize(
    ("data", "tag"),
    [
        (b"", 0xFFFF),
        (message(7)[:-1], 0xFFFF),
        (struct.pack("<IBH", 8, TREAD, 7), 7),
        (struct.pack("<IBH", 6, TREAD, 7), 7),
        (message(7, kind=TREAD + 1), 7),
        (message(7, kind=6), 7),
        (message(7, kind=128), 7),
        (message(7, bytes(MESSAGE_MAX)), 0xFFFF),
    ],
    ids=["empty", "cut", "longer", "no-header", "answer", "low", "high", "huge"],
)
def test_what_is_no_request_is_refused_and_not_sent(bench: Bench, data: bytes, tag: int) -> None:
    assert bench.ask(data) == error(tag, errno.EINVAL)
    assert bench.server.requests == []


def test_what_follows_a_message_is_not_sent(bench: Bench) -> None:
    bench.offer(message(1) + b"more")
    bench.lengths()
    assert bench.server.requests == [message(1)]


@pytest.mark.parametrize("room", [0, ERROR_SIZE - 1])
def test_a_request_without_room_for_an_error_comes_back_empty(bench: Bench, room: int) -> None:
    assert bench.ask(message(1), room) == b""
    assert bench.server.requests == []


def test_an_answer_larger_than_its_room_is_an_error(bench: Bench) -> None:
    piece = bench.offer(message(1), room=16)
    bench.lengths()
    bench.server.answer(1, bytes(10))
    assert bench.lengths() == [ERROR_SIZE]
    assert bench.memory.read(piece.address, ERROR_SIZE) == error(1, errno.EMSGSIZE)


def test_a_tag_in_use_is_refused_and_its_first_request_is_answered(bench: Bench) -> None:
    bench.offer(message(1))
    bench.lengths()
    assert bench.ask(message(1)) == error(1, errno.EINVAL)
    bench.server.answer(1)
    assert bench.lengths() == [HEADER_SIZE]


def test_an_answer_to_nothing_is_dropped(bench: Bench) -> None:
    bench.offer(message(1))
    bench.lengths()
    bench.server.answer(9)
    assert bench.lengths() == []


def test_a_server_that_ends_leaves_errors_until_a_reset(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    piece = bench.offer(message(1))
    bench.lengths()
    bench.device.server_gone()
    assert bench.lengths() == [ERROR_SIZE]
    assert bench.memory.read(piece.address, ERROR_SIZE) == error(1, errno.EIO)
    assert bench.ask(message(2)) == error(2, errno.EIO)
    assert len(caplog.records) == 1
    assert "file server of files ended: 1 requests" in caplog.text
    bench.driver.reset()
    bench.driver.start()
    bench.offer(message(3))
    bench.lengths()
    assert bench.server.requests[-1] == message(3)
    assert bench.server.sessions == 2


def test_a_server_that_cannot_be_had_is_an_error(bench: Bench) -> None:
    bench.server.can_start = False
    assert bench.ask(message(1)) == error(1, errno.EIO)


def test_a_reset_ends_the_session_and_what_it_had(bench: Bench) -> None:
    bench.offer(message(1))
    bench.lengths()
    bench.driver.reset()
    assert bench.server.requests == []
    bench.driver.start()
    bench.server.answer(1)
    assert bench.lengths() == []


def test_what_a_driver_makes_available_is_not_all_held_at_once(bench: Bench) -> None:
    """Each may have 1 MiB, and a virtqueue has room for many."""
    shared = Piece(bench.driver.allocator.take(MESSAGE_MAX), MESSAGE_MAX - HEADER_SIZE)
    tags = range(40)
    for tag in tags:
        header = Piece(bench.driver.allocator.take(HEADER_SIZE), HEADER_SIZE)
        bench.memory.write(header.address, struct.pack("<IBH", MESSAGE_MAX, TREAD, tag))
        room = Piece(bench.driver.allocator.take(64), 64, writable=True)
        bench.driver.queues[0].add([header, shared, room])
    assert bench.lengths() == []
    assert sum(map(len, bench.server.requests)) == HELD_MAX

    answered = []
    for tag in tags:
        bench.server.answer(tag)
        # There is no loop here: the driver's next kick has the device go on.
        answered += bench.lengths()
        assert sum(map(len, bench.server.requests[tag + 1 :])) <= HELD_MAX
    assert answered == [HEADER_SIZE] * len(tags)


def test_an_answer_that_comes_at_once_is_there_when_the_kick_is_done(bench: Bench) -> None:
    bench.server.when_waited_for = [lambda: bench.server.answer(1)]
    bench.offer(message(1))
    assert bench.lengths() == [HEADER_SIZE]
    assert bench.server.waited == [MOMENT]
    # Nor was the loop woken for it, nor will it be for the next.
    assert bench.server.held == [True]


def test_an_answer_that_does_not_is_not_waited_for_any_longer(bench: Bench) -> None:
    bench.offer(message(1))
    assert bench.lengths() == []
    assert sum(bench.server.waited) == MOMENT
    assert bench.server.held == [True, False]


def test_a_server_that_goes_on_answering_is_waited_for_in_bounds(bench: Bench) -> None:
    """As one does that has a large request in parts."""

    def part() -> None:
        bench.server.clock += MOMENT * 0.75

    bench.server.when_waited_for = [*[part] * 5, lambda: bench.server.answer(1)]
    bench.offer(message(1))
    assert bench.lengths() == [HEADER_SIZE]
    bench.server.when_waited_for = [part] * 100
    bench.server.clock = 0
    bench.offer(message(2))
    assert bench.lengths() == []
    assert MOMENTS <= bench.server.clock < MOMENTS + MOMENT


def test_a_queue_that_is_to_stop_has_its_requests_answered(bench: Bench) -> None:
    bench.offer(message(1))
    bench.offer(message(2))
    bench.lengths()
    bench.server.when_waited_for = [lambda tag=tag: bench.server.answer(tag) for tag in (2, 1)]  # type: ignore[misc]
    bench.device.settle(0)
    assert bench.lengths() == [HEADER_SIZE] * 2
    bench.device.stop_queue(0)
    assert bench.server.ends == 0


def test_a_server_that_does_not_answer_keeps_no_queue_from_stopping(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    piece = bench.offer(message(1))
    bench.lengths()
    bench.server.waited.clear()
    bench.device.settle(0)
    assert sum(bench.server.waited) == SETTLING_TIME
    assert bench.lengths() == [ERROR_SIZE]
    assert bench.memory.read(piece.address, ERROR_SIZE) == error(1, errno.EIO)
    assert bench.server.ends == 1
    assert "left a request unanswered for 5 s" in caplog.text


def test_a_queue_that_is_reset_with_a_request_in_it_ends_the_session(bench: Bench) -> None:
    bench.offer(message(1))
    bench.lengths()
    bench.device.reset_queue(0)
    assert bench.server.ends == 1
