"""9P requests in parts: what the server is asked, and what the driver is answered."""

import errno
import struct
from collections import deque

import pytest

from virtiopy.devices.ninep import HEADER_SIZE, header_of, make_error, make_message
from virtiopy.host.parts import OFFERED_SIZE, PARTS_MAX, SPLIT_MAX, Kind, Parts

SERVER_SIZE = 1024 + 24
#: How much data the server takes in one message.
MOST = 1024
FID, GETATTR = 5, 24
SIZE = 10_000


def counted(offset: int, count: int) -> bytes:
    return struct.pack("<IQI", FID, offset, count)


class Bench:
    """A server with a file of SIZE bytes, which answers when the test says so, and a driver."""

    def __init__(self) -> None:
        self.asked: deque[bytes] = deque()
        self.answers: list[bytes] = []
        self.parts = Parts(self.asked.append, lambda message: self.answers.append(bytes(message)))
        self.file = bytearray(number // 16 & 0xFF for number in range(SIZE))
        #: What the server says of the part of a write or read that begins at an offset.
        self.amiss: dict[int, int] = {}

    def agree(self, wanted: int = OFFERED_SIZE, server: int = SERVER_SIZE) -> int:
        """Return the msize that the driver is told."""
        self.parts.ask(make_message(Kind.TVERSION, 0xFFFF, struct.pack("<I", wanted) + b"\0\0"))
        [asked] = self.asked
        assert asked[HEADER_SIZE:] == struct.pack("<I", wanted) + b"\0\0"
        self.asked.clear()
        said = struct.pack("<I", min(wanted, server)) + b"\0\0"
        self.say(Kind.TVERSION + 1, header_of(asked)[2], said)
        answer = self.answers.pop()
        assert header_of(answer) == (len(answer), Kind.TVERSION + 1, 0xFFFF)
        return int.from_bytes(answer[HEADER_SIZE:11], "little")

    def say(self, kind: int, tag: int, body: bytes) -> None:
        self.parts.answered(memoryview(bytearray(make_message(kind, tag, body))))

    def serve(self, index: int = 0) -> None:
        """Have the server answer one of those that it was asked."""
        message = self.asked[index]
        del self.asked[index]
        size, kind, tag = header_of(message)
        assert size == len(message) <= SERVER_SIZE
        if kind == Kind.TFLUSH:
            self.say(kind + 1, tag, b"")
            return
        fid, offset, count = struct.unpack_from("<IQI", message, HEADER_SIZE)
        assert fid == FID
        assert count <= MOST
        if (amiss := self.amiss.get(offset, 0)) < 0:
            self.parts.answered(memoryview(bytearray(make_error(tag, -amiss))))
            return
        moved = min(count, amiss or count)
        if kind == Kind.TWRITE:
            data = message[HEADER_SIZE + 16 :]
            assert len(data) == count
            self.file[offset : offset + moved] = data[:moved]
            self.say(kind + 1, tag, struct.pack("<I", moved))
        else:
            data = bytes(self.file[offset : offset + moved])
            self.say(kind + 1, tag, struct.pack("<I", len(data)) + data)

    def read(self, offset: int, count: int, tag: int = 1) -> None:
        self.parts.ask(make_message(Kind.TREAD, tag, counted(offset, count)))

    def write(self, offset: int, data: bytes, tag: int = 1) -> None:
        self.parts.ask(make_message(Kind.TWRITE, tag, counted(offset, len(data)) + data))

    def flush(self, old: int, tag: int) -> None:
        self.parts.ask(make_message(Kind.TFLUSH, tag, old.to_bytes(2, "little")))

    def serve_all(self) -> None:
        while self.asked:
            self.serve()

    def taken(self) -> list[bytes]:
        answers, self.answers = self.answers, []
        return answers

    def was_read(self) -> bytes:
        """Return what the one answer has, which is a Rread's."""
        [answer] = self.taken()
        assert header_of(answer) == (len(answer), Kind.TREAD + 1, 1)
        assert int.from_bytes(answer[HEADER_SIZE:11], "little") == len(answer) - 11
        return answer[11:]

    def was_written(self) -> int:
        [answer] = self.taken()
        assert header_of(answer) == (11, Kind.TWRITE + 1, 1)
        return int.from_bytes(answer[HEADER_SIZE:], "little")


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.agree(PARTS_MAX * SERVER_SIZE)
    return bench


def rflush(tag: int) -> bytes:
    return make_message(Kind.TFLUSH + 1, tag, b"")


@pytest.mark.parametrize(
    ("wanted", "server", "told"),
    [
        (512_000, 65536, 512_000),
        (1 << 20, 65536, OFFERED_SIZE),
        (8192, 65536, 8192),
        # The server keeps to the least that it ever agreed on: parts of 1 byte would be too many.
        (512_000, 25, 25 * PARTS_MAX),
        # No message has so little room. The driver is told so.
        (512_000, 24, 24),
        (512_000, 0, 0),
    ],
)
def test_a_driver_is_told_of_more_than_the_server_takes(
    wanted: int, server: int, told: int
) -> None:
    assert Bench().agree(wanted, server) == told


def test_what_the_server_takes_is_passed_on_with_a_tag_of_ours(bench: Bench) -> None:
    bench.parts.ask(make_message(GETATTR, 0xFFFE, b"first"))
    bench.parts.ask(make_message(GETATTR, 7, b"second"))
    tags = [header_of(message)[2] for message in bench.asked]
    assert [m[HEADER_SIZE:] for m in bench.asked] == [b"first", b"second"]
    assert tags == [0, 1]
    bench.say(GETATTR + 1, 1, b"to the second")
    bench.say(GETATTR + 1, 0, b"to the first")
    assert bench.answers == [
        make_message(GETATTR + 1, 7, b"to the second"),
        make_message(GETATTR + 1, 0xFFFE, b"to the first"),
    ]
    bench.parts.ask(make_message(GETATTR, 7, b"third"))
    assert header_of(bench.asked[-1])[2] in tags


def test_a_large_read_is_several_of_the_servers(bench: Bench) -> None:
    bench.read(100, 4 * MOST + 5)
    # The file may end in the first.
    assert len(bench.asked) == 1
    bench.serve()
    assert len(bench.asked) == 4
    # In whatever order they are answered.
    for index in (3, 1, 0, 0):
        assert bench.answers == []
        bench.serve(index)
    assert bench.was_read() == bench.file[100 : 100 + 4 * MOST + 5]


def test_a_read_over_the_end_of_the_file_is_short(bench: Bench) -> None:
    bench.read(SIZE - 1500, 8 * MOST)
    bench.serve_all()
    assert bench.was_read() == bench.file[-1500:]
    bench.read(SIZE - 10, 8 * MOST)
    bench.serve()
    assert not bench.asked
    assert bench.was_read() == bench.file[-10:]
    bench.read(SIZE, 8 * MOST)
    bench.serve_all()
    assert bench.was_read() == b""


def test_a_read_ends_where_a_part_falls_short_though_others_have_more(bench: Bench) -> None:
    bench.amiss[2 * MOST] = 10
    bench.read(0, 5 * MOST)
    bench.serve_all()
    assert bench.was_read() == bench.file[: 2 * MOST + 10]


def test_a_read_that_fails_in_the_middle_is_short(bench: Bench) -> None:
    bench.amiss[2 * MOST] = -errno.EIO
    bench.read(0, 5 * MOST)
    bench.serve_all()
    assert bench.was_read() == bench.file[: 2 * MOST]


@pytest.mark.parametrize("offset", [0, 99])
def test_what_fails_at_its_begin_is_an_error(bench: Bench, offset: int) -> None:
    bench.amiss[offset] = -errno.EACCES
    bench.read(offset, 5 * MOST)
    bench.write(offset, bytes(5 * MOST), tag=2)
    bench.serve_all()
    assert bench.taken() == [make_error(1, errno.EACCES), make_error(2, errno.EACCES)]


def test_a_large_write_goes_part_by_part(bench: Bench) -> None:
    """In order: a file that is opened to append has each where the last one ended."""
    data = bytes(number % 251 for number in range(3 * MOST + 7))
    bench.write(200, data)
    for _ in range(4):
        assert len(bench.asked) == 1
        assert bench.answers == []
        bench.serve()
    assert bench.was_written() == len(data)
    assert bench.file[200 : 200 + len(data)] == data


@pytest.mark.parametrize(("amiss", "written"), [(100, MOST + 100), (-errno.ENOSPC, MOST)])
def test_a_write_that_ends_early_says_how_far_it_came(
    bench: Bench, amiss: int, written: int
) -> None:
    bench.amiss[MOST] = amiss
    bench.write(0, bytes(3 * MOST))
    bench.serve_all()
    assert bench.was_written() == written


def test_a_large_listing_is_a_shorter_one(bench: Bench) -> None:
    bench.parts.ask(make_message(Kind.TREADDIR, 1, counted(3, 4 * MOST)))
    [asked] = bench.asked
    assert asked[HEADER_SIZE:] == counted(3, MOST)


@pytest.mark.parametrize(
    ("message", "number"),
    [
        (make_message(GETATTR, 1, bytes(SERVER_SIZE)), errno.EMSGSIZE),
        (make_message(Kind.TREAD, 1, counted(0, PARTS_MAX * SERVER_SIZE)), errno.EIO),
        (make_message(Kind.TREAD, 1, counted(0, 0xFFFFFFFF)), errno.EIO),
        (make_message(Kind.TREAD, 1, counted((1 << 63) - 100, 4 * MOST)), errno.EINVAL),
        (make_message(Kind.TWRITE, 1, counted(0, 2 * MOST) + bytes(MOST)), errno.EINVAL),
        (make_message(Kind.TWRITE, 1, counted(0, 2 * MOST) + bytes(3 * MOST)), errno.EINVAL),
        (make_message(Kind.TWRITE, 1, counted(0, MOST) + bytes(3 * MOST)), errno.EMSGSIZE),
    ],
    ids=["other", "more-than-agreed", "most", "offset", "less-data", "more-data", "much-data"],
)
def test_what_cannot_go_in_parts_is_refused(bench: Bench, message: bytes, number: int) -> None:
    bench.parts.ask(message)
    assert not bench.asked
    assert bench.taken() == [make_error(1, number)]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.TREAD + 1, b""),
        (Kind.TREAD + 1, struct.pack("<I", MOST + 1) + bytes(MOST + 1)),
        (Kind.TREAD + 1, struct.pack("<I", 10) + bytes(5)),
        (Kind.TWRITE + 1, struct.pack("<I", 10) + bytes(10)),
    ],
    ids=["cut", "more", "less", "another"],
)
def test_a_server_that_answers_nonsense_does_not_harm_us(
    bench: Bench, kind: int, body: bytes
) -> None:
    bench.read(0, 2 * MOST)
    bench.say(kind, header_of(bench.asked.popleft())[2], body)
    [answer] = bench.taken()
    assert answer in (
        make_error(1, errno.EIO),
        make_message(Kind.TREAD + 1, 1, struct.pack("<I", 5) + bytes(5)),
    )
    # Its next answer is one to nothing.
    bench.say(kind, 9, body)
    assert bench.taken() == []


