import contextlib
import os
import select
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest

from tests.patience import PATIENCE, timed
from virtiopy._native import lib
from virtiopy.host.disk import CacheMode, DiskImage
from virtiopy.memory import GuestMemory
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Piece, Used
from virtiopy.virtqueue.native import NativeQueue
from virtiopy.virtqueue.queue import Chain, QueueError
from virtiopy.worker.blk import NativeDisk
from virtiopy.worker.thread import Engine, NativeRing, RingCounts, WorkerThread

MEMORY_SIZE = 8 << 20
SECTORS = 256

IN, OUT, FLUSH, GET_ID, DISCARD = 0, 1, 4, 8, 11
OK = 0
UNTOUCHED = 0xEE


@dataclass
class Bench:
    """A disk whose ring a thread in C works, and its driver."""

    memory: GuestMemory
    allocator: Allocator
    driver: DriverQueue
    queue: NativeQueue
    ring: NativeRing
    thread: WorkerThread
    disk: DiskImage
    image: Path
    native: NativeDisk
    kick: int
    call: int
    status: dict[int, int] = field(default_factory=dict)

    def start(self) -> None:
        self.ring.start(self.thread)

    def request(self, kind: int, sector: int, *data: Piece, status: bool = True) -> int:
        header = self.allocator.take(16)
        self.memory.write(header, struct.pack("<IIQ", kind, 0, sector))
        last = self.allocator.take(1)
        self.memory.write(last, bytes([UNTOUCHED]))
        pieces = [Piece(header, 16), *data]
        if status:
            pieces.append(Piece(last, 1, writable=True))
        head = self.driver.add(pieces)
        self.status[head] = last
        return head

    def read(self, sector: int, length: int) -> tuple[int, Piece]:
        piece = Piece(self.allocator.take(length, 4096), length, writable=True)
        return self.request(IN, sector, piece), piece

    def write(self, sector: int, data: bytes) -> int:
        piece = Piece(self.allocator.take(len(data), 4096), len(data))
        self.memory.write(piece.address, data)
        return self.request(OUT, sector, piece)

    def send_kick(self) -> None:
        if self.driver.should_kick():
            os.eventfd_write(self.kick, 1)

    def interrupted(self, seconds: float = PATIENCE) -> bool:
        return bool(select.select([self.call], [], [], seconds)[0])

    def await_used(self, count: int) -> list[Used]:
        """Wait, by interrupts, for what the device uses."""
        used = self.driver.take_all_used()
        end = time.monotonic() + PATIENCE
        while len(used) < count:
            if not self.driver.enable_interrupts():
                assert self.interrupted(end - time.monotonic()), f"{len(used)} of {count}"
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.call)
            used += self.driver.take_all_used()
        return used

    def status_of(self, head: int) -> int:
        return self.memory.read(self.status[head], 1)[0]

    def await_attention(self) -> None:
        assert select.select([self.thread.attention], [], [], PATIENCE)[0]
        self.thread.look()

    def await_handed_up(self) -> list[Chain]:
        self.await_attention()
        return self.queue.pop_many()


Build = Callable[..., Bench]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    with contextlib.ExitStack() as stack:

        def make(
            *,
            size: int = 64,
            engine: Engine = Engine.IO_URING,
            event_idx: bool = True,
            cache: CacheMode = CacheMode.WRITEBACK,
            readonly: bool = False,
            poll_us: int = 0,
        ) -> Bench:
            if engine is Engine.IO_URING and not lib.vp_has_uring():
                pytest.skip("this kernel lets nobody have an io_uring")
            memory = stack.enter_context(GuestMemory.allocate(MEMORY_SIZE))
            allocator = Allocator(0, MEMORY_SIZE)
            driver = DriverQueue(memory, size, allocator, event_idx=event_idx)
            queue = NativeQueue(memory, size, driver.areas, event_idx=event_idx, indirect=True)
            image = tmp_path / "disk.img"
            image.write_bytes(
                b"".join(sector.to_bytes(4, "little") * 128 for sector in range(SECTORS))
            )
            disk = stack.enter_context(DiskImage(image, readonly=readonly, cache=cache))
            kick, call = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
            stack.callback(os.close, kick)
            stack.callback(os.close, call)
            thread = stack.enter_context(WorkerThread(poll_us, engine=engine))
            ring = NativeRing(queue, kick, call)
            stack.callback(ring.stop)
            native = NativeDisk(disk, writeback=cache is not CacheMode.WRITETHROUGH)
            native.serve(ring)
            bench = Bench(
                memory, allocator, driver, queue, ring, thread, disk, image, native, kick, call
            )
            bench.start()
            return bench

        yield make


