"""A pair of virtqueues that is delegated to vhost-net and reclaimed, with traffic in it.

What moves is the queue's state; the rest is in the rings. A device that delegates a ring has no
chain of it in flight: what it popped ahead is made available again. Both sides look at the ring
when they get it, as the kick for what is in it may have gone to the other.
"""

import contextlib
import os
from collections.abc import Sequence

from virtiopy.closing import Closing
from virtiopy.devices.delegation import Backing, DelegatedQueue
from virtiopy.devices.net.backing import LinkBacking
from virtiopy.errors import ConfigError, VirtiopyError
from virtiopy.memory import GuestMemory
from virtiopy.vhost.kernel.net import RINGS, VhostNet
from virtiopy.vhost.vring import Vring


class VhostPair(Closing):
    """vhost as the worker of one pair of virtqueues, between `delegate` and `reclaim`: QueueWorker.

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
        self._delegated: list[DelegatedQueue] = []
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
        return bool(self._delegated)

    def offered(self, features: int) -> int:
        """Return what can be offered where vhost works the rings."""
        return self.vhost.offered(features)

    def delegate(self, queues: Sequence[DelegatedQueue], driver_features: int) -> None:
        """Have vhost work the virtqueues, and take their kicks, from here on.

        If vhost refuses one it works none, and all can be worked on: HostError, ConfigError for a
        tap that was changed meanwhile, or DriverError for the driver's fault.
        """
        for one in queues:
            if one.queue.in_flight:
                raise ValueError(f"{one.queue.in_flight} chains are in flight")
        self.vhost.check_tap(self._tap)
        for error in self.errors:
            # Of rings that are no more.
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(error)
        self.vhost.set_features(driver_features)
        self.vhost.set_memory(self._memory)
        try:
            for one in queues:
                queue = one.queue
                ring = Vring(
                    queue.size,
                    queue.areas,
                    queue.state,
                    one.kick,
                    one.call,
                    self.errors[one.ring],
                )
                self.vhost.start_ring(one.ring, ring, self._tap)
                self._delegated.append(one)
        except VirtiopyError:
            self.reclaim()
            raise

    def reclaim(self) -> None:
        """Have the virtqueues back, each to go on with where vhost left it.

        Also when vhost found one broken: it stands before the chain that is.
        """
        while self._delegated:
            one = self._delegated.pop()
            one.queue.resume(self.vhost.stop_ring(one.ring))


def open_pair(memory: GuestMemory, backing: Backing) -> VhostPair:
    """Open a vhost-net for a pair of virtqueues in `memory`: an OpenWorker.

    Raises HostError where there is none, ConfigError for a device that it cannot work.
    """
    if not isinstance(backing, LinkBacking):
        raise ConfigError(
            f"vhost-net works network devices, and this is a {backing.kind}: use another mode."
        )
    return VhostPair(memory, backing.file, backing.busy_poll or 0)
