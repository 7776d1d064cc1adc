"""The messages of a session, held against what the vhost-user protocol asks of both sides."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from virtiopy.check.judge import DeviceJudge
from virtiopy.errors import DriverError, PeerError
from virtiopy.spec import Feature, feature_mask, has_feature
from virtiopy.vhost.user.memory import FrontendMemory
from virtiopy.vhost.user.messages import (
    REGIONS_MAX,
    VHOST_USER_F_PROTOCOL_FEATURES,
    ConfigAccess,
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
    to_u64,
)
from virtiopy.virtqueue.layout import INDEX_MODULUS, RingFormat, areas, valid_queue_size

#: Requests that a backend replies to whatever the frontend asks for.
_REPLIED = {
    Request.GET_FEATURES,
    Request.GET_PROTOCOL_FEATURES,
    Request.GET_VRING_BASE,
    Request.GET_QUEUE_NUM,
    Request.GET_CONFIG,
    Request.GET_INFLIGHT_FD,
    Request.GET_MAX_MEM_SLOTS,
    Request.GET_STATUS,
}

#: Messages of a frontend that file descriptors come with; REM_MEM_REG has a statement of its own.
_WITH_FILES = {
    Request.SET_MEM_TABLE,
    Request.SET_LOG_BASE,
    Request.SET_LOG_FD,
    Request.SET_VRING_KICK,
    Request.SET_VRING_CALL,
    Request.SET_VRING_ERR,
    Request.SET_BACKEND_REQ_FD,
    Request.SET_INFLIGHT_FD,
    Request.ADD_MEM_REG,
    Request.REM_MEM_REG,
    Request.GPU_SET_SOCKET,
}

#: What each extension depends on, and the statement besides that says so of this message.
_EXTENSIONS: Mapping[int, tuple[ProtocolFeature, str | None]] = {
    Request.GET_QUEUE_NUM: (ProtocolFeature.MQ, "GET_QUEUE_NUM:2"),
    Request.SET_LOG_BASE: (ProtocolFeature.LOG_SHMFD, None),
    Request.SEND_RARP: (ProtocolFeature.RARP, "SEND_RARP:1"),
    Request.NET_SET_MTU: (ProtocolFeature.MTU, "NET_SET_MTU:2"),
    Request.SET_BACKEND_REQ_FD: (ProtocolFeature.BACKEND_REQ, "SET_BACKEND_REQ_FD:2"),
    Request.GET_CONFIG: (ProtocolFeature.CONFIG, None),
    Request.SET_CONFIG: (ProtocolFeature.CONFIG, None),
    Request.GET_INFLIGHT_FD: (ProtocolFeature.INFLIGHT_SHMFD, None),
    Request.SET_INFLIGHT_FD: (ProtocolFeature.INFLIGHT_SHMFD, None),
    Request.RESET_DEVICE: (ProtocolFeature.RESET_DEVICE, "RESET_DEVICE:3"),
    Request.GET_MAX_MEM_SLOTS: (ProtocolFeature.CONFIGURE_MEM_SLOTS, None),
    Request.ADD_MEM_REG: (ProtocolFeature.CONFIGURE_MEM_SLOTS, None),
    Request.REM_MEM_REG: (ProtocolFeature.CONFIGURE_MEM_SLOTS, None),
    Request.SET_STATUS: (ProtocolFeature.STATUS, None),
    Request.GET_STATUS: (ProtocolFeature.STATUS, None),
}

#: How the payloads of requests are read: what raises PeerError has not the size of its type.
_PAYLOADS: Mapping[int, Callable[[Message], object]] = {
    Request.SET_FEATURES: to_u64,
    Request.SET_PROTOCOL_FEATURES: to_u64,
    Request.SET_MEM_TABLE: to_memory_table,
    Request.SET_LOG_BASE: LogArea.decode,
    Request.SET_VRING_NUM: RingState.decode,
    Request.SET_VRING_BASE: RingState.decode,
    Request.GET_VRING_BASE: RingState.decode,
    Request.SET_VRING_ENABLE: RingState.decode,
    Request.SET_VRING_ADDR: RingAddresses.decode,
    Request.SET_VRING_KICK: to_u64,
    Request.SET_VRING_CALL: to_u64,
    Request.SET_VRING_ERR: to_u64,
    Request.GET_CONFIG: ConfigAccess.decode,
    Request.SET_CONFIG: ConfigAccess.decode,
    Request.GET_INFLIGHT_FD: InflightArea.decode,
    Request.SET_INFLIGHT_FD: InflightArea.decode,
    Request.ADD_MEM_REG: MemoryRegion.decode,
    Request.REM_MEM_REG: MemoryRegion.decode,
    Request.SET_STATUS: to_u64,
}

#: SET_VRING_KICK, _CALL and _ERR: the bit for no file descriptor, and the ring's index.
_NO_FILE, _RING_INDEX = 1 << 8, 0xFF

_SETS_UP = {
    Request.SET_MEM_TABLE,
    Request.ADD_MEM_REG,
    Request.SET_VRING_NUM,
    Request.SET_VRING_BASE,
    Request.SET_VRING_ADDR,
    Request.SET_VRING_KICK,
}


@dataclass(slots=True)
class _Ring:
    """What was said of a ring."""

    size: int = 0
    has_addresses: bool = False
    is_started: bool = False


@dataclass(slots=True)
class _Asked:
    """A request that waits for its reply; `acknowledged` says that it has none of its own."""

    message: Message
    acknowledged: bool


class ProtocolJudge:
    """Judges the messages of one session; `memory` is what the frontend has shared before each."""

    def __init__(
        self, frontend: DeviceJudge, backend: DeviceJudge, memory: FrontendMemory | None
    ) -> None:
        self._frontend = frontend
        self._backend = backend
        self._memory = memory
        self._asked: deque[_Asked] = deque()
        self._rings: dict[int, _Ring] = {}
        self._regions: set[tuple[int, int, int]] = set()
        self._offered: int | None = None
        self._features: int | None = None
        self._protocol_offered: int | None = None
        self._protocol = 0
        self._owners = 0
        self._inflight: InflightArea | None = None

    def message(self, message: Message, from_frontend: bool) -> None:
        """Judge a message, and learn from it."""
        judge = self._frontend if from_frontend else self._backend
        judge.note(f"says {message.describe()}")
        if from_frontend:
            self._request(message)
        else:
            self._reply(message)

    def _ring(self, index: int) -> _Ring:
        return self._rings.setdefault(index, _Ring())

    def _has(self, feature: ProtocolFeature) -> bool:
        return has_feature(self._protocol, feature)

    # What the frontend says

    def _request(self, message: Message) -> None:
        check, name = self._frontend.check, message.name
        check("header:4", not message.flags & Flag.REPLY, f"{name} has the reply flag")
        acknowledged = bool(message.needs_reply)
        if acknowledged:
            check(
                "REPLY_ACK:4",
                self._has(ProtocolFeature.REPLY_ACK),
                f"{name} has need_reply, and REPLY_ACK was not negotiated",
            )
        check(
            "communication:8",
            not message.fds or message.request in _WITH_FILES,
            f"{name} comes with {len(message.fds)} file descriptors",
        )
        self._extension(message)
        if message.request in _SETS_UP:
            check("SET_OWNER:1", self._owners > 0, f"{name} comes before SET_OWNER")
        if self._is_whole(message) and (judge := _JUDGES.get(message.request)) is not None:
            judge(self, message)
        own = message.request in _REPLIED or (
            message.request == Request.SET_LOG_BASE and self._has(ProtocolFeature.LOG_SHMFD)
        )
        if own or (acknowledged and self._has(ProtocolFeature.REPLY_ACK)):
            # The file descriptors are the proxy's, and closed soon.
            copy = Message(message.request, message.payload, message.flags)
            self._asked.append(_Asked(copy, not own))

    def _is_whole(self, message: Message) -> bool:
        read = _PAYLOADS.get(message.request)
        if read is None:
            return True
        try:
            read(message)
        except PeerError as error:
            statement = "regions:2" if message.request == Request.SET_MEM_TABLE else "header:5"
            self._frontend.broke(statement, str(error))
            return False
        self._frontend.kept("header:5")
        return True

    def _extension(self, message: Message) -> None:
        if (extension := _EXTENSIONS.get(message.request)) is None:
            return
        feature, statement = extension
        offered = self._protocol_offered or 0
        if statement is not None:
            self._frontend.check(
                statement,
                has_feature(offered, feature),
                f"{message.name} is sent, and {feature.name} is not offered",
            )
        # SET_LOG_BASE was there before its file had a protocol feature.
        if message.request != Request.SET_LOG_BASE:
            self._frontend.check(
                "communication:9",
                self._has(feature),
                f"{message.name} is sent, and {feature.name} was not negotiated",
            )

    def _set_features(self, message: Message) -> None:
        features = to_u64(message)
        if self._offered is not None:
            unoffered = features & ~self._offered
            self._frontend.check(
                "SET_FEATURES:1", not unoffered, f"SET_FEATURES has {unoffered:#x}, not offered"
            )
        self._features = features

    def _offers_protocol(self, statement: str, message: Message) -> None:
        if self._offered is not None:
            self._frontend.check(
                statement,
                has_feature(self._offered, VHOST_USER_F_PROTOCOL_FEATURES),
                f"{message.name} is sent, and VHOST_USER_F_PROTOCOL_FEATURES is not offered",
            )

    def _get_protocol_features(self, message: Message) -> None:
        self._offers_protocol("GET_PROTOCOL_FEATURES:2", message)

    def _set_protocol_features(self, message: Message) -> None:
        self._offers_protocol("SET_PROTOCOL_FEATURES:2", message)
        self._protocol = features = to_u64(message)
        if self._protocol_offered is not None:
            unoffered = features & ~self._protocol_offered
            self._frontend.check(
                "SET_PROTOCOL_FEATURES:3",
                not unoffered,
                f"SET_PROTOCOL_FEATURES has {unoffered:#x}, not offered",
            )
        if self._has(ProtocolFeature.INBAND_NOTIFICATIONS):
            both = feature_mask([ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK])
            self._frontend.check(
                "in-band:2",
                features & both == both,
                "INBAND_NOTIFICATIONS is negotiated without BACKEND_REQ and REPLY_ACK",
            )

    def _set_owner(self, message: Message) -> None:
        self._owners += 1
        self._frontend.check("SET_OWNER:1", self._owners == 1, "SET_OWNER is sent again")

    def _reset_owner(self, message: Message) -> None:
        self._frontend.broke("RESET_OWNER:2", "RESET_OWNER is sent")

    def _set_mem_table(self, message: Message) -> None:
        regions = to_memory_table(message)
        fit = len(regions) == len(message.fds)
        evidence = f"a table of {len(regions)} regions comes with {len(message.fds)} files"
        self._frontend.check("SET_MEM_TABLE:2", fit, evidence)
        self._frontend.check("regions:2", 1 <= len(regions) <= REGIONS_MAX and fit, evidence)
        self._regions = {_identity(region) for region in regions}

    def _add_mem_reg(self, message: Message) -> None:
        self._frontend.check(
            "ADD_MEM_REG:2",
            len(message.fds) == 1,
            f"ADD_MEM_REG comes with {len(message.fds)} file descriptors",
        )
        self._regions.add(_identity(MemoryRegion.decode(message)))

    def _rem_mem_reg(self, message: Message) -> None:
        self._frontend.check(
            "REM_MEM_REG:4", not message.fds, "REM_MEM_REG comes with a file descriptor"
        )
        region = _identity(MemoryRegion.decode(message))
        self._frontend.check(
            "REM_MEM_REG:5",
            region in self._regions,
            f"REM_MEM_REG of {region[1]} bytes at {region[0]:#x}, which were not sent",
        )

    def _set_vring_num(self, message: Message) -> None:
        state = RingState.decode(message)
        ring = self._ring(state.index)
        self._frontend.check(
            "SET_VRING_NUM:2",
            valid_queue_size(state.number) and not ring.is_started,
            f"ring {state.index}{' is started, and' if ring.is_started else ''} is given the size "
            f"{state.number}",
        )
        ring.size = state.number

    def _set_vring_base(self, message: Message) -> None:
        state = RingState.decode(message)
        if has_feature(self._features or 0, Feature.VIRTIO_F_RING_PACKED):
            return
        started = self._ring(state.index).is_started
        self._frontend.check(
            "SET_VRING_BASE:2",
            state.number < INDEX_MODULUS and not started,
            f"ring {state.index}{' is started, and' if started else ''} is given the base "
            f"{state.number}",
        )

    def _set_vring_addr(self, message: Message) -> None:
        addresses = RingAddresses.decode(message)
        ring = self._ring(addresses.index)
        ring.has_addresses = True
        features = self._features or 0
        foreign = (Feature.VIRTIO_F_ACCESS_PLATFORM, Feature.VIRTIO_F_RING_PACKED)
        if self._memory is None or any(has_feature(features, bit) for bit in foreign):
            return
        if not valid_queue_size(ring.size):
            return
        wanted = areas(RingFormat.SPLIT, ring.size)
        try:
            self._memory.translate(addresses.descriptor_table, wanted.descriptor.size)
            self._memory.translate(addresses.available_ring, wanted.driver.size)
            self._memory.translate(addresses.used_ring, wanted.device.size)
        except (PeerError, DriverError) as error:
            self._frontend.broke("memory-access:3", f"ring {addresses.index}: {error}")
        else:
            self._frontend.kept("memory-access:3")

    def _set_vring_file(self, message: Message) -> None:
        value = to_u64(message)
        self._frontend.check(
            "SET_VRING_KICK:2",
            bool(value & _NO_FILE) == (not message.fds)
            and not value & ~(_NO_FILE | _RING_INDEX)
            and len(message.fds) <= 1,
            f"{message.name} says {value:#x}, and {len(message.fds)} file descriptors come with it",
        )
        if message.request == Request.SET_VRING_KICK:
            index = value & _RING_INDEX
            ring = self._ring(index)
            self._frontend.check(
                "SET_VRING_ADDR:2", ring.has_addresses, f"ring {index} is started without addresses"
            )
            if not ring.size:
                self._frontend.broke("SET_VRING_NUM:2", f"ring {index} is started without a size")
            ring.is_started = True

    def _set_vring_enable(self, message: Message) -> None:
        state = RingState.decode(message)
        self._frontend.check(
            "SET_VRING_ENABLE:2",
            has_feature(self._features or 0, VHOST_USER_F_PROTOCOL_FEATURES),
            "SET_VRING_ENABLE is sent without VHOST_USER_F_PROTOCOL_FEATURES",
        )
        self._frontend.check(
            "SET_VRING_ENABLE:3",
            state.number in (0, 1),
            f"SET_VRING_ENABLE says {state.number}",
        )

    def _set_inflight(self, message: Message) -> None:
        area = InflightArea.decode(message)
        if self._inflight is not None:
            self._frontend.check(
                "SET_INFLIGHT_FD:1",
                # Of how many queues it is, QEMU says by itself.
                (area.mmap_size, area.mmap_offset)
                == (self._inflight.mmap_size, self._inflight.mmap_offset)
                and len(message.fds) == 1,
                "SET_INFLIGHT_FD has not what GET_INFLIGHT_FD has given",
            )

    def _reset_device(self, message: Message) -> None:
        self._rings.clear()

    # What the backend says

    def called(self, index: int) -> None:
        """Judge a notification of the backend's."""
        self._backend.check(
            "suspended:2",
            any(ring.is_started for ring in self._rings.values()),
            f"ring {index} is notified while all rings are stopped",
        )

    def _reply(self, message: Message) -> None:
        check, name = self._backend.check, message.name
        check("header:1", bool(message.flags & Flag.REPLY), f"{name} has no reply flag")
        if not self._asked:
            self._backend.broke("communication:4", f"{name} is sent, and nothing was asked for")
            return
        self._backend.kept("communication:4")
        asked = self._asked.popleft()
        if not check(
            "header:3",
            message.request == asked.message.request,
            f"{name} is the reply to {asked.message.name}",
        ):
            return
        if asked.acknowledged:
            self._backend.kept("REPLY_ACK:1")
            check(
                "REPLY_ACK:2",
                len(message.payload) == 8,
                f"the acknowledgement of {name} has {len(message.payload)} bytes",
            )
            return
        if asked.message.needs_reply:
            self._backend.kept("REPLY_ACK:3")
        try:
            self._answer(message, asked.message)
        except PeerError as error:
            self._backend.broke("header:3", f"the reply is none: {error}")

    def _answer(self, message: Message, asked: Message) -> None:
        check = self._backend.check
        match message.request:
            case Request.GET_FEATURES:
                self._backend.kept("communication:1")
                offered = to_u64(message)
                before, self._offered = self._offered, offered
                if before is not None:
                    check(
                        "GET_FEATURES:1",
                        before == offered,
                        f"the features offered are {offered:#x}, and were {before:#x}",
                    )
            case Request.GET_PROTOCOL_FEATURES:
                self._backend.kept("communication:1")
                self._protocol_offered = offered = to_u64(message)
                if self._features is None:
                    self._backend.kept("GET_PROTOCOL_FEATURES:1")
                check(
                    "multiple-queues:1",
                    has_feature(offered, ProtocolFeature.MQ),
                    "the backend does not offer MQ",
                )
            case Request.GET_VRING_BASE:
                self._backend.kept("communication:1")
                self._stopped(RingState.decode(message), RingState.decode(asked).index)
            case Request.GET_QUEUE_NUM:
                check("GET_QUEUE_NUM:1", to_u64(message) > 0, "the backend has no queue")
            case Request.GET_CONFIG:
                size = len(message.payload)
                check(
                    "GET_CONFIG:1",
                    size in (0, len(asked.payload)),
                    f"the reply to GET_CONFIG has {size} bytes, the request {len(asked.payload)}",
                )
            case Request.GET_INFLIGHT_FD:
                self._given(InflightArea.decode(message), InflightArea.decode(asked), message)

    def _stopped(self, state: RingState, index: int) -> None:
        packed = has_feature(self._features or 0, Feature.VIRTIO_F_RING_PACKED)
        self._backend.check(
            "GET_VRING_BASE:1",
            state.index == index and (packed or state.number < INDEX_MODULUS),
            f"the base of ring {state.index} is {state.number}; ring {index} was asked for",
        )
        self._ring(index).is_started = False

    def _given(self, area: InflightArea, asked: InflightArea, message: Message) -> None:
        # Without a file there is nothing to track in: QEMU goes on without.
        if not area.mmap_size and not message.fds:
            return
        self._backend.kept("communication:3")
        self._backend.check(
            "GET_INFLIGHT_FD:1",
            len(message.fds) == 1
            and (area.num_queues, area.queue_size) == (asked.num_queues, asked.queue_size),
            f"GET_INFLIGHT_FD gives {area.num_queues} queues of {area.queue_size} and "
            f"{len(message.fds)} files; {asked.num_queues} of {asked.queue_size} were asked for",
        )
        self._inflight = area