@pytest.fixture(params=list(Engine))
def bench(request: pytest.FixtureRequest, build: Build) -> Bench:
    return build(engine=request.param)


def _sectors(first: int, count: int) -> bytes:
    return b"".join(sector.to_bytes(4, "little") * 128 for sector in range(first, first + count))


# Reads, writes, flushes


def test_a_read_is_served_by_the_thread(bench: Bench) -> None:
    head, piece = bench.read(3, 4096)
    bench.send_kick()
    assert bench.await_used(1) == [Used(head, 4097)]
    assert bench.memory.read(piece.address, 4096) == _sectors(3, 8)
    assert bench.status_of(head) == OK
    assert bench.ring.counts.served == 1


def test_a_write_is_served_by_the_thread(bench: Bench) -> None:
    head = bench.write(10, b"\x5a" * 1024)
    bench.send_kick()
    assert bench.await_used(1) == [Used(head, 1)]
    assert bench.status_of(head) == OK
    assert bench.image.read_bytes() == (
        _sectors(0, 10) + b"\x5a" * 1024 + _sectors(12, SECTORS - 12)
    )


def test_a_flush_is_served_by_the_thread(bench: Bench) -> None:
    head = bench.request(FLUSH, 0)
    bench.send_kick()
    assert bench.await_used(1) == [Used(head, 1)]
    assert bench.status_of(head) == OK
    assert bench.ring.counts.jobs == 1


@pytest.mark.parametrize("engine", list(Engine))
def test_write_through_is_a_job_of_the_engine(build: Build, engine: Engine) -> None:
    bench = build(engine=engine, cache=CacheMode.WRITETHROUGH)
    head = bench.write(0, b"\x11" * 512)
    bench.send_kick()
    assert bench.await_used(1) == [Used(head, 1)]
    assert bench.ring.counts.jobs == 1
    assert bench.image.read_bytes()[:513] == b"\x11" * 512 + b"\x01"


def test_a_cache_mode_that_changes_meanwhile_counts_for_the_next_write(bench: Bench) -> None:
    bench.write(0, bytes(512))
    bench.send_kick()
    bench.await_used(1)
    assert bench.ring.counts.jobs == 0
    bench.native.update(bench.disk.size, writeback=False)
    bench.write(0, bytes(512))
    bench.send_kick()
    bench.await_used(1)
    assert bench.ring.counts.jobs == 1


@pytest.mark.parametrize("engine", list(Engine))
def test_direct_io_is_the_engines(build: Build, engine: Engine) -> None:
    bench = build(engine=engine, cache=CacheMode.NONE)
    head, piece = bench.read(8, 4096)
    write = bench.write(16, b"\x77" * 4096)
    bench.send_kick()
    assert sorted(used.head for used in bench.await_used(2)) == sorted([head, write])
    assert bench.memory.read(piece.address, 4096) == _sectors(8, 8)
    assert bench.image.read_bytes()[16 * 512 :][:4096] == b"\x77" * 4096
    assert bench.ring.counts.jobs == 2


def test_buffers_are_cut_wherever_the_driver_likes(bench: Bench) -> None:
    header = bench.allocator.take(16)
    bench.memory.write(header, struct.pack("<IIQ", IN, 0, 2))
    room = bench.allocator.take(1100)
    pieces = [
        *(Piece(header + at, length) for at, length in ((0, 3), (3, 9), (12, 4))),
        *(Piece(room + at, length, writable=True) for at, length in ((0, 1), (1, 600), (601, 424))),
    ]
    head = bench.driver.add(pieces)
    bench.send_kick()
    assert bench.await_used(1) == [Used(head, 1025)]
    assert bench.memory.read(room, 1025) == _sectors(2, 2) + bytes([OK])


