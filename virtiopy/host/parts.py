"""9P requests larger than the server takes: each goes to it in parts, and has one answer.

In 9P2000.L client and server agree on the size of the largest message (msize of Tversion and
Rversion). Here the driver agrees with us, and we with the server. A Tread or Twrite of more than
the server takes becomes several of the server's. Where one of them moves less than it asked for, or
fails, the answer says what was moved up to there, as read(2) and write(2) do; it is an error where
nothing was. Tags are the driver's on its side and ours on the server's, as one request may want
several at once.

A request that is flushed (Tflush) is answered before its Rflush, in each case: with EINTR where the
server gave it up; where it is in parts, with what the parts that the server has now move.
"""

import enum
import errno
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from virtiopy.devices.ninep import HEADER_SIZE, RLERROR, make_error, make_message

log = logging.getLogger(__name__)

#: The largest message that a driver is offered, bytes: Linux's virtio transport asks for 512,000.
OFFERED_SIZE = 512 * 1024

#: The most parts of one request: a driver that had the server agree on less is offered less.
PARTS_MAX = 16

#: How many requests are in parts at once, each with its data here. Others wait for their turn.
SPLIT_MAX = 16

#: The largest message of diod's, bytes: what the server takes until it has said so.
_SERVER_SIZE = 65536

#: Tread and Treaddir have fid[4] offset[8] count[4] after the header. In Twrite data follow that.
_COUNT = HEADER_SIZE + 12
_DATA = _COUNT + 4
#: Rread and Rwrite have count[4] after the header. In Rread data follow that.
_ANSWER = HEADER_SIZE + 4
#: The largest offset in a file, as Linux counts.
_OFFSET_MAX = (1 << 63) - 1
#: What diod allows for besides the data of a message, bytes: P9_IOHDRSZ.
_OVERHEAD = 24


class Kind(enum.IntEnum):
    """The types of the requests that are not all passed on as they are. An answer's is one more."""

    TREADDIR = 40
    TVERSION = 100
    TFLUSH = 108
    TREAD = 116
    TWRITE = 118


@dataclass(slots=True)
class Split:
    """What is left to do of a Tread or Twrite, and what is done."""

    message: bytes
    count: int
    #: The answer, with the data of a Tread in their places.
    answer: memoryview
    #: Bytes moved, without a gap; why it was no more, where a part failed; whether that was all.
    moved: int = 0
    error: int = 0
    ended: bool = False
    #: The parts that the server has now: bytes that each asks for, by where it begins.
    parts: dict[int, int] = field(default_factory=dict)
    #: What those answered did: bytes moved, or a negative error number.
    results: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Request:
    """A request of the driver's that is not answered."""

    tag: int
    kind: int
    #: The server's tag for it, where it is whole.
    passed_as: int = -1
    #: The msize that a Tversion asks for.
    size_asked: int = 0
    split: Split | None = None
    #: The Tflush of it that the server has; and of a Tflush that it has, what it is to flush.
    flush: "Request | None" = None
    flushed: "Request | None" = None
    #: Each Tflush that is answered when this request is.
    followers: "list[Request]" = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class Asked:
    """What the server has under one of our tags: a request, or its part that begins there."""

    request: Request
    begin: int = 0


