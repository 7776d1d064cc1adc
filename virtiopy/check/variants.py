"""Devices that are legal but unusual: a driver that is right works with each of them.

A variant changes one thing of a device before its driver meets it: what it offers, its queues, its
registers. What it does is allowed by the section that it names.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from virtiopy.check.dress import Dressing, used_index
from virtiopy.check.sockets import TransportReset, UnknownType
from virtiopy.check.withheld import PREFIX, Withholding, feature_of
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError
from virtiopy.spec import DeviceId, DeviceStatus, Feature, feature_mask, has_feature
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.proxy import QueueProxy
from virtiopy.virtqueue.queue import Completion, Virtqueue


@dataclass(slots=True, frozen=True)
class Variant:
    """An unusual device: `text` says what it does, `section` where that is allowed.

    `usable` says whether a right driver makes use of such a device: else it may leave it alone.
    """

    name: str
    text: str
    section: str
    dressing: Callable[[], Dressing]
    usable: bool = True


# Queues


class _OutOfOrder(QueueProxy):
    def push_many(self, completions: Iterable[Completion]) -> None:
        self.inner.push_many(reversed(list(completions)))


class _OneAtATime(QueueProxy):
    def push_many(self, completions: Iterable[Completion]) -> None:
        for completion in completions:
            self.inner.push_many([completion])


class _Spurious(QueueProxy):
    def should_interrupt(self) -> bool:
        self.inner.should_interrupt()
        return True


class _ShortLength(QueueProxy):
    """Says as little as it may of what was written: 1 byte of entropy, none of a disk's."""

    def __init__(self, inner: Virtqueue, least: int) -> None:
        super().__init__(inner)
        self._least = least

    def push_many(self, completions: Iterable[Completion]) -> None:
        self.inner.push_many((chain, min(written, self._least)) for chain, written in completions)


class _Late(QueueProxy):
    """Gives chains back a while after the device is done with them."""

    _DELAY = 0.005  # seconds

    def __init__(self, inner: Virtqueue, lifecycle: Lifecycle) -> None:
        super().__init__(inner)
        self._lifecycle = lifecycle

    def push_many(self, completions: Iterable[Completion]) -> None:
        held = list(completions)
        loop = self._lifecycle.device.loop
        if loop is None or not held:
            self.inner.push_many(held)
            return
        loop.call_later(self._DELAY, lambda: self._give_back(held), f"late queue {self.index}")

    def _give_back(self, held: list[Completion]) -> None:
        device = self._lifecycle.device
        with device.lock:
            # A queue that was reset meanwhile has no use for its buffers (2.6.1.1.1).
            if self._lifecycle.queues.get(self.index) is self:
                self.inner.push_many(held)
                device.notify(self)


class _CoalescedInterrupts(Dressing):
    """Sends one interrupt for all that its queues used in some milliseconds."""

    _DELAY = 0.005  # seconds

    def __init__(self) -> None:
        self.pending = False
        self._acted = False

    @property
    def has_acted(self) -> bool:
        """Whether there was an interrupt to hold back."""
        return self._acted

    def queue(self, queue: Virtqueue) -> Virtqueue:
        return _Coalesced(queue, self)

    def interrupt_later(self, queue: Virtqueue) -> bool:
        """Interrupt for `queue` soon; False where the device does nothing of itself."""
        loop = self.lifecycle.device.loop
        if loop is None:
            return False
        if not self.pending:
            self.pending = self._acted = True
            loop.call_later(self._DELAY, lambda: self._interrupt(queue), "coalesced interrupt")
        return True

    def _interrupt(self, queue: Virtqueue) -> None:
        with self.lifecycle.device.lock:
            self.pending = False
            self.lifecycle.used_buffer_notification(queue)


class _Coalesced(QueueProxy):
    def __init__(self, inner: Virtqueue, dressing: _CoalescedInterrupts) -> None:
        super().__init__(inner)
        self._dressing = dressing

    def should_interrupt(self) -> bool:
        return self.inner.should_interrupt() and not self._dressing.interrupt_later(self)


