"""A pair of virtqueues that goes to vhost-net and comes back, with traffic in it.

The ring state that moves is the last available index; the rest is in the rings. Who gives a ring
away has no chain of it in flight: what was popped ahead is made available again. Both sides look
at the ring when they get it, as the kick for what is in it may have gone to the other.
"""

import contextlib
import os
from collections.abc import Sequence

from virtiopy.closing import Closing
from virtiopy.devices.base import Given
from virtiopy.errors import VirtiopyError
from virtiopy.memory import GuestMemory
from virtiopy.vhost.kernel import RINGS, Ring, VhostNet, offered_with


class VhostPair(Closing):
    """One pair of virtqueues, in vhost's hands between `give` and `take_back`: a QueueWorker.

    `tap` is the queue of a tap that it works on, `busy_poll` in microseconds. `vhost` is from here
    on the pair's to close. Raises HostError, and ConfigError for what is no tap of use.

    `errors` are two eventfds, receive and transmit: one is written when vhost finds its ring
    broken, and goes on being broken until the driver resets the device.
    """

    name = "vhost"

    def __init__(
        self,
        memory: GuestMemory,
        tap: int,
        busy_poll: int = 0,
        *,
        vhost: VhostNet | None = None,
    ) -> None:
        self._memory = memory
        self._tap = tap
        self._given: list[Given] = []
        self.vhost = vhost or VhostNet()
        self.errors: Sequence[int] = [
            os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(RINGS)
        ]
        try:
            self.vhost.check_tap(tap)
            for ring in range(RINGS) if busy_poll else ():
                self.vhost.set_busy_poll(ring, busy_poll)
        except VirtiopyError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the rings, for good: what they hold is the driver's to reset."""
        self.vhost.close()
        for eventfd in self.errors:
            os.close(eventfd)

    @property
    def active(self) -> bool:
        """Whether vhost has the rings."""
        return bool(self._given)

    def offered(self, features: int) -> int:
        """Return what can be offered where vhost works the rings."""
        return offered_with(features, self.vhost.features)

    def give(self, queues: Sequence[Given], driver_features: int) -> None:
        """Hand the virtqueues over; nobody else works them, or takes their kicks, any more.

        If vhost refuses one, none is handed over and all can be worked on: HostError,
        ConfigError for a tap that was changed meanwhile, or DriverError for the driver's fault.
        """
        for given in queues:
            if given.queue.in_flight:
                raise ValueError(f"{given.queue.in_flight} chains are in flight")
        self.vhost.check_tap(self._tap)
        for error in self.errors:
            # Of rings that are no more.
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(error)
        self.vhost.set_features(driver_features)
        self.vhost.set_memory(self._memory)
        try:
            for given in queues:
                queue = given.queue
                ring = Ring(
                    queue.size,
                    queue.areas,
                    queue.state,
                    given.kick,
                    given.call,
                    self.errors[given.ring],
                )
                self.vhost.start_ring(given.ring, ring, self._tap)
                self._given.append(given)
        except VirtiopyError:
            self.take_back()
            raise

    def take_back(self) -> None:
        """Take the virtqueues back, each to go on with where vhost left it.

        Also when vhost found one broken: it stands before the chain that is.
        """
        while self._given:
            given = self._given.pop()
            given.queue.resume(self.vhost.stop_ring(given.ring))