def test_a_header_and_data_in_one_buffer(bench: Bench) -> None:
    room = bench.allocator.take(16 + 512)
    bench.memory.write(room, struct.pack("<IIQ", OUT, 0, 5) + b"\x33" * 512)
    status = bench.allocator.take(1)
    head = bench.driver.add([Piece(room, 528), Piece(status, 1, writable=True)])
    bench.send_kick()
    assert bench.await_used(1) == [Used(head, 1)]
    assert bench.image.read_bytes()[5 * 512 : 6 * 512] == b"\x33" * 512


# What goes up to Python


def _odd_requests(bench: Bench) -> dict[str, int]:
    data = Piece(bench.allocator.take(4096, 4096), 4096, writable=True)
    half = Piece(data.address, 100, writable=True)
    out = Piece(data.address, 512)
    return {
        "type": bench.request(99, 0, data),
        "id": bench.request(GET_ID, 0, Piece(data.address, 20, writable=True)),
        "discard": bench.request(DISCARD, 0, Piece(data.address, 16)),
        "no status": bench.request(IN, 0, status=False),
        "length": bench.request(IN, 0, half),
        "empty": bench.request(IN, 0),
        "beyond": bench.request(IN, SECTORS - 7, data),
        "far beyond": bench.request(IN, (1 << 64) - 1, data),
        "a flush with room": bench.request(FLUSH, 0, data),
        "a write with room": bench.request(OUT, 0, out, data),
    }


def test_what_is_unusual_goes_up_as_it_came(bench: Bench) -> None:
    heads = _odd_requests(bench)
    bench.send_kick()
    chains: list[Chain] = []
    while len(chains) < len(heads):
        chains += bench.await_handed_up()
    assert [chain.token for chain in chains] == list(heads.values())
    assert [len(chain.writable) for chain in chains] == [2, 2, 1, 0, 2, 1, 2, 2, 2, 2]
    assert sum(map(len, chains[0].writable)) == 4097
    assert bytes(chains[9].readable[0][:4]) == struct.pack("<I", OUT)
    # The thread goes on with what it serves meanwhile.
    head, _ = bench.read(0, 512)
    bench.send_kick()
    assert bench.await_used(1) == [Used(head, 513)]
    bench.queue.push_many([(chain, min(1, sum(map(len, chain.writable)))) for chain in chains])
    assert [used.head for used in bench.await_used(len(heads))] == list(heads.values())
    assert bench.ring.counts.handed_up == len(heads)
    assert bench.queue.in_flight == 0


def test_a_write_to_a_readonly_disk_goes_up(build: Build) -> None:
    bench = build(readonly=True)
    bench.write(0, bytes(512))
    bench.send_kick()
    assert len(bench.await_handed_up()) == 1


def test_direct_io_that_is_not_aligned_goes_up(build: Build) -> None:
    bench = build(cache=CacheMode.NONE)
    piece = Piece(bench.allocator.take(1024, 4096) + 1, 512, writable=True)
    bench.request(IN, 0, piece)
    bench.send_kick()
    assert len(bench.await_handed_up()) == 1


def test_a_read_that_fails_goes_up(bench: Bench) -> None:
    os.truncate(bench.image, 512)
    bench.read(8, 4096)
    bench.send_kick()
    [chain] = bench.await_handed_up()
    assert sum(map(len, chain.writable)) == 4097
    bench.queue.push(chain, 4097)
    bench.await_used(1)


def test_a_chain_of_more_pieces_than_one_system_call_takes_goes_up_whole(build: Build) -> None:
    bench = build(size=2048)
    header = bench.allocator.take(16)
    bench.memory.write(header, struct.pack("<IIQ", IN, 0, 0))
    room = bench.allocator.take(1600)
    pieces = [Piece(header, 16), *(Piece(room + at, 1, writable=True) for at in range(1537))]
    head = bench.driver.add(pieces)
    bench.send_kick()
    [chain] = bench.await_handed_up()
    assert chain.token == head
    assert [len(view) for view in chain.writable] == [1] * 1537
    bench.queue.push(chain, 1537)
    assert bench.await_used(1) == [Used(head, 1537)]


