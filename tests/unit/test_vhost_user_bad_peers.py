"""A frontend that breaks the protocol, lies, or leaves, at any point: it ends, and nothing else.

Each test's `bench.end()` asks for exactly one logged reason, no file descriptor and no mapping
left behind, and a next frontend that is served well.
"""

import dataclasses
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.unit.vhost_user import Driver
from tests.unit.vhost_user_peer import (
    FEATURE_BITS,
    INFLIGHT_SIZE,
    LOG_SIZE,
    MEMORY_SIZE,
    QUEUE_SIZE,
    SESSION_LENGTH,
    USER_ADDRESS,
    Bad,
    Bench,
    assert_ends,
    full_socket,
)
from virtiopy.devices.rng import Rng
from virtiopy.errors import ConfigError
from virtiopy.eventloop import EventLoop
from virtiopy.vhost.user import backend
from virtiopy.vhost.user.messages import (
    PAYLOAD_MAX,
    ConfigAccess,
    InflightArea,
    LogArea,
    Message,
    Request,
    RingState,
    memory_table,
    ring_file,
    u64,
)
from virtiopy.vhost.user.server import Server, listen


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as bench:
        yield bench


# Leaving


@pytest.mark.parametrize("count", range(SESSION_LENGTH + 1))
def test_it_leaves_after_any_number_of_messages(bench: Bench, count: int) -> None:
    with bench.peer() as peer:
        session = peer.session()
        assert len(session) == SESSION_LENGTH
        peer.make_available()
        peer.notify()
        peer.say(*session[:count])
    level, reason = bench.end()
    assert level == logging.INFO
    assert reason.startswith("the frontend is gone: ")


@pytest.mark.parametrize("count", range(SESSION_LENGTH))
def test_it_leaves_in_the_middle_of_any_message(bench: Bench, count: int) -> None:
    with bench.peer() as peer:
        session = peer.session()
        peer.say(*session[:count])
        half = session[count].encode()[:-1]
        socket.send_fds(peer.connection.socket, [half], session[count].fds)
    level, reason = bench.end()
    assert level == logging.INFO
    assert reason.startswith("the frontend is gone: ")


@pytest.mark.parametrize("request_", [Request.SET_MEM_TABLE, Request.SET_VRING_KICK])
def test_half_a_message_and_then_nothing(
    bench: Bench, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "MESSAGE_TIME", 0.02)
    with bench.peer() as peer:
        before = peer.session_up_to(request_)
        peer.say(*before)
        message = peer.session()[len(before)]
        half = message.encode()[:13]
        socket.send_fds(peer.connection.socket, [half], message.fds)
        assert "half a message" in bench.end()[1]


# What it may not say, and when: the messages of a good session up to one, and then a bad one


def header(request: int, flags: int = 1, size: int = 0) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in (request, flags, size))


def with_fds(message: Message, count: int) -> Bad:
    """Have `message` come with another number of file descriptors."""
    return lambda peer: dataclasses.replace(message, fds=[peer.kick] * count)


NUMBER = u64(0)
STATE = RingState(0, 1).encode()

MALFORMED: list[tuple[str, Bad, str]] = [
    ("version 0", lambda peer: header(1, flags=0), "version 0"),
    ("version 2", lambda peer: header(1, flags=2), "version 2"),
    ("an unknown request", lambda peer: header(99), "request 99, which is not known"),
    ("request 0", lambda peer: header(0), "request 0, which is not known"),
    ("a request not offered", lambda peer: header(Request.SEND_RARP, size=8) + NUMBER, "SEND_RARP"),
    ("an oversized message", lambda peer: header(5, size=PAYLOAD_MAX + 1), "4097 bytes"),
    ("a size of 4 GiB", lambda peer: header(5, size=0xFFFF_FFFF), "4294967295 bytes"),
    ("a payload too short", lambda peer: header(2, size=7) + bytes(7), "7 bytes of payload, not 8"),
    ("a payload too long", lambda peer: header(2, size=9) + bytes(9), "9 bytes of payload, not 8"),
    ("an empty payload", lambda peer: Message(Request.SET_VRING_NUM), "0 bytes of payload"),
    ("an fd too many", with_fds(Message(Request.SET_OWNER), 1), "1 file descriptors, not 0"),
    ("more fds than regions", with_fds(Message(Request.SET_MEM_TABLE, b""), 9), "file descriptors"),
    ("fds without end", with_fds(Message(Request.SET_OWNER), 200), "file descriptors"),
    ("no memory", with_fds(Message(Request.SET_MEM_TABLE, memory_table([])), 0), "SET_MEM_TABLE"),
    ("a kick without fd", with_fds(Message(12, ring_file(0, has_fd=True)), 0), "not 1"),
    ("a kick with two", with_fds(Message(12, ring_file(0, has_fd=True)), 2), "not 0 or 1"),
    ("an fd it denies", with_fds(Message(13, ring_file(0, has_fd=False)), 1), "not 0"),
    ("unknown bits", with_fds(Message(14, u64(1 << 9)), 0), "unknown bits"),
    ("a channel too many", with_fds(Message(Request.SET_BACKEND_REQ_FD), 2), "not 1"),
    ("a channel that is none", with_fds(Message(Request.SET_BACKEND_REQ_FD), 1), "no socket"),
    ("a log without fd", with_fds(Message(6, LogArea(4096, 0).encode()), 0), "not 1"),
    ("a region without fd", with_fds(Message(Request.ADD_MEM_REG, bytes(40)), 0), "not 1"),
    ("features never offered", lambda peer: Message(2, u64(1 << 40)), "never offered"),
    ("protocol features so", lambda peer: Message(16, u64(1 << 63)), "never offered"),
    ("config that lies", lambda peer: Message(24, header(0, 5, 0) + b"1234"), "says 5 bytes"),
    ("config without end", lambda peer: Message(24, ConfigAccess(0, bytes(257)).encode()), "257"),
    ("a write of no config", lambda peer: Message(25, ConfigAccess(32, b"").encode()), "0 bytes"),
    ("half a config header", lambda peer: Message(25, bytes(11)), "11 bytes of payload"),
]


