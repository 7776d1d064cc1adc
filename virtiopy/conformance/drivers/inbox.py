"""Receive buffers of a network device, and the frames that come in them (5.1.9.3, 5.1.9.4)."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from virtiopy.conformance.drivers.base import Request, Sent
from virtiopy.conformance.drivers.net import (
    HEADER_SIZE,
    NO_OFFLOADS,
    RECEIVE_SIZE,
    RECEIVED,
    RECEIVEQ,
    Header,
    NetDriver,
)
from virtiopy.conformance.problems import BrokenError, NoAnswerError, words_of

#: The statement that num_buffers is about.
NUM_BUFFERS = "5.1.9.3.2:1"

#: How many buffers there are, where a test does not say.
BUFFERS = 16


@dataclass(slots=True, frozen=True)
class Received:
    """A frame, and the buffers that it took up: their sizes, and the bytes used of each.

    `together` is whether all of them were seen to be used at once.
    """

    header: Header
    frame: bytes
    sizes: Sequence[int]
    lengths: Sequence[int]
    together: bool


class Inbox:
    """A stock of receive buffers on a queue, of `sizes` bytes.

    Each is supplied again once it was looked at.
    """

    def __init__(
        self, net: NetDriver, *, queue: int = RECEIVEQ, sizes: Sequence[int] | None = None
    ) -> None:
        self._net = net
        self._queue = queue
        self._sent: dict[int, Sent] = {}
        self._used: deque[tuple[bytes, int]] = deque()
        for size in sizes or [RECEIVE_SIZE] * BUFFERS:
            self.supply(size)

    def supply(self, size: int) -> None:
        """Make a buffer more available."""
        request = Request(self._queue, b"", size, lambda content, length: None)
        self._offer(self._net.place(request))

    def _offer(self, sent: Sent) -> None:
        self._sent[sent.head] = sent
        self._net.offer(sent)

    def take(self) -> list[Received]:
        """Return the frames that have come since the last call."""
        earlier = len(self._used)
        self._collect()
        frames = []
        while (frame := self._take_one(earlier)) is not None:
            frames.append(frame)
            earlier = 0
        return frames

    def parts(self, size: int) -> list[tuple[bytes, int]]:
        """Wait for so many bytes, whatever num_buffers says; returns buffers and their lengths."""

        def look() -> bool:
            self._collect()
            return sum(length for _, length in self._used) >= size

        self._wait(look)
        parts = list(self._used)
        self._used.clear()
        return parts

    def _collect(self) -> None:
        queue = self._net.session.queues[self._queue]
        done = [(self._sent.pop(used.head), used) for used in queue.take_all_used()]
        for sent, used in done:
            self._used.append((self._net.check(sent, used), used.length))
        for sent, _ in done:
            head = queue.place(sent.pieces)
            self._offer(Sent(sent.request, head, sent.pieces))

    def _take_one(self, earlier: int) -> Received | None:
        if not self._used:
            return None
        content, length = self._used[0]
        assert length >= HEADER_SIZE, f"a frame's first buffer has {length} bytes of its header"
        header = Header.decode(content)
        count = header.num_buffers if self._net.session.has("VIRTIO_NET_F_MRG_RXBUF") else 1
        if not count:
            raise BrokenError("num_buffers is 0", NUM_BUFFERS)
        if len(self._used) < count:
            return None
        parts = [self._used.popleft() for _ in range(count)]
        data = b"".join(content[:length] for content, length in parts)
        return Received(
            header,
            data[HEADER_SIZE:],
            [len(content) for content, _ in parts],
            [length for _, length in parts],
            together=not earlier,
        )

    def until(self, frame: bytes) -> list[Received]:
        """Wait until this frame has come; returns it and those that came before it."""
        frames: list[Received] = []

        def look() -> bool:
            frames.extend(self.take())
            return any(received.frame == frame for received in frames)

        self._wait(look)
        return frames

    def _wait(self, look: Callable[[], bool]) -> None:
        try:
            self._net.session.wait("the frame received", look)
        except NoAnswerError as error:
            raise NoAnswerError(words_of(error), RECEIVED) from error

    def outcome(
        self, frame: bytes, header: Header = NO_OFFLOADS, *, marker: bytes | None = None
    ) -> list[Received]:
        """Have the link receive a frame; returns what came of it.

        That is what came before another frame, `marker`, which is received for certain.
        """
        self._net.link.inject(header.encode() + frame)
        return self.before(marker)

    def before(self, marker: bytes | None = None) -> list[Received]:
        """Have the link receive a frame that comes for certain; returns those before it."""
        marker = marker or self._net.frame(destination=self._net.mac)
        self._net.link.inject(NO_OFFLOADS.encode() + marker)
        return self.until(marker)[:-1]

    def gets(self, frame: bytes, *, marker: bytes | None = None) -> bool:
        """Say whether the driver is given a frame that the link receives."""
        return any(received.frame == frame for received in self.outcome(frame, marker=marker))
