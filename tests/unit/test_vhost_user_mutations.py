"""Good sessions that were damaged: whatever is left of one, the backend survives it.

As in test_vhost_user_bad_peers.py, `bench.end()` asks for one reason, nothing left behind, and a
next frontend that is served well.
"""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vhost_user_peer import SESSION_LENGTH, Bench, Peer
from virtiopy.vhost.user.messages import HEADER_SIZE, Message


@dataclass
class Wire:
    """A message as it is sent."""

    data: bytes
    fds: list[int]


Damage = Callable[[list[Wire], Peer], None]

PLACE = st.integers(0, SESSION_LENGTH - 1)
NUMBER = st.one_of(
    st.sampled_from([0, 1, 2, 2**16 - 1, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 4096, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)


def drop(place: int) -> Damage:
    def damage(session: list[Wire], peer: Peer) -> None:
        del session[place % len(session)]

    return damage


def duplicate(place: int, after: int) -> Damage:
    def damage(session: list[Wire], peer: Peer) -> None:
        it = session[place % len(session)]
        session.insert(after % len(session), Wire(it.data, list(it.fds)))

    return damage


def corrupt(place: int, where: int, number: int, size: int) -> Damage:
    """Put a number of 1 to 8 bytes somewhere, mostly in the payload."""

    def damage(session: list[Wire], peer: Peer) -> None:
        it = session[place % len(session)]
        start = where % max(1, len(it.data))
        it.data = (it.data[:start] + number.to_bytes(8, "little")[:size] + it.data[start + size :])[
            : len(it.data)
        ]

    return damage


def truncate(place: int, size: int) -> Damage:
    """Leave less of a payload, and have the header say so."""

    def damage(session: list[Wire], peer: Peer) -> None:
        it = session[place % len(session)]
        size_kept = size % max(1, len(it.data) - HEADER_SIZE)
        it.data = it.data[:8] + size_kept.to_bytes(4, "little") + it.data[12 : 12 + size_kept]

    return damage


def cut(place: int, size: int) -> Damage:
    """Leave less of a message than its header says."""

    def damage(session: list[Wire], peer: Peer) -> None:
        it = session[place % len(session)]
        it.data = it.data[: size % max(1, len(it.data))]

    return damage


def other_fds(place: int, kinds: list[str]) -> Damage:
    def damage(session: list[Wire], peer: Peer) -> None:
        files = {
            "memory": peer.memory_fd,
            "log": peer.log_fd,
            "eventfd": peer.kick,
            "socket": peer.channel.fileno(),
        }
        session[place % len(session)].fds = [files[kind] for kind in kinds]

    return damage


def insert(place: int, request: int, payload: bytes) -> Damage:
    def damage(session: list[Wire], peer: Peer) -> None:
        session.insert(place % len(session), Wire(Message(request, payload).encode(), []))

    return damage


DAMAGES = st.lists(
    st.one_of(
        st.builds(drop, PLACE),
        st.builds(duplicate, PLACE, PLACE),
        st.builds(corrupt, PLACE, st.integers(0, 63), NUMBER, st.sampled_from([1, 2, 4, 8])),
        st.builds(truncate, PLACE, st.integers(0, 63)),
        st.builds(cut, PLACE, st.integers(0, 63)),
        st.builds(
            other_fds,
            PLACE,
            st.lists(st.sampled_from(["memory", "log", "eventfd", "socket"]), max_size=9),
        ),
        st.builds(insert, PLACE, st.integers(0, 45), st.binary(max_size=64)),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("mutations")) as bench:
        yield bench


def send(stream: socket.socket, session: list[Wire]) -> None:
    for it in session:
        try:
            if it.data:
                socket.send_fds(stream, [it.data], it.fds)
        except OSError:
            # It was disconnected.
            return


@given(damages=DAMAGES)
def test_no_damage_to_a_session_is_the_backends(bench: Bench, damages: list[Damage]) -> None:
    with bench.peer() as peer:
        session = [Wire(message.encode(), list(message.fds)) for message in peer.session()]
        for damage in damages:
            damage(session, peer)
        peer.make_available()
        peer.notify()
        send(peer.connection.socket, session)
    bench.end()


AREA = st.binary(min_size=16, max_size=16 + 16 * 16)
RING = st.binary(min_size=1, max_size=0x500)


@given(area=AREA, ring=RING, version=st.sampled_from([0, 1, 1, 1]))
def test_no_rings_or_areas_are_the_backends_end(
    bench: Bench, area: bytes, ring: bytes, version: int
) -> None:
    """What is in memory and in the area of what is in flight is anything."""
    with bench.peer() as peer:
        os.pwrite(peer.inflight_fd, area, 0)
        os.pwrite(peer.inflight_fd, bytes([version, 0, 16, 0]), 8)
        os.pwrite(peer.memory_fd, ring, 0)
        peer.notify()
        peer.say(*peer.session())
    bench.end()
