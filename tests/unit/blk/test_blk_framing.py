"""The block device (5.2): where a request is cut means nothing (2.7.4)."""

import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.blk.bench import (
    DISCARD,
    FLUSH,
    GET_ID,
    GET_LIFETIME,
    IN,
    IOERR,
    OK,
    OUT,
    SECTOR,
    SECTORS,
    SECURE_ERASE,
    SERIAL,
    UNSUPP,
    WRITE_ZEROES,
    Bench,
    Reply,
    bench_of,
    header,
    make_image,
    pattern,
    sectors,
    segment,
)
from virtiopy.host.disk import DiskImage


@dataclass(frozen=True)
class Cut:
    """A request, where both its sides are cut, and how many pieces go without indirection."""

    kind: int
    sector: int
    data: bytes
    room: int
    readable_cuts: tuple[int, ...]
    writable_cuts: tuple[int, ...]
    direct: int

    def readable(self) -> list[bytes]:
        whole = header(self.kind, self.sector) + self.data
        ends = sorted(min(cut, len(whole)) for cut in self.readable_cuts)
        return [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]

    def writable(self) -> list[int]:
        ends = sorted(min(cut, self.room + 1) for cut in self.writable_cuts)
        return [b - a for a, b in zip([0, *ends], [*ends, self.room + 1], strict=True)]


#: Most cuts fall where headers, sectors and status bytes meet, or one byte beside.
cuts = st.lists(
    st.one_of(
        st.integers(0, 33),
        st.builds(lambda n, d: max(0, n * SECTOR + d), st.integers(0, 4), st.integers(-1, 17)),
        st.integers(0, 5 * SECTOR),
    ),
    max_size=20,
).map(tuple)
lengths = st.one_of(st.integers(0, 4).map(lambda n: n * SECTOR), st.integers(0, 4 * SECTOR))
payloads = st.builds(
    lambda length, seed: (pattern(5, seed) + bytes(SECTOR))[:length], lengths, st.integers(2, 999)
)
segment_lists = st.lists(
    st.builds(segment, sectors, st.integers(0, 8), st.sampled_from([0, 0, 0, 1, 2])), max_size=3
).map(b"".join)
ways_to_cut = {"readable_cuts": cuts, "writable_cuts": cuts, "direct": st.integers(0, 50)}
requests = st.one_of(
    st.builds(Cut, st.just(IN), sectors, st.just(b""), st.one_of(lengths, lengths), **ways_to_cut),
    st.builds(Cut, st.just(OUT), sectors, payloads, st.just(0), **ways_to_cut),
    st.builds(
        Cut,
        st.sampled_from([DISCARD, WRITE_ZEROES, WRITE_ZEROES]),
        st.just(0),
        segment_lists,
        st.just(0),
        **ways_to_cut,
    ),
    st.builds(
        Cut,
        st.sampled_from([FLUSH, GET_ID, GET_LIFETIME, SECURE_ERASE, 99]),
        st.just(0),
        payloads,
        st.sampled_from([0, 20, 20, 20, 512]),
        **ways_to_cut,
    ),
)


def expect(content: bytearray, request: Cut) -> Reply:
    """Do to `content` what the specification says, and say what it answers (5.2.6)."""
    data, status = bytes(request.room), OK
    if request.kind in (IN, OUT):
        length = request.room if request.kind == IN else len(request.data)
        start, end = request.sector * SECTOR, request.sector * SECTOR + length
        if length % SECTOR or end > len(content):
            status = IOERR
        elif request.kind == IN:
            data = bytes(content[start:end])
        else:
            content[start:end] = request.data
    elif request.kind in (DISCARD, WRITE_ZEROES):
        segments = list(struct.iter_unpack("<QII", request.data))
        known_flags = 1 if request.kind == WRITE_ZEROES else 0
        if any(flags & ~known_flags for _, _, flags in segments):
            status = UNSUPP
        elif not segments or any(start + count > SECTORS for start, count, _ in segments):
            status = IOERR
        else:
            # A discarded range may read as anything; in a file it is a hole.
            for start, count, _ in segments:
                content[start * SECTOR : (start + count) * SECTOR] = bytes(count * SECTOR)
    elif request.kind == GET_ID:
        status = OK if request.room == 20 else IOERR
        data = SERIAL.encode().ljust(20, b"\0") if status == OK else data
    elif request.kind != FLUSH:
        status = UNSUPP
    return Reply(request.room + 1, data, status)


@pytest.fixture(scope="module")
def shared_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("framing") / "disk.img"


@given(st.lists(requests, min_size=1, max_size=6))
def test_requests_do_the_same_however_they_are_cut(shared_image: Path, script: list[Cut]) -> None:
    model = bytearray(pattern(SECTORS))
    with DiskImage(make_image(shared_image)) as disk, bench_of(disk) as bench:
        bench.driver.start()
        for request in script:
            readable, writable = request.readable(), request.writable()
            direct = min(request.direct, len(readable) + len(writable))
            reply = bench.submit(readable, writable, direct=direct)
            assert reply == expect(model, request)
        assert shared_image.read_bytes() == model


def test_a_request_may_come_in_one_byte_pieces(bench: Bench) -> None:
    whole = header(GET_ID)
    reply = bench.submit([whole[i : i + 1] for i in range(16)], [1] * 21)
    assert reply == Reply(21, SERIAL.encode().ljust(20, b"\0"), OK)


def test_header_and_data_may_share_a_piece(bench: Bench, image: Path) -> None:
    assert bench.submit([header(OUT) + pattern(1, seed=2)], [1]).status == OK
    assert image.read_bytes()[:SECTOR] == pattern(1, seed=2)


def test_data_and_status_may_share_a_piece(bench: Bench) -> None:
    assert bench.submit([header(IN)], [SECTOR + 1]) == Reply(SECTOR + 1, pattern(1), OK)


def test_a_request_may_be_all_in_an_indirect_table(bench: Bench) -> None:
    assert bench.submit([header(IN)], [SECTOR, 1], direct=0).data == pattern(1)