class _KicksSuppressed(QueueProxy):
    """Asks for no kick, ever: it looks at its queues by itself."""

    _PAUSE = 0.002  # seconds

    def __init__(self, inner: Virtqueue, lifecycle: Lifecycle) -> None:
        super().__init__(inner)
        self._lifecycle = lifecycle
        self._looks = False

    def enable_kicks(self) -> bool:
        loop = self._lifecycle.device.loop
        if loop is None:
            return self.inner.enable_kicks()
        self.inner.disable_kicks()
        if not self._looks:
            self._looks = True
            loop.call_later(self._PAUSE, self._look, f"look at queue {self.index}")
        return False

    def _look(self) -> None:
        with self._lifecycle.device.lock:
            self._looks = False
            # A queue that was reset meanwhile is another's to look at.
            if self._lifecycle.queues.get(self.index) is self:
                self._lifecycle.work(self.index)


class _FlagWithEventIdx(QueueProxy):
    """Has flags 1 in the used ring, which a driver with VIRTIO_F_EVENT_IDX ignores."""

    def __init__(self, inner: Virtqueue, lifecycle: Lifecycle) -> None:
        super().__init__(inner)
        self._lifecycle = lifecycle

    def enable_kicks(self) -> bool:
        if has_feature(self._lifecycle.driver_features, Feature.VIRTIO_F_EVENT_IDX):
            self._lifecycle.memory.write(self.areas.device, (1).to_bytes(2, "little"))
        return self.inner.enable_kicks()


class _UndefinedFlags(QueueProxy):
    """Sets a bit in the flags of a received frame that no driver knows yet (5.1.9.4.2)."""

    _BIT = 0x80

    def push_many(self, completions: Iterable[Completion]) -> None:
        done = list(completions)
        for chain, written in done if self.index % 2 == 0 else ():
            if written and chain.writable:
                chain.writable[0][0] |= self._BIT
        self.inner.push_many(done)


class _NeedsReset(QueueProxy):
    """Sets DEVICE_NEEDS_RESET once, after some buffers."""

    _AFTER = 20

    def __init__(self, inner: Virtqueue, dressing: "_NeedsResetOnce") -> None:
        super().__init__(inner)
        self._dressing = dressing

    def push_many(self, completions: Iterable[Completion]) -> None:
        self.inner.push_many(completions)
        lifecycle = self._dressing.lifecycle
        if not self._dressing.done and used_index(self, lifecycle) >= self._AFTER:
            self._dressing.done = True
            lifecycle.needs_reset("the variant needs-reset says so, once")


class _NeedsResetOnce(Dressing):
    done = False

    @property
    def has_acted(self) -> bool:
        """Whether the device has needed a reset."""
        return self.done

    def queue(self, queue: Virtqueue) -> Virtqueue:
        return _NeedsReset(queue, self)


def _queues(wrap: Callable[[Virtqueue, Lifecycle], Virtqueue]) -> Callable[[], Dressing]:
    class Wrapped(Dressing):
        def queue(self, queue: Virtqueue) -> Virtqueue:
            return wrap(queue, self.lifecycle)

    return Wrapped


def _short(queue: Virtqueue, lifecycle: Lifecycle) -> Virtqueue:
    least = {DeviceId.BLOCK: 0, DeviceId.ENTROPY: 1}.get(lifecycle.device.device_id)
    return queue if least is None else _ShortLength(queue, least)


def _undefined_flags(queue: Virtqueue, lifecycle: Lifecycle) -> Virtqueue:
    is_net = lifecycle.device.device_id is DeviceId.NETWORK
    return _UndefinedFlags(queue) if is_net else queue


# Queue sizes and features


def _queue_size(size: int) -> Callable[[], Dressing]:
    class Sized(Dressing):
        def device(self, device: VirtioDevice) -> None:
            device.queue_sizes = [size] * len(device.queue_sizes)

    return Sized


def _offers(change: Callable[[int], int]) -> Callable[[], Dressing]:
    class Offers(Dressing):
        def device(self, device: VirtioDevice) -> None:
            offered = device.offered
            device.offered = lambda features: change(offered(features))  # type: ignore[method-assign]

    return Offers


