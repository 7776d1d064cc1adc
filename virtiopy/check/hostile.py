"""Devices that break the specification on purpose: to harden a driver against an untrusted host.

What is true of a driver that meets one is for the guest to show: it survives and reports, hangs, or
is corrupted. No statement allows what these devices do.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from virtiopy.check.dress import Dressing, used_index
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError
from virtiopy.spec import DeviceId
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.layout import INDEX_MODULUS, USED_ELEMENT_SIZE, USED_HEADER_SIZE
from virtiopy.virtqueue.proxy import QueueProxy
from virtiopy.virtqueue.queue import Completion, Virtqueue

#: The queue by which a console tells of its ports (5.3.2).
CONTROL_RECEIVEQ = 2


@dataclass(slots=True, frozen=True)
class Hostile:
    """A device that breaks the specification: `text` says how."""

    name: str
    text: str
    dressing: Callable[[], Dressing]


class _Patched(QueueProxy):
    """Changes used entries right after the queue wrote them, or the idx that counts them.

    In trapped mode the driver does not run in between; in the other modes it may see both.
    """

    def __init__(
        self,
        inner: Virtqueue,
        lifecycle: Lifecycle,
        *,
        entry: Callable[[int, int, int], tuple[int, int]] | None = None,
        index: Callable[[int], int] | None = None,
    ) -> None:
        super().__init__(inner)
        self._lifecycle = lifecycle
        self._entry = entry
        self._index = index

    def push_many(self, completions: Iterable[Completion]) -> None:
        done = list(completions)
        first = used_index(self, self._lifecycle)
        self.inner.push_many(done)
        for place in range(first, first + len(done)) if self._entry else ():
            self._change(place % self.size)
        if self._index is not None and done:
            index = self._index(first + len(done)) % INDEX_MODULUS
            self._write(2, index.to_bytes(2, "little"))

    def _change(self, place: int) -> None:
        assert self._entry is not None
        offset = USED_HEADER_SIZE + USED_ELEMENT_SIZE * place
        raw = self._lifecycle.memory.read(self.areas.device + offset, USED_ELEMENT_SIZE)
        identity = int.from_bytes(raw[:4], "little")
        length = int.from_bytes(raw[4:], "little")
        identity, length = self._entry(identity, length, self.size)
        self._write(offset, identity.to_bytes(4, "little") + length.to_bytes(4, "little"))

    def _write(self, offset: int, data: bytes) -> None:
        self._lifecycle.memory.write(self.areas.device + offset, data)


class _Rewriting(QueueProxy):
    """Changes what it wrote to a buffer after the driver was told that it is done."""

    def push_many(self, completions: Iterable[Completion]) -> None:
        done = list(completions)
        self.inner.push_many(done)
        for chain, _ in done:
            for view in chain.writable:
                view[:] = b"\xff" * len(view)


class _Nonsense(QueueProxy):
    """Answers with what is no answer: the last byte, where a status is; a console's events."""

    _BYTE = 0x5A
    _CONSOLE_EVENT_AT = 4  # of struct virtio_console_control, in the second queue of control

    def __init__(self, inner: Virtqueue, lifecycle: Lifecycle) -> None:
        super().__init__(inner)
        self._is_control = (
            lifecycle.device.device_id is DeviceId.CONSOLE and inner.index == CONTROL_RECEIVEQ
        )

    def push_many(self, completions: Iterable[Completion]) -> None:
        done = list(completions)
        for chain, written in done:
            if written:
                at = self._CONSOLE_EVENT_AT if self._is_control else written - 1
                _set_byte(chain.writable, at, self._BYTE)
        self.inner.push_many(done)


def _set_byte(pieces: Sequence[memoryview], at: int, value: int) -> None:
    for piece in pieces:
        if at < len(piece):
            piece[at] = value
            return
        at -= len(piece)


class _Silent(QueueProxy):
    """Takes buffers, and never uses one."""

    def push_many(self, completions: Iterable[Completion]) -> None:
        for _ in completions:
            pass


