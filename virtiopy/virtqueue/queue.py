"""What a virtqueue is to its device, whatever the format of its areas (2.6).

A driver describes buffers in the descriptor area, makes descriptor chains available in the driver
area, and finds those that the device has used in the device area:

    driver                       guest memory                           device

    adds buffers   ------->  descriptor area: address, length,  ----->  pop_many
    and kicks                flags of each buffer                          |
                                                                           v
                             driver area: which chains are               serves the
                             available; are interrupts wanted?           chains
                                                                           |
    takes used     <-------  device area: which chains are used, <-----  push_many
    buffers                  how many bytes were written; are            and interrupts
                             kicks wanted?

Both sides go through the entries in a circle. Where the device stands is a `QueueState`:

         used, the driver           popped, in flight       available        free
         has them back
    ... | chain 3 | chain 0 |     | chain 5 | chain 1 |   | chain 2 |     |     |     | ...
                              ^                         ^               ^
                     the next that is used      the next to pop    the driver's
                                                (QueueState)       next entry

Chains may be used in another order than they were popped in.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from virtiopy.errors import DriverError
from virtiopy.spec import Feature, feature_mask

#: The feature bits of virtqueues that the queues here have, and any transport can offer (6).
RING_FEATURES = feature_mask(
    [Feature.VIRTIO_F_VERSION_1, Feature.VIRTIO_F_INDIRECT_DESC, Feature.VIRTIO_F_EVENT_IDX]
)

#: All feature bits that are the business of the worker of the rings (6): a
#: worker that lacks one cannot have it offered to the driver. Other bits are the device's or the
#: transport's.
WORKER_FEATURES = RING_FEATURES | feature_mask(
    [
        Feature.VIRTIO_F_ACCESS_PLATFORM,
        Feature.VIRTIO_F_RING_PACKED,
        Feature.VIRTIO_F_IN_ORDER,
        Feature.VIRTIO_F_ORDER_PLATFORM,
        Feature.VIRTIO_F_NOTIFICATION_DATA,
    ]
)

#: What one call of `pop` or `pop_many` may cost: malformed chains that it rejects, and descriptors
#: that it looks at. It ends with the chain that reaches either.
REJECTS_A_POP = 64
DESCRIPTORS_A_POP = 4096

#: How a device works a queue: chains a batch, and batches before other devices have their turn;
#: seconds after which it begins no other batch, as one chain may have tens of thousands of pieces.
BATCH = 64
BATCHES_A_TURN = 4
TURN_SECONDS = 0.1


def batches_of_a_turn() -> Iterator[int]:
    """Count the batches that a device may begin before other devices have their turn."""
    until = time.monotonic() + TURN_SECONDS
    for batch in range(BATCHES_A_TURN):
        yield batch
        if time.monotonic() > until:
            return


class QueueError(DriverError):
    """The areas themselves are broken: the queue can go on only after a reset (2.1.2)."""


class ChainError(DriverError):
    """One descriptor chain is malformed; the queue is sound."""

    def __init__(self, section: str, reason: str) -> None:
        super().__init__(f"{reason} ({section})")
        self.section = section


@dataclass(slots=True, frozen=True)
class QueueAreas:
    """The guest physical addresses of the three areas (2.6), as the driver set them."""

    descriptor: int
    driver: int
    device: int


@dataclass(slots=True, frozen=True)
class QueueState:
    """Where the device stands in a queue: what one worker of its rings tells the next.

    It is opaque but to queues of one format. `vring_base` is all of it, in the 32 bits of the
    kernel's VHOST_SET_VRING_BASE and of vhost-user's VHOST_USER_SET_VRING_BASE: of a split queue
    the index of the next entry of the available ring.
    """

    vring_base: int = 0


@dataclass(slots=True, frozen=True)
class Descriptor:
    """A descriptor as it was read (2.7.5): entry `index` of the table at guest address `table`."""

    table: int
    index: int
    address: int
    length: int
    flags: int
    next: int


class Chain(Protocol):
    """A buffer that the driver made available (2.6), taken apart.

    `readable` and `writable` are views on guest memory, in the chain's order. `token` is the
    queue's name for the chain while it is in flight; a device makes nothing of it.

    `descriptors` are what was read, for a queue with an observer that wants them; else empty.
    """

    @property
    def token(self) -> int:
        """The queue's name for the chain."""

    @property
    def readable(self) -> Sequence[memoryview]:
        """What the device reads."""

    @property
    def writable(self) -> Sequence[memoryview]:
        """What the device writes."""

    @property
    def descriptors(self) -> Sequence[Descriptor]:
        """What was read of the chain."""


#: A chain that the device is done with, and how many bytes it wrote from the first writable on.
Completion = tuple[Chain, int]


