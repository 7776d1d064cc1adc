"""Records what passes a proxy: messages, the driver's side of the rings, and what came of it."""

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from virtiopy.closing import Closing
from virtiopy.files import create_output
from virtiopy.memory import GuestMemory
from virtiopy.vhost.user.messages import Message
from virtiopy.vhost.user.passing import ProxyWatch
from virtiopy.vhost.user.record.format import (
    AvailableEvent,
    Event,
    LimitEvent,
    MessageEvent,
    MissedEvent,
    NotifiedEvent,
    SessionEvent,
    UsedEvent,
    encode,
    header,
)
from virtiopy.vhost.user.seenqueue import SeenQueue, SureObserver
from virtiopy.virtqueue.buffers import gather, split_at
from virtiopy.virtqueue.queue import Chain, ChainError, Completion, Virtqueue

log = logging.getLogger(__name__)

#: Bytes of a recording, unless the user says otherwise.
LIMIT = 1 << 30


class Recorder(ProxyWatch, Closing):
    """Writes a recording to `path`, of no more than `limit` bytes.

    A file of virtiopy's that is there is replaced, another is not: ConfigError. A disk that is
    full, or the limit, ends the recording, and nothing else.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self.path = path
        self._limit = limit
        self._written = 0
        self._begun = time.monotonic()
        self._sessions = 0
        self._rings = _RecordedRings(self)
        self._file = os.fdopen(create_output(path, "The recording"), "w", encoding="utf-8")
        self._is_open = True
        self._write(header())

    def close(self) -> None:
        """End the recording."""
        self._is_open = False
        # What a full disk did not take is tried again, in vain.
        with contextlib.suppress(OSError):
            self._file.close()

    def add(self, event: Event) -> None:
        """Add an event."""
        if not self._is_open:
            return
        line = encode(event, time.monotonic() - self._begun)
        if self._written + len(line) > self._limit:
            # The last line says so, and may go beyond it.
            self._write(encode(LimitEvent(self._limit), time.monotonic() - self._begun))
            log.warning(
                "the recording %s ends here: it has the %d bytes of its limit; limit= gives it "
                "more",
                self.path,
                self._limit,
            )
            self.close()
            return
        self._write(line)

    def _write(self, line: str) -> None:
        try:
            self._file.write(line)
            self._written += len(line)
        except OSError as error:
            self._failed(error)

    def _flush(self) -> None:
        if not self._is_open:
            return
        try:
            self._file.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        log.warning("the recording %s ends here: %s", self.path, error.strerror)
        self.close()

    # What passes

    @property
    def sure(self) -> Sequence[SureObserver]:
        """What looks on at each ring."""
        return [self._rings]

    def began(self, memory: GuestMemory) -> None:
        """Record that a frontend has come."""
        self._sessions += 1
        self._rings.begin()
        self.add(SessionEvent(self._sessions))

    def message(self, message: Message, from_frontend: bool) -> None:
        """Record a message."""
        self.add(
            MessageEvent(
                message.request,
                message.name,
                from_frontend,
                int(message.flags),
                message.payload,
                len(message.fds),
            )
        )
        self._flush()

    def kicked(self, index: int) -> None:
        """Leave it: a kick is recorded once its chains are, by `looked`."""
        self._rings.notified.append(NotifiedEvent(index, is_kick=True))

    def called(self, index: int) -> None:
        """Record a used buffer notification."""
        self.add(NotifiedEvent(index, is_kick=False))

    def ended(self) -> None:
        """Have the session in the file."""
        self._flush()


class _RecordedRings(SureObserver):
    wants_descriptors: ClassVar[bool] = True

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        #: Kicks whose chains are not recorded yet.
        self.notified: list[NotifiedEvent] = []
        self.begin()

    def begin(self) -> None:
        """Begin with a session."""
        # The numbers of the chains that the device has, by queue.
        self._chains: dict[int, dict[Chain, int]] = {}
        self._fresh: dict[Chain, bytes] = {}
        self._count = 0
        self.notified.clear()

    def taken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        for chain in chains:
            self._available(queue, chain, gather(chain.readable), malformed=False)

    def rejected(self, queue: Virtqueue, chain: Chain, error: ChainError) -> None:
        self._available(queue, chain, b"", malformed=True)

    def _available(self, queue: Virtqueue, chain: Chain, data: bytes, *, malformed: bool) -> None:
        self._count += 1
        self._chains.setdefault(queue.index, {})[chain] = self._count
        descriptors = tuple(
            (one.table, one.index, one.address, one.length, one.flags, one.next)
            for one in chain.descriptors
        )
        self._recorder.add(
            AvailableEvent(self._count, queue.index, chain.token, descriptors, data, malformed)
        )

    def fresh(self, queue: SeenQueue, completions: Sequence[Completion]) -> None:
        for chain, length in completions:
            # A device that says more than there is room for has written no more.
            self._fresh[chain] = gather(split_at(chain.writable, length)[0])

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        for chain, length in completions:
            data = self._fresh.pop(chain, None if length else b"")
            number = self._chains[queue.index].pop(chain)
            self._recorder.add(UsedEvent(number, queue.index, length, data))

    def missed(self, queue: SeenQueue, count: int) -> None:
        if count:
            self._recorder.add(MissedEvent(queue.index, count))

    def lost(self, queue: SeenQueue) -> None:
        self._chains.pop(queue.index, None)

    def looked(self, queue: SeenQueue) -> None:
        for kick in self.notified:
            self._recorder.add(kick)
        self.notified.clear()
