"""A frontend that says whatever a test has it say, and an account of what it leaves behind."""

import contextlib
import dataclasses
import gc
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE
from tests.unit.vhost_user import FEATURES, Driver, Served, readable
from virtiopy import eventfds
from virtiopy.closing import Closing
from virtiopy.devices.blk import Blk
from virtiopy.errors import PeerError
from virtiopy.host.disk import DiskImage
from virtiopy.memory import GuestMemory, Region
from virtiopy.vhost.user.backend import PROTOCOL_FEATURES
from virtiopy.vhost.user.connection import Connection, close_all
from virtiopy.vhost.user.messages import (
    VHOST_F_LOG_ALL,
    VHOST_USER_F_PROTOCOL_FEATURES,
    VHOST_VRING_F_LOG,
    ConfigAccess,
    Flag,
    InflightArea,
    LogArea,
    MemoryRegion,
    Message,
    Request,
    RingAddresses,
    RingState,
    memory_table,
    ring_file,
    u64,
)
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece

SECTOR = 512
SECTORS = 256
IN, OUT = 0, 1

#: Where a peer's memory is, in the guest's addresses and in its own.
GUEST_ADDRESS = 0x10_0000
USER_ADDRESS = 0x7F00_0000_0000
MEMORY_SIZE = 1 << 20

#: Where its buffers are: pages of their own, in this order behind the rings.
HEADER, STATUS, DATA = (GUEST_ADDRESS + page for page in (0x8_0000, 0x9_0000, 0xA_0000))

QUEUE_SIZE = 16

#: How many messages a good session has.
SESSION_LENGTH = 26
LOG_SIZE = 4096
INFLIGHT_SIZE = 4096
FEATURE_BITS = FEATURES | 1 << VHOST_USER_F_PROTOCOL_FEATURES | 1 << VHOST_F_LOG_ALL


def blk_header(kind: int, sector: int) -> bytes:
    """Make a struct virtio_blk_outhdr."""
    return kind.to_bytes(4, "little") + bytes(4) + sector.to_bytes(8, "little")


def make_image(path: Path) -> Path:
    """Make an image in which each sector is known by its bytes."""
    path.write_bytes(b"".join(bytes([sector % 251]) * SECTOR for sector in range(SECTORS)))
    return path


def read_sector(driver: Driver, sector: int, queue: int = 0) -> bytes:
    """Read a sector of a block device that is served."""
    data, status = driver.piece(SECTOR), driver.piece(1)
    driver.queues[queue].driver.add([driver.piece(blk_header(IN, sector)), data, status])
    driver.queues[queue].notify()
    driver.queues[queue].wait()
    assert driver.memory.read(status.address, 1) == b"\0"
    return driver.memory.read(data.address, SECTOR)


@contextlib.contextmanager
def shrinkable_memory(size: int = 4 << 20) -> Iterator[GuestMemory]:
    """Make memory that a frontend can take away: what GuestMemory allocates keeps its size."""
    fd = _memfd("shrinkable", size)
    try:
        with GuestMemory([Region.map(0, size, fd, 0)]) as memory:
            yield memory
    finally:
        os.close(fd)


class Log(logging.Handler):
    """What the package logs, with the levels."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[int, str]] = []
        self._more = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._more:
            self.lines.append((record.levelno, record.getMessage()))
            self._more.notify_all()

    def ends(self) -> list[tuple[int, str]]:
        """Return what was said of frontends that have gone, with its level."""
        return [
            (level, text)
            for level, text in self.lines
            if text.startswith(("the frontend is gone: ", "the frontend was disconnected: "))
        ]

    def wait_for_end(self, count: int) -> None:
        """Wait until so many frontends have gone."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.ends()) >= count, PATIENCE), self.lines


@contextlib.contextmanager
def logged() -> Iterator[Log]:
    """Keep what the package logs meanwhile.

    All records are text, for pytest keeps them too: with an exception they would keep the frames
    that it went through, and so the buffers that were worked on there.
    """
    factory = logging.getLogRecordFactory()

    def as_text(*args: Any, **keywords: Any) -> logging.LogRecord:  # noqa: ANN401
        record = factory(*args, **keywords)
        record.msg, record.args = record.getMessage(), None
        return record

    logger, handler = logging.getLogger("virtiopy"), Log()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logging.setLogRecordFactory(as_text)
    try:
        yield handler
    finally:
        logging.setLogRecordFactory(factory)
        logger.setLevel(level)
        logger.removeHandler(handler)


@dataclasses.dataclass(frozen=True)
class Holdings:
    """What this process has open and mapped."""

    descriptors: int
    mappings: int

    @classmethod
    def now(cls) -> "Holdings":
        maps = Path("/proc/self/maps").read_text().splitlines()
        return cls(len(os.listdir("/proc/self/fd")), sum("/memfd:" in line for line in maps))


