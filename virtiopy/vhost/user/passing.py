"""Who is told of what passes between a frontend and a backend: see proxy.Proxy."""

from collections.abc import Sequence
from typing import Protocol

from virtiopy.errors import DriverError, PeerError
from virtiopy.memory import GuestMemory
from virtiopy.vhost.user.messages import Message
from virtiopy.vhost.user.seenqueue import SureObserver
from virtiopy.virtqueue.queue import QueueObserver


class ProxyWatch:
    """Is told of what passes, on the proxy's thread: each method does nothing here."""

    @property
    def observers(self) -> Sequence[QueueObserver]:
        """What looks on at each ring, and is told of all that is seen."""
        return ()

    @property
    def sure(self) -> Sequence[SureObserver]:
        """What looks on at each ring, and is told of what is certain."""
        return ()

    def began(self, memory: GuestMemory) -> None:
        """See a frontend come; `memory` will be what it shares."""

    def message(self, message: Message, from_frontend: bool) -> None:
        """See a message, before it is passed on."""

    def kicked(self, index: int) -> None:
        """See a kick of a ring."""

    def called(self, index: int) -> None:
        """See a used buffer notification of a ring."""

    def unseen(self, index: int, error: PeerError | DriverError) -> None:
        """See why a ring is not looked at any more."""

    def ended(self) -> None:
        """See the end of the session, while its memory is still there."""


class ShownTo(Protocol):
    """What shows a person what passes."""

    @property
    def observers(self) -> Sequence[QueueObserver]:
        """What looks on at each ring."""

    def message(self, message: Message, from_frontend: bool) -> None:
        """Show a message."""

    def kicked(self, index: int) -> None:
        """Show a kick of a ring."""

    def called(self, index: int) -> None:
        """Show a used buffer notification of a ring."""


class Shown(ProxyWatch):
    """Has a trace show what passes."""

    def __init__(self, trace: ShownTo) -> None:
        self._trace = trace

    @property
    def observers(self) -> Sequence[QueueObserver]:
        """What looks on at each ring."""
        return self._trace.observers

    def message(self, message: Message, from_frontend: bool) -> None:
        """Show a message."""
        self._trace.message(message, from_frontend)

    def kicked(self, index: int) -> None:
        """Show a kick."""
        self._trace.kicked(index)

    def called(self, index: int) -> None:
        """Show a used buffer notification."""
        self._trace.called(index)
