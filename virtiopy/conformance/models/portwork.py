"""Work on the ports of a console device, every byte of it held against the model (5.3.6)."""

from collections.abc import Iterable, Sequence
from random import Random

from virtiopy.conformance.drivers.base import WHOLE, Framing, Request, Sent
from virtiopy.conformance.drivers.console import OUTPUT, TYPED, ConsoleDriver, receiveq, transmitq
from virtiopy.conformance.models.bytestream import ByteStream
from virtiopy.conformance.problems import BrokenError, NoAnswerError

#: Lengths at which streams have been known to go wrong, bytes.
LENGTHS = (1, 2, 3, 4, 7, 8, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097)


class PortWork:
    """One port: what the driver writes to it, and what is typed at the host's side."""

    def __init__(self, console: ConsoleDriver, port: int) -> None:
        self._console = console
        self._port = port
        self._terminal = console.terminal(port)
        self._out = ByteStream()
        self._in = ByteStream()
        self._rooms: dict[int, Sent] = {}

    # From the driver

    def write(self, sizes: Iterable[int], framing: Framing = WHOLE) -> None:
        """Write so many bytes each, as many together as there is room for, and look."""
        console = self._console
        left = list(sizes)
        queue = transmitq(self._port)
        while left:
            # What is in flight has to be the next of the stream, so none is made in vain.
            chosen = left[: max(1, console.session.queues[queue].free // 8)]
            data = [self._out.write(size) for size in chosen]
            requests = [Request(queue, one, 0, console.check_sent) for one in data]
            sent = [console.place(request, framing) for request in requests]
            console.offer(*sent)
            self._look_out()
            for one in sent:
                console.finish(one)
            del left[: len(chosen)]

    def _look_out(self) -> None:
        patience = self._console.session.patience
        while self._out.on_the_way:
            data = self._terminal.taken(self._out.on_the_way, seconds=patience)
            if not data:
                words = f"written to port {self._port}: {self._out.missing()}"
                raise NoAnswerError(words, OUTPUT)
            self._see(self._out.arrive(data), "written to", OUTPUT)

    def nothing_more(self) -> None:
        """See that nothing comes out that was not written."""
        self._see(self._out.arrive(self._terminal.taken(1 << 12, seconds=0.03)), "from", OUTPUT)

    def _see(self, wrong: str, what: str, clause: str) -> None:
        if wrong:
            raise BrokenError(f"{what} port {self._port}: {wrong}", clause)

    # From the host

    def supply(self, rooms: Sequence[int]) -> None:
        """Make buffers with room for so many bytes available."""
        console = self._console
        for room in rooms:
            request = Request(receiveq(self._port), b"", room, lambda content, length: None)
            self._offer(console.place(request))

    def _offer(self, sent: Sent) -> None:
        self._rooms[sent.head] = sent
        self._console.offer(sent)

    def type(self, sizes: Iterable[int]) -> None:
        """Type so many bytes at a time, and look; buffers are supplied again."""
        for size in sizes:
            self._terminal.type(self._in.write(size))
            try:
                self._console.session.wait("what was typed", self._look_in)
            except NoAnswerError as error:
                words = f"typed at port {self._port}: {self._in.missing()}"
                raise NoAnswerError(words, TYPED) from error

    def _look_in(self) -> bool:
        console = self._console
        queue = console.session.queues[receiveq(self._port)]
        done = [(self._rooms.pop(used.head), used) for used in queue.take_all_used()]
        for sent, used in done:
            content = console.check(sent, used)[: used.length]
            self._see(self._in.arrive(content), "typed at", TYPED)
        for sent, _ in done:
            self._offer(Sent(sent.request, queue.place(sent.pieces), sent.pieces))
        return not self._in.on_the_way


def some(random: Random, number: int) -> list[int]:
    """Return so many lengths, in bytes."""
    return [random.choice((*LENGTHS, random.randint(1, 3000))) for _ in range(number)]