def test_not_all_requests_are_in_parts_at_once(bench: Bench) -> None:
    for tag in range(SPLIT_MAX + 2):
        bench.read(0, 2 * MOST, tag)
    assert len(bench.asked) == SPLIT_MAX
    bench.serve_all()
    assert sorted(header_of(answer)[2] for answer in bench.answers) == list(range(SPLIT_MAX + 2))
    assert {len(answer) for answer in bench.answers} == {11 + 2 * MOST}


# Tflush


def test_a_flush_names_the_servers_tag(bench: Bench) -> None:
    bench.parts.ask(make_message(GETATTR, 50, b"first"))
    bench.parts.ask(make_message(GETATTR, 60, b""))
    bench.flush(60, 70)
    assert bench.asked[-1][HEADER_SIZE:] == header_of(bench.asked[1])[2].to_bytes(2, "little")


def test_what_the_server_gave_up_is_answered_before_it_is_flushed(bench: Bench) -> None:
    bench.parts.ask(make_message(GETATTR, 1, b""))
    bench.flush(1, 2)
    bench.serve(-1)
    assert bench.taken() == [make_error(1, errno.EINTR), rflush(2)]
    # Both of the server's tags are free, and the driver's.
    bench.asked.clear()
    bench.parts.ask(make_message(GETATTR, 1, b""))
    bench.parts.ask(make_message(GETATTR, 2, b""))
    assert {header_of(message)[2] for message in bench.asked} == {0, 1}


