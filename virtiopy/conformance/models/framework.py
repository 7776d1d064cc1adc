"""Work on a network device, every frame of it held against the model of its link (5.1.9)."""

from collections.abc import Iterable, Sequence
from itertools import count
from random import Random

from virtiopy.conformance.drivers.base import WHOLE, Framing, Request
from virtiopy.conformance.drivers.inbox import BUFFERS, Inbox
from virtiopy.conformance.drivers.net import (
    BROADCAST,
    HEADER_SIZE,
    NO_OFFLOADS,
    RECEIVED,
    SENT,
    NetDriver,
)
from virtiopy.conformance.models.frames import SHORTEST, Way, numbered
from virtiopy.conformance.problems import BrokenError, NoAnswerError

#: The statement about frames as long as the MTU allows.
LONGEST = "5.1.4.1:6"

#: The offset and size of mtu in struct virtio_net_config (5.1.4), and what it is if not said.
_MTU = 10, 2
_MTU_DEFAULT = 1500


class FrameWork:
    """Frames that a driver sends and receives, and the model that they are held against."""

    def __init__(self, net: NetDriver) -> None:
        self.net = net
        self._numbers = count(1)
        self._out: dict[int, Way] = {}
        self._in: dict[int, Way] = {}
        said = net.session.has("VIRTIO_NET_F_MTU")
        #: Bytes of the longest frame that need not be segmented.
        self.longest = SHORTEST + (net.session.config(*_MTU) if said else _MTU_DEFAULT)

    # Frames that the driver sends

    def send(self, sizes: Iterable[int], pair: int = 0, framing: Framing = WHOLE) -> None:
        """Have frames of these sizes sent, as many together as there is room for, and look."""
        net = self.net
        queue = 2 * pair + 1
        way = self._out.setdefault(pair, Way())
        left = []
        for size in sizes:
            number = next(self._numbers)
            left.append((number, numbered(number, size, BROADCAST)))
        while left:
            requests = [self._request(frame, queue) for _, frame in left]
            sent = net.place_some(requests, framing)
            for number, frame in left[: len(sent)]:
                way.send(number, frame)
            net.offer(*sent)
            self._look_out(way, pair)
            for one in sent:
                net.finish(one)
            del left[: len(sent)]

    def _request(self, frame: bytes, queue: int) -> Request:
        return Request(queue, NO_OFFLOADS.encode() + frame, 0, self.net.check_sent)

    def _look_out(self, way: Way, pair: int) -> None:
        while len(way):
            data = self.net.link.sent(pair, seconds=self.net.session.patience)
            # That frames go out which the MTU just allows is a statement of its own.
            clause = LONGEST if way.next_size > self.longest - SHORTEST else SENT
            if data is None:
                raise NoAnswerError(f"sent by pair {pair}: {way.missing()}", clause)
            if wrong := way.arrive(data[HEADER_SIZE:]):
                raise BrokenError(f"sent by pair {pair}: {wrong}", clause)

    def nothing_more(self, pair: int = 0) -> None:
        """See that no frame comes out that was not sent."""
        if (data := self.net.link.sent(pair, seconds=0.03)) is not None:
            wrong = self._out.setdefault(pair, Way()).arrive(data[HEADER_SIZE:])
            raise BrokenError(f"sent by pair {pair}: {wrong}", SENT)

    # Frames that the link receives

    def receive(self, inbox: Inbox, sizes: Sequence[int], *, together: int = BUFFERS) -> None:
        """Have the link receive frames of these sizes, some at a time, and look."""
        net = self.net
        way = self._in.setdefault(id(inbox), Way())
        for start in range(0, len(sizes), together):
            for size in sizes[start : start + together]:
                number = next(self._numbers)
                frame = numbered(number, size, net.mac)
                way.send(number, frame)
                net.link.inject(NO_OFFLOADS.encode() + frame)
            self._look_in(way, inbox)

    def _look_in(self, way: Way, inbox: Inbox) -> None:
        def look() -> bool:
            for received in inbox.take():
                if wrong := way.arrive(received.frame):
                    raise BrokenError(f"received: {wrong}", RECEIVED)
            return not len(way)

        try:
            self.net.session.wait("frames", look)
        except NoAnswerError as error:
            raise NoAnswerError(f"received: {way.missing()}", RECEIVED) from error

    # Sizes

    def sizes(self) -> range:
        """Return every length that there is."""
        return range(SHORTEST, self.longest + 1)

    def some(self, random: Random, number: int) -> list[int]:
        """Return so many lengths, the shortest and the longest more often than others."""
        ends = (SHORTEST, SHORTEST + 1, 59, 60, 61, self.longest - 1, self.longest)
        return [
            random.choice(ends) if random.random() < 0.3 else random.choice(self.sizes())
            for _ in range(number)
        ]
