"""A random walk of a driver: what it does step by step, and what the device owes it all the while.

What is checked: a good request that was used has the right answer; nothing is used that was not
made available, and nothing twice; a good request gets its answer, if its queue was not abused; a
ring that was reset is not touched, and a vhost-user backend has nothing of it in flight by then;
the device asks for no reset without a cause; it lives, and after a reset serves a good request.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import singledispatchmethod

from virtiopy.conformance.checks import stopped_idle
from virtiopy.conformance.clauses.definitions import USED_ID
from virtiopy.conformance.clauses.features import FEATURES, valid_subset
from virtiopy.conformance.drivers.base import (
    INDIRECT,
    WHOLE,
    DeviceDriver,
    Framing,
    Request,
    Sent,
    bytewise,
    nothing,
)
from virtiopy.conformance.hostile.acts import Act, Stage, perform
from virtiopy.conformance.hostile.chains import CHAINS
from virtiopy.conformance.hostile.indirect import TABLES
from virtiopy.conformance.hostile.rings import RINGS
from virtiopy.conformance.problems import BrokenError, LeftError, NotApplicableError
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.queue import SessionQueue
from virtiopy.conformance.walks.steps import (
    Bad,
    Kick,
    ReadConfig,
    Reconnect,
    Reset,
    ResetQueue,
    Send,
    Start,
    Step,
    Wait,
    WriteConfig,
)
from virtiopy.spec import feature_mask, has_feature
from virtiopy.virtqueue.driver import Used

#: The hostile acts of walks, by name: those that come to the same whenever they are done.
ACTS = {act.name: act for act in (*CHAINS, *TABLES, *RINGS)}

#: How requests are cut, by name.
FRAMINGS = ("whole", "halves", "indirect", "bytes")


def framing(name: str, request: Request, queue: SessionQueue, *, indirect: bool) -> Framing:
    """Return the framing with this name, if a driver may use it here; else that in one piece."""
    if name == "halves":
        return Framing((len(request.readable) // 2,), (request.room // 2,))
    if name == "indirect" and indirect:
        return INDIRECT
    # No chain is longer than the queue (2.7.5.3.1).
    if name == "bytes" and indirect and len(request.readable) + request.room <= queue.size:
        return bytewise(request, direct=0)
    return WHOLE


class Walk:
    """A walk on one session, from its beginning to its end."""

    def __init__(self, session: Session, driver: DeviceDriver) -> None:
        self._session = session
        self._driver = driver
        self._settings: Start | None = None
        # Good requests that are available or in flight, by queue and head.
        self._sent: dict[int, dict[int, Sent]] = defaultdict(dict)
        # Queues that nothing can be said of any more.
        self._abused: set[int] = set()
        # Whether the configuration space was accessed as no driver may: the backend may leave for
        # that, at once or when it has replied.
        self._has_strayed = False
        # Rings that were reset, with their used index then.
        self._left: list[tuple[SessionQueue, int]] = []

    def run(self, steps: Sequence[Step]) -> None:
        """Go; raises AssertionError or DeviceError where the device fails."""
        for step in steps:
            self._session.trace.note(f"--- {step}")
            if self._settings is None and not isinstance(step, Start):
                self._do(Start())
            try:
                self._do(step)
                self._look()
            except NotApplicableError as error:
                self._session.trace.note(f"left out: {error}")
            except LeftError:
                if not self._may_be_left:
                    raise
                self._restart()
        self._end()

    @property
    def _may_be_left(self) -> bool:
        """Whether a backend may leave: the driver has not kept to the specification."""
        return bool(self._abused) or self._has_strayed

    def _end(self) -> None:
        if self._settings is None:
            return
        self._session.trace.note("--- the end")
        try:
            for index in list(self._sent):
                self._wait(index)
        except LeftError:
            if not self._may_be_left:
                raise
        self._restart()

    # Steps

    @singledispatchmethod
    def _do(self, step: Step) -> None:
        raise NotImplementedError(step)

    @_do.register
    def _(self, step: Start) -> None:
        session = self._session
        self._forget_all()
        offered = session.offered & session.understood
        without = feature_mask(FEATURES[name] for name in step.without if name in FEATURES)
        features = valid_subset(offered & ~without, session.device_id)
        bits = [bit for bit in range(features.bit_length()) if has_feature(features, bit)]
        self._settings = step
        self._driver.start(bits, queue_size=step.size)

    @_do.register
    def _(self, step: Send) -> None:
        requests = self._driver.requests()
        index = requests[step.queue % len(requests)].queue
        if index in self._abused:
            return
        queue = self._session.queues[index]
        indirect = self._session.has("VIRTIO_F_INDIRECT_DESC")
        sent = []
        for _ in range(step.count):
            request = next(it for it in self._driver.requests() if it.queue == index)
            cut = framing(step.framing, request, queue, indirect=indirect)
            if request.stimulus is not nothing:
                # The host's side answers the buffers in their order: one after the other.
                self._converse(request, cut)
            elif (one := self._place(request, cut)) is not None:
                sent.append(one)
        if sent:
            self._sent[index].update((one.head, one) for one in sent)
            queue.make_available(*(one.head for one in sent))
            if step.kick and queue.should_kick():
                self._session.kick(index)

    def _place(self, request: Request, framing: Framing) -> Sent | None:
        try:
            return self._driver.place(request, framing)
        except IndexError:
            self._session.trace.note("there is no room for it")
            return None

    def _converse(self, request: Request, framing: Framing) -> None:
        self._wait(request.queue)
        sent = self._place(request, framing)
        if sent is not None and request.queue not in self._abused:
            self._driver.offer(sent)
            self._driver.finish(sent)

    @_do.register
    def _(self, step: Bad) -> None:
        indexes = sorted(self._session.queues)
        index = indexes[step.queue % len(indexes)]
        act = ACTS.get(step.act)
        if act is None or not self._session.has(*act.features):
            return
        self._abused.add(index)
        self._abuse(act, index)

    def _abuse(self, act: Act, index: int) -> None:
        try:
            perform(act, Stage(self._session, self._driver, index))
        except IndexError:
            self._session.trace.note("there is no room for it")
        if act.ruinous:
            self._restart()

    @_do.register
    def _(self, step: Kick) -> None:
        indexes = sorted(self._session.queues)
        self._session.kick(indexes[step.queue % len(indexes)])

    @_do.register
    def _(self, step: Wait) -> None:
        requests = self._driver.requests()
        self._wait(requests[step.queue % len(requests)].queue)

    def _wait(self, index: int) -> None:
        if index in self._abused or not self._sent[index]:
            return
        if self._session.queues[index].should_kick():
            self._session.kick(index)
        self._session.wait(
            f"the used buffers of {len(self._sent[index])} requests of queue {index}",
            lambda: self._all_used(index),
        )

    def _all_used(self, index: int) -> bool:
        self._look()
        return not self._sent[index]

    @_do.register
    def _(self, step: Reset) -> None:
        self._restart()

    @_do.register
    def _(self, step: ResetQueue) -> None:
        requests = self._driver.requests()
        index = requests[step.queue % len(requests)].queue
        queue = self._session.queues[index]
        in_flight = self._session.reset_queue(index)
        if index not in self._abused:
            stopped_idle(queue, in_flight)
        self._leave(queue)
        self._sent.pop(index, None)
        size = min(step.size, self._session.queue_size_max(index))
        self._session.set_up_queue(index, size)

    @_do.register
    def _(self, step: Reconnect) -> None:
        if self._abused or not self._driver.can_reconnect:
            return
        for index in list(self._sent):
            self._wait(index)
        self._session.reconnect()

    @_do.register
    def _(self, step: ReadConfig) -> None:
        self._has_strayed = True
        self._session.read_config(step.offset, step.size)

    @_do.register
    def _(self, step: WriteConfig) -> None:
        self._has_strayed = True
        self._session.write_config(step.offset, bytes(step.size))

    # What the device owes

    def _look(self) -> None:
        """Take what was used, and check it."""
        session = self._session
        session.raise_failure()
        for index in {request.queue for request in self._driver.requests()}:
            queue = session.queues.get(index)
            if queue is None or index in self._abused:
                continue
            queue.completed.update((used.head, used) for used in self._take(index, queue))
            for head in list(queue.completed):
                sent = self._sent[index].pop(head)
                self._driver.check(sent, queue.completed.pop(head))
        if session.needs_reset:
            assert self._abused, "the device asks for a reset, and no driver has given it cause"
            self._restart()

    def _take(self, index: int, queue: SessionQueue) -> list[Used]:
        taken = queue.take_all_used()
        for used in taken:
            if used.head not in self._sent[index] or used.head in queue.completed:
                raise BrokenError(
                    f"queue {index}: head {used.head} was used, and is not in flight", USED_ID
                )
            queue.completed[used.head] = used
        return taken

    def _restart(self) -> None:
        """Reset the device and start it as it was, see what it has left, and that it works."""
        settings = self._settings
        assert settings is not None, "a walk begins with a start"
        queues = list(self._session.queues.values())
        self._session.reset()
        for queue in queues:
            self._leave(queue)
        self._do(settings)
        self._driver.good()

    def _leave(self, queue: SessionQueue) -> None:
        if not self._abused:
            self._left.append((queue, queue.used_idx))

    def _forget_all(self) -> None:
        for queue, used_idx in self._left:
            assert queue.used_idx == used_idx, (
                f"queue {queue.index}: the ring was written after it was reset"
            )
        self._left.clear()
        self._sent.clear()
        self._abused.clear()
        self._has_strayed = False
