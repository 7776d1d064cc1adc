"""Layout of a virtqueue's three areas (2.6): what lies where, how large, and how aligned."""

import enum
from dataclasses import dataclass

#: The most entries that a virtqueue can have (2.7).
QUEUE_SIZE_MAX = 32768

#: Index fields count modulo this (2.7.6, 2.7.8).
INDEX_MODULUS = 1 << 16

DESCRIPTOR_SIZE = 16

#: No descriptor chain describes more bytes than this (2.7.5.2).
CHAIN_BYTES_MAX = 1 << 32

#: The most that `len` of a used ring entry, a le32, can say (2.7.8).
USED_LEN_MAX = (1 << 32) - 1

VIRTQ_AVAIL_F_NO_INTERRUPT = 1
VIRTQ_USED_F_NO_NOTIFY = 1

# Where a split virtqueue's available ring has its index, bytes (2.7.6).
AVAILABLE_INDEX_OFFSET = 2
AVAILABLE_INDEX_SIZE = 2

# Where a split virtqueue's used ring has its fields, and how large they are, bytes (2.7.8).
USED_INDEX_OFFSET = 2
USED_INDEX_SIZE = 2
USED_HEADER_SIZE = 4
USED_ELEMENT_SIZE = 8
EVENT_SIZE = 2


class DescriptorFlag(enum.IntFlag):
    """The flags of a descriptor, VIRTQ_DESC_F_* (2.7.5)."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


# Plain ints: IntFlag arithmetic costs a microsecond a descriptor.
VIRTQ_DESC_F_NEXT = int(DescriptorFlag.NEXT)
VIRTQ_DESC_F_WRITE = int(DescriptorFlag.WRITE)
VIRTQ_DESC_F_INDIRECT = int(DescriptorFlag.INDIRECT)


class RingFormat(enum.StrEnum):
    """The formats that a virtqueue's areas can have (2.6)."""

    #: Descriptor table, available ring and used ring (2.7).
    SPLIT = "split"


@dataclass(slots=True, frozen=True)
class Area:
    """How large one area is, and how it is aligned: bytes both."""

    size: int
    alignment: int


@dataclass(slots=True, frozen=True)
class AreaLayout:
    """The three areas of a virtqueue, by their names of 2.6."""

    descriptor: Area
    driver: Area
    device: Area


def areas(ring_format: RingFormat, queue_size: int) -> AreaLayout:
    """Return the sizes and alignments of the areas of a queue with so many entries.

    Of a split virtqueue they are the Descriptor Table, the Available Ring with used_event, and the
    Used Ring with avail_event (2.7).
    """
    match ring_format:
        case RingFormat.SPLIT:
            return AreaLayout(
                Area(DESCRIPTOR_SIZE * queue_size, 16),
                Area(4 + 2 * queue_size + EVENT_SIZE, 2),
                Area(USED_HEADER_SIZE + USED_ELEMENT_SIZE * queue_size + EVENT_SIZE, 4),
            )


def valid_queue_size(size: int) -> bool:
    """Say whether `size` is a power of 2 from 1 to 32768 (2.7)."""
    return 1 <= size <= QUEUE_SIZE_MAX and size & (size - 1) == 0


def need_event(event: int, new: int, old: int) -> bool:
    """Say whether moving an index from `old` to `new` passes the entry `event`.

    The rule of VIRTIO_F_EVENT_IDX for both directions (2.7.7.2, 2.7.10.1): a notification is due
    when the entry with index `event` is among those just written, [old, new) modulo 2^16.
    """
    return (new - event - 1) % INDEX_MODULUS < (new - old) % INDEX_MODULUS
