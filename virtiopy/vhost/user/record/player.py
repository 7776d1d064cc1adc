"""Plays a recorded driver to another backend, and says where that answers otherwise.

Messages, descriptors, heads and the bytes in buffers are those of the recording, at the same
addresses of a memory of our own. A chain becomes available once all chains are used that the
recording has used before it, as its driver may have waited for them.
"""

import contextlib
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from virtiopy import eventfds
from virtiopy.closing import Closing
from virtiopy.errors import ConfigError, PeerError
from virtiopy.memory import AddressError
from virtiopy.spec import Feature, has_feature
from virtiopy.vhost.user.connection import Connection, close_all
from virtiopy.vhost.user.memory import FrontendMemory
from virtiopy.vhost.user.messages import (
    Flag,
    InflightArea,
    LogArea,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    RingAddresses,
    RingState,
    to_memory_table,
    to_ring_file,
    to_u64,
    u64,
)
from virtiopy.vhost.user.record.format import (
    AvailableEvent,
    Event,
    MessageEvent,
    MissedEvent,
    NotifiedEvent,
    SessionEvent,
    UsedEvent,
)
from virtiopy.vhost.user.record.ring import PlayedRing

#: Seconds that a backend may take for an answer, or to use a chain, unless the user says otherwise.
PATIENCE = 10.0

#: How long a wait for a notification lasts before the ring is looked at without one, seconds: a
#: driver that polls has no calls.
_LOOK = 0.02

#: Messages that have an answer in any case.
_ANSWERED = {request for request in Request if request.name.startswith("GET_")}


#: Messages of a frontend that a backend takes only with a protocol feature.
_NEEDS: Mapping[int, ProtocolFeature] = {
    Request.GET_QUEUE_NUM: ProtocolFeature.MQ,
    Request.SET_LOG_BASE: ProtocolFeature.LOG_SHMFD,
    Request.SEND_RARP: ProtocolFeature.RARP,
    Request.NET_SET_MTU: ProtocolFeature.MTU,
    Request.SET_BACKEND_REQ_FD: ProtocolFeature.BACKEND_REQ,
    Request.GET_CONFIG: ProtocolFeature.CONFIG,
    Request.SET_CONFIG: ProtocolFeature.CONFIG,
    Request.GET_INFLIGHT_FD: ProtocolFeature.INFLIGHT_SHMFD,
    Request.SET_INFLIGHT_FD: ProtocolFeature.INFLIGHT_SHMFD,
    Request.RESET_DEVICE: ProtocolFeature.RESET_DEVICE,
    Request.SET_STATUS: ProtocolFeature.STATUS,
    Request.GET_STATUS: ProtocolFeature.STATUS,
}


class _OverError(Exception):
    """The session cannot go on; a difference says why."""


@dataclass(slots=True)
class Tally:
    """What was played, and what came of it."""

    messages: int = 0
    chains: int = 0
    differences: int = 0
    not_compared: int = 0
    missed: int = 0

    def __str__(self) -> str:
        return (
            f"Played: {self.messages} messages, {self.chains} chains; "
            f"{self.differences} differences."
        )


@dataclass(slots=True)
class Player:
    """Plays recordings; `connect` connects to the backend, and raises ConfigError where it cannot.

    `told` is given a line for each difference. With `any_order` chains may be used in another
    order than in the recording.
    """

    connect: Callable[[], socket.socket]
    told: Callable[[str], None]
    patience: float = PATIENCE
    any_order: bool = False
    tally: Tally = field(default_factory=Tally)

    def play(self, events: Iterable[Event]) -> None:
        """Play a recording; raises ConfigError for one that cannot be played."""
        with contextlib.ExitStack() as stack:
            session: _Session | None = None
            number = 0
            for event in _used_before_stops(events):
                if isinstance(event, SessionEvent):
                    stack.close()
                    number = event.number
                    session = stack.enter_context(_Session(self, number))
                    continue
                if number == 0:
                    raise ConfigError("The recording begins without a session: record again.")
                if session is None:
                    continue
                try:
                    session.play(event)
                except _OverError:
                    stack.close()
                    session = None
                except (AddressError, IndexError) as error:
                    raise ConfigError(
                        f"The recording does not fit the memory that it describes ({error}): "
                        "record again."
                    ) from error

    def differs(self, session: int, what: str) -> None:
        """Tell of a difference."""
        self.tally.differences += 1
        self.told(f"session {session}: {what}" if session > 1 else what)


