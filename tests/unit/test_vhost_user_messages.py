import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.openfiles import open_files
from virtiopy.errors import PeerError
from virtiopy.vhost.user import connection
from virtiopy.vhost.user.connection import Connection, DisconnectedError, close_all
from virtiopy.vhost.user.messages import (
    PAYLOAD_MAX,
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
    to_memory_table,
    to_ring_file,
    to_u64,
    u64,
)

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
U16 = st.integers(0, 2**16 - 1)
REGION = st.builds(MemoryRegion, U64, U64, U64, U64)

Pair = tuple[Connection, Connection]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with Connection(ours) as one, Connection(theirs) as other:
        yield one, other


# The wire, as QEMU's document draws it: written down by hand, not by the code under test.
WIRE = [
    (Message(Request.SET_OWNER), "03000000 01000000 00000000"),
    (
        Message(Request.SET_FEATURES, u64(1 << 32), Flag.NEED_REPLY),
        "02000000 09000000 08000000 0000000001000000",
    ),
    (
        Message(Request.SET_VRING_NUM, RingState(1, 256).encode()),
        "08000000 01000000 08000000 01000000 00010000",
    ),
    (
        Message(Request.GET_VRING_BASE, RingState(1, 7).encode(), Flag.REPLY),
        "0b000000 05000000 08000000 01000000 07000000",
    ),
    (
        Message(Request.SET_VRING_ADDR, RingAddresses(1, 1, 0x10, 0x20, 0x30, 0x40).encode()),
        "09000000 01000000 28000000 01000000 01000000 1000000000000000 2000000000000000 "
        "3000000000000000 4000000000000000",
    ),
    (
        Message(Request.SET_MEM_TABLE, memory_table([MemoryRegion(1, 2, 3, 4)])),
        "05000000 01000000 28000000 01000000 00000000 0100000000000000 0200000000000000 "
        "0300000000000000 0400000000000000",
    ),
    (
        Message(Request.ADD_MEM_REG, MemoryRegion(1, 2, 3, 4).encode()),
        "25000000 01000000 28000000 0000000000000000 0100000000000000 0200000000000000 "
        "0300000000000000 0400000000000000",
    ),
    (
        Message(Request.SET_LOG_BASE, LogArea(0x1000, 0x40).encode()),
        "06000000 01000000 10000000 0010000000000000 4000000000000000",
    ),
    (
        Message(Request.GET_CONFIG, ConfigAccess(8, b"\1\2").encode()),
        "18000000 01000000 0e000000 08000000 02000000 00000000 0102",
    ),
    (
        Message(Request.SET_INFLIGHT_FD, InflightArea(0x1000, 0, 2, 128).encode()),
        "20000000 01000000 18000000 0010000000000000 0000000000000000 0200 8000 00000000",
    ),
    (
        Message(Request.SET_VRING_CALL, ring_file(3, has_fd=False)),
        "0d000000 01000000 08000000 0301000000000000",
    ),
]


@pytest.mark.parametrize(("message", "wire"), WIRE, ids=[message.name for message, _ in WIRE])
def test_a_message_is_these_bytes(message: Message, wire: str, pair: Pair) -> None:
    assert message.encode() == bytes.fromhex(wire)
    pair[0].socket.sendall(bytes.fromhex(wire))
    assert pair[1].receive() == message


@given(st.builds(RingState, U32, U32))
def test_a_ring_state_survives(state: RingState) -> None:
    assert RingState.decode(Message(8, state.encode())) == state


@given(st.builds(RingAddresses, U32, U32, U64, U64, U64, U64))
def test_ring_addresses_survive(addresses: RingAddresses) -> None:
    assert RingAddresses.decode(Message(9, addresses.encode())) == addresses


@given(st.lists(REGION, min_size=1, max_size=8))
def test_a_memory_table_survives(regions: list[MemoryRegion]) -> None:
    assert to_memory_table(Message(5, memory_table(regions))) == regions
    assert MemoryRegion.decode(Message(37, regions[0].encode())) == regions[0]


@given(st.builds(ConfigAccess, U32, st.binary(max_size=256), U32))
def test_a_configuration_access_survives(access: ConfigAccess) -> None:
    assert ConfigAccess.decode(Message(24, access.encode())) == access


@given(st.builds(InflightArea, U64, U64, U16, U16), st.builds(LogArea, U64, U64), U64)
def test_areas_and_numbers_survive(area: InflightArea, log: LogArea, number: int) -> None:
    assert InflightArea.decode(Message(31, area.encode())) == area
    assert LogArea.decode(Message(6, log.encode())) == log
    assert to_u64(Message(2, u64(number))) == number


