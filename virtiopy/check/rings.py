"""What a driver does with a split virtqueue, held against 2.7 and 3.3."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from virtiopy.check.judge import DeviceJudge
from virtiopy.memory import AddressError, GuestMemory
from virtiopy.spec import DeviceId, Feature, has_feature
from virtiopy.virtqueue.layout import (
    CHAIN_BYTES_MAX,
    DESCRIPTOR_SIZE,
    INDEX_MODULUS,
    USED_ELEMENT_SIZE,
    USED_HEADER_SIZE,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
)
from virtiopy.virtqueue.queue import (
    Chain,
    ChainError,
    Completion,
    Descriptor,
    QueueError,
    QueueObserver,
    Virtqueue,
)

#: What "an excessive number of descriptors" is here, for a warning (2.7.4.2).
DESCRIPTORS_EXCESSIVE = 1024

#: How many chains in flight are held against guest memory at a time, lest a large queue be slow.
_LOOKED_AT_MOST = 256

#: By the device's type: the queue of events, in which its driver keeps buffers, and the statement.
_EVENT_QUEUES: Mapping[DeviceId, tuple[int, str]] = {
    DeviceId.SCSI_HOST: (1, "5.6.6.3.1:1"),
    DeviceId.SOCKET: (2, "5.10.6.7.1:1"),
}


@dataclass(slots=True)
class _State:
    """What is known of one queue between two looks at it."""

    #: Descriptors of each chain in flight, by token.
    in_flight: dict[int, Sequence[Descriptor]] = field(default_factory=dict)
    tokens: Counter[int] = field(default_factory=Counter)
    kicks_wanted: bool = True
    kick_at: int | None = None  # the available index at the last kick
    popped: int = 0  # the available index that the device has come to
    first: int = 0  # where that began


class RingJudge(QueueObserver):
    """Judges the rings of one device's driver, from what its queues tell.

    `sees_kicks` says whether each kick is told at once, before the driver goes on (trapped mode):
    a kick that comes as an eventfd comes later, and says nothing of what the driver saw. `device`
    is the device's type, where it is known.
    """

    wants_descriptors: ClassVar[bool] = True

    def __init__(
        self,
        judge: DeviceJudge,
        memory: GuestMemory,
        *,
        sees_kicks: bool,
        device: DeviceId | None = None,
    ) -> None:
        self._judge = judge
        self._memory = memory
        self._sees_kicks = sees_kicks
        self._states: dict[int, _State] = {}
        self._queues: dict[int, Virtqueue] = {}
        self._takes_kicks = True
        self._events = None if device is None else _EVENT_QUEUES.get(device)

    # A queue's life

    def opened(self, queue: Virtqueue) -> None:
        """Begin with a queue that the driver has just set up, or that was reclaimed."""
        self._queues[queue.index] = queue
        first = queue.state.vring_base
        self._states[queue.index] = _State(popped=first, first=first)

    def finish(self) -> None:
        """Judge what the driver leaves: it resets the device, or the run ends."""
        self._event_buffers()
        for queue in list(self._queues.values()):
            self.stopped(queue)
        self._takes_kicks = True

    def stopped(self, queue: Virtqueue) -> None:
        """Judge what the driver leaves in a queue that is worked no more, and forget it."""
        self._unchanged(queue, self._states[queue.index])
        if self._takes_kicks:
            self.never_kicked(queue)
        self.forget(queue)

    def forget(self, queue: Virtqueue) -> None:
        """Forget a queue, of which no more can be told."""
        self._queues.pop(queue.index, None)
        self._states.pop(queue.index, None)

    def needs_reset(self) -> None:
        """Take note that the device needs a reset: kicks are not told until then."""
        self._takes_kicks = False

    def _event_idx(self) -> bool:
        return has_feature(self._judge.features, Feature.VIRTIO_F_EVENT_IDX)

    # Available buffers (2.7.5, 2.7.6)

    def taken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        """Judge well-formed chains."""
        state = self._states[queue.index]
        self._unchanged(queue, state)
        for chain in chains:
            self._judge.note(
                f"made a chain of {len(chain.descriptors)} descriptors available on queue "
                f"{queue.index}"
            )
            self._judge.check(
                "3.3.1:1",
                state.tokens[chain.token] == 0,
                f"head {chain.token} of queue {queue.index} is available while the device has it",
            )
            state.tokens[chain.token] += 1
            state.in_flight[chain.token] = chain.descriptors
            self._sound(queue, chain)
        state.popped = (state.popped + len(chains)) % INDEX_MODULUS
        self._flags(queue)

    def _sound(self, queue: Virtqueue, chain: Chain) -> None:
        for statement in ("2.7.4.2:1", "2.7.5.2:1", "2.7.5.3.1:3", "6.1:5", "2.7.6.1:1"):
            self._judge.kept(statement)
        if any(one.flags & VIRTQ_DESC_F_INDIRECT for one in chain.descriptors):
            for statement in ("2.7.5.3.1:1", "2.7.5.3.1:2", "2.7.5.3.1:4"):
                self._judge.kept(statement)
        self._judge.check(
            "2.7.4.2:2",
            len(chain.descriptors) <= DESCRIPTORS_EXCESSIVE,
            f"a chain of queue {queue.index} has {len(chain.descriptors)} descriptors",
        )

    def _unchanged(self, queue: Virtqueue, state: _State) -> None:
        """Hold the descriptors of chains in flight against guest memory (3.3.1)."""
        for token, descriptors in list(state.in_flight.items())[:_LOOKED_AT_MOST]:
            for one in descriptors:
                if self._differs(one) and self.device_has(queue, token):
                    self._judge.broke(
                        "3.3.1:1",
                        f"descriptor {one.index} of queue {queue.index} changed while the device "
                        f"had the chain with head {token}",
                    )
                    state.in_flight[token] = ()
                    break

    def device_has(self, queue: Virtqueue, token: int) -> bool:
        """Say whether the device has not used a chain that it was seen to have."""
        return True

    def _differs(self, descriptor: Descriptor) -> bool:
        # `next` means nothing without NEXT: a driver keeps its list of free descriptors there.
        try:
            raw = self._memory.read(
                descriptor.table + DESCRIPTOR_SIZE * descriptor.index, DESCRIPTOR_SIZE
            )
        except AddressError:
            return True
        address, length = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:12], "little")
        flags, following = (int.from_bytes(raw[at : at + 2], "little") for at in (12, 14))
        chained = descriptor.flags & VIRTQ_DESC_F_NEXT
        return (address, length, flags) != (
            descriptor.address,
            descriptor.length,
            descriptor.flags,
        ) or (bool(chained) and following != descriptor.next)

    def untaken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        """Take chains out of the account: the device has made them available again."""
        state = self._states[queue.index]
        for chain in chains:
            self._forget(state, chain)
        state.popped = (state.popped - len(chains)) % INDEX_MODULUS

    def rejected(self, queue: Virtqueue, chain: Chain, error: ChainError) -> None:
        """Judge a malformed chain."""
        state = self._states[queue.index]
        state.popped = (state.popped + 1) % INDEX_MODULUS
        statement = _statement(chain.descriptors, error)
        evidence = f"the chain with head {chain.token} of queue {queue.index}: {error}"
        self._judge.broke(statement, evidence)

    def broken(self, queue: Virtqueue, error: QueueError) -> None:
        """Judge an available ring that cannot be right."""
        text = str(error)
        if "available idx" not in text:
            self._judge.broke("2.7.13.3.1:1", text, fatal=True)
            return
        state = self._states[queue.index]
        index = self._available_index(queue)
        back = (state.popped - index) % INDEX_MODULUS
        if 0 < back <= queue.size:
            evidence = f"the available index of queue {queue.index} went {back} back, to {index}"
            self._judge.broke("2.7.6.1:1", evidence, fatal=True)
        else:
            self._judge.broke("3.3.1:1", text, fatal=True)

    # Used buffers

    def using(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """Look at the descriptors once more before the driver may have them back."""
        self._unchanged(queue, self._states[queue.index])

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """Take chains out of the account: the driver has them."""
        state = self._states[queue.index]
        for chain, _ in completions:
            self._forget(state, chain)

    def _forget(self, state: _State, chain: Chain) -> None:
        state.in_flight.pop(chain.token, None)
        state.tokens[chain.token] = max(0, state.tokens[chain.token] - 1)

    # Notifications (2.7.7, 2.7.10)

    def _flags(self, queue: Virtqueue) -> None:
        flags = self._word(queue.areas.driver)
        if self._event_idx():
            self._judge.check(
                "2.7.7.1:3",
                flags == 0,
                f"flags in the available ring of queue {queue.index} is {flags} with "
                "VIRTIO_F_EVENT_IDX",
            )
            return
        self._judge.check(
            "2.7.7.1:1",
            flags in (0, VIRTQ_AVAIL_F_NO_INTERRUPT),
            f"flags in the available ring of queue {queue.index} is {flags}",
        )
        if flags == VIRTQ_AVAIL_F_NO_INTERRUPT:
            self._judge.kept("2.7.7.1:2")

    def kicks_wanted(self, queue: Virtqueue, wanted: bool) -> None:
        """Take note of what the device asks for."""
        self._states[queue.index].kicks_wanted = wanted

    def interrupt_decided(self, queue: Virtqueue, wanted: bool) -> None:
        """Take note that the driver has said in used_event what it wants."""
        if self._event_idx():
            self._judge.kept("2.7.7.1:4")

    def kicked(self, index: int) -> None:
        """Judge a kick, before the device looks at the queue."""
        queue, state = self._queues.get(index), self._states.get(index)
        if queue is None or state is None:
            return
        event_idx = self._event_idx()
        available = self._available_index(queue)
        self._judge.kept("2.7.10.1:6" if event_idx else "2.7.10.1:4")
        self._judge.kept("2.7.13.4.1:1")
        before, state.kick_at = state.kick_at, available
        if not self._sees_kicks:
            return
        unwanted = "2.7.10.1:7" if event_idx else "2.7.10.1:3"
        self._judge.check(
            unwanted,
            before != available or available != state.popped,
            f"the driver kicks queue {index} and made no buffer available since the last kick",
        )

    def never_kicked(self, queue: Virtqueue) -> None:
        """Judge buffers that are available and were never kicked, where a kick is asked for."""
        state = self._states[queue.index]
        available = self._available_index(queue)
        pending = (available - state.popped) % INDEX_MODULUS
        if not pending or pending > queue.size or not state.kicks_wanted:
            return
        if state.kick_at == available:
            return
        if self._event_idx() and not self._event_passed(queue, state, pending):
            return
        self._judge.broke(
            "2.7.10.1:6" if self._event_idx() else "2.7.10.1:4",
            f"{pending} buffers of queue {queue.index} are available, and were not kicked",
        )

    def _event_buffers(self) -> None:
        """Judge whether a driver that uses its device has ever made a buffer for events available.

        One that was used a moment ago may be about to be replaced.
        """
        if self._events is None:
            return
        index, statement = self._events
        used = any(one.popped != one.first for at, one in self._states.items() if at != index)
        if used and (queue := self._queues.get(index)) is not None:
            self._judge.check(
                statement,
                self._available_index(queue) != self._states[index].first,
                f"no buffer was made available in queue {index}, where events go",
            )

    def _event_passed(self, queue: Virtqueue, state: _State, pending: int) -> bool:
        """Say whether one of `pending` entries is avail_event's, and was filled without a kick."""
        event = self._word(queue.areas.device + USED_HEADER_SIZE + USED_ELEMENT_SIZE * queue.size)
        place = (event - state.popped) % INDEX_MODULUS
        if place >= pending:
            return False
        if state.kick_at is None:
            return True
        return not place < (state.kick_at - state.popped) % INDEX_MODULUS <= pending

    # Guest memory

    def _available_index(self, queue: Virtqueue) -> int:
        return self._word(queue.areas.driver + 2)

    def _word(self, address: int) -> int:
        return int.from_bytes(self._memory.read(address, 2), "little")


def _statement(descriptors: Sequence[Descriptor], error: ChainError) -> str:
    """Return the statement that a malformed chain breaks, from what was read of it."""
    places = [(one.table, one.index) for one in descriptors]
    in_tables = [one for one in descriptors if one.flags & VIRTQ_DESC_F_INDIRECT]
    if len(in_tables) > 1:
        return "2.7.5.3.1:2"
    if in_tables and in_tables[-1].flags & VIRTQ_DESC_F_NEXT:
        return "2.7.5.3.1:4"
    if error.section == "2.7.4.2":
        return "2.7.4.2:1"
    if len(set(places)) < len(places) or sum(one.length for one in descriptors) > CHAIN_BYTES_MAX:
        return "2.7.5.2:1"
    if "not negotiated" in str(error):
        return "2.7.5.3.1:1"
    if error.section == "2.7.5.3.1":
        return "2.7.5.3.1:3"
    if "out of range" in str(error):
        return "2.7.5.2:1"
    return "6.1:5"