class _Session(Closing):
    """One frontend of the recording."""

    def __init__(self, player: Player, number: int) -> None:
        self._player = player
        self._number = number
        stream = player.connect()
        stream.settimeout(player.patience)
        self._connection = Connection(stream)
        self._memory = FrontendMemory()
        self._backings: dict[MemoryRegion, int] = {}
        self._inflight: int | None = None
        self._channel: Connection | None = None
        self._rings: dict[int, PlayedRing] = {}
        self._features = 0
        self._has_all = True
        # What this backend offers, where it was asked.
        self._offered: int | None = None
        self._protocol: int | None = None
        self._left_out: set[str] = set()
        # Messages that are not sent, or not acknowledged, to which the recording has an answer.
        self._unanswered: Counter[int] = Counter()

    def close(self) -> None:
        """Leave the backend."""
        self._connection.close()
        if self._channel is not None:
            self._channel.close()
        for ring in self._rings.values():
            ring.close()
        close_all(self._backings.values())
        close_all([] if self._inflight is None else [self._inflight])
        self._memory.close()

    def _over(self, what: str) -> _OverError:
        self._player.differs(self._number, what)
        return _OverError()

    def play(self, event: Event) -> None:
        """Play one event."""
        tally = self._player.tally
        match event:
            case MessageEvent(from_frontend=True):
                tally.messages += 1
                self._say(event)
            case MessageEvent():
                self._hear(event)
            case AvailableEvent():
                tally.chains += 1
                self._make_available(event)
            case UsedEvent():
                self._compare_used(event)
            case NotifiedEvent(queue, is_kick=True):
                self._ring(queue).notify()
            case MissedEvent():
                tally.missed += event.count
                self._has_all = False
            case _:
                pass

    def _ring(self, index: int) -> PlayedRing:
        return self._rings.setdefault(index, PlayedRing(index))

    # Messages

    def _say(self, event: MessageEvent) -> None:
        message = Message(event.request, event.payload, Flag(event.flags))
        if not self._adapt(message):
            return
        try:
            lent = self._files(message, event)
        except PeerError as error:
            raise ConfigError(f"The recording cannot be played: {error}.") from error
        message.fds = lent
        try:
            self._connection.send(message)
        except PeerError as error:
            raise self._over(f"{event.name}: the backend does not take it: {error}") from error

    def _adapt(self, message: Message) -> bool:
        """Have a message be one that this backend takes; says whether there is one.

        A frontend makes no use of what a backend does not offer.
        """
        if message.request == Request.SET_FEATURES and self._offered is not None:
            message.payload = u64(to_u64(message) & self._offered)
        elif message.request == Request.SET_PROTOCOL_FEATURES and self._protocol is not None:
            message.payload = u64(to_u64(message) & self._protocol)
        if self._protocol is None:
            return True
        needed = _NEEDS.get(message.request)
        if needed is not None and not has_feature(self._protocol, needed):
            self._unanswered[message.request] += 1
            if message.name not in self._left_out:
                self._left_out.add(message.name)
                self._player.differs(
                    self._number,
                    f"{message.name} is left out: the backend does not offer {needed.name}",
                )
            return False
        if message.needs_reply and not has_feature(self._protocol, ProtocolFeature.REPLY_ACK):
            message.flags &= ~Flag.NEED_REPLY
            if message.request not in _ANSWERED:
                self._unanswered[message.request] += 1
        return True

    def _files(self, message: Message, event: MessageEvent) -> list[int]:
        """Learn from a message, and return the files that go with it, which stay the session's."""
        match message.request:
            case Request.SET_FEATURES:
                self._features = to_u64(message)
            case Request.SET_MEM_TABLE:
                regions = to_memory_table(message)
                files = [self._backing(region) for region in regions]
                copies = [os.dup(fd) for fd in files]
                self._memory.replace(zip(regions, copies, strict=True))
                self._memory_changed()
                return files
            case Request.ADD_MEM_REG:
                region = MemoryRegion.decode(message)
                fd = self._backing(region)
                self._memory.add(region, os.dup(fd))
                self._memory_changed()
                return [fd]
            case Request.REM_MEM_REG:
                self._memory.remove(MemoryRegion.decode(message))
                self._memory_changed()
                # QEMU sends a file with this one too, and no backend has a use for it.
                return [self._backing(MemoryRegion.decode(message))] * event.files
            case Request.SET_VRING_NUM | Request.SET_VRING_BASE:
                state = RingState.decode(message)
                if message.request == Request.SET_VRING_NUM:
                    self._ring(state.index).size = state.number
                else:
                    self._ring(state.index).base = state.number
            case Request.SET_VRING_ADDR:
                addresses = RingAddresses.decode(message)
                self._ring(addresses.index).addresses = addresses
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                return self._notifier(message, event)
            case _:
                return self._other_files(message, event)
        return []

    def _memory_changed(self) -> None:
        for ring in self._rings.values():
            ring.memory_changed(self._memory)

    def _notifier(self, message: Message, event: MessageEvent) -> list[int]:
        # What comes with the message is checked by what the payload says of it.
        message.fds = [-1] * event.files
        index = to_ring_file(message)
        ring = self._ring(index)
        if message.request == Request.SET_VRING_KICK:
            ring.start(
                self._memory, event_idx=has_feature(self._features, Feature.VIRTIO_F_EVENT_IDX)
            )
        return [ring.eventfd(message.request)] if event.files else []

    def _other_files(self, message: Message, event: MessageEvent) -> list[int]:
        if not event.files:
            return []
        match message.request:
            case Request.SET_BACKEND_REQ_FD:
                ours, theirs = socket.socketpair()
                self._channel = Connection(ours)
                ours.setblocking(False)
                return [self._keep(theirs.detach())]
            case Request.SET_INFLIGHT_FD:
                if self._inflight is None:
                    area = InflightArea.decode(message)
                    self._inflight = _memfd(area.mmap_offset + area.mmap_size)
                return [self._inflight]
            case Request.SET_LOG_BASE:
                log = LogArea.decode(message)
                return [self._keep(_memfd(log.offset + log.size))]
            case Request.SET_LOG_FD:
                return [self._keep(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))]
        raise PeerError(f"{event.name} comes with a file that is not known here")

    def _keep(self, fd: int) -> int:
        """Have a file closed with the session."""
        self._backings[MemoryRegion(0, 0, 0, -1 - len(self._backings))] = fd
        return fd

    def _backing(self, region: MemoryRegion) -> int:
        """Return the memory of a region: the same one where it is described again."""
        if region not in self._backings:
            self._backings[region] = _memfd(region.mmap_offset + region.size)
        return self._backings[region]

    def _hear(self, event: MessageEvent) -> None:
        """Hold an answer against the recorded one."""
        if self._unanswered[event.request]:
            self._unanswered[event.request] -= 1
            return
        try:
            answer = self._connection.receive()
        except PeerError as error:
            raise self._over(f"{event.name}: no answer: {error}") from error
        if answer is None:
            raise self._over(f"{event.name}: no answer")
        if answer.request == Request.GET_INFLIGHT_FD and answer.fds and self._inflight is None:
            self._inflight = answer.fds.pop(0)
            answer.fds.append(os.dup(self._inflight))
        count = len(answer.fds)
        close_all(answer.fds)
        if answer.request != event.request:
            raise self._over(f"{event.name}: the answer is to {answer.name}")
        if len(answer.payload) == 8:
            if answer.request == Request.GET_FEATURES:
                self._offered = to_u64(answer)
            elif answer.request == Request.GET_PROTOCOL_FEATURES:
                self._protocol = to_u64(answer)
        if event.request == Request.GET_VRING_BASE and not self._has_all:
            self._player.tally.not_compared += 1
        elif answer.payload != event.payload:
            self._player.differs(
                self._number,
                f"{event.name}: {_other(answer.payload, event.payload)}",
            )
        if count != event.files:
            self._player.differs(
                self._number,
                f"{event.name}: {count} files come with the answer, were {event.files}",
            )

    # Rings

    def _make_available(self, event: AvailableEvent) -> None:
        ring = self._ring(event.queue)
        while ring.has(event.head):
            # Its use is not in the recording.
            self._wait(ring, partial(lambda head: not ring.has(head), event.head), event.chain)
        ring.make_available(self._memory, event)

    def _compare_used(self, event: UsedEvent) -> None:
        ring = self._ring(event.queue)
        self._wait(ring, lambda: event.chain in ring.answers, event.chain)
        ahead = ring.ahead_of(event.chain)
        if ahead is not None and not self._player.any_order:
            self._differs(event, f"is used after chain {ahead}")
        answer = ring.answers.pop(event.chain)
        if answer.length != event.length:
            self._differs(event, f"used length {answer.length}, was {event.length}")
        elif event.data is None:
            self._player.tally.not_compared += 1
        elif answer.data != event.data:
            self._differs(event, _difference(answer.data, event.data))
        for head in ring.take_strays():
            self._player.differs(
                self._number, f"queue {event.queue}: a used element of head {head}, no chain's"
            )

    def _differs(self, event: UsedEvent, what: str) -> None:
        self._player.differs(self._number, f"queue {event.queue}: chain {event.chain}: {what}")

    def _wait(self, ring: PlayedRing, is_done: Callable[[], bool], chain: int) -> None:
        """Wait until a chain is used, kicking for what was not kicked yet."""
        end = time.monotonic() + self._player.patience
        while True:
            ring.ask_for_call()
            ring.collect(self._memory)
            if is_done():
                return
            ring.notify_if_due()
            if time.monotonic() > end:
                raise self._over(
                    f"queue {ring.index}: chain {chain} is not used within "
                    f"{self._player.patience:g} seconds"
                )
            files = [ring.eventfd(Request.SET_VRING_CALL)]
            if not self._has_spoken():
                files.append(self._connection.socket.fileno())
            if self._channel is not None:
                files.append(self._channel.socket.fileno())
            ready, _, _ = select.select(files, [], [], _LOOK)
            if files[0] in ready:
                eventfds.take(files[0])
            if self._channel is not None and self._channel.socket.fileno() in ready:
                self._answer_channel(self._channel)

    def _has_spoken(self) -> bool:
        """Say whether the backend's answer to a message waits to be read; it may be gone, too."""
        stream = self._connection.socket
        if not select.select([stream], [], [], 0)[0]:
            return False
        try:
            if stream.recv(1, socket.MSG_PEEK):
                return True
        except OSError as error:
            raise self._over(f"the backend is gone: {error.strerror}") from error
        raise self._over("the backend is gone")

    def _answer_channel(self, channel: Connection) -> None:
        """Acknowledge what the backend says by itself; that it does is not in recordings."""
        try:
            message = channel.receive()
            if message is None:
                return
            close_all(message.fds)
            if message.needs_reply:
                channel.send(Message(message.request, u64(0), Flag.REPLY))
        except PeerError:
            channel.close()
            self._channel = None


