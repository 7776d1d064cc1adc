"""What the drivers of all device types have in common: requests, in any framing, and answers."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from virtiopy.conformance.clauses import features as named
from virtiopy.conformance.clauses.definitions import LENGTH_IN_PLACE, WRITTEN
from virtiopy.conformance.problems import BrokenError
from virtiopy.conformance.sessions.base import FeatureLike, Session
from virtiopy.conformance.sessions.queue import STALE_LENGTH
from virtiopy.spec import DeviceId, feature_mask
from virtiopy.virtqueue.driver import Piece, Used
from virtiopy.virtqueue.layout import DESCRIPTOR_SIZE


def nothing() -> None:
    """Do nothing."""


@dataclass(slots=True, frozen=True)
class Request:
    """A request as its device's section has it, whatever the framing.

    The device reads `readable` and may write `room` bytes. `check` is given what is in those
    afterwards, and the length in the used ring, and raises AssertionError. `stimulus` is what the
    host's side does to have the buffer used, once it is available; the device asks no host where
    there is none. `parts` are the offsets at which the parts of either side begin, such as a header
    or a status: each is a descriptor of its own, unless a framing says otherwise.
    """

    queue: int
    readable: bytes
    room: int
    check: Callable[[bytes, int], None]
    stimulus: Callable[[], None] = nothing
    parts: tuple[Sequence[int], Sequence[int]] = ((), ())


@dataclass(slots=True, frozen=True)
class Framing:
    """How a buffer is cut into descriptors (2.7.4): where, in bytes of either of its sides.

    None is for the ordinary way: a descriptor for each part of the request. The first `direct`
    descriptors are in the queue's table, and the others in an indirect table; None for all in the
    queue's.
    """

    readable: Sequence[int] | None = None
    writable: Sequence[int] | None = None
    direct: int | None = None


#: A descriptor for each part of a request.
WHOLE = Framing()

#: The same, in an indirect table.
INDIRECT = Framing(direct=0)


def bytewise(request: Request, *, direct: int | None = None) -> Framing:
    """Return the framing with a descriptor for each byte."""
    return Framing(range(1, len(request.readable)), range(1, request.room), direct)


@dataclass(slots=True, frozen=True)
class Sent:
    """A request that is in a queue: the head of its chain, and its buffers."""

    request: Request
    head: int
    pieces: Sequence[Piece]


class DeviceDriver:
    """A driver of one device, on a session.

    It keeps to the specification; tests that do not have the session for it.
    """

    device_id: ClassVar[DeviceId]

    #: What devices of the type are called on the command line.
    name: ClassVar[str]

    #: The device type's features that it can work with, when they are negotiated.
    understood: ClassVar[Iterable[FeatureLike]] = ()

    #: The queue that `good_request` goes to.
    main_queue: ClassVar[int] = 0

    #: Bytes of the configuration space that every device of the type has, whatever it offers.
    config_size: ClassVar[int] = 0

    #: How many virtqueues a device has whose backend does not say.
    queues: ClassVar[int] = 1

    #: The feature without which it has so many, whatever the backend says.
    more_queues: ClassVar[FeatureLike | None] = None

    @classmethod
    def count_queues(cls, said: int | None, features: int) -> int:
        """Return how many virtqueues a device behind vhost-user has with these features.

        `said` is what its backend says of their number (GET_QUEUE_NUM).
        """
        more = cls.more_queues
        if said is None or (more is not None and not features & feature_mask(named.bits([more]))):
            return cls.queues
        return said

    @property
    def given_away(self) -> Sequence[tuple[int, int]]:
        """Memory beside buffers that the device may change: [start, end), guest physical."""
        return ()

    @property
    def can_reconnect(self) -> bool:
        """Whether all that a backend has to know after a hot reconnect is in rings and features."""
        return True

    def __init__(self, session: Session) -> None:
        self.session = session
        session.understood |= feature_mask(named.bits(self.understood))

    def start(
        self,
        features: Iterable[FeatureLike] | None = None,
        *,
        without: Iterable[FeatureLike] = (),
        queue_size: int | None = None,
    ) -> None:
        """Reset the device and bring it up with these features, ready for requests."""
        self.session.start(
            features, without=without, queue_size=queue_size, choose=self.choose_queues
        )

    def choose_queues(self, number: int) -> Iterable[int]:
        """Return which of so many virtqueues are set up: all, unless one is like another."""
        return range(number)

    # Requests that any device of this type has to serve

    @abstractmethod
    def good_request(self) -> Request:
        """Return a request for `main_queue` that does not depend on any other; each differs."""

    def long_request(self) -> Request:
        """Return a good request that takes the device longer than others, where there are any."""
        return self.good_request()

    def requests(self) -> Sequence[Request]:
        """Return one such request for each queue that can be worked here."""
        return [self.good_request()]

    def telling_requests(self) -> Sequence[Request]:
        """Return good requests that the device has to read more of than a header, if any are."""
        return ()

    # The life of a request

    def pieces(self, request: Request, framing: Framing = WHOLE) -> list[Piece]:
        """Put a request into memory; returns its buffers, in a chain's order."""
        session = self.session
        data = request.readable
        readable = request.parts[0] if framing.readable is None else framing.readable
        writable = request.parts[1] if framing.writable is None else framing.writable
        pieces = [session.place(data[start:end]) for start, end in _cut(len(data), readable)]
        pieces += [session.room(end - start) for start, end in _cut(request.room, writable)]
        return pieces

    def place(self, request: Request, framing: Framing = WHOLE) -> Sent:
        """Put a request into descriptors; it is not available yet."""
        pieces = self.pieces(request, framing)
        table = None
        if framing.direct is not None and framing.direct < len(pieces):
            size = DESCRIPTOR_SIZE * (len(pieces) - framing.direct)
            table = self.session.allocator.take(size, DESCRIPTOR_SIZE)
        queue = self.session.queues[request.queue]
        head = queue.place(pieces, direct=framing.direct, table=table)
        return Sent(request, head, pieces)

    def place_some(self, requests: Iterable[Request], framing: Framing = WHOLE) -> list[Sent]:
        """Place as many of these requests as there are descriptors for; at least the first.

        A device may have smaller queues than the suite would fill.
        """
        sent: list[Sent] = []
        for request in requests:
            try:
                sent.append(self.place(request, framing))
            except IndexError:
                if not sent:
                    raise
                break
        return sent

    def offer(self, *sent: Sent) -> None:
        """Make requests of one queue available, with one update of idx, and kick if asked to."""
        [index] = {one.request.queue for one in sent}
        queue = self.session.queues[index]
        queue.make_available(*(one.head for one in sent))
        if queue.should_kick():
            self.session.kick(index)
        for one in sent:
            one.request.stimulus()

    def send(self, request: Request, framing: Framing = WHOLE) -> Sent:
        """Place a request, make it available, and kick if the device asks for it."""
        sent = self.place(request, framing)
        self.offer(sent)
        return sent

    def finish(self, sent: Sent) -> bytes:
        """Wait until a request was used, and check the answer; returns what was written."""
        return self.check(sent, self.session.wait_for(sent.request.queue, sent.head))

    def check(self, sent: Sent, used: Used) -> bytes:
        """Check the answer to a request; returns what is in its device-writable part."""
        assert used.head == sent.head, f"head {used.head} used, not {sent.head}"
        if used.length == STALE_LENGTH:
            raise BrokenError("idx counts an entry whose length is not in place", LENGTH_IN_PLACE)
        if used.length > sent.request.room:
            raise BrokenError(
                f"the used length is {used.length}, of a buffer with room for {sent.request.room}",
                WRITTEN,
            )
        content = self.session.content(*(piece for piece in sent.pieces if piece.writable))
        sent.request.check(content, used.length)
        return content

    def do(self, request: Request, framing: Framing = WHOLE) -> bytes:
        """Send a request, wait for it, check the answer, and return what was written."""
        return self.finish(self.send(request, framing))

    def good(self) -> None:
        """Have a good request served: the device works."""
        self.do(self.good_request())


def _cut(size: int, positions: Sequence[int]) -> list[tuple[int, int]]:
    """Return [start, end) of the parts of `size` bytes, cut at `positions`."""
    if size == 0:
        return []
    return list(pairwise([0, *sorted(p for p in set(positions) if 0 < p < size), size]))