class Peer(Closing):
    """A frontend of `stream`, with memory, a virtqueue and everything else that a session takes."""

    def __init__(self, stream: socket.socket) -> None:
        self.connection = Connection(stream)
        self.memory_fd = _memfd("peer-memory", MEMORY_SIZE)
        self.log_fd = _memfd("peer-log", LOG_SIZE)
        self.inflight_fd = _memfd("peer-inflight", INFLIGHT_SIZE)
        self.kick, self.call, self.error = (os.eventfd(0, os.EFD_CLOEXEC) for _ in range(3))
        self.channel, self._theirs = socket.socketpair()
        self.memory = GuestMemory([Region.map(GUEST_ADDRESS, MEMORY_SIZE, self.memory_fd, 0)])
        allocator = Allocator(GUEST_ADDRESS, GUEST_ADDRESS + MEMORY_SIZE)
        self.queue = DriverQueue(self.memory, QUEUE_SIZE, allocator, event_idx=True)
        self._closed = False

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.connection.close()
        self.memory.close()
        close_all([self.memory_fd, self.log_fd, self.inflight_fd, self.kick, self.call, self.error])
        self.channel.close()
        self._theirs.close()

    # What it may say

    def region(self, **changes: int) -> MemoryRegion:
        """Describe its memory, with some lies."""
        truth = MemoryRegion(GUEST_ADDRESS, MEMORY_SIZE, USER_ADDRESS, 0)
        return dataclasses.replace(truth, **changes)

    def table(self, *regions: MemoryRegion) -> Message:
        """Make a SET_MEM_TABLE."""
        fds = [self.memory_fd] * len(regions)
        return Message(Request.SET_MEM_TABLE, memory_table(regions), fds=fds)

    def addresses(self, **changes: int) -> Message:
        """Make a SET_VRING_ADDR, with some lies."""
        parts = self.queue.areas
        truth = RingAddresses(
            0,
            1 << VHOST_VRING_F_LOG,
            USER_ADDRESS + parts.descriptor - GUEST_ADDRESS,
            USER_ADDRESS + parts.device - GUEST_ADDRESS,
            USER_ADDRESS + parts.driver - GUEST_ADDRESS,
            parts.device,
        )
        return Message(Request.SET_VRING_ADDR, dataclasses.replace(truth, **changes).encode())

    def session(self) -> list[Message]:
        """Return all messages of a good session with one ring, in their order."""
        inflight = InflightArea(INFLIGHT_SIZE, 0, 1, QUEUE_SIZE)
        return [
            Message(Request.GET_FEATURES),
            Message(Request.SET_OWNER),
            Message(Request.GET_PROTOCOL_FEATURES),
            Message(Request.SET_PROTOCOL_FEATURES, u64(PROTOCOL_FEATURES)),
            Message(Request.GET_QUEUE_NUM),
            Message(Request.SET_BACKEND_REQ_FD, fds=[self._theirs.fileno()]),
            Message(Request.GET_CONFIG, ConfigAccess(0, bytes(60)).encode()),
            Message(Request.SET_FEATURES, u64(FEATURE_BITS), Flag.NEED_REPLY),
            Message(Request.SET_STATUS, u64(0x0B)),
            Message(Request.GET_INFLIGHT_FD, InflightArea(0, 0, 1, QUEUE_SIZE).encode()),
            Message(Request.SET_INFLIGHT_FD, inflight.encode(), fds=[self.inflight_fd]),
            Message(Request.SET_LOG_BASE, LogArea(LOG_SIZE, 0).encode(), fds=[self.log_fd]),
            self.table(self.region()),
            Message(Request.SET_VRING_NUM, RingState(0, QUEUE_SIZE).encode()),
            Message(Request.SET_VRING_BASE, RingState(0, 0).encode()),
            self.addresses(),
            Message(Request.SET_VRING_CALL, ring_file(0, has_fd=True), fds=[self.call]),
            Message(Request.SET_VRING_ERR, ring_file(0, has_fd=True), fds=[self.error]),
            Message(Request.SET_VRING_KICK, ring_file(0, has_fd=True), fds=[self.kick]),
            Message(Request.SET_VRING_ENABLE, RingState(0, 1).encode(), Flag.NEED_REPLY),
            Message(Request.SET_STATUS, u64(0x0F)),
            Message(Request.GET_STATUS),
            Message(Request.SET_CONFIG, ConfigAccess(32, b"\0").encode(), Flag.NEED_REPLY),
            Message(Request.GET_MAX_MEM_SLOTS),
            Message(Request.GET_VRING_BASE, RingState(0, 0).encode()),
            Message(Request.RESET_DEVICE),
        ]

    def session_up_to(self, request: Request) -> list[Message]:
        """Return the messages of a good session before the first of this kind."""
        session = self.session()
        return session[: [message.request for message in session].index(request)]

    # What it does

    def say(self, *messages: Message) -> None:
        """Send messages; one that ends the connection leaves the rest unsaid."""
        with contextlib.suppress(PeerError):
            for message in messages:
                self.connection.send(message)

    def start(self) -> None:
        """Say what a good session says until its ring is worked, and hear that it is."""
        self.say(*self.session_up_to(Request.GET_STATUS))
        self.connection.send(Message(Request.GET_STATUS))
        while (answer := self.connection.receive()) is not None:
            close_all(answer.fds)
            if answer.request == Request.GET_STATUS:
                return

    def make_available(self, kind: int = IN, *, data: int = DATA, status: int = STATUS) -> None:
        """Make a request for 4 KiB from the disk's start, or to it, available."""
        self.memory.write(HEADER, blk_header(kind, 0))
        pieces = [Piece(HEADER, 16), Piece(data, 4096, kind == IN), Piece(status, 1, writable=True)]
        self.queue.add(pieces)

    def notify(self) -> None:
        os.eventfd_write(self.kick, 1)

    def wait_used(self) -> None:
        """Wait until the backend has used a buffer."""
        readable(self.call)


