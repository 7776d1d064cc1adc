"""Proxies for what a device works with: a fault is what one of them does otherwise.

A mutant overrides public methods of a device, or puts a proxy in the place of its queue, its disk,
its link, its memory or its host. So it holds however the device is written inside.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

from virtiopy.devices.base import DeviceHost
from virtiopy.memory import GuestMemory
from virtiopy.transport.mmio import MmioTransport
from virtiopy.virtqueue.formats import OpenQueue, open_queue
from virtiopy.virtqueue.queue import (
    Chain,
    Completion,
    Descriptor,
    QueueAreas,
    QueueObserver,
    QueueState,
    Virtqueue,
)

_Real = TypeVar("_Real")


class Proxy:
    """Passes everything on to `real`, but for what a subclass does itself."""

    real: Any

    def __init__(self, real: object) -> None:
        self.real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


def faulty(real: _Real, kind: Callable[[_Real], Proxy]) -> _Real:
    """Put a proxy in the place of something."""
    return cast("_Real", kind(real))


@dataclass(slots=True, eq=False)
class FaultyChain:
    """A chain that stands for another, which may be none of the driver's."""

    real: Chain | None
    readable: Sequence[memoryview]
    writable: Sequence[memoryview]
    token: int = 0
    descriptors: Sequence[Descriptor] = field(default=())


class QueueProxy(Proxy):
    """A virtqueue in `memory` with a fault in what is popped from it, or pushed to it."""

    real: Virtqueue

    def __init__(self, real: Virtqueue, memory: GuestMemory) -> None:
        super().__init__(real)
        self.memory = memory

    def popped(self, chain: Chain) -> FaultyChain:
        """Return what the device is to see of a chain."""
        return FaultyChain(chain, chain.readable, chain.writable)

    def pushed(self, completions: list[tuple[FaultyChain, int]]) -> None:
        """See what the device did, before the driver does."""

    def pop(self) -> Chain | None:
        """Take the next chain."""
        return next(iter(self.pop_many(1)), None)

    def pop_many(self, limit: int | None = None) -> list[FaultyChain]:
        """Take the next chains."""
        return [self.popped(chain) for chain in self.real.pop_many(limit)]

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back."""
        self.push_many([(chain, written)])

    def push_many(self, completions: Iterable[Completion]) -> None:
        """Give chains back, each as what it stands for."""
        faulty = [(cast("FaultyChain", chain), written) for chain, written in completions]
        self.pushed(faulty)
        self.real.push_many(
            (chain.real, written) for chain, written in faulty if chain.real is not None
        )


@dataclass(slots=True, frozen=True)
class OpenOver:
    """Opens queues (formats.OpenQueue), and puts a proxy in the place of number `faulty`."""

    faulty: int
    kind: type[QueueProxy]

    def __call__(
        self,
        memory: GuestMemory,
        size: int,
        areas: QueueAreas,
        *,
        features: int,
        index: int = 0,
        state: QueueState | None = None,
        longest_chain: int = 0,
        observers: Sequence[QueueObserver] = (),
    ) -> Virtqueue:
        """Open a queue."""
        queue = open_queue(
            memory,
            size,
            areas,
            features=features,
            index=index,
            state=state,
            longest_chain=longest_chain,
            observers=observers,
        )
        if index != self.faulty:
            return queue
        return faulty(queue, partial(self.kind, memory=memory))


def over(index: int, kind: type[QueueProxy]) -> type[MmioTransport]:
    """Return a transport that puts a proxy in the place of queue `index`."""

    class Faulty(MmioTransport):
        open_queue: ClassVar[OpenQueue] = OpenOver(index, kind)

    return Faulty


class MemoryProxy(GuestMemory):
    """The memory of `host`, with a fault in what is discarded of it."""

    def __init__(self, real: GuestMemory) -> None:
        super().__init__(real.regions, granule=real.granule)
        self.real = real

    def discard(self, address: int, length: int) -> None:
        """Give memory back to the host."""
        self.real.discard(address, length)


class HostProxy(Proxy):
    """A device's host, with another memory."""

    def __init__(self, real: DeviceHost, memory: type[MemoryProxy] = MemoryProxy) -> None:
        super().__init__(real)
        self.memory = memory(real.memory)