@pytest.mark.parametrize(
    ("bad", "reason"), [it[1:] for it in MALFORMED], ids=[it[0] for it in MALFORMED]
)
@pytest.mark.parametrize("when", [Request.SET_FEATURES, Request.GET_STATUS], ids=["early", "late"])
def test_a_malformed_message(bench: Bench, bad: Bad, reason: str, when: Request) -> None:
    assert_ends(bench, when, bad, reason)


def num(index: int, size: int) -> Bad:
    return lambda peer: Message(Request.SET_VRING_NUM, RingState(index, size).encode())


RINGS: list[tuple[str, Bad, str]] = [
    ("a ring too many", num(2, 16), "ring 2 of a device with 2"),
    ("ring 4294967295", num(0xFFFF_FFFF, 16), "ring 4294967295"),
    ("an empty ring", num(0, 0), "SET_VRING_NUM 0"),
    ("a ring of 3", num(0, 3), "SET_VRING_NUM 3"),
    ("a ring of 65536", num(0, 65536), "SET_VRING_NUM 65536"),
    ("a base of 65536", lambda peer: Message(10, RingState(0, 65536).encode()), "is no index"),
    ("the base of ring 2", lambda peer: Message(11, RingState(2, 0).encode()), "ring 2"),
    ("addresses of ring 9", lambda peer: peer.addresses(index=9), "ring 9"),
    ("a kick for ring 255", with_fds(Message(12, ring_file(255, has_fd=True)), 1), "ring 255"),
    ("a call for ring 2", with_fds(Message(13, ring_file(2, has_fd=True)), 1), "ring 2"),
    ("an err for ring 2", with_fds(Message(14, ring_file(2, has_fd=True)), 1), "ring 2"),
    ("enable ring 2", lambda peer: Message(18, RingState(2, 1).encode()), "ring 2"),
    ("enabled by 2", lambda peer: Message(18, RingState(0, 2).encode()), "neither 0 nor 1"),
    ("a kick before all", with_fds(Message(12, ring_file(1, has_fd=True)), 1), "no size or no"),
]


@pytest.mark.parametrize(("bad", "reason"), [it[1:] for it in RINGS], ids=[it[0] for it in RINGS])
def test_a_ring_that_cannot_be(bench: Bench, bad: Bad, reason: str) -> None:
    assert_ends(bench, Request.SET_VRING_NUM, bad, reason)


@pytest.mark.parametrize(
    "missing",
    [Request.SET_FEATURES, Request.SET_MEM_TABLE, Request.SET_VRING_NUM, Request.SET_VRING_ADDR],
)
def test_a_kick_before_its_ring_is_set_up(bench: Bench, missing: Request) -> None:
    with bench.peer() as peer:
        session = peer.session_up_to(Request.GET_STATUS)
        peer.notify()
        peer.say(*[message for message in session if message.request != missing])
        level, _ = bench.end()
    assert level == logging.ERROR


@pytest.mark.parametrize(
    "change",
    [
        {"descriptor_table": 0},
        {"available_ring": USER_ADDRESS - 2},
        {"used_ring": USER_ADDRESS + MEMORY_SIZE - 4},
        {"descriptor_table": USER_ADDRESS + MEMORY_SIZE - 16 * QUEUE_SIZE + 16},
        {"used_ring": 2**64 - 4},
        {"descriptor_table": USER_ADDRESS + 8},
        {"available_ring": USER_ADDRESS + 1},
        {"used_ring": USER_ADDRESS + 2},
        {"log": 2**64 - 1},
        {"log": LOG_SIZE * 8 * 4096},
    ],
    ids=str,
)
def test_ring_addresses_outside_memory_or_askew(bench: Bench, change: dict[str, int]) -> None:
    with bench.peer() as peer:
        session = peer.session_up_to(Request.GET_STATUS)
        messages = [
            peer.addresses(**change) if message.request == Request.SET_VRING_ADDR else message
            for message in session
        ]
        peer.say(*messages)
        level, _ = bench.end()
    assert level == logging.ERROR


