"""Feature bits, addresses and operations of the socket device (5.10.3, 5.10.4, 5.10.6)."""

import enum


class VsockFeature(enum.IntEnum):
    """Feature bits (5.10.3)."""

    VIRTIO_VSOCK_F_STREAM = 0
    VIRTIO_VSOCK_F_SEQPACKET = 1
    VIRTIO_VSOCK_F_NO_IMPLIED_STREAM = 2


#: The host's context ID (5.10.4).
HOST_CID = 2

#: The context IDs that a guest may have: those outside are reserved (5.10.4).
CID_MIN, CID_MAX = 3, (1 << 32) - 2


class Operation(enum.IntEnum):
    """What a packet is for: VIRTIO_VSOCK_OP_* (5.10.6)."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class SocketType(enum.IntEnum):
    """VIRTIO_VSOCK_TYPE_* (5.10.6.2)."""

    STREAM = 1
    SEQPACKET = 2


class Shutdown(enum.IntFlag):
    """`flags` of a SHUTDOWN packet (5.10.6.5): what its sender will not do any more."""

    NONE = 0
    RECEIVE = 1 << 0
    SEND = 1 << 1
    BOTH = RECEIVE | SEND


class Boundary(enum.IntFlag):
    """`flags` of a seqpacket socket's RW packet (5.10.6.6): it ends a message, or a record."""

    NONE = 0
    EOM = 1 << 0
    EOR = 1 << 1


class EventId(enum.IntEnum):
    """`id` of an event (5.10.6.7)."""

    TRANSPORT_RESET = 0