def _used_before_stops(events: Iterable[Event]) -> Iterator[Event]:
    """Have chains used before their ring is stopped, where the recording has it after.

    A driver that polls sees a used chain before the proxy does, which looks when the ring stops. A
    backend that is told to stop at once has not used it yet.
    """
    there: set[int] = set()
    stream = iter(events)
    for event in stream:
        if isinstance(event, AvailableEvent):
            there.add(event.chain)
        if not (isinstance(event, MessageEvent) and event.request == Request.GET_VRING_BASE):
            yield event
            continue
        held: list[Event] = [event]
        for later in stream if event.from_frontend else ():
            if isinstance(later, UsedEvent) and later.chain in there:
                yield later
            else:
                held.append(later)
            if isinstance(later, MessageEvent) and later.request == Request.GET_VRING_BASE:
                break
        yield from held


def _memfd(size: int) -> int:
    fd = os.memfd_create("virtiopy-replay", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except (OSError, OverflowError) as error:
        os.close(fd)
        raise ConfigError(
            f"The recording's driver has memory of {size} bytes, which this host cannot have: "
            "play it on a larger one."
        ) from error
    return fd


def _other(now: bytes, before: bytes) -> str:
    """Say in what two answers differ."""
    if len(now) == len(before) == 8:
        numbers = (int.from_bytes(one, "little") for one in (now, before))
        return "the answer is {:#x}, was {:#x}".format(*numbers)
    if len(now) != len(before):
        return f"the answer has {len(now)} bytes, had {len(before)}"
    return _difference(now, before)


def _difference(now: bytes, before: bytes) -> str:
    """Say in what two strings of bytes differ, the first byte that does."""
    if len(now) != len(before):
        return f"{len(now)} bytes are written, were {len(before)}"
    places: Sequence[int] = [at for at in range(len(now)) if now[at] != before[at]]
    first = places[0]
    return f"byte {first} of {len(now)} is {now[first]:#04x}, was {before[first]:#04x}" + (
        f"; {len(places)} bytes differ" if len(places) > 1 else ""
    )