@pytest.mark.parametrize(
    "what",
    ["num", "base", "addr", "features", "inflight"],
)
def test_a_ring_that_is_worked_does_not_move(bench: Bench, what: str) -> None:
    with bench.peer() as peer:
        peer.start()
        area = InflightArea(INFLIGHT_SIZE, 0, 1, QUEUE_SIZE)
        messages = {
            "num": Message(Request.SET_VRING_NUM, RingState(0, 8).encode()),
            "base": Message(Request.SET_VRING_BASE, RingState(0, 1).encode()),
            "addr": peer.addresses(used_ring=USER_ADDRESS + 0x1000),
            "features": Message(Request.SET_FEATURES, u64(FEATURE_BITS & ~(1 << 29))),
            "inflight": Message(Request.SET_INFLIGHT_FD, area.encode(), fds=[peer.inflight_fd]),
        }
        peer.say(messages[what])
        level, _ = bench.end()
    assert level == logging.ERROR


# More than can be taken


def test_a_peer_that_does_not_listen(bench: Bench) -> None:
    with bench.peer() as peer:
        peer.connection.socket.setblocking(False)
        peer.say(*peer.session_up_to(Request.GET_CONFIG))
        asking = Message(Request.GET_CONFIG, ConfigAccess(0, bytes(256)).encode())
        peer.connection.socket.setblocking(True)
        peer.say(*[asking] * 20_000)
        level, reason = bench.end()
    assert level == logging.ERROR
    assert "its socket is full" in reason


def test_a_peer_that_talks_without_end_leaves_time_for_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = 2000
    handled = 0
    handle = backend.Backend._handle

    def count(self: backend.Backend, message: Message) -> None:
        nonlocal handled
        handled += 1
        handle(self, message)

    with bench.peer() as peer:
        monkeypatch.setattr(backend.Backend, "_handle", count)
        wire = Message(Request.SET_OWNER).encode() * messages
        meanwhile: list[int] = []
        loop = bench.served.loop
        loop.call(lambda: peer.connection.socket.sendall(wire), "talk")
        loop.call(lambda: meanwhile.append(handled), "something else")
    bench.end()
    assert handled > messages
    assert meanwhile[0] < messages


def test_what_one_peer_lost_is_not_the_next_ones_fault(bench: Bench) -> None:
    """Nothing of a frontend's that was lost is told to the one that was served in its place."""
    server = bench.served.server.backend
    with bench.peer() as peer, bench.served.connect() as waiting:
        peer.start()

        def lose_and_leave() -> None:
            os.eventfd_write(server.memory.lost, 1)
            server._disconnect("a test's reason")

        bench.served.loop.call(lose_and_leave, "lose")
        waiting.sendall(Message(Request.GET_FEATURES).encode())
        assert len(waiting.recv(64)) == 20
        bench.served.loop.call(lambda: None, "settle")
        assert server.connected
        assert len(bench.log.ends()) == 2


def test_a_frontend_that_cannot_be_accepted_is_not_tried_without_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with too many files open."""
    accept = socket.socket.accept
    refusing, tries = True, 0

    def refuse(listener: socket.socket) -> tuple[socket.socket, object]:
        nonlocal tries
        tries += 1
        if refusing:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", refuse)
    with bench.served.connect() as waiting:
        for _ in range(20):
            bench.served.loop.call(lambda: None, "turn")
        assert tries < 10
        refusing = False
        waiting.sendall(Message(Request.GET_FEATURES).encode())
        assert len(waiting.recv(64)) == 20


def test_a_frontend_that_ends_each_connection_is_not_called_without_end(tmp_path: Path) -> None:
    path = tmp_path / "frontend.sock"
    with socket.socket(socket.AF_UNIX) as listener, EventLoop("backend") as loop:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(PATIENCE)
        server = Server(Rng(), loop, path)
        loop.start()
        listener.accept()[0].close()
        # It has seen that by the second turn, and would call again in each.
        for _ in range(5):
            loop.call(lambda: None, "turn")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.settimeout(PATIENCE)
        with Driver(listener.accept()[0]) as driver:
            driver.start()
        loop.call(server.close, "close")


def test_a_frontend_that_accepts_nobody_does_not_hold_the_loop_up(tmp_path: Path) -> None:
    path = tmp_path / "frontend.sock"
    with full_socket(path), EventLoop("backend") as loop:
        server = Server(Rng(), loop, path)
        loop.start()
        for _ in range(2):
            loop.call(lambda: None, "turn")
        loop.call(server.close, "close")


def test_a_socket_at_which_as_many_wait_as_can_is_somebodys(tmp_path: Path) -> None:
    path = tmp_path / "backend.sock"
    with full_socket(path), pytest.raises(ConfigError, match="Another process serves"):
        listen(path)
