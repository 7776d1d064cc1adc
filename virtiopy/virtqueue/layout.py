"""Layout of the split virtqueue's three parts (2.7)."""

import enum

#: The most entries that a virtqueue can have (2.7).
QUEUE_SIZE_MAX = 32768

#: Index fields count modulo this (2.7.6, 2.7.8).
INDEX_MODULUS = 1 << 16

DESCRIPTOR_SIZE = 16

#: Alignment of each part, bytes (2.7).
DESCRIPTOR_TABLE_ALIGNMENT = 16
AVAILABLE_RING_ALIGNMENT = 2
USED_RING_ALIGNMENT = 4

#: No descriptor chain describes more bytes than this (2.7.5.2).
CHAIN_BYTES_MAX = 1 << 32

#: The most that `len` of a used ring entry, a le32, can say (2.7.8).
USED_LEN_MAX = (1 << 32) - 1

VIRTQ_AVAIL_F_NO_INTERRUPT = 1
VIRTQ_USED_F_NO_NOTIFY = 1


class DescriptorFlag(enum.IntFlag):
    """The flags of a descriptor, VIRTQ_DESC_F_* (2.7.5)."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


# Plain ints: IntFlag arithmetic costs a microsecond a descriptor.
VIRTQ_DESC_F_NEXT = int(DescriptorFlag.NEXT)
VIRTQ_DESC_F_WRITE = int(DescriptorFlag.WRITE)
VIRTQ_DESC_F_INDIRECT = int(DescriptorFlag.INDIRECT)


def descriptor_table_size(queue_size: int) -> int:
    """Bytes of the Descriptor Table (2.7)."""
    return DESCRIPTOR_SIZE * queue_size


def available_ring_size(queue_size: int) -> int:
    """Bytes of the Available Ring, used_event included (2.7)."""
    return 6 + 2 * queue_size


def used_ring_size(queue_size: int) -> int:
    """Bytes of the Used Ring, avail_event included (2.7)."""
    return 6 + 8 * queue_size


def valid_queue_size(size: int) -> bool:
    """Say whether `size` is a power of 2 from 1 to 32768 (2.7)."""
    return 1 <= size <= QUEUE_SIZE_MAX and size & (size - 1) == 0


def need_event(event: int, new: int, old: int) -> bool:
    """Say whether moving an index from `old` to `new` passes the entry `event`.

    The rule of VIRTIO_F_EVENT_IDX for both directions (2.7.7.2, 2.7.10.1): a notification is due
    when the entry with index `event` is among those just written, [old, new) modulo 2^16.
    """
    return (new - event - 1) % INDEX_MODULUS < (new - old) % INDEX_MODULUS
