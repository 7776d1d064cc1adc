"""The formats of virtqueues that there are here, and what opens a queue of each."""

from collections.abc import Sequence
from typing import Protocol

from virtiopy.memory import GuestMemory
from virtiopy.spec import Feature, has_feature
from virtiopy.virtqueue.layout import RingFormat
from virtiopy.virtqueue.native import NativeAccount, NativeQueue, is_enabled
from virtiopy.virtqueue.queue import QueueAreas, QueueObserver, QueueState, Virtqueue
from virtiopy.virtqueue.split import SplitQueue


class OpenQueue(Protocol):
    """Makes a queue of the format that was negotiated: `open_queue`, or one with more formats.

    `features` are the driver's feature bits. `state` is where another worker of the rings stopped:
    None for a queue that the driver has just set up.

    A chain may have `longest_chain` descriptors where the queue has fewer entries. Raises
    QueueError for areas that cannot be worked on.
    """

    def __call__(
        self,
        memory: GuestMemory,
        size: int,
        areas: QueueAreas,
        *,
        features: int,
        index: int = 0,
        state: QueueState | None = None,
        longest_chain: int = 0,
        observers: Sequence[QueueObserver] = (),
    ) -> Virtqueue:
        """Open the queue."""


def ring_format(features: int) -> RingFormat:
    """Return the format of queues with which these feature bits were negotiated."""
    return RingFormat.SPLIT


def split_queue_type(
    observers: Sequence[QueueObserver] = (),
) -> type[SplitQueue] | type[NativeQueue]:
    """Return what works a split queue: C, where it can keep what the observers want."""
    in_c = is_enabled() and all(isinstance(one, NativeAccount) for one in observers)
    return NativeQueue if in_c else SplitQueue


def open_queue(
    memory: GuestMemory,
    size: int,
    areas: QueueAreas,
    *,
    features: int,
    index: int = 0,
    state: QueueState | None = None,
    longest_chain: int = 0,
    observers: Sequence[QueueObserver] = (),
) -> Virtqueue:
    """Open a queue of the format that was negotiated: see OpenQueue."""
    match ring_format(features):
        case RingFormat.SPLIT:
            return split_queue_type(observers)(
                memory,
                size,
                areas,
                index=index,
                event_idx=has_feature(features, Feature.VIRTIO_F_EVENT_IDX),
                indirect=has_feature(features, Feature.VIRTIO_F_INDIRECT_DESC),
                state=state,
                longest_chain=longest_chain,
                observers=observers,
            )