DECODERS = [
    RingState.decode,
    RingAddresses.decode,
    MemoryRegion.decode,
    LogArea.decode,
    InflightArea.decode,
    ConfigAccess.decode,
    to_memory_table,
    to_u64,
    to_ring_file,
]


@given(st.binary(max_size=600), st.sampled_from(DECODERS))
def test_any_payload_is_taken_apart_or_refused(payload: bytes, decode: object) -> None:
    assert callable(decode)
    with contextlib.suppress(PeerError):
        decode(Message(1, payload))


def test_a_region_too_many_or_too_few_is_refused() -> None:
    table = memory_table([MemoryRegion(0, 1, 0, 0)])
    for count in (0, 2, 9):
        with pytest.raises(PeerError, match=f"{count} regions"):
            to_memory_table(Message(5, count.to_bytes(4, "little") + table[4:]))


def test_descriptors_come_with_their_message(pair: Pair) -> None:
    one, other = pair
    eventfd = os.eventfd(0, os.EFD_CLOEXEC)
    one.send(Message(Request.SET_VRING_KICK, ring_file(0, has_fd=True), fds=[eventfd]))
    one.send(Message(Request.SET_VRING_CALL, ring_file(0, has_fd=True), fds=[eventfd, eventfd]))
    one.send(Message(Request.SET_OWNER))
    first, second, third = other.receive(), other.receive(), other.receive()
    assert first is not None
    assert second is not None
    assert third is not None
    assert [len(message.fds) for message in (first, second, third)] == [1, 2, 0]
    os.eventfd_write(eventfd, 5)
    assert to_ring_file(first) == 0
    kick = first.take_fd()
    assert kick is not None
    assert first.take_fd() is None
    assert to_ring_file(Message(13, ring_file(7, has_fd=False))) == 7
    assert os.eventfd_read(kick) == 5
    assert not os.get_inheritable(kick)
    close_all([eventfd, kick, *second.fds])


def test_a_message_in_pieces_is_whole_in_the_end(pair: Pair) -> None:
    one, other = pair
    other.socket.setblocking(False)
    assert other.receive() is None
    wire = Message(Request.SET_VRING_NUM, RingState(0, 128).encode()).encode()
    for byte in wire[:-1]:
        one.socket.sendall(bytes([byte]))
        assert other.receive() is None
        assert other.in_a_message
    one.socket.sendall(wire[-1:])
    message = other.receive()
    assert message is not None
    assert RingState.decode(message) == RingState(0, 128)
    assert not other.in_a_message


def test_a_peer_that_leaves_says_so(pair: Pair) -> None:
    one, other = pair
    one.socket.sendall(Message(Request.SET_OWNER).encode()[:7])
    one.close()
    with pytest.raises(DisconnectedError, match="in the middle of a message"):
        other.receive()
    with pytest.raises(DisconnectedError, match="cannot be sent"):
        other.send(Message(Request.SET_OWNER))


def test_a_silent_peer_is_waited_for_as_long_as_said(pair: Pair) -> None:
    pair[0].socket.settimeout(0.01)
    with pytest.raises(PeerError, match="says nothing"):
        pair[0].receive()


def test_a_peer_that_says_a_message_byte_by_byte_is_waited_for_no_longer(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=6)
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    pair[0].socket.settimeout(10)
    received = itertools.count()

    def one_more_byte(*arguments: object) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        next(received)
        return b"\1", [], 0, None

    monkeypatch.setattr(socket.socket, "recvmsg", one_more_byte)
    with pytest.raises(PeerError, match="too slowly"):
        pair[0].receive()
    assert next(received) == 2


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("01000000 02000000 00000000", "version 2"),
        ("01000000 00000000 00000000", "version 0"),
        (f"01000000 01000000 {(PAYLOAD_MAX + 1).to_bytes(4, 'little').hex()}", "GET_FEATURES with"),
        ("63000000 01000000 ffffffff", "request 99 with"),
    ],
)
def test_a_header_that_cannot_be_is_refused(header: str, reason: str, pair: Pair) -> None:
    pair[0].socket.sendall(bytes.fromhex(header))
    with pytest.raises(PeerError, match=reason):
        pair[1].receive()


def test_what_came_with_half_a_message_is_closed(pair: Pair) -> None:
    one, other = pair
    before = len(open_files())
    eventfd = os.eventfd(0, os.EFD_CLOEXEC)
    wire = Message(Request.SET_VRING_KICK, ring_file(0, has_fd=True)).encode()
    socket.send_fds(one.socket, [wire[:-1]], [eventfd])
    other.socket.setblocking(False)
    assert other.receive() is None
    assert len(open_files()) == before + 2
    other.close()
    os.close(eventfd)
    assert len(open_files()) == before - 1
