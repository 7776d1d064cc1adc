"""A device's life as its driver leads it (2.1 to 2.4, 2.6, 3.1), the same for every transport.

Registers over MMIO, capabilities over PCI and messages of vhost-user are ways to say these things;
what they mean is here, once. What a driver does and the device does not go along with is refused
in one place, `Lifecycle.refuse`, which says so in one line.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from virtiopy.complaints import Complaints
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.delegation import Notifiers
from virtiopy.devices.gate import Gate
from virtiopy.errors import DriverError
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature, feature_names, has_feature
from virtiopy.transport.interrupts import CONFIG, InterruptSink, Progress
from virtiopy.transport.observer import Act, LifecycleObserver, Refusal
from virtiopy.transport.queueconfig import QueueConfig
from virtiopy.virtqueue.formats import OpenQueue, open_queue, ring_format
from virtiopy.virtqueue.layout import (
    AVAILABLE_INDEX_OFFSET,
    AVAILABLE_INDEX_SIZE,
    USED_INDEX_OFFSET,
    USED_INDEX_SIZE,
    RingFormat,
)
from virtiopy.virtqueue.queue import RING_FEATURES, QueueObserver, Virtqueue

log = logging.getLogger(__name__)

#: The status bits that a driver may set; SUSPEND is for those who negotiate VIRTIO_F_SUSPEND.
_DRIVERS_BITS = int(
    DeviceStatus.ACKNOWLEDGE
    | DeviceStatus.DRIVER
    | DeviceStatus.DRIVER_OK
    | DeviceStatus.FEATURES_OK
    | DeviceStatus.FAILED
)


class KickNotifiers(Notifiers, Protocol):
    """Notifiers whose kicks come to a `Lifecycle` while they are not delegated."""

    def forget_kicks(self) -> None:
        """Drop the kicks that were sent and not taken: their queue is no more."""

    def look(self) -> None:
        """Have the queue looked at soon, by whatever works it, without a kick."""


class Lifecycle:
    """The life of `device`, which is attached to it: its DeviceHost (devices.base).

    Notifications to the driver go to `interrupts`. Messages call the device `name`. `features` are
    what rings and transport offer besides the device, and `assumed_features` what the driver has
    accepted without the device being told. `open_queue` opens the queues that are configured here;
    a transport may open them itself, and call `start_queue`. A `transitional` one can have a legacy
    driver (2.2.3) at its other end.

    `loop` is for what the device does of itself; `may_block` says whether kicks may wait for what
    they cause. The `gate` is shut while a message of the VMM's waits. The caller holds the device's
    lock.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        interrupts: InterruptSink,
        *,
        name: str | None = None,
        features: int = RING_FEATURES,
        assumed_features: int = 0,
        transitional: bool = False,
        open_queue: OpenQueue = open_queue,
        loop: EventLoop | None = None,
        may_block: bool = True,
        gate: Gate | None = None,
    ) -> None:
        self.device = device
        #: What messages call the device.
        self.name = name or device.device_id.name.lower()
        self.memory = memory
        self.interrupts = interrupts
        self.config_generation = 0
        self.observers: list[LifecycleObserver] = []
        #: What looks on at every queue that is opened from now on.
        self.queue_observers: list[QueueObserver] = []
        self.open_queue = open_queue
        self._transport_features = features
        self._assumed_features = assumed_features
        self._transitional = transitional
        self._notifiers: dict[int, KickNotifiers] = {}
        #: Finds the notifiers of a queue whose transport has no fixed ones.
        self.find_notifiers: Callable[[int], Notifiers | None] = self._notifiers.get
        self.gate = gate
        self._complaints = Complaints(log)
        self._forget()
        device.attach(self, loop, may_block=may_block)

    def _forget(self) -> None:
        self.status = 0
        self.driver_features = 0
        #: Whether the device was activated, and so knows of queues that start and stop.
        self.active = False
        self._offered: int | None = None
        self._negotiated: int | None = None
        self._configs = [QueueConfig(size) for size in self.device.queue_sizes]
        #: The queues that the device works, by index.
        self.queues: dict[int, Virtqueue] = {}

    @property
    def running(self) -> bool:
        """Whether queues may be worked: the device is live and needs no reset (2.1.2)."""
        return self.active and not self.status & DeviceStatus.DEVICE_NEEDS_RESET

    # What the driver is refused

    def refuse(self, act: Act, fact: str, section: str, answer: str = "") -> None:
        """Say, in one line, what the driver did and the device does not go along with."""
        refusal = Refusal(act, fact, section, answer)
        self._complaints.say(f"{self.name}: {refusal}")
        for observer in self.observers:
            observer.refused(refusal)

    def feature_names(self, features: int) -> str:
        """Name feature bits, for a person."""
        return ", ".join(feature_names(features, self.device.feature_bits))

    # Feature bits (2.2)

    @property
    def offered(self) -> int:
        """The feature bits that the device offers to this driver; they stay until a reset."""
        if self._offered is None:
            self._offered = self.device.offered(self.device.features | self._transport_features)
        return self._offered

    @property
    def offered_names(self) -> list[str]:
        """The names of the feature bits that the device offers to this driver."""
        return feature_names(self.offered, self.device.feature_bits)

    @property
    def serves_legacy_drivers(self) -> bool:
        """Whether a driver may leave VIRTIO_F_VERSION_1 out."""
        return self._transitional and self.device.serves_legacy_drivers

    def objections(self) -> list[tuple[str, str]]:
        """Say why the device cannot work with `driver_features`, each with the section (2.2.2)."""
        features = self.driver_features | self._assumed_features
        found = []
        if unknown := features & ~self.offered:
            names = self.feature_names(unknown)
            found.append((f"the driver accepts {names}, which the device does not offer", "2.2.1"))
        if not has_feature(features, Feature.VIRTIO_F_VERSION_1) and not self.serves_legacy_drivers:
            fact = "the driver does not accept VIRTIO_F_VERSION_1"
            if self._transitional:
                fact += ", as legacy drivers do: have the VMM offer no legacy device (in QEMU "
                fact += "disable-legacy=on)"
            found.append((fact, "6.1"))
        elif not self.device.accepts(features):
            reasons = self.device.objections(features) or [
                f"the driver accepts features that do not go together: "
                f"{self.feature_names(features)}"
            ]
            found += [(reason, "2.2.2") for reason in reasons]
        return found

    def accepts(self, answer: str = "FEATURES_OK stays clear") -> bool:
        """Say whether the device can work with `driver_features`; if not, tell why.

        `answer` says what the device does then.
        """
        objections = self.objections()
        for fact, section in objections:
            self.refuse(Act.FEATURES, fact, section, answer)
        if not objections:
            for observer in self.observers:
                observer.features_accepted(self.offered, self.driver_features)
        return not objections

    def negotiate(self) -> None:
        """Have the device work with `driver_features` from now on."""
        if self._negotiated != self.driver_features:
            self._negotiated = self.driver_features
            self.device.negotiated(self.driver_features)

    # The device status field (2.1, 3.1.1)

    def write_status(self, value: int) -> None:
        """Take what the driver writes to the device status field; 0 resets the device."""
        for observer in self.observers:
            observer.status_written(self.status, value)
        if value == 0:
            self.reset()
            return
        if cleared := self.status & _DRIVERS_BITS & ~value:
            names = status_names(cleared)
            self.refuse(Act.STATUS, f"the driver clears {names}", "2.1.1", "the bits stay set")
        # DEVICE_NEEDS_RESET is not the driver's to set.
        new = value & ~self.status & _DRIVERS_BITS
        if new & DeviceStatus.FEATURES_OK and not self.accepts():
            new &= ~DeviceStatus.FEATURES_OK
        negotiated = (self.status | new) & DeviceStatus.FEATURES_OK
        if new & DeviceStatus.DRIVER_OK and not negotiated:
            fact = "the driver sets DRIVER_OK, and FEATURES_OK is not set"
            self.refuse(Act.STATUS, fact, "3.1.1", "DRIVER_OK stays clear")
            new &= ~DeviceStatus.DRIVER_OK
        self.status |= int(new)
        if new & DeviceStatus.FEATURES_OK:
            self.negotiate()
        if new & DeviceStatus.DRIVER_OK:
            self.activate()

    def activate(self) -> None:
        """Let the device run with every queue that is ready: DRIVER_OK is set."""
        if self.active:
            return
        self.active = True
        for index, config in enumerate(self._configs):
            if config.ready:
                self._make(index, config)
        for observer in self.observers:
            observer.activated()
        self.device.activate(self.queues if self.running else {})
        for index in list(self.queues):
            self._look(index)

    def _look(self, index: int) -> None:
        """Have a queue worked that has buffers from before it was, when no kick was to come.

        Linux's balloon driver makes one available before DRIVER_OK, for statistics.
        """
        if not self.running or not self._may_have_buffers(index):
            return
        if (notifiers := self._notifiers.get(index)) is not None:
            notifiers.look()
        else:
            self.work(index)

    def _may_have_buffers(self, index: int) -> bool:
        """Say whether a queue that was just made has buffers, as far as that can be told."""
        if ring_format(self.driver_features) is not RingFormat.SPLIT:
            return True
        place = self.queues[index].areas.driver + AVAILABLE_INDEX_OFFSET
        return any(self.memory.read(place, AVAILABLE_INDEX_SIZE))

    def needs_reset(self, reason: str) -> None:
        """Set DEVICE_NEEDS_RESET and say so to a driver that is up (2.1.2)."""
        log.warning("%s needs a reset: %s", self.name, reason)
        # First, as what the device reclaims may have notifications that the driver has not seen.
        self.device.halt()
        self.status |= int(DeviceStatus.DEVICE_NEEDS_RESET)
        for observer in self.observers:
            observer.needs_reset(reason)
        if self.status & DeviceStatus.DRIVER_OK:
            self._trigger_config()

    def reset(self) -> None:
        """Forget the driver (2.4.1)."""
        self.active = False
        self.device.reset()
        for notifiers in self._notifiers.values():
            notifiers.forget_kicks()
        self._forget()
        self.interrupts.clear()
        for observer in self.observers:
            observer.was_reset()

    # Configuration of queues (2.6, 4.2.3.2)

    def has_queue(self, index: int) -> bool:
        """Say whether the device has this queue."""
        return index < len(self._configs)

    def queue_size_max(self, index: int) -> int:
        """Return the most entries that a queue can have; 0 for one that the device has not."""
        return self.device.queue_sizes[index] if self.has_queue(index) else 0

    def queue_config(self, index: int) -> QueueConfig | None:
        """Return what the driver has said of a queue; None for one that the device has not."""
        return self._configs[index] if self.has_queue(index) else None

    def configurable(self, index: int, what: str) -> QueueConfig | None:
        """Return a queue's configuration for the driver to write `what` of; None if it may not."""
        config = self._existing(index, f"writes {what} of queue {index}")
        if config is not None and config.ready:
            fact = f"the driver writes {what} of queue {index}, which is ready"
            self.refuse(Act.QUEUE, fact, "4.2.2.2", "it stays as it is")
            return None
        return config

    def _existing(self, index: int, does: str) -> QueueConfig | None:
        config = self.queue_config(index)
        if config is None:
            self.refuse(
                Act.QUEUE, f"the driver {does}; the device has {len(self._configs)}", "4.2.3.2"
            )
        return config

    def set_queue_ready(self, index: int, *, ready: bool) -> None:
        """Make a queue ready as it is configured, or stop it."""
        config = self._existing(index, f"makes queue {index} ready")
        if config is None or config.ready == ready:
            return
        config.ready = ready
        if not ready:
            self.stop_queue(index)
            return
        for observer in self.observers:
            observer.queue_configured(index, config)
        if self.active:
            self._make(index, config)
            if self.running and index in self.queues:
                self.device.start_queue(index, self.queues[index])
                self._look(index)

    def reset_queue(self, index: int) -> None:
        """Reset a queue (2.6.1); it can be configured again."""
        if not (
            self.status & DeviceStatus.FEATURES_OK
            and has_feature(self.driver_features, Feature.VIRTIO_F_RING_RESET)
        ):
            fact = f"the driver resets queue {index} and has not negotiated VIRTIO_F_RING_RESET"
            self.refuse(Act.QUEUE, fact, "2.6.1.2", "the queue stays as it is")
            return
        if self._existing(index, f"resets queue {index}") is None:
            return
        if self.queues.pop(index, None) is not None:
            self.device.reset_queue(index)
            self._forget_kicks(index)
        self._configs[index] = QueueConfig(self.device.queue_sizes[index])
        for observer in self.observers:
            observer.queue_was_reset(index)

    def _make(self, index: int, config: QueueConfig) -> None:
        """Make the queue that is configured; one that cannot be needs a reset of the device."""
        if config.size > (most := self.queue_size_max(index)):
            self.needs_reset(
                f"the driver makes queue {index} of size {config.size}, above the {most} that it "
                "may have (4.2.2.2)"
            )
            return
        try:
            self.queues[index] = self.open_queue(
                self.memory,
                config.size,
                config.areas,
                features=self.driver_features,
                index=index,
                observers=self.queue_observers,
            )
        except DriverError as error:
            self.needs_reset(f"queue {index}: {error}")

    # Queues at work

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Have the device work a queue that its transport made; the first makes it live."""
        areas = queue.areas
        config = QueueConfig(queue.size, True, areas.descriptor, areas.driver, areas.device)
        for observer in self.observers:
            observer.queue_configured(index, config)
        self.queues[index] = queue
        if self.active:
            self.device.start_queue(index, queue)
            return
        self.active = True
        for observer in self.observers:
            observer.activated()
        self.device.activate({index: queue})

    def stop_queue(self, index: int) -> None:
        """Have the device forget a queue, if it works it."""
        if self.queues.pop(index, None) is not None:
            self.device.stop_queue(index)
            self._forget_kicks(index)
        for observer in self.observers:
            observer.queue_disabled(index)

    def _forget_kicks(self, index: int) -> None:
        if (notifiers := self._notifiers.get(index)) is not None:
            notifiers.forget_kicks()

    def kick(self, index: int) -> None:
        """Take an available buffer notification, while the device runs (2.1.2)."""
        if index not in self.queues or not self.running:
            self._refuse_kick(index)
            return
        for observer in self.observers:
            observer.kicked(index)
        self.work(index)

    def work(self, index: int) -> None:
        """Have the device look at a queue, if it works it."""
        queue = self.queues.get(index)
        if queue is None or not self.running:
            return
        try:
            self.device.handle(queue)
        except DriverError as error:
            self.needs_reset(str(error))

    def _refuse_kick(self, index: int) -> None:
        if self.status & DeviceStatus.DEVICE_NEEDS_RESET:
            # The driver may not have seen it yet.
            log.debug("%s: a kick of queue %d, and the device needs a reset", self.name, index)
            return
        fact, section = f"the driver kicks queue {index}, which is not ready", "4.2.2.2"
        if not self.has_queue(index):
            count = len(self._configs)
            fact, section = f"the driver kicks queue {index}; the device has {count}", "4.2.3.3"
        elif not self.active:
            fact, section = f"the driver kicks queue {index} before it sets DRIVER_OK", "3.1.1"
        self.refuse(Act.KICK, fact, section, "the kick is ignored")

    # The device's side (devices.base.DeviceHost)

    def used_buffer_notification(self, queue: Virtqueue) -> None:
        """Notify the driver of used buffers; never before DRIVER_OK (2.1.2)."""
        if self.running:
            self._trigger_used(queue.index)

    def _trigger_used(self, index: int) -> None:
        for observer in self.observers:
            observer.interrupt_raised(index)
        self.interrupts.trigger(index)

    def _trigger_config(self) -> None:
        for observer in self.observers:
            observer.interrupt_raised(CONFIG)
        self.interrupts.trigger(CONFIG)

    def config_changed(self, *, notify: bool = True) -> None:
        """Change the configuration's generation (2.5), and notify a driver that is up (3.2.1)."""
        self.config_generation = (self.config_generation + 1) & 0xFFFF_FFFF
        for observer in self.observers:
            observer.config_changed(notify=notify)
        if notify and self.status & DeviceStatus.DRIVER_OK:
            self._trigger_config()

    def notifiers(self, index: int) -> Notifiers | None:
        """Return the eventfds of a queue, if it has any."""
        return self.find_notifiers(index)

    def notify_by(self, notifiers: Mapping[int, KickNotifiers]) -> None:
        """Have queues kicked by eventfds, by queue index."""
        self._notifiers.update(notifiers)

    def delegate_interrupt(self, index: int) -> None:
        """Take note that another worker sends the used buffer notifications of a queue."""
        self.interrupts.delegate(index, self._progress(index))

    def _progress(self, index: int) -> Progress | None:
        """Return what says how far the worker of a queue has come, where that can be told."""
        queue = self.queues.get(index)
        if queue is None or ring_format(self.driver_features) is not RingFormat.SPLIT:
            return None
        place = queue.areas.device + USED_INDEX_OFFSET
        return lambda: int.from_bytes(self.memory.read(place, USED_INDEX_SIZE), "little")

    def reclaim_interrupt(self, index: int) -> None:
        """Take note that the device sends them again."""
        self.interrupts.reclaim(index)
        # The driver may not have seen why the other worker's last notification came.
        if self.running:
            self._trigger_used(index)

    def acknowledged(self, events: int) -> None:
        """Tell who watches of an acknowledgement of interrupts; from any thread, without lock."""
        for observer in self.observers:
            observer.interrupt_acknowledged(events)

    # Configuration space (2.5)

    def read_config(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of the configuration space; zeroes past its end."""
        return self.device.config_space()[offset : offset + size].ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> bool:
        """Take the driver's write; returns whether there is anything that can be written."""
        if offset + len(data) > (size := len(self.device.config_space())):
            fact = (
                f"the driver writes {len(data)} bytes at {offset:#x} of a configuration space of "
                f"{size}"
            )
            self.refuse(Act.CONFIG, fact, "2.5", "nothing is written")
            return False
        if not self.device.write_config(offset, data):
            fact = f"the driver writes the configuration space at {offset:#x}, which is read-only"
            self.refuse(Act.CONFIG, fact, "2.5", "nothing is written")
            return False
        return True


def status_names(status: int) -> str:
    """Name bits of the device status field, for a person."""
    return ", ".join(bit.name for bit in DeviceStatus if bit & status and bit.name)
