"""The frontend's side of a connection: what the driver does, as far as a frontend tells it."""

from collections.abc import Sequence

from virtiopy.check.judge import DeviceJudge
from virtiopy.check.lifecycle import LifecycleJudge
from virtiopy.check.requests import RequestJudge
from virtiopy.check.rings import RingJudge
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId
from virtiopy.vhost.user.seenqueue import SeenQueue, SureObserver
from virtiopy.virtqueue.queue import Chain, ChainError, Completion, QueueError, Virtqueue


class _SeenRings(RingJudge):
    """Judges rings that another process works: what it asks the driver for is not known."""

    def device_has(self, queue: Virtqueue, token: int) -> bool:
        """Say whether the device has not used a chain that it was seen to have."""
        return isinstance(queue, SeenQueue) and queue.holds(token)

    def never_kicked(self, queue: Virtqueue) -> None:
        """Leave it: a device that polls may have taken the buffers without a kick."""


class FrontendRings(SureObserver):
    """Has what is certain of the rings judged, in one session."""

    def __init__(
        self, judge: DeviceJudge, memory: GuestMemory, requests: Sequence[RequestJudge]
    ) -> None:
        self._judge = judge
        self._requests = requests
        self._rings = _SeenRings(judge, memory, sees_kicks=False)
        self._live = False

    def kicked(self, index: int) -> None:
        """Judge a kick."""
        self._rings.kicked(index)

    def opened(self, queue: Virtqueue) -> None:
        """Begin with a ring that is where it may be."""
        self._judge.kept("2.7.1:1")
        self._rings.opened(queue)

    def taken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        """Judge chains that became available."""
        self._live = True
        for one in (self._rings, *self._requests):
            one.taken(queue, chains)

    def rejected(self, queue: Virtqueue, chain: Chain, error: ChainError) -> None:
        """Judge a malformed chain."""
        self._rings.rejected(queue, chain, error)

    def broken(self, queue: Virtqueue, error: QueueError) -> None:
        """Judge an available ring that cannot be right."""
        self._rings.broken(queue, error)

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """Follow what the device has used."""
        for request in self._requests:
            request.using(queue, completions)
        for one in (self._rings, *self._requests):
            one.used(queue, completions)

    def lost(self, queue: SeenQueue) -> None:
        """Begin anew with a ring."""
        self._rings.opened(queue)

    def closed(self, queue: SeenQueue, *, stopped: bool) -> None:
        """Judge what the driver leaves in a ring that was stopped."""
        if stopped:
            self._rings.stopped(queue)
        else:
            self._rings.forget(queue)

    def finish(self) -> None:
        """End the session."""
        for request in self._requests if self._live else ():
            request.finish(by_driver=False)


class Features:
    """Judges the features that a frontend says its driver has accepted; a Life for its judge."""

    def __init__(self, judge: DeviceJudge, device: DeviceId | None, memory: GuestMemory) -> None:
        self.status = 0
        self.offered = 0
        self.driver_features = 0
        self._judge = judge
        self._life = LifecycleJudge(judge, self, device, memory, sees_status=False)

    def accepted(self, features: int) -> None:
        """Judge the features of SET_FEATURES, without those of vhost-user itself."""
        self.driver_features = features
        unoffered = features & ~self.offered
        self._judge.note(f"accepts the features {features:#x}")
        self._judge.check(
            "2.2.1:1",
            not unoffered,
            f"the frontend accepts the features {unoffered:#x}, which the backend does not offer",
        )
        self._life.features_accepted(self.offered, features)
