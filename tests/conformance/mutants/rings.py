"""Faults of virtqueues (2.6, 2.7), as one who writes a ring for the first time makes them."""

import time
from collections.abc import Iterable
from typing import cast

from tests.conformance.faults import FaultyChain, QueueProxy
from tests.conformance.mutants import mutants, over_queue
from virtiopy.conformance.targets.builders import build_blk, build_rng
from virtiopy.devices.rng import Rng
from virtiopy.virtqueue.native import NativeChain, NativeQueue
from virtiopy.virtqueue.queue import Chain, Completion, QueueError, QueueState, Virtqueue

#: How long what comes too late is late, seconds.
LATE = 0.003


class _Ring(QueueProxy):
    """A split virtqueue whose areas are read and written behind its back."""

    @property
    def event_idx(self) -> bool:
        """Whether VIRTIO_F_EVENT_IDX was negotiated."""
        return cast("NativeQueue", self.real).event_idx

    def at(self, address: int) -> int:
        """Return a field of 16 bits."""
        return int.from_bytes(self.memory.read(address, 2), "little")

    def put(self, address: int, value: int) -> None:
        """Write a field of 16 bits."""
        self.memory.write(address, (value & 0xFFFF).to_bytes(2, "little"))

    @property
    def flags(self) -> int:
        """What the driver says in flags of the available ring."""
        return self.at(self.real.areas.driver)

    @property
    def used_event(self) -> int:
        """The used entry that the driver wants to be told of."""
        return self.at(self.real.areas.driver + 4 + 2 * self.real.size)

    @property
    def used_idx(self) -> int:
        """The used ring's idx."""
        return self.at(self.real.areas.device + 2)


def head_of(chain: object) -> int:
    """Return the head of a chain, or of what stands for it."""
    real = chain.real if isinstance(chain, FaultyChain) else chain
    return cast("NativeChain", real).token


# Used buffer notifications (2.7.7)


class MissesTheEntryThatIsNamed(_Ring):
    """Notifies once the used index is past the entry after the one that used_event names."""

    def should_interrupt(self) -> bool:
        wanted = self.real.should_interrupt()
        return wanted and not (self.event_idx and self.used_idx == (self.used_event + 1) & 0xFFFF)


class _Eager(_Ring):
    """Notifies of more entries than it should, though of none that is not there."""

    told = 0

    def should_interrupt(self) -> bool:
        told, self.told = self.told, self.used_idx
        return self.real.should_interrupt() or (self.is_eager and told != self.told)

    @property
    def is_eager(self) -> bool:
        """Whether it notifies of each entry."""
        raise NotImplementedError


class NotifiesOfEachEntry(_Eager):
    """Has no notion of used_event."""

    @property
    def is_eager(self) -> bool:
        return self.event_idx


class NotifiesInSpiteOfFlags(_Eager):
    """Has no notion of VIRTQ_AVAIL_F_NO_INTERRUPT."""

    @property
    def is_eager(self) -> bool:
        return not self.event_idx


class HeedsFlagsWithEventIdx(_Ring):
    """Looks at flags, whatever was negotiated."""

    def should_interrupt(self) -> bool:
        return self.real.should_interrupt() and not self.flags & 1


class HeedsUsedEventUnasked(_Ring):
    """Looks at used_event, whatever was negotiated."""

    def should_interrupt(self) -> bool:
        wanted = self.real.should_interrupt()
        return wanted and (self.event_idx or self.used_idx == (self.used_event + 1) & 0xFFFF)


# The used ring (2.7.8)


class CountsAnEntryBeforeItIsThere(_Ring):
    """Moves idx first, and then writes the entry."""

    def push_many(self, completions: Iterable[Completion]) -> None:
        done = list(completions)
        if done:
            self.put(self.real.areas.device + 2, self.used_idx + len(done))
            time.sleep(LATE)
        super().push_many(done)


class CountsAnEntryBeforeItsLength(_Ring):
    """Writes the id of an entry, moves idx, and then writes the length."""

    def push_many(self, completions: Iterable[Completion]) -> None:
        for chain, written in completions:
            entry = self.real.areas.device + 4 + 8 * (self.used_idx % self.real.size)
            self.put(entry, head_of(chain))
            self.put(entry + 2, 0)
            self.put(self.real.areas.device + 2, self.used_idx + 1)
            time.sleep(LATE)
            super().push_many([(chain, written)])


class AnswersBeforeTheData(_Ring):
    """Uses a buffer, and writes to it a little later."""

    def push_many(self, completions: Iterable[Completion]) -> None:
        done = list(completions)
        late: list[tuple[memoryview, bytes]] = []
        for chain, _ in done:
            for view in chain.writable:
                late.append((view, bytes(view)))
                view[:] = b"\xee" * len(view)
        super().push_many(done)
        if late:
            time.sleep(LATE)
        for view, data in late:
            view[:] = data


