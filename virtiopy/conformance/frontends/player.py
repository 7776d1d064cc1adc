"""A frontend that says what a profile has it say, step by step."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from virtiopy.conformance.frontends.profile import Part, Profile, Step
from virtiopy.conformance.sessions.frontend import SuiteFrontend
from virtiopy.errors import PeerError
from virtiopy.memory import GuestMemory, Region
from virtiopy.spec import has_feature
from virtiopy.vhost.user.connection import Connection
from virtiopy.vhost.user.frontend import InflightFile
from virtiopy.vhost.user.messages import (
    VHOST_F_LOG_ALL,
    VHOST_USER_F_PROTOCOL_FEATURES,
    InflightArea,
    ProtocolFeature,
    Request,
    RingState,
    ring_file,
    u64,
)
from virtiopy.vhost.vring import Vring

#: The protocol feature without which a request is not sent.
NEEDS: Mapping[Request, ProtocolFeature] = {
    Request.GET_QUEUE_NUM: ProtocolFeature.MQ,
    Request.GET_CONFIG: ProtocolFeature.CONFIG,
    Request.GET_INFLIGHT_FD: ProtocolFeature.INFLIGHT_SHMFD,
    Request.SET_INFLIGHT_FD: ProtocolFeature.INFLIGHT_SHMFD,
    Request.GET_STATUS: ProtocolFeature.STATUS,
    Request.SET_STATUS: ProtocolFeature.STATUS,
    Request.RESET_DEVICE: ProtocolFeature.RESET_DEVICE,
    Request.GET_MAX_MEM_SLOTS: ProtocolFeature.CONFIGURE_MEM_SLOTS,
    Request.SET_BACKEND_REQ_FD: ProtocolFeature.BACKEND_REQ,
}

#: What is sent only where protocol features are offered.
PROTOCOLS = frozenset(
    [Request.GET_PROTOCOL_FEATURES, Request.SET_PROTOCOL_FEATURES, Request.SET_VRING_ENABLE]
)


class Player(SuiteFrontend):
    """The frontend of a profile: nothing is sent until `play` is called.

    `config_size` are the bytes of the configuration space that the device type has.
    """

    def __init__(
        self,
        connection: Connection,
        profile: Profile,
        memory: GuestMemory,
        inflight: InflightFile | None,
        config_size: int,
    ) -> None:
        self._profile = profile
        self._memory = memory
        self._sent: set[int] = set()
        self._config_size = profile.config or config_size
        # Eventfds that are not looked at, by what they were sent with.
        self._spare: dict[tuple[Request, int], int] = {}
        #: How many queues the backend says it has, once it was asked.
        self.said_queues: int | None = None
        #: The configuration space, once it was asked for.
        self.config: bytes | None = None
        #: Where what is in flight is tracked; the session's to close.
        self.inflight = inflight
        #: The bases that GET_VRING_BASE has given, by ring.
        self.bases: dict[int, int] = {}
        super().__init__(connection, wanted=profile.protocol)
        if profile.guest_addresses:
            self.user_address = _guest_address

    def close(self) -> None:
        """End the session."""
        super().close()
        while self._spare:
            os.close(self._spare.popitem()[1])

    def _negotiate(self, wanted: int, knows_protocol_features: bool) -> None:
        """Say nothing: it is the profile that says when."""

    def _send(
        self, request: Request, payload: bytes, fds: list[int], *, acknowledged: bool = False
    ) -> None:
        # Some ask for an acknowledgement of what has an answer of its own, too.
        super()._send(request, payload, fds, acknowledged=self._is_acknowledged(request))

    def _is_acknowledged(self, request: Request) -> bool:
        return super()._is_acknowledged(request) and self._profile.acknowledges(request)

    # The phases of a session

    def play(
        self, parts: Iterable[Part], features: int, rings: Callable[[], Mapping[int, Vring | None]]
    ) -> None:
        """Do the steps of a phase, with these features and the rings that there are by then.

        Before DRIVER_OK a ring is but an index.
        """
        for part in parts:
            if isinstance(part, Step):
                self._step(part, features)
                continue
            for index, ring in rings().items():
                for step in part:
                    if self._applies(step.request):
                        self._ring_step(step, index, ring)

    def _applies(self, request: Request) -> bool:
        if request in PROTOCOLS and not self.has_states:
            return False
        needed = NEEDS.get(request)
        return needed is None or self.has(needed)

    def _step(self, step: Step, features: int) -> None:
        request = step.request
        if not self._applies(request):
            return
        if request is Request.GET_FEATURES:
            offered = self.get_features()
            self.has_states = has_feature(offered, VHOST_USER_F_PROTOCOL_FEATURES)
            self.features = offered & ~(1 << VHOST_USER_F_PROTOCOL_FEATURES | 1 << VHOST_F_LOG_ALL)
        elif request is Request.GET_PROTOCOL_FEATURES:
            self._offered = self._ask_u64(request)
        elif request is Request.SET_PROTOCOL_FEATURES:
            taken = self._offered & self._profile.protocol
            self._tell(request, u64(taken))
            self._protocol_features = taken
        elif request is Request.GET_QUEUE_NUM:
            self.said_queues = self._ask_u64(request)
        elif request is Request.GET_MAX_MEM_SLOTS:
            self.max_slots()
        elif request is Request.SET_BACKEND_REQ_FD:
            self._open_channel()
        elif request is Request.GET_CONFIG:
            self.config = self.get_config(self._config_size)
        elif request is Request.SET_FEATURES:
            bit = self.has_states and self._profile.protocol_bit
            self.set_all_features(features | bit << VHOST_USER_F_PROTOCOL_FEATURES)
        elif request is Request.GET_STATUS:
            self.get_status()
        elif request is Request.SET_STATUS:
            self.set_status(step.number)
        elif request is Request.SET_MEM_TABLE:
            self._share(step)
        elif request is Request.GET_INFLIGHT_FD:
            self._get_inflight()
        elif request is Request.SET_INFLIGHT_FD:
            if self.inflight is not None:
                self.set_inflight(self.inflight)
        else:
            # SET_OWNER, RESET_DEVICE
            self._tell(request)

    def _share(self, step: Step) -> None:
        if not (step.shares_memory and self.has(ProtocolFeature.CONFIGURE_MEM_SLOTS)):
            self.set_memory(self._memory)
            return
        for region in self._memory.regions:
            if region.guest_address not in self._sent:
                self.add_region(region)
                self._sent.add(region.guest_address)

    def _get_inflight(self) -> None:
        if self.inflight is None:
            wanted = InflightArea(0, 0, self.ring_count, self.ring_size)
            answer = self._ask(Request.GET_INFLIGHT_FD, wanted.encode(), fds=1)
            area = InflightArea.decode(answer)
            if not self._profile.inflight_as_given:
                area = replace(area, num_queues=self.ring_count, queue_size=self.ring_size)
            self.inflight = InflightFile(area, answer.fds.pop())
            if not (area.mmap_size and area.num_queues and area.queue_size):
                raise PeerError(f"it sends no description of {area.num_queues} queues back")

    #: How many rings there are, and how many entries they have: what is in flight is tracked of.
    ring_count = 1
    ring_size = 0

    def _ring_step(self, step: Step, index: int, ring: Vring | None) -> None:
        request = step.request
        if request is Request.SET_VRING_ENABLE:
            self.enable_ring(index, enable=bool(step.number))
        elif request is Request.GET_VRING_BASE:
            self.bases[index] = self.stop_ring(index).vring_base
        elif step.masked:
            self.set_call(index, self._unwatched(request, index))
        elif request is Request.SET_VRING_ERR:
            self._tell(request, ring_file(index, has_fd=True), [self._unwatched(request, index)])
        elif ring is None:
            raise ValueError(f"{request.name} is no step of a ring that is not set up")
        elif request is Request.SET_VRING_NUM:
            self._tell(request, RingState(index, ring.size).encode())
        elif request is Request.SET_VRING_BASE:
            self._tell(request, RingState(index, ring.state.vring_base).encode())
        elif request is Request.SET_VRING_ADDR:
            self.set_addresses(index, ring, self._memory)
        elif request is Request.SET_VRING_CALL:
            self.set_call(index, ring.call)
        elif request is Request.SET_VRING_KICK:
            self._tell(request, ring_file(index, has_fd=True), [ring.kick])
        else:
            raise ValueError(f"{request.name} is no step of a ring")

    def _unwatched(self, request: Request, index: int) -> int:
        if (request, index) not in self._spare:
            self._spare[request, index] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self._spare[request, index]


def _guest_address(region: Region) -> int:
    return region.guest_address