#: Bits that no specification gives a meaning yet (2.2), and that no driver accepts.
_RESERVED = feature_mask([44, 45, 46, 47, 48, 49])

_NEEDED = feature_mask([Feature.VIRTIO_F_VERSION_1])


def _without(*features: Feature) -> Callable[[int], int]:
    mask = feature_mask(features)
    return lambda offered: offered & ~mask


class _RefusesOnce(Dressing):
    """Refuses the first features that the driver chooses."""

    _refused = False

    @property
    def has_acted(self) -> bool:
        """Whether the driver has chosen features."""
        return self._refused

    def device(self, device: VirtioDevice) -> None:
        accepts = device.accepts

        def accept(features: int) -> bool:
            if not self._refused:
                self._refused = True
                return False
            return accepts(features)

        device.accepts = accept  # type: ignore[method-assign,assignment]


# Registers and configuration


class _StrictWidth(Dressing):
    """Has control registers that take 32 bits and nothing else: they read as 0 (4.2.2.2)."""

    def read(self, offset: int, data: bytes) -> bytes:
        return data if self._fits(offset, data) else bytes(len(data))

    def write(self, offset: int, data: bytes) -> bool:
        return self._fits(offset, data)

    def _fits(self, offset: int, data: bytes) -> bool:
        return offset >= Register.Config or (len(data) == 4 and offset % 4 == 0)


class _LongConfig(Dressing):
    def device(self, device: VirtioDevice) -> None:
        config_space = device.config_space
        device.config_space = lambda: config_space() + bytes(64)  # type: ignore[method-assign]


class _MovingConfig(Dressing):
    """Changes ConfigGeneration in the middle of the driver's reads, a few times."""

    _TIMES = 8

    def __init__(self) -> None:
        self._left = self._TIMES

    @property
    def has_acted(self) -> bool:
        """Whether the configuration has changed between two reads."""
        return self._left < self._TIMES

    def read(self, offset: int, data: bytes) -> bytes:
        if offset >= Register.Config and self._left:
            self._left -= 1
            if self._left % 2:
                with self.lifecycle.device.lock:
                    self.lifecycle.config_changed(notify=False)
        return data


class _Firmware(Dressing):
    """Was used by firmware, which left it alive."""

    def plugged(self) -> None:
        with self.lifecycle.device.lock:
            for status in (
                DeviceStatus.ACKNOWLEDGE,
                DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER,
            ):
                self.lifecycle.write_status(int(status))
            self.lifecycle.driver_features = _NEEDED
            up = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK
            self.lifecycle.write_status(int(up))
            self.lifecycle.write_status(int(up | DeviceStatus.DRIVER_OK))


def _register(offset: Register, change: Callable[[int], int]) -> Callable[[], Dressing]:
    class Changed(Dressing):
        def read(self, at: int, data: bytes) -> bytes:
            if at != offset:
                return data
            return change(int.from_bytes(data, "little")).to_bytes(4, "little")

    return Changed


_UNDEFINED_EVENTS = 0b1100

VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            "out-of-order",
            "uses buffers in another order than they were available",
            "2.7.8",
            _queues(lambda queue, _: _OutOfOrder(queue)),
        ),
        Variant(
            "one-at-a-time",
            "uses each buffer by an update of its own",
            "2.7.8",
            _queues(lambda queue, _: _OneAtATime(queue)),
        ),
        Variant("late", "uses buffers some milliseconds late", "2.7.8", _queues(_Late)),
        Variant(
            "short-length",
            "says as little as it may of what it wrote",
            "2.7.8.2",
            _queues(_short),
        ),
        Variant("queue-of-1", "has queues of 1 entry", "2.7", _queue_size(1)),
        Variant("queue-of-2", "has queues of 2 entries", "2.7", _queue_size(2)),
        Variant("queue-of-32768", "has queues of 32768 entries", "2.7", _queue_size(32768)),
        Variant(
            "no-event-idx",
            "does not offer VIRTIO_F_EVENT_IDX",
            "2.2",
            _offers(_without(Feature.VIRTIO_F_EVENT_IDX)),
        ),
        Variant(
            "no-indirect",
            "does not offer VIRTIO_F_INDIRECT_DESC",
            "2.2",
            _offers(_without(Feature.VIRTIO_F_INDIRECT_DESC)),
        ),
        Variant(
            "few-features",
            "offers VIRTIO_F_VERSION_1 alone",
            "2.2",
            _offers(lambda offered: offered & _NEEDED),
        ),
        Variant(
            "many-features",
            "offers feature bits that have no meaning yet",
            "2.2",
            _offers(lambda offered: offered | _RESERVED),
        ),
        # A driver may try again, or take the device for unusable (3.1.1).
        Variant(
            "refused-features", "refuses FEATURES_OK once", "2.2.2", _RefusesOnce, usable=False
        ),
        Variant(
            "spurious-interrupts",
            "interrupts whether the driver wants it or not",
            "2.7.7.1",
            _queues(lambda queue, _: _Spurious(queue)),
        ),
        Variant(
            "coalesced-interrupts",
            "sends one interrupt for what all its queues used in some milliseconds",
            "4.2.3.4",
            _CoalescedInterrupts,
        ),
        Variant(
            "undefined-interrupts",
            "has undefined bits set in InterruptStatus",
            "4.2.2.2",
            _register(Register.InterruptStatus, lambda value: value and value | _UNDEFINED_EVENTS),
        ),
        Variant(
            "kicks-suppressed",
            "asks for no kick, ever: it looks at its queues by itself",
            "2.7.10.2",
            _queues(_KicksSuppressed),
        ),
        Variant(
            "flag-with-event-idx",
            "has flags 1 in the used ring with VIRTIO_F_EVENT_IDX",
            "2.7.10.1",
            _queues(_FlagWithEventIdx),
        ),
        Variant(
            "undefined-flags",
            "has undefined flags in received frames",
            "5.1.9.4.2",
            _queues(_undefined_flags),
        ),
        Variant(
            "moving-config",
            "changes ConfigGeneration between reads of the configuration space",
            "2.5.1",
            _MovingConfig,
        ),
        Variant(
            "strict-width",
            "has control registers that take accesses of 32 bits alone",
            "4.2.2.2",
            _StrictWidth,
        ),
        Variant("long-config", "has a longer configuration space", "2.5.1", _LongConfig),
        Variant("needs-reset", "sets DEVICE_NEEDS_RESET once", "2.1.2", _NeedsResetOnce),
        # The guest's programs may not connect again.
        Variant(
            "transport-reset",
            "changes guest_cid once, and ends the driver's connections",
            "5.10.6.7",
            TransportReset,
            usable=False,
        ),
        Variant(
            "unknown-type",
            "sends a packet of a socket type that is not known yet, once",
            "5.10.6.4",
            UnknownType,
        ),
        Variant("firmware", "was used by firmware before", "3.1.1", _Firmware),
        Variant(
            "no-magic",
            "has another MagicValue",
            "4.2.2.2",
            _register(Register.MagicValue, lambda _: 0x746F_6F66),
            usable=False,
        ),
        Variant(
            "other-version",
            "has Version 3",
            "4.2.2.2",
            _register(Register.Version, lambda _: 3),
            usable=False,
        ),
        Variant(
            "no-device",
            "has DeviceID 0",
            "4.2.2.2",
            _register(Register.DeviceID, lambda _: 0),
            usable=False,
        ),
    )
}


def find(name: str) -> Variant:
    """Return a variant; raises ConfigError for a name that is none."""
    if name.startswith(PREFIX):
        feature = feature_of(name)
        return Variant(name, f"does not offer {feature}", "2.2", partial(Withholding, feature))
    try:
        return VARIANTS[name]
    except KeyError:
        raise ConfigError(
            f"There is no device variant {name!r}: use one of {', '.join(VARIANTS)}, or "
            f"{PREFIX} and a feature's name."
        ) from None