def _identity(region: MemoryRegion) -> tuple[int, int, int]:
    return region.guest_address, region.size, region.user_address


_JUDGES: Mapping[int, Callable[[ProtocolJudge, Message], None]] = {
    Request.SET_FEATURES: ProtocolJudge._set_features,
    Request.GET_PROTOCOL_FEATURES: ProtocolJudge._get_protocol_features,
    Request.SET_PROTOCOL_FEATURES: ProtocolJudge._set_protocol_features,
    Request.SET_OWNER: ProtocolJudge._set_owner,
    Request.RESET_OWNER: ProtocolJudge._reset_owner,
    Request.SET_MEM_TABLE: ProtocolJudge._set_mem_table,
    Request.ADD_MEM_REG: ProtocolJudge._add_mem_reg,
    Request.REM_MEM_REG: ProtocolJudge._rem_mem_reg,
    Request.SET_VRING_NUM: ProtocolJudge._set_vring_num,
    Request.SET_VRING_BASE: ProtocolJudge._set_vring_base,
    Request.SET_VRING_ADDR: ProtocolJudge._set_vring_addr,
    Request.SET_VRING_KICK: ProtocolJudge._set_vring_file,
    Request.SET_VRING_CALL: ProtocolJudge._set_vring_file,
    Request.SET_VRING_ERR: ProtocolJudge._set_vring_file,
    Request.SET_VRING_ENABLE: ProtocolJudge._set_vring_enable,
    Request.SET_INFLIGHT_FD: ProtocolJudge._set_inflight,
    Request.RESET_DEVICE: ProtocolJudge._reset_device,
}
