"""A driver's way through a device's life, held against 2.1 to 2.6, 3.1 and 6: for any transport."""

from typing import Protocol

from virtiopy.check.fields import REQUIRED_FEATURES, defined_features
from virtiopy.check.judge import DeviceJudge
from virtiopy.memory import AddressError, GuestMemory
from virtiopy.spec import DeviceId, DeviceStatus, Feature, has_feature
from virtiopy.transport.interrupts import InterruptSource
from virtiopy.transport.observer import Act, LifecycleObserver, Refusal
from virtiopy.transport.queueconfig import QueueConfig
from virtiopy.virtqueue.layout import Area, RingFormat, areas, valid_queue_size

_DRIVERS_BITS = int(
    DeviceStatus.ACKNOWLEDGE
    | DeviceStatus.DRIVER
    | DeviceStatus.FEATURES_OK
    | DeviceStatus.DRIVER_OK
    | DeviceStatus.FAILED
)
_STEPS = (DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER, DeviceStatus.FEATURES_OK)

_NET = "VIRTIO_NET_F_"

#: Features that a driver accepts where they are offered, and the statement that says so.
_EXPECTED = {
    "VIRTIO_F_VERSION_1": "6.1:1",
    "VIRTIO_BLK_F_RO": "5.2.6.1:3",
    "VIRTIO_NET_F_MAC": "5.1.4.2:2",
    "VIRTIO_NET_F_MTU": "5.1.4.2:7",
    "VIRTIO_BALLOON_F_MUST_TELL_HOST": "5.5.3.1:1",
    "VIRTIO_VSOCK_F_NO_IMPLIED_STREAM": "5.10.3.1:1",
}

#: Features that a driver accepts with another only, and the statement that says so.
_TOGETHER = {
    "VIRTIO_NET_F_HASH_REPORT": ("VIRTIO_NET_F_CTRL_VQ", "5.1.4.2:13"),
    "VIRTIO_NET_F_CTRL_RX_EXTRA": ("VIRTIO_NET_F_CTRL_VQ", "5.1.4.2:14"),
}


#: What a frontend of vhost-user keeps for itself: it tells no backend that the driver accepted it,
#: or does not offer it to the driver, as QEMU does with VIRTIO_NET_F_MTU unless host_mtu is set.
_FRONTENDS_OWN = {f"{_NET}CTRL_VQ", f"{_NET}MAC", f"{_NET}MTU"}


class Life(Protocol):
    """What a judge knows of a device's life, besides what it is told."""

    @property
    def status(self) -> int:
        """The device status field."""

    @property
    def driver_features(self) -> int:
        """The features that the driver accepted, or is about to."""

    @property
    def offered(self) -> int:
        """The features that the device offers."""


