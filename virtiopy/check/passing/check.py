"""Judges both sides of a vhost-user connection: plugged into a proxy (vhost.user.proxy)."""

import contextlib
from collections.abc import Container, Mapping, Sequence
from typing import ClassVar

from virtiopy.check.catalogue import load
from virtiopy.check.judge import DeviceJudge, Statement, Verdict
from virtiopy.check.passing.backend import BackendRings, judge_offer
from virtiopy.check.passing.frontend import Features, FrontendRings
from virtiopy.check.passing.protocol import ProtocolJudge
from virtiopy.check.watch import judges_of
from virtiopy.conformance.clauses.definitions import everything
from virtiopy.errors import DriverError, PeerError
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId, feature_mask
from virtiopy.vhost.user.memory import FrontendMemory
from virtiopy.vhost.user.messages import (
    VHOST_F_LOG_ALL,
    VHOST_USER_F_PROTOCOL_FEATURES,
    ConfigAccess,
    Flag,
    Message,
    Request,
    RingAddresses,
    to_u64,
)
from virtiopy.vhost.user.passing import ProxyWatch
from virtiopy.vhost.user.seenqueue import SeenQueue, SureObserver
from virtiopy.vhost.user.statements import Side, to_side
from virtiopy.vhost.user.statements import statements as protocol

#: Feature bits that are between frontend and backend: no driver sees them.
_PROTOCOLS_OWN = feature_mask([VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES])


class _Known:
    """What messages say of the device (requests.JudgedDevice)."""

    def __init__(self) -> None:
        self._configured: set[int] = set()
        self._space = b""

    def forget(self) -> None:
        """Forget a device: another one comes."""
        self._configured.clear()
        self._space = b""

    @property
    def queues(self) -> Container[int]:
        """The queues that are configured, by index."""
        return self._configured

    def config_space(self) -> bytes:
        """Return the configuration space, as far as the frontend has read it."""
        return self._space

    def learn(self, message: Message, *, from_frontend: bool) -> None:
        """Take what a message says of the device."""
        if from_frontend and message.request == Request.SET_VRING_ADDR:
            self._configured.add(RingAddresses.decode(message).index)
        elif not from_frontend and message.request == Request.GET_CONFIG:
            access = ConfigAccess.decode(message)
            if access.offset <= len(self._space):
                after = self._space[access.offset + len(access.data) :]
                self._space = self._space[: access.offset] + access.data + after


class _Missed(SureObserver):
    """Counts the chains that were seen too late to be judged, and those that were judged."""

    wants_descriptors: ClassVar[bool] = False

    def __init__(self) -> None:
        self.missed_chains = 0

    def missed(self, queue: SeenQueue, count: int) -> None:
        """Count chains."""
        self.missed_chains += count


def _protocol(side: Side) -> Mapping[str, Statement]:
    return {one.id: one for one in to_side(side)}


class PassingCheck(ProxyWatch):
    """Judges the frontends and the backends of a proxy, one pair after the other, as one each.

    `device` is the type of their device, None for one that is not known.
    """

    def __init__(self, device: DeviceId | None = None) -> None:
        self._device = device
        self.frontend = DeviceJudge("frontend", {**load(), **_protocol(Side.FRONTEND)})
        self.backend = DeviceJudge("backend", {**everything(), **_protocol(Side.BACKEND)})
        self._count = _Missed()
        self._known = _Known()
        self._requests = [
            kind(self.frontend, self._known)
            for kind in (() if device is None else judges_of(device))
        ]
        self._session: tuple[Features, FrontendRings, BackendRings] | None = None
        self._messages: ProtocolJudge | None = None

    @property
    def missed(self) -> int:
        """How many chains were seen too late to be judged."""
        return self._count.missed_chains

    @property
    def sure(self) -> Sequence[SureObserver]:
        """What looks on at each ring."""
        if self._session is None:
            return ()
        _, *rings = self._session
        return (*rings, self._count)

    def began(self, memory: GuestMemory) -> None:
        """Begin with a frontend."""
        self._known.forget()
        self._session = (
            Features(self.frontend, self._device, memory),
            FrontendRings(self.frontend, memory, self._requests),
            BackendRings(self.backend, memory, self._device, self._known),
        )
        shared = memory if isinstance(memory, FrontendMemory) else None
        self._messages = ProtocolJudge(self.frontend, self.backend, shared)

    def message(self, message: Message, from_frontend: bool) -> None:
        """Judge a message, learn from it, and judge the features of one."""
        if self._session is None or self._messages is None:
            return
        self._messages.message(message, from_frontend)
        # What is no message of its kind is the peers' affair: here it says nothing.
        with contextlib.suppress(PeerError):
            self._learn(self._session[0], message, from_frontend=from_frontend)

    def _learn(self, features: Features, message: Message, *, from_frontend: bool) -> None:
        self._known.learn(message, from_frontend=from_frontend)
        if message.request == Request.GET_FEATURES and message.flags & Flag.REPLY:
            features.offered = to_u64(message) & ~_PROTOCOLS_OWN
            judge_offer(self.backend, self._device, features.offered)
        elif message.request == Request.SET_FEATURES and from_frontend:
            accepted = to_u64(message) & ~_PROTOCOLS_OWN
            features.accepted(accepted)
            self.backend.features = accepted & features.offered

    def kicked(self, index: int) -> None:
        """Judge a kick."""
        if self._session is not None:
            self._session[1].kicked(index)

    def called(self, index: int) -> None:
        """Judge a used buffer notification."""
        if self._messages is not None:
            self._messages.called(index)

    def unseen(self, index: int, error: PeerError | DriverError) -> None:
        """Judge a ring whose areas are misaligned."""
        if "is not aligned" in str(error):
            self.frontend.broke("2.7.1:1", f"queue {index}: {error}", fatal=True)

    def ended(self) -> None:
        """End a session."""
        if self._session is not None:
            self._session[1].finish()
            self._session = None
        self.frontend.new_life()
        self.backend.new_life()

    def finish(self) -> Verdict:
        """Return what both sides came to; all sessions have ended."""
        # What a driver never does may be among what was missed.
        for request in self._requests if not self.missed else ():
            request.conclude()
        statements: Mapping[str, Statement] = {**load(), **everything(), **protocol()}
        return Verdict([self.frontend, self.backend], statements, "Both sides")