class LosesARequestWhereTheRingWraps(_Ring):
    """Takes the available ring's last entry for its first."""

    taken = 0

    def pop_many(self, limit: int | None = None) -> list[FaultyChain]:
        kept = []
        for chain in super().pop_many(limit):
            self.taken += 1
            if self.taken % self.real.size:
                kept.append(chain)
        return kept


# Kicks (2.7.10)


class SetsFlagsWithEventIdx(_Ring):
    """Asks for no kicks by flags, too, where there is avail_event."""

    def pop_many(self, limit: int | None = None) -> list[FaultyChain]:
        if self.event_idx:
            self.put(self.real.areas.device, 1)
        return super().pop_many(limit)


class HasAFlagOfItsOwn(_Ring):
    """Has another bit of the used ring's flags for itself."""

    def pop_many(self, limit: int | None = None) -> list[FaultyChain]:
        if not self.event_idx:
            self.put(self.real.areas.device, self.at(self.real.areas.device) | 2)
        return super().pop_many(limit)

    def enable_kicks(self) -> bool:
        more = self.real.enable_kicks()
        if not self.event_idx:
            self.put(self.real.areas.device, 2)
        return more


# What belongs to the driver (2.7.4, 2.7.5)


class ClearsDescriptors(_Ring):
    """Takes a descriptor that is used for its own, and clears its flags."""

    def pushed(self, completions: list[tuple[FaultyChain, int]]) -> None:
        for chain, _ in completions:
            if chain.real is not None:
                self.put(self.real.areas.descriptor + 16 * chain.real.token + 12, 0)


class ScribblesOnWhatItReads(_Ring):
    """Turns the bytes of a request round where they are."""

    def popped(self, chain: object) -> FaultyChain:
        faulty = super().popped(chain)  # type: ignore[arg-type]
        copies = [memoryview(bytes(view)) for view in faulty.readable]
        for view in faulty.readable:
            address = self.memory.address_of(view)
            self.memory.write(address, bytes(reversed(view)))
        faulty.readable = copies
        return faulty


# The life of a queue (2.6.1)


class GoesOnAfterAQueueReset(Rng):
    """Goes on where a queue stood when it was reset."""

    def __init__(self) -> None:
        super().__init__()
        self.stood: dict[int, QueueState] = {}

    def reset_queue(self, index: int) -> None:
        if (queue := self.queues.get(index)) is not None:
            self.stood[index] = cast("NativeQueue", queue).state
        super().reset_queue(index)

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        if (state := self.stood.pop(index, None)) is not None:
            cast("NativeQueue", queue).resume(state)
        super().start_queue(index, queue)

    def reset(self) -> None:
        super().reset()
        self.stood.clear()


class BreaksOnAKickWithNothingNew(Rng):
    """Takes a kick with nothing available for a fault of the driver's."""

    served = 0

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        self.served += 1
        return super().serve(queue, chain)

    def handle(self, queue: Virtqueue) -> None:
        before = self.served
        super().handle(queue)
        if self.served == before:
            raise QueueError("a kick with nothing available")


_Kinds = Iterable[tuple[str, type[QueueProxy]]]

_NOTIFICATIONS: _Kinds = [
    ("2.7.7.2:5", MissesTheEntryThatIsNamed),
    ("2.7.7.2:6", NotifiesOfEachEntry),
    ("2.7.7.2:2", NotifiesInSpiteOfFlags),
    ("2.7.7.2:4", HeedsFlagsWithEventIdx),
    ("2.7.7.2:1", HeedsUsedEventUnasked),
]

_RINGS: _Kinds = [
    ("2.7.8:1", CountsAnEntryBeforeItIsThere),
    ("2.7.8.2:1", CountsAnEntryBeforeItsLength),
    ("2.7.8.2:2", AnswersBeforeTheData),
    ("2.6:1", LosesARequestWhereTheRingWraps),
    ("2.7.10.2:3", SetsFlagsWithEventIdx),
    ("2.7.10.2:1", HasAFlagOfItsOwn),
    ("2.7.5.1:4", ClearsDescriptors),
]

MUTANTS = [
    *over_queue(0, build_rng, [*_NOTIFICATIONS, *_RINGS]),
    *over_queue(0, build_blk, [("2.7.5.1:1", ScribblesOnWhatItReads)]),
    *mutants(
        build_rng,
        [
            ("2.6.1.1.1:2", GoesOnAfterAQueueReset),
            ("2.7.10.2:5", BreaksOnAKickWithNothingNew),
        ],
    ),
]