def test_chains_that_went_up_are_given_back_after_the_ring_was_taken_back(bench: Bench) -> None:
    first, second = bench.request(99, 0), bench.request(98, 0)
    bench.send_kick()
    chains = bench.await_handed_up()
    left = bench.ring.stop()
    chains += left
    assert bench.queue.in_flight == 2
    assert [chain.token for chain in chains] == [first, second]
    bench.queue.push_many([(chain, 1) for chain in chains])
    assert [used.head for used in bench.driver.take_all_used()] == [first, second]
    # And the queue goes on in Python.
    head, _ = bench.read(0, 512)
    [chain] = bench.queue.pop_many()
    assert chain.token == head


# Malformed chains, and broken rings


def test_a_malformed_chain_is_used_at_once_and_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    head = bench.driver.add([Piece(1 << 40, 512)])
    good, _ = bench.read(0, 512)
    bench.send_kick()
    assert bench.await_used(2) == [Used(head, 0), Used(good, 513)]
    bench.await_attention()
    assert bench.queue.pop_many() == []
    assert bench.queue.rejected == {"2.7.5": 1}
    assert f"chain {head} rejected" in caplog.text


def test_a_broken_ring_is_left_alone(bench: Bench) -> None:
    bench.driver.available.idx = 30000
    os.eventfd_write(bench.kick, 1)
    bench.await_attention()
    with pytest.raises(QueueError, match="available idx 30000 offers 30000 buffers"):
        bench.queue.pop_many()
    bench.driver.available.idx = 0
    bench.read(0, 512)
    bench.send_kick()
    bench.ring.stop()
    assert bench.driver.take_all_used() == []


def test_more_malformed_chains_than_can_be_told_are_counted(bench: Bench) -> None:
    for _ in range(40):
        bench.driver.add([Piece(1 << 40, 512)])
    bench.send_kick()
    assert len(bench.await_used(40)) == 40
    bench.ring.stop()
    assert bench.ring.counts.rejected == 40


# A ring moves


def test_a_ring_is_taken_back_and_given_again_under_load(bench: Bench) -> None:
    stop = threading.Event()
    done: list[int] = []

    def drive() -> None:
        free = [bench.read(sector % SECTORS, 512)[0] for sector in range(16)]
        bench.send_kick()
        while not stop.is_set() or free:
            used = bench.await_used(1)
            done.extend(one.head for one in used)
            for one in used:
                free.remove(one.head)
                assert one.length == 513
                if not stop.is_set():
                    bench.driver.make_available(one.head)
                    free.append(one.head)
            bench.send_kick()

    driver = threading.Thread(target=drive)
    driver.start()
    for _ in range(50):
        bench.ring.stop()
        assert bench.queue.in_flight == 0
        bench.start()
    stop.set()
    driver.join()
    assert len(done) >= 16
    assert bench.queue.native.in_flight == 0


def test_a_ring_waits_for_its_jobs_when_it_is_taken_back(build: Build) -> None:
    bench = build(cache=CacheMode.WRITETHROUGH)
    heads = [bench.write(sector, bytes(512)) for sector in range(16)]
    bench.send_kick()
    bench.ring.stop()
    used = [one.head for one in bench.driver.take_all_used()]
    left = [chain.token for chain in bench.queue.pop_many()]
    assert sorted(used + left) == sorted(heads)


def test_several_rings_have_one_thread(build: Build) -> None:
    bench = build()
    allocator = Allocator(4 << 20, 8 << 20)
    driver = DriverQueue(bench.memory, 16, allocator, event_idx=True)
    queue = NativeQueue(bench.memory, 16, driver.areas, event_idx=True)
    kick, call = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
    ring = NativeRing(queue, kick, call)
    bench.native.serve(ring)
    ring.start(bench.thread)
    other = replace(
        bench,
        allocator=allocator,
        driver=driver,
        queue=queue,
        ring=ring,
        kick=kick,
        call=call,
        status={},
    )
    heads = bench.read(0, 512)[0], other.read(1, 512)[0]
    bench.send_kick()
    other.send_kick()
    assert bench.await_used(1) == [Used(heads[0], 513)]
    assert other.await_used(1) == [Used(heads[1], 513)]
    ring.stop()
    os.close(kick)
    os.close(call)


# What it costs