def _memfd(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def _make_what_stays() -> None:
    """Have the file that eventfds are signalled by, which the process makes once and keeps."""
    eventfd = os.eventfd(0, os.EFD_CLOEXEC)
    eventfds.signal(eventfd)
    os.close(eventfd)


class Bench(Closing):
    """A block device that is served, and what the process holds without a frontend.

    While there is one, no garbage is collected: what other tests have left does not go meanwhile,
    and what nobody lets go of does not either.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        if gc.isenabled():
            gc.disable()
            self._stack.callback(gc.enable)
        self.log = self._stack.enter_context(logged())
        device = Blk(DiskImage(make_image(folder / "disk.img")), num_queues=2, queue_size=16)
        self.served = self._stack.enter_context(Served(device, folder / "blk.sock"))
        self._ends = 0
        _make_what_stays()
        self._before = Holdings.now()
        # Once, so that whatever is made at the first need is there.
        self._serve_well()
        self._assert_nothing_is_left()

    def close(self) -> None:
        self._stack.close()

    def peer(self) -> Peer:
        """Make a peer, whose fate is `end`."""
        self._before = Holdings.now()
        self._ends = len(self.log.ends())
        self._peer = Peer(self.served.connect())
        return self._peer

    def end(self) -> tuple[int, str]:
        """Return the one reason for which the last peer went, with its level.

        Nothing is left of it, and the next frontend is served well.
        """
        end = self._wait_for_end()
        self._peer.close()
        self._assert_nothing_is_left()
        self._serve_well()
        self._assert_nothing_is_left()
        return end

    def _assert_nothing_is_left(self) -> None:
        # A worker may yet be about to hand its last batch, which nobody waits for, to the loop.
        deadline = time.monotonic() + PATIENCE
        while Holdings.now() != self._before and time.monotonic() < deadline:
            self.served.loop.call(lambda: None, "settle")
        assert Holdings.now() == self._before, f"{Holdings.now()}, and {self._before} before"

    def _serve_well(self) -> None:
        with Driver(self.served.connect(), queue_count=2) as driver:
            driver.start()
            assert read_sector(driver, 7) == bytes([7]) * SECTOR
            assert read_sector(driver, 8, queue=1) == bytes([8]) * SECTOR
        assert self._wait_for_end() == (logging.INFO, "the frontend is gone: it left")

    def _wait_for_end(self) -> tuple[int, str]:
        self._ends += 1
        self.log.wait_for_end(self._ends)
        # It is logged first, and done by the end of that turn of the loop.
        self.served.loop.call(lambda: None, "settle")
        assert self.served.loop.failure is None
        ends = self.log.ends()
        assert len(ends) == self._ends, ends
        errors = [line for line in self.log.lines if line[0] >= logging.ERROR]
        assert errors == [line for line in ends if line[0] >= logging.ERROR]
        return ends[-1]


#: What a peer says that is bad.
Bad = Callable[[Peer], Message | bytes]


def assert_ends(bench: Bench, when: Request, bad: Bad, reason: str) -> None:
    """Have a peer say something bad at some point of a good session."""
    with bench.peer() as peer:
        peer.say(*peer.session_up_to(when))
        said = bad(peer)
        if isinstance(said, bytes):
            peer.connection.socket.sendall(said)
        else:
            peer.say(said)
        level, text = bench.end()
    assert level == logging.ERROR
    assert re.search(reason, text), text
    assert text.startswith("the frontend was disconnected: ")


@contextlib.contextmanager
def full_socket(path: Path) -> Iterator[None]:
    """Listen at a socket, accept nobody, and have as many wait there as can."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        yield