class Parts:
    """What is between a driver, to whom `answer` goes, and a server, to which `send` does.

    The tags of the driver's requests are those of none that is not answered: see to that first.
    """

    def __init__(
        self, send: Callable[[bytes], None], answer: Callable[[bytes | memoryview], None]
    ) -> None:
        self._send, self._answer = send, answer
        self._server_size = self._driver_size = _SERVER_SIZE
        #: What is not answered, by the driver's tags.
        self._requests: dict[int, Request] = {}
        #: What the server has, by our tags; these and the free ones are all from 0 on.
        self._asked: dict[int, Asked] = {}
        self._free: list[int] = []
        #: How many requests are in parts, and those that wait to be.
        self._running = 0
        self._waiting: deque[Request] = deque()

    # What the driver asks

    def ask(self, message: bytes) -> None:
        """Take a request."""
        request = Request(_number(message, 5, 2), message[4])
        self._requests[request.tag] = request
        match request.kind:
            case Kind.TFLUSH:
                self._ask_to_flush(request, message)
            case Kind.TREAD | Kind.TWRITE | Kind.TREADDIR if len(message) >= _DATA:
                self._ask_to_move(request, message)
            case Kind.TVERSION:
                request.size_asked = _number(message, HEADER_SIZE, 4)
                self._pass(request, message)
            case _:
                self._pass(request, message)

    def _pass(self, request: Request, message: bytes, begin: int = 0) -> None:
        """Give the server a message, with a tag of ours."""
        if len(message) > self._server_size:
            self._fail(request, errno.EMSGSIZE)
            return
        tag = self._free.pop() if self._free else len(self._asked)
        self._asked[tag] = Asked(request, begin)
        request.passed_as = tag
        self._send(message[:5] + tag.to_bytes(2, "little") + message[HEADER_SIZE:])

    def _ask_to_move(self, request: Request, message: bytes) -> None:
        count, most = _number(message, _COUNT, 4), self._server_size - _OVERHEAD
        if count <= most:
            self._pass(request, message)
        elif request.kind == Kind.TREADDIR:
            # The driver asks for what is left from where the answer ends.
            self._pass(request, message[:_COUNT] + most.to_bytes(4, "little"))
        elif count > self._driver_size - _OVERHEAD:
            # More than was agreed on. This is diod's answer to it.
            self._fail(request, errno.EIO)
        elif (request.kind == Kind.TWRITE and len(message) != _DATA + count) or (
            _number(message, HEADER_SIZE + 4, 8) + count > _OFFSET_MAX
        ):
            self._fail(request, errno.EINVAL)
        else:
            room = _ANSWER + (count if request.kind == Kind.TREAD else 0)
            request.split = Split(message, count, memoryview(bytearray(room)))
            self._waiting.append(request)
            self._begin_splits()

    def _ask_to_flush(self, request: Request, message: bytes) -> None:
        old = self._requests.get(_number(message, HEADER_SIZE, 2))
        if old is None or old is request:
            self._finish(request, make_message(Kind.TFLUSH + 1, request.tag, b""))
        elif old.split is not None or old.kind == Kind.TFLUSH:
            old.followers.append(request)
        elif old.flush is not None:
            old.flush.followers.append(request)
        else:
            old.flush, request.flushed = request, old
            tag = old.passed_as.to_bytes(2, "little")
            self._pass(request, make_message(Kind.TFLUSH, 0, tag))

    # Parts

    def _begin_splits(self) -> None:
        while self._waiting and self._running < SPLIT_MAX:
            request = self._waiting.popleft()
            if request.followers:
                self._fail(request, errno.EINTR)
            else:
                self._running += 1
                self._pass_parts(request)

    def _pass_parts(self, request: Request) -> None:
        """Give the server the next parts.

        The first of a read is alone, as the file may end there; all others follow it at once.
        Those of a write go one by one: they may be for the end of the file, wherever that is.
        """
        split = request.split
        assert split is not None
        split.parts.clear()
        split.results.clear()
        begin, most = split.moved, self._server_size - _OVERHEAD
        while begin < split.count:
            split.parts[begin] = size = min(most, split.count - begin)
            begin += size
            if request.kind == Kind.TWRITE or not split.moved:
                break
        fid, offset = split.message[HEADER_SIZE:], _number(split.message, HEADER_SIZE + 4, 8)
        for begin, size in split.parts.items():
            body = fid[:4] + (offset + begin).to_bytes(8, "little") + size.to_bytes(4, "little")
            if request.kind == Kind.TWRITE:
                body += split.message[_DATA + begin : _DATA + begin + size]
            self._pass(request, make_message(request.kind, 0, body), begin)

    def _part_answered(
        self, request: Request, split: Split, begin: int, message: memoryview
    ) -> None:
        split.results[begin] = _moved(request, split, begin, message)
        if len(split.results) < len(split.parts):
            return
        for start, size in split.parts.items():
            result = split.results[start]
            split.moved += max(result, 0)
            split.error = max(-result, 0)
            if result < size:
                split.ended = True
                break
        if not split.ended and split.moved < split.count and not request.followers:
            self._pass_parts(request)
            return
        self._running -= 1
        if not split.moved and split.error:
            self._fail(request, split.error)
        else:
            self._finish(request, _answer_of(request, split))
        self._begin_splits()

    # What the server answers

    def answered(self, message: memoryview) -> None:
        """Take an answer, which is changed; it is the caller's again then."""
        tag = _number(message, 5, 2)
        asked = self._asked.pop(tag, None)
        if asked is None:
            log.warning("the file server answers a request that is none")
            return
        self._free.append(tag)
        request = asked.request
        if request.split is not None:
            self._part_answered(request, request.split, asked.begin, message)
            return
        if request.flushed is not None:
            self._give_up(request.flushed)
        elif request.kind == message[4] - 1 == Kind.TVERSION and len(message) >= _ANSWER:
            self._agree(request, message)
        message[5:HEADER_SIZE] = request.tag.to_bytes(2, "little")
        self._finish(request, message)

    def _give_up(self, request: Request) -> None:
        """Answer a request that the server flushed, if the server did not: now it never will."""
        if self._requests.get(request.tag) is request:
            del self._asked[request.passed_as]
            self._free.append(request.passed_as)
            self._fail(request, errno.EINTR)

    def _agree(self, request: Request, message: memoryview) -> None:
        """Offer the driver more than the server takes, if it asks for that."""
        said = min(_number(message, HEADER_SIZE, 4), OFFERED_SIZE)
        if said <= _OVERHEAD:
            return
        self._server_size = said
        offered = min(request.size_asked, OFFERED_SIZE, PARTS_MAX * said)
        self._driver_size = max(offered, said)
        message[HEADER_SIZE:_ANSWER] = self._driver_size.to_bytes(4, "little")

    # Answers

    def _finish(self, request: Request, answer: bytes | memoryview) -> None:
        del self._requests[request.tag]
        self._answer(answer)
        for flush in request.followers:
            self._finish(flush, make_message(Kind.TFLUSH + 1, flush.tag, b""))

    def _fail(self, request: Request, number: int) -> None:
        self._finish(request, make_error(request.tag, number))


def _number(message: bytes | memoryview, position: int, size: int) -> int:
    return int.from_bytes(message[position : position + size], "little")


def _moved(request: Request, split: Split, begin: int, message: memoryview) -> int:
    """Take a part's answer; return how many bytes it moved, or a negative error number."""
    if message[4] == RLERROR:
        return -max(1, _number(message, HEADER_SIZE, 4))
    moved = _number(message, HEADER_SIZE, 4)
    if message[4] != request.kind + 1 or len(message) < _ANSWER or moved > split.parts[begin]:
        return -errno.EIO
    if request.kind == Kind.TREAD:
        data = message[_ANSWER : _ANSWER + moved]
        moved = len(data)
        split.answer[_ANSWER + begin : _ANSWER + begin + moved] = data
    return moved


def _answer_of(request: Request, split: Split) -> memoryview:
    """Return the one answer, whose data are in their places."""
    size = _ANSWER + (split.moved if request.kind == Kind.TREAD else 0)
    number = split.moved.to_bytes(4, "little")
    header = make_message(request.kind + 1, request.tag, number)
    split.answer[:_ANSWER] = size.to_bytes(4, "little") + header[4:]
    return split.answer[:size]
