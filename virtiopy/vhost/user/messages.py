"""The messages of vhost-user (QEMU's docs/interop/vhost-user): numbers and payloads.

A message is a header, a payload of the size that it says, and file descriptors beside it. All
numbers are in the machine's byte order. `Message` is one, of either side; the functions below
it make payloads and take them apart.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from virtiopy._native import CData, ffi
from virtiopy.errors import PeerError

#: The feature bit that says there are protocol features; no virtio driver ever sees it.
VHOST_USER_F_PROTOCOL_FEATURES = 30

#: The feature bit by which a frontend turns logging of dirty pages on and off.
VHOST_F_LOG_ALL = 26

#: Bytes of guest memory that one bit of the dirty log stands for.
VHOST_LOG_PAGE = 0x1000

#: A flag of SET_VRING_ADDR: writes to the used ring are logged too.
VHOST_VRING_F_LOG = 0

#: The most bytes of payload that are taken: four times as much as any message here needs.
PAYLOAD_MAX = 4096

#: Regions of one SET_MEM_TABLE, and so the most file descriptors that come with a message.
REGIONS_MAX = 8

#: The most bytes of configuration space that one GET_CONFIG asks for.
CONFIG_MAX = 256

HEADER_SIZE = ffi.sizeof("struct vhost_user_header")

_VERSION = 1
_VERSION_MASK = 3
_CONFIG_HEADER = ffi.sizeof("struct vhost_user_config")

#: SET_VRING_KICK and its like: the ring's index, and a bit for "no file descriptor".
_RING_INDEX = 0xFF
_NO_DESCRIPTOR = 1 << 8


class Flag(enum.IntFlag):
    """Bits of a header's flags, beside the version."""

    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


NO_FLAGS = Flag(0)


class ProtocolFeature(enum.IntEnum):
    """VHOST_USER_PROTOCOL_F_*; the values are bit numbers."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    SHARED_OBJECT = 18
    DEVICE_STATE = 19
    GET_VRING_BASE_INFLIGHT = 20


class Request(enum.IntEnum):
    """What a frontend asks for: VHOST_USER_*."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class ConfigFlags(enum.IntEnum):
    """What a write to the configuration space is for (Virtio device config space)."""

    WRITABLE = 0
    LIVE_MIGRATION = 1


class BackendRequest(enum.IntEnum):
    """What a backend asks for, on a socket of its own: VHOST_USER_BACKEND_*."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8


def request_name(request: int) -> str:
    """Return what a frontend's request is called; a number for those that are none."""
    try:
        return Request(request).name
    except ValueError:
        return f"request {request}"


@dataclass(slots=True)
class Message:
    """A message, with the file descriptors that came or go beside it.

    `flags` has no version in it. The descriptors of a message that was received are its
    receiver's to close.
    """

    request: int
    payload: bytes = b""
    flags: Flag = NO_FLAGS
    fds: list[int] = field(default_factory=list)

    @property
    def needs_reply(self) -> bool:
        """Whether the sender wants to be told how it went (REPLY_ACK)."""
        return bool(self.flags & Flag.NEED_REPLY)

    @property
    def name(self) -> str:
        """The request's name, as a frontend's."""
        return request_name(self.request)

    def describe(self) -> str:
        """Word the message for a person; of its payload the numbers, as the protocol has them."""
        payload = self.payload
        if len(payload) == 8:
            words = f"{int.from_bytes(payload, 'little'):#x}"
        else:
            words = payload[:48].hex(" ", 4) + ("..." if len(payload) > 48 else "")
        flags = "".join(f" {flag.name}" for flag in Flag if self.flags & flag)
        files = f", {len(self.fds)} files" if self.fds else ""
        return f"{self.name} {words}{files}{flags}"

    def take_fd(self) -> int | None:
        """Return the file descriptor, the caller's from here on; None where there is none."""
        return self.fds.pop() if self.fds else None

    def encode(self) -> bytes:
        """Return header and payload."""
        header = ffi.new("struct vhost_user_header *")
        header.request = self.request
        header.flags = _VERSION | self.flags
        header.size = len(self.payload)
        return bytes(ffi.buffer(header)) + self.payload