def _depth(bench: Bench, count: int, depth: int) -> RingCounts:
    """Read `count` times with `depth` in flight, without interrupts, and return what that cost."""
    # First of all: a thread that polls serves what is available before it is kicked.
    before = bench.ring.counts
    heads = [bench.read(sector % SECTORS, 512)[0] for sector in range(depth)]
    left = count - depth
    bench.send_kick()
    flying = len(heads)
    while flying:
        for used in bench.driver.take_all_used():
            flying -= 1
            if left:
                bench.driver.make_available(used.head)
                left -= 1
                flying += 1
        bench.send_kick()
    after = bench.ring.counts
    return RingCounts(*(getattr(after, name) - getattr(before, name) for name in _COUNTS))


_COUNTS = [one.name for one in fields(RingCounts)]


def test_a_request_costs_one_system_call_at_depth_32(build: Build) -> None:
    bench = build(size=256, poll_us=1_000_000)
    # The driver wants no interrupts: its event stays behind.
    bench.driver.used_event[0] = 0x7FFF
    _depth(bench, 64, 32)
    calls, sleeps = bench.thread.system_calls, bench.thread.sleeps
    counts = _depth(bench, 2000, 32)
    assert counts.served == counts.at_once == 2000
    assert counts.system_calls == 2000
    # Nothing else but to sleep and to see what woke it, which a request at this depth does not.
    slept = bench.thread.sleeps - sleeps
    assert bench.thread.system_calls - calls <= 2 * slept + 1, (slept, counts)
    assert slept < 20, counts


@pytest.mark.parametrize("engine", list(Engine))
def test_an_idle_thread_costs_no_cpu(build: Build, engine: Engine) -> None:
    bench = build(poll_us=50, engine=engine)
    for sector in range(20):
        bench.read(sector, 512)
        bench.send_kick()
        bench.await_used(1)
    schedstat = Path(f"/proc/self/task/{bench.thread.thread_id}/schedstat")
    sleeps = bench.thread.sleeps
    before = int(schedstat.read_text().split()[0])
    threading.Event().wait(0.5)
    after = int(schedstat.read_text().split()[0])
    assert after - before < 0.005 * 0.5e9
    assert bench.thread.sleeps - sleeps <= 10


def test_a_thread_that_is_woken_now_and_then_polls_as_long_as_before(build: Build) -> None:
    poll = 0.05
    bench = build(poll_us=int(poll * 1e6))
    for sector in range(6):
        sleeps = bench.thread.sleeps
        begin = time.monotonic()
        bench.read(sector, 512)
        bench.send_kick()
        bench.await_used(1)
        while bench.thread.sleeps == sleeps:
            os.sched_yield()
    assert time.monotonic() - begin > poll / 2


# Files that are somebody else's too


def test_a_ring_that_starts_waits_for_no_reminder(bench: Bench) -> None:
    """Without being woken it looks again after 20 ms."""
    times = []
    for _ in range(20):
        bench.ring.stop()
        begin = time.monotonic()
        bench.start()
        times.append(time.monotonic() - begin)
    assert min(times) < 0.02


@timed
def test_an_interrupt_that_blocks_keeps_nobody_from_taking_the_ring_back(build: Build) -> None:
    bench = build(event_idx=False)
    os.eventfd_write(bench.call, (1 << 64) - 2)
    os.set_blocking(bench.call, True)
    head, _ = bench.read(0, 512)
    os.eventfd_write(bench.kick, 1)
    end = time.monotonic() + PATIENCE
    while not bench.ring.counts.interrupts and time.monotonic() < end:
        os.sched_yield()
    assert bench.ring.counts.interrupts == 1
    begin = time.monotonic()
    bench.ring.stop()
    assert time.monotonic() - begin < 2
    assert bench.driver.take_all_used() == [Used(head, 513)]


def test_signals_are_left_to_the_program(bench: Bench) -> None:
    blocked = Path(f"/proc/self/task/{bench.thread.thread_id}/status").read_text()
    [line] = [line for line in blocked.splitlines() if line.startswith("SigBlk:")]
    mask = int(line.split()[1], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGWINCH):
        assert mask >> (number - 1) & 1
    assert not mask >> (signal.SIGBUS - 1) & 1