def test_what_the_server_answers_in_spite_of_a_flush_is_answered_once(bench: Bench) -> None:
    bench.parts.ask(make_message(GETATTR, 1, b""))
    bench.flush(1, 2)
    bench.say(GETATTR + 1, header_of(bench.asked[0])[2], b"done")
    bench.serve(-1)
    assert bench.taken() == [make_message(GETATTR + 1, 1, b"done"), rflush(2)]


def test_flushes_of_one_request_are_answered_in_order(bench: Bench) -> None:
    """The server answers the last alone."""
    bench.parts.ask(make_message(GETATTR, 1, b""))
    bench.flush(1, 2)
    bench.flush(1, 3)
    bench.flush(2, 4)
    assert len(bench.asked) == 2
    bench.serve(-1)
    assert bench.taken() == [make_error(1, errno.EINTR), rflush(2), rflush(3), rflush(4)]


def test_a_flush_of_nothing_is_answered(bench: Bench) -> None:
    bench.flush(99, 1)
    bench.flush(2, 2)
    bench.parts.ask(make_message(Kind.TFLUSH, 3, b""))
    assert bench.taken() == [rflush(1), rflush(2), rflush(3)]


def test_a_flushed_request_in_parts_goes_no_further(bench: Bench) -> None:
    bench.write(0, b"x" * 5 * MOST)
    bench.serve()
    bench.flush(1, 2)
    assert bench.answers == []
    bench.serve()
    assert not bench.asked
    assert bench.taken() == [
        make_message(Kind.TWRITE + 1, 1, struct.pack("<I", 2 * MOST)),
        rflush(2),
    ]
    assert bench.file.count(b"x"[0]) >= 2 * MOST


def test_a_flushed_request_that_waits_for_its_turn_does_nothing(bench: Bench) -> None:
    for tag in range(SPLIT_MAX):
        bench.read(0, 2 * MOST, tag)
    bench.write(0, b"x" * 2 * MOST, 100)
    bench.flush(100, 101)
    before = bytes(bench.file)
    bench.serve_all()
    answers = bench.taken()
    assert len(answers) == SPLIT_MAX + 2
    after = answers.index(make_error(100, errno.EINTR)) + 1
    assert answers[after] == rflush(101)
    assert bench.file == before