class Virtqueue(Protocol):
    """A virtqueue as its device sees it: chains are popped, and pushed back in any order.

    This is how a device works one for a kick, and how `VirtioDevice.handle` does:

    >>> def handle(queue):
    ...     for _ in batches_of_a_turn():
    ...         queue.disable_kicks()
    ...         chains = queue.pop_many(BATCH)
    ...         queue.push_many((chain, serve(chain)) for chain in chains)
    ...         if queue.should_interrupt():
    ...             interrupt(queue)
    ...         if not chains and not queue.enable_kicks():
    ...             return
    ...     handle_soon(queue)

    - Only `enable_kicks` says that the driver has no more. A batch without chains does not:
      `pop_many` may have ended after malformed chains. The queue has used those by itself, so the
      device asks about an interrupt after each batch, empty or not.
    - The driver may add a buffer, and not kick, between `pop_many` and `enable_kicks`.
      `enable_kicks` returns True then.
    - The batches are counted: a driver may add buffers as fast as the device serves them. After
      `handle` returns other devices have their turn, and then `handle` is called again.

    >>> handle(queue)
    >>> [used.length for used in driver.take_all_used()]
    [5, 5, 5]

    One thread works a queue at a time. QueueError leaves any method that reads the areas.
    """

    #: The queue's number in its device, and how many entries it has.
    index: int
    size: int
    areas: QueueAreas
    #: Malformed chains that were given back unserved, by section of the specification.
    rejected: Counter[str]

    @property
    def in_flight(self) -> int:
        """How many chains were popped and not pushed back yet."""

    # Available buffers

    def pop(self) -> Chain | None:
        """Take the next chain; None without one, or where REJECTS_A_POP before it are malformed."""

    def pop_many(self, limit: int | None = None) -> list[Chain]:
        """Take the next chains: up to `limit`, and no more than the budgets above allow.

        Malformed chains go straight back to the driver, with nothing written. Raises QueueError
        when the queue cannot be worked on, unless there are chains to return before that.
        """

    # Used buffers

    def push(self, chain: Chain, written: int) -> None:
        """Give one chain back; `written` bytes were written, from its first writable byte on."""

    def push_many(self, completions: Iterable[Completion]) -> None:
        """Give chains back, in any order; the driver sees all of them at once.

        Raises ValueError for a chain that is not in flight, or has less room than was written: a
        fault of the device.
        """

    # Notifications (2.6.2, 2.6.3)

    def should_interrupt(self) -> bool:
        """Say whether the driver wants an interrupt for what was used since the last call."""

    def disable_kicks(self) -> None:
        """Advise the driver that no kick is needed."""

    def enable_kicks(self) -> bool:
        """Ask for a kick for the next chain; True where there is one, for which none may come."""

    # Another worker

    @property
    def state(self) -> QueueState:
        """Where the next worker of the rings has to go on."""

    def resume(self, state: QueueState) -> None:
        """Go on after another worker, which came to `state`; nothing is in flight.

        It has sent the interrupts for what it used.
        """

    def recover(self, unfinished: Sequence[int] = ()) -> None:
        """Go on after a worker that died, with the chains that it had taken and not used.

        `unfinished` are their tokens, in the order in which it took them: they are popped first.
        """

    @property
    def can_unpop(self) -> int:
        """How many of the chains popped last can be made available again."""

    def unpop(self, count: int) -> None:
        """Make the last `count` chains that were popped available again, unserved.

        They are the last: no chain that was popped after them has been pushed. The caller drops
        them. Raises ValueError for more than `can_unpop`.
        """

    def unpop_all(self) -> None:
        """Make all chains in flight available again, unserved.

        Of those that a malformed chain overtook, which was used at once, that cannot be said: they
        are used, with nothing written.
        """

    def next_fault(self) -> str | None:
        """Say why the next available chain cannot be served, and leave it there; None if it can."""


class QueueObserver:
    """Looks on while a queue is worked, on the thread that works it: each method does nothing here.

    What comes in batches is told in batches. What an observer raises leaves the call that it is
    told of, so that it is for faults of ours alone.
    """

    #: Whether chains are to carry their descriptors.
    wants_descriptors: ClassVar[bool] = False

    def opened(self, queue: Virtqueue) -> None:
        """See a queue that is ready to be worked."""

    def taken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        """See chains that were popped, before the device has them."""

    def untaken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        """See chains that are available again, the last of them first."""

    def rejected(self, queue: Virtqueue, chain: Chain, error: ChainError) -> None:
        """See a malformed chain, which is used next: it has no buffers, whatever it described."""

    def broken(self, queue: Virtqueue, error: QueueError) -> None:
        """See that the queue cannot be worked on before a reset."""

    def using(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """See chains that the driver is about to be shown as used, all at once."""

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """See chains that the driver has been shown as used."""

    def area_written(self, queue: Virtqueue, offset: int, length: int) -> None:
        """See that `length` bytes of the device area were written, from byte `offset` on."""

    def kicks_wanted(self, queue: Virtqueue, wanted: bool) -> None:
        """See that the driver was asked for a kick for the next chain, or advised against any."""

    def interrupt_decided(self, queue: Virtqueue, wanted: bool) -> None:
        """See whether the driver wants an interrupt for what was used since it was last asked."""
