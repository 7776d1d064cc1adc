"""A frontend whose files and areas of memory are not what it says.

What is asked of the backend then, test_vhost_user_bad_peers.py says.
"""

import dataclasses
import fcntl
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.vhost_user_peer import (
    GUEST_ADDRESS,
    INFLIGHT_SIZE,
    LOG_SIZE,
    MEMORY_SIZE,
    QUEUE_SIZE,
    Bad,
    Bench,
    Peer,
    assert_ends,
)
from virtiopy.vhost.user.messages import (
    InflightArea,
    LogArea,
    Message,
    Request,
    memory_table,
    ring_file,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as bench:
        yield bench


# Files that are not what it says


def o_path(path: str = "/") -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


@pytest.mark.parametrize("request_", [12, 13, 14], ids=["kick", "call", "err"])
@pytest.mark.parametrize(
    "open_file",
    [o_path, lambda: os.open("/dev/null", os.O_RDWR), lambda: os.memfd_create("peer-file")],
    ids=["O_PATH", "/dev/null", "memfd"],
)
def test_an_eventfd_that_is_none(
    bench: Bench, request_: Request, open_file: Callable[[], int]
) -> None:
    fd = open_file()
    with bench.peer() as peer:
        peer.start()
        peer.make_available()
        peer.say(Message(request_, ring_file(0, has_fd=True), fds=[fd]))
        peer.notify()
        # Some files will do: what they do is the peer's own affair.
        peer.connection.socket.shutdown(socket.SHUT_WR)
        bench.end()
    os.close(fd)


def test_a_kick_that_closes_at_its_other_end(bench: Bench) -> None:
    with bench.peer() as peer:
        peer.start()
        reader, writer = os.pipe()
        peer.say(Message(Request.SET_VRING_KICK, ring_file(0, has_fd=True), fds=[reader]))
        os.close(reader)
        os.close(writer)
        assert "closed at its other end" in bench.end()[1]


@pytest.mark.parametrize("level", ["sealed", "read-only", "a pipe", "a folder", "a socket"])
def test_memory_that_cannot_be_mapped(bench: Bench, level: str, tmp_path: Path) -> None:
    fds: list[int] = []
    match level:
        case "sealed":
            fds.append(os.memfd_create("peer-sealed", os.MFD_ALLOW_SEALING))
            os.ftruncate(fds[0], MEMORY_SIZE)
            fcntl.fcntl(fds[0], fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        case "read-only":
            path = tmp_path / "memory"
            path.write_bytes(bytes(MEMORY_SIZE))
            fds.append(os.open(path, os.O_RDONLY))
        case "a pipe":
            fds.extend(os.pipe())
        case "a folder":
            fds.append(os.open(tmp_path, os.O_RDONLY))
        case _:
            fds.append(socket.socket().detach())
    with bench.peer() as peer:
        peer.say(*peer.session_up_to(Request.SET_MEM_TABLE))
        peer.say(dataclasses.replace(peer.table(peer.region()), fds=fds[:1]))
        assert "memory" in bench.end()[1]
    for fd in fds:
        os.close(fd)


# Memory that lies

LIES: list[tuple[str, dict[str, int]]] = [
    ("beyond its file", {"size": MEMORY_SIZE + 1}),
    ("from beyond its file on", {"mmap_offset": MEMORY_SIZE}),
    ("over its file's end", {"mmap_offset": 4096}),
    ("of no bytes", {"size": 0}),
    ("of all bytes", {"size": 2**64 - 1}),
    ("that wraps the guest's addresses", {"guest_address": 2**64 - MEMORY_SIZE + 1}),
    ("that wraps its own addresses", {"user_address": 2**64 - MEMORY_SIZE + 1}),
    ("at an offset that wraps", {"mmap_offset": 2**64 - MEMORY_SIZE}),
    ("at an offset that no file has", {"mmap_offset": 2**63}),
]


@pytest.mark.parametrize("add", [False, True], ids=["SET_MEM_TABLE", "ADD_MEM_REG"])
@pytest.mark.parametrize("lie", [it[1] for it in LIES], ids=[it[0] for it in LIES])
def test_a_region_that_lies(bench: Bench, lie: dict[str, int], add: bool) -> None:
    def bad(peer: Peer) -> Message:
        region = peer.region(**lie)
        if add:
            return Message(Request.ADD_MEM_REG, region.encode(), fds=[peer.memory_fd])
        return peer.table(region)

    assert_ends(bench, Request.SET_MEM_TABLE, bad, "memory")


def test_a_region_larger_than_the_address_space(bench: Bench) -> None:
    huge = os.memfd_create("peer-huge")
    os.ftruncate(huge, 2**62)

    def bad(peer: Peer) -> Message:
        region = peer.region(size=2**62, user_address=0, guest_address=0)
        return Message(Request.SET_MEM_TABLE, memory_table([region]), fds=[huge])

    assert_ends(bench, Request.SET_MEM_TABLE, bad, "cannot be mapped")
    os.close(huge)


@pytest.mark.parametrize("known", [False, True], ids=["at first", "beside one that is known"])
@pytest.mark.parametrize("space", ["guest_address", "user_address"])
def test_regions_that_overlap(bench: Bench, space: str, known: bool) -> None:
    def bad(peer: Peer) -> Message:
        if known:
            peer.say(peer.table(peer.region(size=8192)))
        elsewhere = {"guest_address": 0x1000_0000, "user_address": 0x1000_0000, "size": 4096}
        elsewhere[space] = getattr(peer.region(), space) + 4096
        return peer.table(peer.region(size=8192), peer.region(**elsewhere))

    assert_ends(bench, Request.SET_MEM_TABLE, bad, "overlap")


def test_a_region_twice(bench: Bench) -> None:
    def bad(peer: Peer) -> Message:
        return peer.table(peer.region(), peer.region())

    assert_ends(bench, Request.SET_MEM_TABLE, bad, "overlap")


def test_regions_without_end(bench: Bench) -> None:
    with bench.peer() as peer:
        peer.say(*peer.session_up_to(Request.SET_MEM_TABLE))
        for index in range(65):
            region = peer.region(size=4096, guest_address=index << 20, user_address=index << 20)
            peer.say(Message(Request.ADD_MEM_REG, region.encode(), fds=[peer.memory_fd]))
        assert "more than 64 memory regions" in bench.end()[1]


def test_a_region_removed_that_was_never_there(bench: Bench) -> None:
    assert_ends(
        bench,
        Request.GET_STATUS,
        lambda peer: Message(Request.REM_MEM_REG, peer.region(size=4096).encode()),
        "never added",
    )


def test_the_memory_of_a_ring_that_is_worked_is_removed(bench: Bench) -> None:
    assert_ends(
        bench,
        Request.GET_STATUS,
        lambda peer: Message(Request.REM_MEM_REG, peer.region().encode()),
        "not memory",
    )


# What is in flight, and what is dirty


def inflight(**changes: int) -> Bad:
    area = dataclasses.replace(InflightArea(INFLIGHT_SIZE, 0, 1, QUEUE_SIZE), **changes)
    return lambda peer: Message(Request.SET_INFLIGHT_FD, area.encode(), fds=[peer.inflight_fd])


AREAS: list[tuple[str, dict[str, int]]] = [
    ("larger than its file", {"mmap_size": INFLIGHT_SIZE + 1}),
    ("at an offset beyond", {"mmap_offset": INFLIGHT_SIZE}),
    ("of no bytes", {"mmap_size": 0}),
    ("too small", {"mmap_size": 64}),
    ("for no queues", {"num_queues": 0}),
    ("for too many queues", {"num_queues": 257}),
    ("for more queues than it has room", {"num_queues": 200}),
    ("of queues of no size", {"queue_size": 0}),
    ("of queues too large", {"queue_size": 32769}),
    ("of all bytes", {"mmap_size": 2**64 - 1}),
]


@pytest.mark.parametrize("area", [it[1] for it in AREAS], ids=[it[0] for it in AREAS])
def test_an_area_of_what_is_in_flight_that_lies(bench: Bench, area: dict[str, int]) -> None:
    assert_ends(bench, Request.SET_INFLIGHT_FD, inflight(**area), "in flight|memory")


@pytest.mark.parametrize("queues", [0, 257])
def test_an_area_that_is_asked_for_and_cannot_be(bench: Bench, queues: int) -> None:
    area = InflightArea(0, 0, queues, QUEUE_SIZE)
    assert_ends(
        bench,
        Request.GET_INFLIGHT_FD,
        lambda peer: Message(Request.GET_INFLIGHT_FD, area.encode()),
        "in flight",
    )


#: Offsets in a queue's region: after features come version, desc_num, last_batch_head, used_idx.
VERSION, DESC_NUM, LAST_BATCH_HEAD, USED_IDX, DESC, DESC_SIZE = 8, 10, 12, 14, 16, 16


def write_area(peer: Peer, **fields: int) -> None:
    """Write what another backend may have left in the area of what is in flight."""
    offsets = {
        "version": VERSION,
        "desc_num": DESC_NUM,
        "last_batch_head": LAST_BATCH_HEAD,
        "used_idx": USED_IDX,
    }
    for name, value in {"version": 1, "desc_num": QUEUE_SIZE, **fields}.items():
        os.pwrite(peer.inflight_fd, value.to_bytes(2, "little"), offsets[name])


def write_entry(peer: Peer, index: int, state: int, following: int = 0, counter: int = 0) -> None:
    entry = bytes([state]) + bytes(5) + following.to_bytes(2, "little")
    data = entry + counter.to_bytes(8, "little")
    os.pwrite(peer.inflight_fd, data, DESC + index * DESC_SIZE)


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 2},
        {"version": 0xFFFF},
        {"desc_num": 0},
        {"desc_num": QUEUE_SIZE + 1},
        {"last_batch_head": QUEUE_SIZE, "used_idx": 0xFFFF},
    ],
    ids=str,
)
def test_an_area_whose_content_lies(bench: Bench, fields: dict[str, int]) -> None:
    with bench.peer() as peer:
        write_area(peer, **fields)
        peer.say(*peer.session_up_to(Request.GET_STATUS))
        level, _ = bench.end()
    assert level == logging.ERROR