@dataclass(slots=True, frozen=True)
class Header:
    """A header, as it came."""

    request: int
    flags: Flag
    size: int


class VersionError(PeerError):
    """A message is of a version of the protocol that there is not."""


def decode_header(data: bytes) -> Header:
    """Take a header apart; raises PeerError for one that cannot be followed by a payload."""
    header = ffi.from_buffer("struct vhost_user_header *", data)
    if header.flags & _VERSION_MASK != _VERSION:
        raise VersionError(f"a message of version {header.flags & _VERSION_MASK}, not 1")
    if header.size > PAYLOAD_MAX:
        raise PeerError(f"{request_name(header.request)} with {header.size} bytes of payload")
    return Header(header.request, Flag(header.flags & (Flag.REPLY | Flag.NEED_REPLY)), header.size)


def _take(struct: str, message: Message) -> CData:
    """Return the payload as a struct that it has to be as large as."""
    size = ffi.sizeof(f"struct {struct}")
    if len(message.payload) != size:
        raise PeerError(f"{message.name} with {len(message.payload)} bytes of payload, not {size}")
    return ffi.from_buffer(f"struct {struct} *", message.payload)


def _make(struct: str, values: Sequence[object]) -> bytes:
    return bytes(ffi.buffer(ffi.new(f"struct {struct} *", values)))


# A number


def u64(value: int) -> bytes:
    """Make a payload that is one 64-bit number."""
    return value.to_bytes(8, "little")


def to_u64(message: Message) -> int:
    """Take a number; raises PeerError."""
    if len(message.payload) != 8:
        raise PeerError(f"{message.name} with {len(message.payload)} bytes of payload, not 8")
    return int.from_bytes(message.payload, "little")


# A vring state: an index and a number that belongs to that ring


@dataclass(slots=True, frozen=True)
class RingState:
    """SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE."""

    index: int
    number: int

    def encode(self) -> bytes:
        """Make the payload."""
        return _make("vhost_vring_state", [self.index, self.number])

    @classmethod
    def decode(cls, message: Message) -> "RingState":
        """Take the payload apart; raises PeerError."""
        state = _take("vhost_vring_state", message)
        return cls(state.index, state.num)


@dataclass(slots=True, frozen=True)
class RingAddresses:
    """SET_VRING_ADDR: addresses of the frontend's own, and a guest physical one for the log."""

    index: int
    flags: int
    descriptor_table: int
    used_ring: int
    available_ring: int
    log: int

    def encode(self) -> bytes:
        """Make the payload."""
        fields = [self.index, self.flags, self.descriptor_table]
        return _make("vhost_vring_addr", [*fields, self.used_ring, self.available_ring, self.log])

    @classmethod
    def decode(cls, message: Message) -> "RingAddresses":
        """Take the payload apart; raises PeerError."""
        it = _take("vhost_vring_addr", message)
        return cls(
            it.index,
            it.flags,
            it.desc_user_addr,
            it.used_user_addr,
            it.avail_user_addr,
            it.log_guest_addr,
        )


def ring_file(index: int, has_fd: bool) -> bytes:
    """Make the payload of SET_VRING_KICK, _CALL or _ERR."""
    return u64(index | (0 if has_fd else _NO_DESCRIPTOR))


def to_ring_file(message: Message) -> int:
    """Return the ring's index, of a message with as many descriptors as it says; PeerError else."""
    value = to_u64(message)
    if value & ~(_RING_INDEX | _NO_DESCRIPTOR):
        raise PeerError(f"{message.name} with unknown bits in {value:#x}")
    expect_fds(message, 0 if value & _NO_DESCRIPTOR else 1)
    return value & _RING_INDEX


# Memory


@dataclass(slots=True, frozen=True)
class MemoryRegion:
    """Memory that is `size` bytes of a file from `mmap_offset` on.

    The driver's addresses of it start at `guest_address`, the frontend's own at `user_address`.
    """

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int

    def _fields(self) -> list[int]:
        return [self.guest_address, self.size, self.user_address, self.mmap_offset]

    def encode(self) -> bytes:
        """Make the payload of ADD_MEM_REG or REM_MEM_REG."""
        return _make("vhost_user_single_region", [0, self._fields()])

    @classmethod
    def decode(cls, message: Message) -> "MemoryRegion":
        """Take the payload of ADD_MEM_REG or REM_MEM_REG apart; raises PeerError."""
        return cls._of(_take("vhost_user_single_region", message).region)

    @classmethod
    def _of(cls, it: CData) -> "MemoryRegion":
        return cls(it.guest_address, it.size, it.user_address, it.mmap_offset)


