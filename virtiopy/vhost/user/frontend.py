"""The frontend of vhost-user: another process works the virtqueues of a guest of ours.

It follows QEMU's docs/interop/vhost-user. There is no VM in here, and no device: memory and rings
are the caller's, so that tools and tests can be frontends as well.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virtiopy.closing import Closing
from virtiopy.errors import ConfigError, PeerError
from virtiopy.memory import GuestMemory, Region
from virtiopy.spec import feature_mask, has_feature
from virtiopy.vhost.user.connection import Connection, close_all
from virtiopy.vhost.user.messages import (
    CONFIG_MAX,
    NO_FLAGS,
    REGIONS_MAX,
    VHOST_F_LOG_ALL,
    VHOST_USER_F_PROTOCOL_FEATURES,
    BackendRequest,
    ConfigAccess,
    ConfigFlags,
    Flag,
    InflightArea,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    RingAddresses,
    RingState,
    expect_fds,
    memory_table,
    ring_file,
    to_u64,
    u64,
)
from virtiopy.vhost.vring import Vring, host_areas
from virtiopy.virtqueue.layout import INDEX_MODULUS
from virtiopy.virtqueue.queue import QueueState

#: Seconds that a backend may take for an answer. It completes requests in flight before some.
ANSWER_TIME = 10.0

#: What is made use of, where a backend has it.
WANTED = feature_mask(
    [
        ProtocolFeature.MQ,
        ProtocolFeature.REPLY_ACK,
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.CONFIG,
        ProtocolFeature.INFLIGHT_SHMFD,
        ProtocolFeature.RESET_DEVICE,
        ProtocolFeature.STATUS,
    ]
)

_NOT_VIRTIO = feature_mask([VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES])


class RefusedError(PeerError):
    """The backend answered that it does not do what it was told to."""


@dataclass(slots=True)
class InflightFile:
    """Where a backend tracks what is in flight: the frontend keeps it from one to the next."""

    area: InflightArea
    fd: int


#: What starts a backend, where nothing is known of the device; the socket's path is for {socket}.
ANY_BACKEND = "virtiopy serve blk disk.img --socket {socket}"


def connect(path: Path, backend: str = ANY_BACKEND) -> socket.socket:
    """Connect to a backend that listens; raises ConfigError, with the remedy.

    `backend` is a command that starts one, as an example: {socket} in it is where it listens.
    """
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # A backend that accepts no connection is not waited for (EAGAIN, unix(7)).
    stream.setblocking(False)
    try:
        stream.connect(str(path))
        stream.setblocking(True)
    except BlockingIOError as error:
        stream.close()
        raise ConfigError(
            f"The vhost-user backend at {path} has as many waiting as it lets: end who has it, "
            "or start another backend."
        ) from error
    except OSError as error:
        stream.close()
        raise ConfigError(
            f"No backend serves a device at {path} ({error.strerror or error}): start a vhost-user "
            f"backend first, as in {backend.format(socket=path)}."
        ) from error
    return stream


class VhostUserFrontend(Closing):
    """A session with the backend at the other end of `connection`, which is closed with it.

    To make it is to negotiate protocol features and to own the session. Each method is a request
    or two, waits for the answer where there is one, and raises PeerError for a backend that gives
    none in time or a wrong one: the session is over then.
    """

    def __init__(
        self,
        connection: socket.socket | Connection,
        *,
        wanted: int = WANTED,
        knows_protocol_features: bool = True,
    ) -> None:
        if isinstance(connection, socket.socket):
            connection.settimeout(ANSWER_TIME)
            connection = Connection(connection)
        self.connection = connection
        #: A socket on which the backend speaks by itself, where it does.
        self.channel: Connection | None = None
        self._protocol_features = 0
        #: The feature bits that the backend offers, those of the protocol left out.
        self.features = 0
        #: Whether rings are enabled and disabled by messages (SET_VRING_ENABLE).
        self.has_states = False
        try:
            self._negotiate(wanted, knows_protocol_features)
        except (PeerError, OSError):
            self.close()
            raise

    def _negotiate(self, wanted: int, knows_protocol_features: bool) -> None:
        """Negotiate the protocol's features, and own the session."""
        self.features = self.get_features()
        self._tell(Request.SET_OWNER)
        self.has_states = knows_protocol_features and has_feature(
            self.features, VHOST_USER_F_PROTOCOL_FEATURES
        )
        if self.has_states:
            offered = self._ask_u64(Request.GET_PROTOCOL_FEATURES)
            # From here on: an acknowledgement of this very request would be the first.
            self._tell(Request.SET_PROTOCOL_FEATURES, u64(offered & wanted))
            self._protocol_features = offered & wanted
        self.features &= ~_NOT_VIRTIO
        if self.has(ProtocolFeature.BACKEND_REQ):
            self._open_channel()

    def close(self) -> None:
        """End the session."""
        self.connection.close()
        if self.channel is not None:
            self.channel.close()

    def has(self, feature: ProtocolFeature) -> bool:
        """Say whether a protocol feature was negotiated."""
        return has_feature(self._protocol_features, feature)

    def _open_channel(self) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Connection(ours)
        ours.settimeout(ANSWER_TIME)
        with theirs:
            self._tell(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])

    # Requests and answers

    def _send(
        self, request: Request, payload: bytes, fds: list[int], *, acknowledged: bool = False
    ) -> None:
        flags = Flag.NEED_REPLY if acknowledged else NO_FLAGS
        self.connection.send(Message(request, payload, flags, fds))

    def _answer(self, request: Request) -> Message:
        answer = self.connection.receive()
        if answer is None:
            raise PeerError(f"no answer to {request.name}")
        if answer.request != request or not answer.flags & Flag.REPLY:
            close_all(answer.fds)
            raise PeerError(f"{answer.name} for an answer to {request.name}")
        return answer

    def _is_acknowledged(self, request: Request) -> bool:
        """Say whether a request that has no answer is to be acknowledged."""
        return self.has(ProtocolFeature.REPLY_ACK)

    def _tell(self, request: Request, payload: bytes = b"", fds: list[int] | None = None) -> None:
        """Send what has no answer, but for the acknowledgement where that was negotiated."""
        acknowledged = self._is_acknowledged(request)
        self._send(request, payload, fds or [], acknowledged=acknowledged)
        if acknowledged:
            answer = self._answer(request)
            close_all(answer.fds)
            if to_u64(answer):
                raise RefusedError(f"it refused {request.name}")

    def _ask(
        self, request: Request, payload: bytes = b"", fds: int = 0, files: Sequence[int] = ()
    ) -> Message:
        """Send what has an answer, with `files`; `fds` are how many descriptors come with that."""
        self._send(request, payload, list(files))
        answer = self._answer(request)
        try:
            expect_fds(answer, fds)
        except PeerError:
            close_all(answer.fds)
            raise
        return answer

    def _ask_u64(self, request: Request) -> int:
        return to_u64(self._ask(request))

    # The device

    def queue_count(self) -> int | None:
        """Return how many queues it has, pairs for a network device; None where it cannot say."""
        return self._ask_u64(Request.GET_QUEUE_NUM) if self.has(ProtocolFeature.MQ) else None

    def get_features(self) -> int:
        """Ask again for the feature bits that the backend offers, those of the protocol too."""
        return self._ask_u64(Request.GET_FEATURES)

    def set_features(self, features: int) -> None:
        """Say which of `features` the driver took."""
        if self.has_states:
            features |= 1 << VHOST_USER_F_PROTOCOL_FEATURES
        self._tell(Request.SET_FEATURES, u64(features))

    def get_config(self, size: int, offset: int = 0) -> bytes:
        """Return `size` bytes of the configuration space, at most 256."""
        wanted = ConfigAccess(offset, bytes(min(size, CONFIG_MAX)))
        access = ConfigAccess.decode(self._ask(Request.GET_CONFIG, wanted.encode()))
        if len(access.data) != len(wanted.data):
            raise PeerError(f"{len(access.data)} bytes of configuration, not {len(wanted.data)}")
        return access.data

    def set_config(self, offset: int, data: bytes, flags: int = ConfigFlags.WRITABLE) -> bool:
        """Write what the driver writes to the configuration space; False where it was refused."""
        try:
            self._tell(Request.SET_CONFIG, ConfigAccess(offset, data, flags).encode())
        except RefusedError:
            return False
        return True

    def set_status(self, status: int) -> None:
        """Pass the device status on, to a backend that follows it; 0 resets the device."""
        if self.has(ProtocolFeature.STATUS):
            self._tell(Request.SET_STATUS, u64(status))

    def get_status(self) -> int | None:
        """Return the device status as the backend sees it; None for one that follows it not."""
        return self._ask_u64(Request.GET_STATUS) if self.has(ProtocolFeature.STATUS) else None

    def reset_device(self) -> None:
        """Reset the device, by what the backend has for it; its rings are stopped."""
        if self.has(ProtocolFeature.RESET_DEVICE):
            self._tell(Request.RESET_DEVICE)
        else:
            self.set_status(0)

    # Memory and rings

    def set_memory(self, memory: GuestMemory) -> None:
        """Share guest memory; a backend's addresses of it are those of this process."""
        if len(memory.regions) > REGIONS_MAX:
            raise PeerError(f"{len(memory.regions)} memory regions are too many for one message")
        regions = [self.described(region) for region in memory.regions]
        fds = [self.file_of(region) for region in memory.regions]
        self._tell(Request.SET_MEM_TABLE, memory_table(regions), fds)

    def described(self, region: Region) -> MemoryRegion:
        """Return what the backend is told of a region."""
        return MemoryRegion(region.guest_address, region.size, region.host_address, region.offset)

    def file_of(self, region: Region) -> int:
        """Return the file that the backend is given of a region."""
        return region.fd

    def ring_addresses(self, index: int, ring: Vring, memory: GuestMemory) -> RingAddresses:
        """Return what the backend is told of where a ring is; raises as `host_areas` does."""
        host = host_areas(memory, ring.size, ring.areas)
        return RingAddresses(index, 0, host.descriptor, host.device, host.driver, 0)

    def start_ring(
        self, index: int, ring: Vring, memory: GuestMemory, *, enable: bool = True
    ) -> None:
        """Have the backend work a virtqueue that is in `memory`, once it is enabled.

        The eventfds stay the caller's. Raises QueueError and AddressError as `host_areas` does.
        """
        addresses = self.ring_addresses(index, ring, memory)
        self._tell(Request.SET_VRING_NUM, RingState(index, ring.size).encode())
        self._tell(Request.SET_VRING_BASE, RingState(index, ring.state.vring_base).encode())
        self._tell(Request.SET_VRING_ADDR, addresses.encode())
        self.set_call(index, ring.call)
        if ring.error is not None:
            self._tell(Request.SET_VRING_ERR, ring_file(index, has_fd=True), [ring.error])
        self._tell(Request.SET_VRING_KICK, ring_file(index, has_fd=True), [ring.kick])
        if enable:
            self.enable_ring(index)

    def set_call(self, index: int, call: int | None) -> None:
        """Have used buffer notifications written to this eventfd; None for none at all."""
        fds = [] if call is None else [call]
        self._tell(Request.SET_VRING_CALL, ring_file(index, has_fd=call is not None), fds)

    def enable_ring(self, index: int, *, enable: bool = True) -> None:
        """Enable or disable a virtqueue, where the backend knows of that."""
        if self.has_states:
            self._tell(Request.SET_VRING_ENABLE, RingState(index, int(enable)).encode())

    def stop_ring(self, index: int) -> QueueState:
        """Stop a virtqueue; returns where to go on."""
        answer = self._ask(Request.GET_VRING_BASE, RingState(index, 0).encode())
        state = RingState.decode(answer)
        if state.index != index:
            raise PeerError(f"the base of ring {state.index}, and not of ring {index}")
        return QueueState(state.number % INDEX_MODULUS)

    # Requests in flight

    def get_inflight(self, num_queues: int, queue_size: int) -> InflightFile | None:
        """Have the backend track what is in flight, in a file that is the caller's to close.

        None for a backend that does not. The file is the backend's own, and is sent back all the
        same: libvhost-user's maps it only then, and DPDK's starts no ring before.
        """
        if not self.has(ProtocolFeature.INFLIGHT_SHMFD):
            return None
        wanted = InflightArea(0, 0, num_queues, queue_size)
        answer = self._ask(Request.GET_INFLIGHT_FD, wanted.encode(), fds=1)
        fd = answer.fds.pop()
        try:
            given = InflightArea.decode(answer)
            # Some answer with 0 queues of 0 entries: what was asked for holds, as QEMU has it.
            area = InflightArea(given.mmap_size, given.mmap_offset, num_queues, queue_size)
            file = InflightFile(area, fd)
            self.set_inflight(file)
        except PeerError:
            os.close(fd)
            raise
        return file

    def set_inflight(self, file: InflightFile) -> None:
        """Give the file to the backend: it goes on with what another left in it."""
        if self.has(ProtocolFeature.INFLIGHT_SHMFD):
            self._tell(Request.SET_INFLIGHT_FD, file.area.encode(), [file.fd])

    # What the backend says by itself

    def config_has_changed(self) -> bool:
        """Take the backend's next request from the channel; True where it is CONFIG_CHANGE_MSG.

        False for one that was refused, or is not whole where the channel does not wait. Raises
        PeerError when there is none in time.
        """
        if self.channel is None:
            raise PeerError("a backend without a channel has spoken")
        message = self.channel.receive()
        if message is None:
            return False
        close_all(message.fds)
        changed = message.request == BackendRequest.CONFIG_CHANGE_MSG
        if message.needs_reply:
            answer = Message(message.request, u64(0 if changed else 1), Flag.REPLY)
            self.channel.send(answer)
        return changed