def test_in_flight_with_the_last_number_that_there_is(bench: Bench) -> None:
    with bench.peer() as peer:
        peer.make_available()
        head = peer.queue.available.ring[0]
        write_area(peer)
        write_entry(peer, head, 1, counter=2**64 - 1)
        peer.start()
        peer.wait_used()
        peer.make_available(data=GUEST_ADDRESS + 0xB_0000)
        peer.notify()
        peer.wait_used()
    assert bench.end()[0] == logging.INFO


def test_everything_in_flight_and_nothing_available(bench: Bench) -> None:
    with bench.peer() as peer:
        write_area(peer)
        for index in range(QUEUE_SIZE):
            # Each 255, all of one age, and descriptors of zeroes behind them.
            write_entry(peer, index, 255, following=0xFFFF)
        peer.start()
        peer.connection.socket.shutdown(socket.SHUT_WR)
        assert bench.end()[0] == logging.INFO


@pytest.mark.parametrize(
    "area",
    [
        LogArea(0, 0),
        LogArea(1, 0),
        LogArea(LOG_SIZE + 1, 0),
        LogArea(LOG_SIZE, 1),
        LogArea(LOG_SIZE, 2**64 - 1),
        LogArea(2**64 - 1, 0),
    ],
    ids=str,
)
def test_a_dirty_log_that_is_too_small_or_lies(bench: Bench, area: LogArea) -> None:
    with bench.peer() as peer:
        session = peer.session_up_to(Request.GET_STATUS)
        for message in session:
            if message.request == Request.SET_LOG_BASE:
                message.payload = area.encode()
        peer.make_available()
        peer.notify()
        peer.say(*session)
        level, _ = bench.end()
    assert level == logging.ERROR