class LifecycleJudge(LifecycleObserver):
    """Judges status, features, queue set-up and kicks of one device's driver.

    `device` is the device's type, None for one that is not known. `sees_status` says whether the
    transport tells the driver's own steps: over vhost-user a frontend stands between, which tells
    features and rings only.
    """

    def __init__(
        self,
        judge: DeviceJudge,
        lifecycle: Life,
        device: DeviceId | None,
        memory: GuestMemory,
        *,
        sees_status: bool,
    ) -> None:
        self._judge = judge
        self._lifecycle = lifecycle
        self._memory = memory
        self._names = defined_features(device)
        self._sees_status = sees_status
        self._is_fresh = True
        self._begin()

    def _begin(self) -> None:
        self._driver_first = False
        self._refused = False
        self._queues_reset: set[int] = set()
        # Queues that were set up before FEATURES_OK: a mistake of its own if that comes.
        self._early: list[int] = []

    # The device status field (2.1, 3.1.1)

    def status_written(self, before: int, written: int) -> None:
        """Judge a write of the device status field.

        Over vhost-user the frontend writes it, in steps of its own.
        """
        if not self._sees_status:
            return
        self._judge.note(f"writes {written:#x} to the device status")
        if written == 0:
            self._is_fresh = False
            return
        if self._is_fresh:
            self._is_fresh = False
            self._judge.broke("3.1.1:1", "the driver begins without a reset of the device")
        new = written & ~before
        self._judge.check(
            "2.1.1:2",
            not before & ~written & _DRIVERS_BITS,
            f"the driver writes {written:#x} to a device status of {before:#x}",
        )
        if before & DeviceStatus.FAILED:
            self._judge.check(
                "2.1.1:3",
                not new,
                f"the driver writes {written:#x} after FAILED, without a reset",
            )
        self._order(before, new)
        if new & DeviceStatus.FEATURES_OK:
            for index in self._early:
                self._judge.broke(
                    "3.1.1:1", f"the driver sets queue {index} up before it sets FEATURES_OK"
                )
            self._features(self._lifecycle.driver_features)
        if new & DeviceStatus.DRIVER_OK:
            self._driver_ok(before | written)
        if new & DeviceStatus.SUSPEND:
            live = before & DeviceStatus.DRIVER_OK and has_feature(
                self._lifecycle.driver_features, Feature.VIRTIO_F_SUSPEND
            )
            self._judge.check(
                "3.4.1:1", bool(live), "the driver sets SUSPEND without VIRTIO_F_SUSPEND"
            )

    def _order(self, before: int, new: int) -> None:
        if new & DeviceStatus.ACKNOWLEDGE and before & DeviceStatus.DRIVER:
            self._driver_first = True
            self._judge.broke("3.1.1:1", "the driver sets DRIVER before ACKNOWLEDGE")

    def _driver_ok(self, status: int) -> None:
        missing = [step.name for step in _STEPS if not status & step and step.name]
        if self._refused:
            self._goes_on("sets DRIVER_OK")
            return
        if missing:
            self._judge.broke(
                "2.1.1:1",
                f"the driver sets DRIVER_OK and has not set {' and '.join(missing)}",
                fatal=not status & DeviceStatus.FEATURES_OK,
            )
        else:
            self._judge.kept("2.1.1:1")
            self._judge.kept("3.1.1:1")
            self._judge.kept("3.1.1:6")
            self._judge.kept("4.2.3.1.1:6")

    def _goes_on(self, how: str) -> None:
        self._judge.broke(
            "3.1.1:6", f"the driver {how} after the device has refused FEATURES_OK", fatal=True
        )

    # Feature bits (2.2, 6.1)

    def _features(self, accepted: int) -> None:
        offered = self._lifecycle.offered
        unoffered = accepted & ~offered
        reserved = [bit for bit in _bits(accepted) if bit not in self._names]
        others = [bit for bit in _bits(unoffered) if bit in self._names]
        if Feature.VIRTIO_F_SR_IOV in others:
            others.remove(Feature.VIRTIO_F_SR_IOV)
            self._judge.broke(
                "6.1:10", "the driver accepts VIRTIO_F_SR_IOV of a device that is not on PCI"
            )
        else:
            self._judge.kept("6.1:10")
        self._judge.check(
            "2.2.1:5",
            not reserved,
            f"the driver accepts {', '.join(f'feature bit {bit}' for bit in reserved)}",
        )
        self._judge.check(
            "2.2.1:1",
            not others,
            f"the driver accepts {', '.join(self._names[bit] for bit in others)}",
        )
        self._dependencies(accepted)
        for name, statement in _EXPECTED.items():
            bit = self._bit(name)
            if bit is not None and has_feature(offered, bit):
                self._judge.check(
                    statement, has_feature(accepted, bit), f"the driver does not accept {name}"
                )
        self._judge.features = accepted & offered

    def _bit(self, name: str) -> int | None:
        return next((bit for bit, one in self._names.items() if one == name), None)

    def _dependencies(self, accepted: int) -> None:
        names = {self._names[bit] for bit in _bits(accepted) if bit in self._names}
        lonely = [
            f"{name} without {' or '.join(required)}"
            for name, required in REQUIRED_FEATURES.items()
            if name in names and not names.intersection(required) and self._tells(*required)
        ]
        self._judge.check("2.2.1:2", not lonely, f"the driver accepts {', '.join(lonely)}")
        for name, (other, statement) in _TOGETHER.items():
            if name in names and self._tells(other):
                self._judge.check(
                    statement, other in names, f"the driver accepts {name} without {other}"
                )

    def _tells(self, *names: str) -> bool:
        """Say whether a driver that accepts one of these features is known to."""
        return self._sees_status or not _FRONTENDS_OWN.intersection(names)

    def features_accepted(self, offered: int, accepted: int) -> None:
        """Judge features that a frontend tells of; a driver's own were judged at FEATURES_OK."""
        self._judge.features = accepted
        self._refused = False
        if not self._sees_status:
            self._dependencies(accepted)
            for name, statement in _EXPECTED.items():
                bit = self._bit(name)
                if bit is not None and has_feature(offered, bit) and self._tells(name):
                    self._judge.check(
                        statement, has_feature(accepted, bit), f"the driver does not accept {name}"
                    )

    def refused(self, refusal: Refusal) -> None:
        """Judge what the transport did not go along with and is no access to a register."""
        self._judge.note(f"is refused: {refusal}")
        if refusal.act is Act.KICK and refusal.section == "3.1.1":
            self._judge.broke("3.1.1:7", refusal.fact)
        elif refusal.act is Act.FEATURES and "after FEATURES_OK" in refusal.fact:
            self._judge.broke("3.1.1:4", refusal.fact)
        elif refusal.act is Act.FEATURES:
            self._refused = True

    # Queue set-up, sections 2.6 and 2.7

    def queue_configured(self, index: int, config: QueueConfig) -> None:
        """Judge how the driver sets a queue up."""
        self._judge.note(f"makes queue {index} ready, of size {config.size}")
        if self._sees_status:
            self._when(index)
        if not valid_queue_size(config.size):
            return
        layout = areas(RingFormat.SPLIT, config.size)
        parts = (
            ("descriptor table", config.descriptor_area, layout.descriptor),
            ("available ring", config.driver_area, layout.driver),
            ("used ring", config.device_area, layout.device),
        )
        # Each is judged, whatever the others are.
        sound = [self._area(index, *part) for part in parts]
        if all(sound):
            self._initial_flags(index, config)

    def _when(self, index: int) -> None:
        status = self._lifecycle.status
        if self._refused:
            self._goes_on(f"sets queue {index} up")
        elif not status & DeviceStatus.FEATURES_OK:
            self._early.append(index)
        elif status & DeviceStatus.DRIVER_OK and index not in self._queues_reset:
            self._judge.broke("3.1.1:1", f"the driver sets queue {index} up after it set DRIVER_OK")
        elif status & DeviceStatus.DRIVER_OK:
            self._judge.kept("2.6.1.2.2:1")

    def _area(self, index: int, name: str, address: int, area: Area) -> bool:
        aligned = self._judge.check(
            "2.7.1:1",
            address % area.alignment == 0,
            f"the {name} of queue {index} is at {address:#x}, and not aligned to {area.alignment}",
        )
        try:
            self._memory.views(address, area.size)
        except AddressError:
            self._judge.broke(
                "6.1:5",
                f"the {name} of queue {index} is at {address:#x}, where there is no memory",
                fatal=True,
            )
            return False
        return aligned

    def _initial_flags(self, index: int, config: QueueConfig) -> None:
        used_flags = int.from_bytes(self._memory.read(config.device_area, 2), "little")
        self._judge.check(
            "2.7.10.1:1",
            used_flags == 0,
            f"flags in the used ring of queue {index} is {used_flags} when the driver enables it",
        )

    def queue_was_reset(self, index: int) -> None:
        """Take note of a queue that may be set up again while the device runs."""
        self._judge.note(f"resets queue {index}")
        self._queues_reset.add(index)

    # The device's answers

    def activated(self) -> None:
        """Take note that the device is live."""
        self._judge.note("sets DRIVER_OK")

    def interrupt_raised(self, source: InterruptSource) -> None:
        """Take note of an interrupt."""
        self._judge.note(f"is interrupted ({source})")

    def needs_reset(self, reason: str) -> None:
        """Take note that the device needs a reset, in the trace."""
        self._judge.note(f"is told DEVICE_NEEDS_RESET: {reason}")

    def was_reset(self) -> None:
        """Begin the driver's next life."""
        self._begin()
        self._judge.new_life()


def _bits(features: int) -> list[int]:
    return [bit for bit in range(features.bit_length()) if has_feature(features, bit)]