class _Storm(QueueProxy):
    """Sends many interrupts for each buffer."""

    _TIMES = 200

    def __init__(self, inner: Virtqueue, lifecycle: Lifecycle) -> None:
        super().__init__(inner)
        self._lifecycle = lifecycle

    def push_many(self, completions: Iterable[Completion]) -> None:
        self.inner.push_many(completions)
        for _ in range(self._TIMES):
            self._lifecycle.used_buffer_notification(self)


def _queues(wrap: Callable[[Virtqueue, Lifecycle], Virtqueue]) -> Callable[[], Dressing]:
    class Wrapped(Dressing):
        def queue(self, queue: Virtqueue) -> Virtqueue:
            return wrap(queue, self.lifecycle)

    return Wrapped


def _entries(entry: Callable[[int, int, int], tuple[int, int]]) -> Callable[[], Dressing]:
    return _queues(lambda queue, lifecycle: _Patched(queue, lifecycle, entry=entry))


def _indexes(index: Callable[[int], int]) -> Callable[[], Dressing]:
    return _queues(lambda queue, lifecycle: _Patched(queue, lifecycle, index=index))


class _ChangingConfig(Dressing):
    """Has another configuration at each read, and one ConfigGeneration."""

    def __init__(self) -> None:
        self._reads = 0

    def read(self, offset: int, data: bytes) -> bytes:
        if offset < Register.Config:
            return data
        self._reads += 1
        return bytes(byte ^ (self._reads * 0x35 & 0xFF) for byte in data)


class _LyingConfig(Dressing):
    def device(self, device: VirtioDevice) -> None:
        length = len(device.config_space())
        device.config_space = lambda: b"\xff" * length  # type: ignore[method-assign]


def _queue_size_max(size: int) -> Callable[[], Dressing]:
    class Sized(Dressing):
        def read(self, offset: int, data: bytes) -> bytes:
            return size.to_bytes(4, "little") if offset == Register.QueueSizeMax else data

    return Sized


HOSTILE: Mapping[str, Hostile] = {
    hostile.name: hostile
    for hostile in (
        Hostile(
            "used-id-beyond",
            "uses a head beyond the queue",
            _entries(lambda identity, length, size: (size + identity, length)),
        ),
        Hostile(
            "used-id-other",
            "uses a head that it was not given",
            _entries(lambda identity, length, size: ((identity + size // 2) % size, length)),
        ),
        Hostile(
            "length-beyond",
            "says that it wrote 4 GiB",
            _entries(lambda identity, length, size: (identity, 0xFFFF_FFFF)),
        ),
        Hostile("used-twice", "counts an entry twice", _indexes(lambda index: index + 1)),
        Hostile("index-jump", "has the used index jump ahead", _indexes(lambda index: index + 999)),
        Hostile("index-back", "takes the used index back", _indexes(lambda index: index - 1)),
        Hostile(
            "rewrite",
            "changes a buffer after its completion",
            _queues(lambda queue, _: _Rewriting(queue)),
        ),
        Hostile("silence", "uses no buffer", _queues(lambda queue, _: _Silent(queue))),
        Hostile("interrupt-storm", "sends 200 interrupts for a buffer", _queues(_Storm)),
        Hostile(
            "nonsense",
            "answers requests with a status that there is not",
            _queues(_Nonsense),
        ),
        Hostile("config-changes", "has another configuration at each read", _ChangingConfig),
        Hostile("config-lies", "has a configuration space of ones", _LyingConfig),
        Hostile("queue-size-0", "has QueueSizeMax 0", _queue_size_max(0)),
        Hostile("queue-size-65535", "has QueueSizeMax 65535", _queue_size_max(65535)),
    )
}


def find(name: str) -> Hostile:
    """Return a hostile device; raises ConfigError for a name that is none."""
    try:
        return HOSTILE[name]
    except KeyError:
        raise ConfigError(
            f"There is no hostile device {name!r}: use one of {', '.join(HOSTILE)}."
        ) from None
