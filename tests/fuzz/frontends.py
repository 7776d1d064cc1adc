"""Sessions of a frontend that a fuzzer has damaged, against a backend that is served."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.source import Source
from tests.unit import test_vhost_user_mutations as mutations
from tests.unit.vhost_user_peer import SESSION_LENGTH, Bench, Peer

_FILES = ["memory", "log", "eventfd", "socket"]
_NUMBERS = [0, 1, 2, 2**16 - 1, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 4096, 2**64 - 1]

#: Made with the first input, as it is to outlast them all.
_benches: list[tuple[Bench, TemporaryDirectory[str]]] = []


def _bench() -> Bench:
    if not _benches:
        folder = TemporaryDirectory(prefix="virtiopy-")
        _benches.append((Bench(Path(folder.name)), folder))
    return _benches[0][0]


def close_bench() -> None:
    """End the backend, if there is one."""
    while _benches:
        bench, folder = _benches.pop()
        bench.close()
        folder.cleanup()


def _damage(source: Source) -> mutations.Damage:
    place = source.number(1) % SESSION_LENGTH
    match source.number(1) % 8:
        case 0:
            return mutations.drop(place)
        case 1:
            return mutations.duplicate(place, source.number(1) % SESSION_LENGTH)
        case 2:
            number = source.one_of(_NUMBERS)
            return mutations.corrupt(place, source.number(1), number, source.one_of([1, 2, 4, 8]))
        case 3:
            return mutations.corrupt(place, source.number(1), source.number(8), 8)
        case 4:
            return mutations.truncate(place, source.number(1))
        case 5:
            return mutations.cut(place, source.number(1))
        case 6:
            kinds = [source.one_of(_FILES) for _ in range(source.number(1) % 10)]
            return mutations.other_fds(place, kinds)
        case _:
            request = source.number(1) % 46
            return mutations.insert(place, request, source.bytes(source.number(1) % 64))


def messages(data: bytes) -> None:
    """A session that was good, damaged up to four times, over memory of the fuzzer's."""
    source = Source(data)
    bench = _bench()
    with bench.peer() as peer:
        session = [mutations.Wire(m.encode(), list(m.fds)) for m in peer.session()]
        for _ in range(1 + source.number(1) % 4):
            _damage(source)(session, peer)
        _fill(source, peer)
        peer.notify()
        mutations.send(peer.connection.socket, session)
    bench.end()


def _fill(source: Source, peer: Peer) -> None:
    if source.number(1) & 1:
        peer.make_available()
    else:
        os.pwrite(peer.memory_fd, source.bytes(source.number(2) % 0x500), 0)
        os.pwrite(peer.inflight_fd, source.bytes(source.number(1)), 0)
        os.pwrite(peer.inflight_fd, bytes([source.number(1) & 1, 0, 16, 0]), 8)
