"""What a hostile act is, and what it has in hand: a queue of a device that runs."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from virtiopy.conformance.drivers.base import DeviceDriver, Request
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.queue import SessionQueue
from virtiopy.virtqueue.driver import Piece

#: Bytes of a buffer, where it does not matter.
BUFFER = 64

#: How long a device has for an act that has to be over before the next, seconds.
SETTLE_TIME = 0.005


class Stage:
    """One queue of a device that runs, in a hostile driver's hands."""

    def __init__(self, session: Session, driver: DeviceDriver, index: int) -> None:
        self.session = session
        self.driver = driver
        self.index = index

    @property
    def queue(self) -> SessionQueue:
        """The queue."""
        return self.session.queues[self.index]

    def buffer(self, size: int = BUFFER) -> int:
        """Return the address of a buffer that nothing else is in."""
        return self.session.room(size).address

    def descriptors(self, count: int) -> list[int]:
        """Take so many entries of the descriptor table; they are a chain of empty bytes yet."""
        pieces = [Piece(self.buffer(1), 1) for _ in range(count)]
        before = self.queue.free_indexes
        self.queue.place(pieces)
        return before[-1 : -count - 1 : -1]

    def request(self) -> Request | None:
        """Return a good request for this queue; None where the suite has none."""
        return next((r for r in self.driver.requests() if r.queue == self.index), None)

    def placed(self) -> list[int]:
        """Place a few requests, good ones where there are any; returns their heads."""
        heads = []
        for _ in range(4):
            request = self.request()
            if request is not None:
                heads.append(self.driver.place(request).head)
            else:
                heads.append(self.queue.place([self.session.room(BUFFER)]))
        return heads

    def submit(self, *heads: int) -> None:
        """Make chains available, and kick."""
        self.queue.make_available(*heads)
        self.session.kick(self.index)

    def settle(self) -> None:
        """Give the device time to use a buffer, or to say that it cannot."""
        used = self.queue.used_idx
        end = time.monotonic() + SETTLE_TIME
        while self.queue.used_idx == used and time.monotonic() < end:
            self.session.raise_failure()
            if self.session.needs_reset:
                return
            time.sleep(0.0005)


@dataclass(slots=True, frozen=True)
class Act:
    """Something that no driver may do: a name, the section that says so, and how it is done.

    It only applies where these `features` were negotiated. After a `ruinous` one the driver's own
    memory is not to be trusted, so the device is reset before anything else is asked of it.
    """

    name: str
    section: str
    do: Callable[[Stage], None]
    features: Sequence[str] = ()
    ruinous: bool = False


def perform(act: Act, stage: Stage) -> None:
    """Do it, to one queue."""
    stage.session.trace.note(f"queue {stage.index}: {act.name} ({act.section})")
    act.do(stage)
    if act.ruinous:
        stage.settle()
        if not stage.session.needs_reset:
            stage.session.reset()


def on_each_queue(act: Act, session: Session, driver: DeviceDriver, judge: Judge) -> None:
    """Do it to one queue after the other, each time with good requests behind it."""
    if not session.has(*act.features):
        raise NotApplicableError(f"{' and '.join(act.features)} was not negotiated")
    on_queues(act, sorted(session.queues), session, driver, judge)


def chain(*parts: bytes | int | Piece) -> Callable[[Stage], None]:
    """Return what submits a chain: bytes are for the device to read, a number is room to write."""

    def do(stage: Stage) -> None:
        session = stage.session
        pieces = []
        for part in parts:
            if isinstance(part, bytes):
                pieces.append(session.place(part))
            else:
                pieces.append(part if isinstance(part, Piece) else session.room(part))
        stage.submit(stage.queue.place(pieces))

    return do


def on_queues(
    act: Act, indexes: Iterable[int], session: Session, driver: DeviceDriver, judge: Judge
) -> None:
    """Do it to each of these queues, as far as they are there."""
    there = [index for index in indexes if index in session.queues]
    if not there or not session.has(*act.features):
        raise NotApplicableError("the queue that it is for is not there")
    for index in there:
        judge.check(lambda index=index: perform(act, Stage(session, driver, index)), queue=index)  # type: ignore[misc]
