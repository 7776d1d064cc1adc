"""What the judges of the device types have in common: they look into the buffers of a queue."""

from collections.abc import Container, Sequence
from typing import ClassVar, Protocol

from virtiopy.check.judge import DeviceJudge
from virtiopy.spec import DeviceId, has_feature
from virtiopy.virtqueue.buffers import gather, split_at
from virtiopy.virtqueue.queue import Chain, QueueObserver, Virtqueue


class JudgedDevice(Protocol):
    """What a judge knows of the device whose driver it judges."""

    @property
    def queues(self) -> Container[int]:
        """The queues that are configured, by index."""

    def config_space(self) -> bytes:
        """Return the configuration space, as far as it is known: it may be cut short."""


class RequestJudge(QueueObserver):
    """Judges the buffers that a device's driver makes available, each once: subclasses say how."""

    #: The device type whose requests are judged.
    device_id: ClassVar[DeviceId]

    def __init__(self, judge: DeviceJudge, device: JudgedDevice) -> None:
        self._judge = judge
        self._device = device

    def taken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        """Judge each chain before the device has it."""
        for chain in chains:
            self.request(queue, chain)

    def request(self, queue: Virtqueue, chain: Chain) -> None:
        """Judge one buffer."""

    def config_written(self, offset: int) -> None:
        """Follow a write of the configuration space at `offset`."""

    def finish(self, *, by_driver: bool) -> None:
        """Judge what the driver has left undone.

        `by_driver` says whether it ends its life with the device, and not the run: then it may have
        been about to do it.
        """

    def conclude(self) -> None:
        """Judge what the driver has never done in the whole run."""

    def accepted(self, bit: int) -> bool:
        """Say whether the driver accepted a feature bit."""
        return has_feature(self._judge.features, bit)

    def config(self, offset: int, size: int) -> int | None:
        """Return a field of the device's configuration space; None for one that is not known."""
        data = self._device.config_space()[offset : offset + size]
        return int.from_bytes(data, "little") if len(data) == size else None


def head_of(chain: Chain, size: int) -> bytes:
    """Copy the first bytes of what the device reads, `size` of them where there are so many."""
    return gather(split_at(chain.readable, size)[0])


def number(data: bytes, start: int, size: int) -> int:
    """Return a little-endian field of `data`."""
    return int.from_bytes(data[start : start + size], "little")
