"""What becomes of a device that is mistreated, and whether it works afterwards."""

import enum
import time
from collections.abc import Callable

from virtiopy.conformance.drivers.base import DeviceDriver, Request, nothing
from virtiopy.conformance.problems import (
    DiedError,
    LeftError,
    NoAnswerError,
    NotApplicableError,
    WedgedError,
    words_of,
)
from virtiopy.conformance.sessions.base import Session

#: Of a device that can be worked with no more, the one statement (2.1.2) is that it says so.
SAYS_SO = "2.1.2:2"


class Verdict(enum.Enum):
    """How a device took what its driver did to it."""

    #: It used every buffer that was made available, and works on.
    SERVED = "served"
    #: It left a buffer unused, or ended the session, and works on (over a new session then).
    REJECTED = "rejected"
    #: It asked for a reset (2.1.2), and works after that.
    NEEDS_RESET = "needs reset"
    #: It served no good request any more until it was reset, and did not ask for that.
    STALLED = "stalled"
    #: It serves no good request any more, not even after a reset.
    WEDGED = "wedged"
    #: It raised an exception, or its process ended.
    DIED = "died"

    @property
    def passes(self) -> bool:
        """Whether a device may take it so."""
        return self not in {Verdict.WEDGED, Verdict.DIED}


class _StalledError(Exception):
    """A good request was not served, and the device does not say why."""


class Judge:
    """Watches a device while its driver misbehaves."""

    def __init__(self, session: Session, driver: DeviceDriver) -> None:
        #: How the device took each act, in their order: reports count them.
        self.verdicts: list[Verdict] = []
        # What the last device that did not stand an act came to its end by.
        self._end: DiedError | WedgedError | None = None
        self._session = session
        self._driver = driver

    def verdict(self, act: Callable[[], None], *, queue: int | None = None) -> Verdict:
        """Do `act`, follow it with a good request, and say how the device took it.

        The device was started before. `act` breaks what it likes of it, and kicks. Where the
        device asks for a reset or has left, or the act itself has reset it, it is reset and
        started again, and has to serve a good request then. The good request is one for the
        driver's main queue, and another for `queue`, if there can be any. Raises no DeviceError.
        """
        try:
            verdict = self._watch(act, queue)
        except DiedError as error:
            self._session.trace.note(f"died: {error}")
            self._end = error
            verdict = Verdict.DIED
        except WedgedError as error:
            self._session.trace.note(f"wedged: {error}")
            self._end = error
            verdict = Verdict.WEDGED
        self.verdicts.append(verdict)
        return verdict

    def check(self, act: Callable[[], None], *, queue: int | None = None) -> Verdict:
        """Do the same, and fail the test where the device is wedged or died."""
        verdict = self.verdict(act, queue=queue)
        if verdict is Verdict.DIED:
            raise DiedError(f"the device died: {self._end}")
        if verdict is Verdict.WEDGED:
            raise WedgedError(f"the device is wedged: {self._end}")
        return verdict

    def _watch(self, act: Callable[[], None], queue: int | None) -> Verdict:
        before = self._unused()
        try:
            verdict = self._first_answers(act, queue)
        except _StalledError:
            self._stalled(queue)
            return Verdict.STALLED
        except LeftError as error:
            self._session.trace.note(f"the session is over: {error}")
            verdict = Verdict.REJECTED
        else:
            if verdict is Verdict.SERVED:
                return verdict if self._unused() <= before else Verdict.REJECTED
        return self._after_reset(verdict or Verdict.SERVED, queue)

    def _first_answers(self, act: Callable[[], None], queue: int | None) -> Verdict | None:
        act()
        verdict = self._answer(self._driver.good_request())
        for request in self._of_queue(queue):
            if verdict is Verdict.SERVED:
                verdict = self._answer(request)
        return verdict

    def _stalled(self, queue: int | None) -> None:
        """See whether a reset helps; raises WedgedError where it does not."""
        self._session.trace.note("a good request is not served: does a reset help?")
        self._after_reset(Verdict.STALLED, queue)
        if self._session.hurried:
            return
        words = "a good request was not served until a reset, and the device had not asked for one"
        try:
            self._session.require_status()
        except NotApplicableError:
            # There is no status to ask for a reset by.
            return
        self._session.remark(SAYS_SO, words)

    def _of_queue(self, queue: int | None) -> list[Request]:
        return [it for it in self._driver.requests() if it.queue == queue]

    def _answer(self, request: Request) -> Verdict | None:
        """Have a good request served; NEEDS_RESET where the device says so, or else REJECTED.

        None where the act itself has reset the device, or the queue. Raises _StalledError when it
        is not served, and the device does not say why.
        """
        session, driver = self._session, self._driver
        if session.needs_reset:
            return Verdict.NEEDS_RESET
        queue = session.queues.get(request.queue)
        if queue is None:
            return None
        if request.stimulus is not nothing and queue.unused:
            # What the host's side sends would go to the buffers that are there already.
            return Verdict.REJECTED
        try:
            sent = driver.place(request)
        except IndexError:
            # The act has taken all descriptors.
            return Verdict.REJECTED
        driver.offer(sent)
        start = time.monotonic()
        while time.monotonic() < start + session.patience:
            queue.completed.update((used.head, used) for used in queue.take_all_used())
            if (used := queue.completed.pop(sent.head, None)) is not None:
                session.came_after(time.monotonic() - start)
                driver.check(sent, used)
                return Verdict.SERVED
            if session.needs_reset:
                return Verdict.NEEDS_RESET
            session.raise_failure()
            time.sleep(0.0002)
        session.check_alive()
        raise _StalledError

    def _after_reset(self, verdict: Verdict, queue: int | None) -> Verdict:
        session, driver = self._session, self._driver
        session.trace.note("reset, after what the driver did")
        session.reset()
        driver.start()
        try:
            driver.good()
            for request in self._of_queue(queue):
                # The host's side may have sent its part before the reset.
                if request.stimulus is nothing:
                    driver.do(request)
        except (NoAnswerError, LeftError) as error:
            raise WedgedError(
                f"no good request is served, not even after a reset: {words_of(error)}"
            ) from error
        return verdict

    def _unused(self) -> int:
        """Count the buffers that are available and were not used."""
        return sum(queue.unused for queue in self._session.queues.values())
