"""A session with a backend in which the messages are those of a VMM's frontend, in its order."""

from collections.abc import Collection, Mapping

from virtiopy.conformance.clauses.features import bits
from virtiopy.conformance.drivers import driver_class_of
from virtiopy.conformance.drivers.net import CONTROLLED
from virtiopy.conformance.frontends.player import Player
from virtiopy.conformance.frontends.profile import Part, Profile
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.sessions.vhostuser import VhostUserSession, traced
from virtiopy.conformance.targets.target import Served
from virtiopy.spec import DeviceId, Feature, feature_mask
from virtiopy.vhost.vring import Vring
from virtiopy.virtqueue.queue import QueueState

#: Of more queues than these, which are like them, no frontend's user asks for here.
QUEUES_MAX = 2


class ProfiledSession(VhostUserSession):
    """A session as a frontend has it: what its driver does becomes that frontend's messages."""

    def __init__(self, profile: Profile, served: Served, trace: Trace, patience: float) -> None:
        device_id = served.device_id
        self._profile = profile
        self._driver_class = driver_class_of(device_id)
        self._bases: dict[int, int] = {}
        super().__init__(device_id, served.backend, served.host, trace, patience)
        if device_id is DeviceId.NETWORK:
            # The frontend has the control queue itself, and the MAC address.
            self.withheld |= feature_mask(bits([*CONTROLLED, "VIRTIO_NET_F_MAC"]))

    @property
    def title(self) -> str:
        """What the frontend is called."""
        return self._profile.title

    @property
    def keeps_what_is_in_flight(self) -> bool:
        """Whether requests in flight are carried out after a new connection.

        A frontend that goes on at the available ring's idx needs INFLIGHT_SHMFD for that.
        """
        return self._profile.base == "used" or self._inflight is not None

    # The connection

    def _open(self) -> None:
        stream = self.backend.connect(self.patience)
        stream.settimeout(self.patience)
        self.trace.note(f"as {self._profile.title}")
        with self._peer():
            self._frontend = Player(
                traced(stream, self.trace),
                self._profile,
                self.memory,
                self._inflight,
                self._driver_class.config_size,
            )
            self._play(self._profile.connect)

    @property
    def frontend(self) -> Player:
        """The vhost-user session that there is; raises LeftError when it is over."""
        found = super().frontend
        assert isinstance(found, Player), "it is made by _open"
        return found

    def _play(self, parts: Collection[Part]) -> None:
        with self._peer():
            frontend = self.frontend
            frontend.ring_count = len(self.queues)
            frontend.ring_size = max((queue.size for queue in self.queues.values()), default=0)
            try:
                frontend.play(parts, self.features, self._rings)
            finally:
                self._inflight = frontend.inflight

    def _rings(self) -> Mapping[int, Vring | None]:
        if not self.queues:
            return dict.fromkeys(range(self.queue_count))
        return {
            index: self._vring(index, QueueState(self._bases.get(index, 0)))
            for index in sorted(self.queues)
        }

    def _vring(self, index: int, state: QueueState) -> Vring:
        ring = super()._vring(index, state)
        if not self._profile.shared_call:
            return ring
        shared = self._lines[min(self._lines)].call
        return Vring(ring.size, ring.areas, ring.state, ring.kick, shared)

    def _go(self, parts: Collection[Part]) -> None:
        """Play what starts rings, and have the backend read it before the driver goes on.

        A kick is no message, and could overtake them: frontends that do not wait for it have a
        guest that is slower than a test.
        """
        self._play(parts)
        self.check_alive()

    # What a driver asks for

    @property
    def offered(self) -> int:
        """The feature bits that the frontend lets its driver have."""
        offered = self.frontend.features
        if self._profile.features is not None:
            named = [Feature.VIRTIO_F_VERSION_1, *bits(self._profile.features)]
            offered &= feature_mask(named)
        return offered

    @property
    def queue_count(self) -> int:
        """How many virtqueues the frontend has."""
        count = self._driver_class.count_queues(self.frontend.said_queues, self.offered)
        most = QUEUES_MAX if self.device_id in {DeviceId.BLOCK, DeviceId.NETWORK} else count
        return min(count, self._profile.queues or most)

    def accepts(self, features: int) -> bool:
        """Reset, and keep the features until DRIVER_OK: the backend is told then."""
        self.reset()
        self.features = features
        return True

    def driver_ok(self, but: Collection[int] = ()) -> None:
        """Start the rings."""
        self._driver_ok = True
        self._running.update(self.queues)
        self._go(self._profile.start)

    def pause(self) -> None:
        """Stop the guest; not applicable where the frontend never does."""
        if self._profile.stop is None:
            raise NotApplicableError(f"{self._profile.title} stops no guest")
        self._play(self._profile.stop)
        self._bases.update(self.frontend.bases)

    def resume(self) -> None:
        """Have the guest go on, and kick: what was made available may have been kicked for."""
        self._go(self._profile.resume)
        for index in self.queues:
            self.kick(index)

    def reset(self) -> None:
        """Reset the device; one that was not started is not spoken of."""
        self.trace.note("reset")
        if self._driver_ok:
            if self._profile.reset is None:
                raise NotApplicableError(f"{self._profile.title} resets no device")
            self._play(self._profile.reset)
        self.forget()

    def forget(self) -> None:
        """Know of nothing that was set up: the device was reset."""
        super().forget()
        self._bases.clear()
        if self._frontend is not None:
            self.frontend.inflight = None
            self.frontend.bases.clear()

    def reconnect(self) -> None:
        """Leave the backend, and go on with the rings in a new session, as the frontend does."""
        if self._profile.base is None:
            raise NotApplicableError(f"{self._profile.title} connects to no backend again")
        self._hang_up()
        self.trace.note("reconnect")
        self._open()
        for index, queue in self.queues.items():
            used = self._profile.base == "used"
            self._bases[index] = queue.used_idx if used else queue.next_available
        self._go(self._profile.start)
        for index in self.queues:
            self.kick(index)

    def take_notifications(self, index: int) -> int:
        """Return how often the ring's call eventfd was written since the last call."""
        if self._profile.shared_call:
            index = min(self._lines)
        return super().take_notifications(index)

    def read_config(self, offset: int, size: int) -> bytes:
        """Read bytes of the configuration space: of what the frontend has kept, if it does."""
        kept = self.frontend.config
        if kept is None:
            return super().read_config(offset, size)
        return kept[offset : offset + size].ljust(size, b"\0")