def memory_table(regions: Iterable[MemoryRegion]) -> bytes:
    """Make the payload of SET_MEM_TABLE."""
    fields = [region._fields() for region in regions]
    table = ffi.new("struct vhost_user_memory *", [len(fields), 0, fields])
    size = ffi.sizeof("struct vhost_user_memory")
    return bytes(ffi.buffer(table, size + len(fields) * ffi.sizeof("struct vhost_user_region")))


def to_memory_table(message: Message) -> list[MemoryRegion]:
    """Take the payload of SET_MEM_TABLE apart; raises PeerError."""
    head = ffi.sizeof("struct vhost_user_memory")
    size = ffi.sizeof("struct vhost_user_region")
    count = int.from_bytes(message.payload[:4], "little") if len(message.payload) >= head else 0
    # Some frontends send the whole array, whatever part of it counts.
    if not 1 <= count <= REGIONS_MAX or len(message.payload) < head + count * size:
        raise PeerError(
            f"{message.name} with {count} regions in {len(message.payload)} bytes of payload"
        )
    table = ffi.from_buffer("struct vhost_user_memory *", message.payload)
    return [MemoryRegion._of(table.regions[index]) for index in range(count)]


@dataclass(slots=True, frozen=True)
class LogArea:
    """SET_LOG_BASE: `size` bytes at `offset` of the file that comes with it."""

    size: int
    offset: int

    def encode(self) -> bytes:
        """Make the payload."""
        return _make("vhost_user_log", [self.size, self.offset])

    @classmethod
    def decode(cls, message: Message) -> "LogArea":
        """Take the payload apart; raises PeerError."""
        it = _take("vhost_user_log", message)
        return cls(it.size, it.offset)


@dataclass(slots=True, frozen=True)
class InflightArea:
    """GET_INFLIGHT_FD and SET_INFLIGHT_FD: where requests in flight are tracked."""

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int

    def encode(self) -> bytes:
        """Make the payload."""
        fields = [self.mmap_size, self.mmap_offset, self.num_queues, self.queue_size]
        return _make("vhost_user_inflight", fields)

    @classmethod
    def decode(cls, message: Message) -> "InflightArea":
        """Take the payload apart; raises PeerError."""
        it = _take("vhost_user_inflight", message)
        return cls(it.mmap_size, it.mmap_offset, it.num_queues, it.queue_size)


# Configuration space


@dataclass(slots=True, frozen=True)
class ConfigAccess:
    """GET_CONFIG and SET_CONFIG: bytes of the configuration space from `offset` on."""

    offset: int
    data: bytes
    flags: int = 0

    def encode(self) -> bytes:
        """Make the payload."""
        return _make("vhost_user_config", [self.offset, len(self.data), self.flags]) + self.data

    @classmethod
    def decode(cls, message: Message) -> "ConfigAccess":
        """Take the payload apart; raises PeerError."""
        data = message.payload[_CONFIG_HEADER:]
        if len(message.payload) < _CONFIG_HEADER:
            raise PeerError(f"{message.name} with {len(message.payload)} bytes of payload")
        it = ffi.from_buffer("struct vhost_user_config *", message.payload[:_CONFIG_HEADER])
        if it.size != len(data) or it.size > CONFIG_MAX:
            raise PeerError(f"{message.name} says {it.size} bytes and has {len(data)}")
        return cls(it.offset, data, it.flags)


def expect_fds(message: Message, *counts: int) -> None:
    """Raise PeerError unless the message has one of these numbers of file descriptors."""
    if len(message.fds) not in counts:
        wanted = " or ".join(str(count) for count in counts)
        raise PeerError(f"{message.name} with {len(message.fds)} file descriptors, not {wanted}")
