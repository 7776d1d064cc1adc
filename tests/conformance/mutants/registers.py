"""Faults of a device's registers and of its life (2.1 to 2.5, 4.2)."""

from collections.abc import Iterable, Iterator

from tests.conformance.mutants import Mutant, mutants
from virtiopy.conformance.targets.builders import Factory, build_blk, build_net
from virtiopy.devices.blk import Blk
from virtiopy.spec import DeviceStatus
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Interrupt, Register

WORD = 4


class _Reading(MmioTransport):
    """Reads a register otherwise."""

    def read(self, offset: int, size: int) -> bytes:
        data = super().read(offset, size)
        if size != WORD:
            return data
        value = int.from_bytes(data, "little")
        return self.seen(offset, value).to_bytes(WORD, "little")

    def seen(self, offset: int, value: int) -> int:
        """Return what a register reads as."""
        raise NotImplementedError


class HasItsMagicTheOtherWayRound(_Reading):
    def seen(self, offset: int, value: int) -> int:
        return 0x76697274 if offset == Register.MagicValue else value


class IsOfVersion3(_Reading):
    def seen(self, offset: int, value: int) -> int:
        return 3 if offset == Register.Version else value


class HasOneGenerationForEver(_Reading):
    def seen(self, offset: int, value: int) -> int:
        return 0 if offset == Register.ConfigGeneration else value


class AlwaysHasAConfigurationChange(_Reading):
    def seen(self, offset: int, value: int) -> int:
        return value | Interrupt.CONFIG_CHANGE if offset == Register.InterruptStatus else value


class KeepsEventsOverAReset(_Reading):
    """Has the bits of InterruptStatus again after a reset."""

    kept = 0

    def write(self, offset: int, data: bytes) -> None:
        if offset == Register.Status and not any(data):
            self.kept |= self.interrupt.read_status()
        if offset == Register.InterruptACK:
            self.kept &= ~int.from_bytes(data, "little")
        super().write(offset, data)

    def seen(self, offset: int, value: int) -> int:
        return value | self.kept if offset == Register.InterruptStatus else value


class KeepsQueuesReady(_Reading):
    """Has queues ready still after a reset."""

    def __init__(self, *args: object, **others: object) -> None:
        super().__init__(*args, **others)  # type: ignore[arg-type]
        self.ready: set[int] = set()
        self.selected = 0

    def write(self, offset: int, data: bytes) -> None:
        value = int.from_bytes(data, "little")
        if offset == Register.QueueSel:
            self.selected = value
        if offset == Register.QueueReady and value:
            self.ready.add(self.selected)
        if offset == Register.QueueReset:
            self.ready.discard(self.selected)
        super().write(offset, data)

    def seen(self, offset: int, value: int) -> int:
        return int(self.selected in self.ready) if offset == Register.QueueReady else value


class NeverEndsAQueueReset(_Reading):
    """Has QueueReset 1 until the queue is enabled again."""

    resetting = False

    def write(self, offset: int, data: bytes) -> None:
        if offset == Register.QueueReset and any(data):
            self.resetting = True
        if offset in {Register.QueueReady, Register.Status}:
            self.resetting = False
        super().write(offset, data)

    def seen(self, offset: int, value: int) -> int:
        return int(self.resetting) if offset == Register.QueueReset else value


class KeepsAQueueReadyInItsReset(KeepsQueuesReady):
    """Has a queue ready still after its own reset."""

    def write(self, offset: int, data: bytes) -> None:
        ready = set(self.ready)
        super().write(offset, data)
        if offset == Register.QueueReset:
            self.ready = ready
        if offset == Register.Status and not any(data):
            self.ready.clear()


class KeepsItsStatus(_Reading):
    """Has ACKNOWLEDGE set after a reset."""

    def seen(self, offset: int, value: int) -> int:
        return value | DeviceStatus.ACKNOWLEDGE if offset == Register.Status else value


class TakesAllFeatures(_Reading):
    """Has FEATURES_OK read back whatever was asked for."""

    status = 0

    def write(self, offset: int, data: bytes) -> None:
        if offset == Register.Status:
            self.status = data[0]
        super().write(offset, data)

    def seen(self, offset: int, value: int) -> int:
        if offset == Register.Status and self.status & DeviceStatus.FEATURES_OK:
            return value | DeviceStatus.FEATURES_OK
        return value


class AcknowledgesAtARead(_Reading):
    """Clears InterruptStatus as it is read."""

    def seen(self, offset: int, value: int) -> int:
        if offset == Register.InterruptStatus and value:
            super().write(Register.InterruptACK, value.to_bytes(WORD, "little"))
        return value


class OffersAReservedBit(_Reading):
    """Offers bit 60, which is none."""

    word = 0

    def write(self, offset: int, data: bytes) -> None:
        if offset == Register.DeviceFeaturesSel:
            self.word = int.from_bytes(data, "little")
        super().write(offset, data)

    def seen(self, offset: int, value: int) -> int:
        return value | 1 << 28 if offset == Register.DeviceFeatures and self.word == 1 else value


class HasNoConfigurationYet(Blk):
    """Has its configuration space read as zeroes before it knows the features."""

    def config_space(self) -> bytes:
        config = super().config_space()
        return config if self.driver_features else bytes(len(config))


class TakesEachSetOnce(Blk):
    """Refuses after a reset the features that it had taken."""

    taken: int | None = None

    def accepts(self, driver_features: int) -> bool:
        if driver_features == self.taken:
            return False
        self.taken = driver_features
        return super().accepts(driver_features)


def over_transport(
    build: Factory, broken: Iterable[tuple[str, type[MmioTransport]]]
) -> Iterator[Mutant]:
    """Yield a mutant for each statement and transport that breaks it."""
    for clause, kind in broken:
        yield Mutant(kind.__name__, clause, build, build, kind)


MUTANTS = [
    *over_transport(
        build_blk,
        [
            ("4.2.2.1:1", HasItsMagicTheOtherWayRound),
            ("4.2.2.1:2", IsOfVersion3),
            ("4.2.2.1:4", AlwaysHasAConfigurationChange),
            ("4.2.2.1:5", KeepsEventsOverAReset),
            ("4.2.2.1:5", KeepsQueuesReady),
            ("4.2.2.1:10", NeverEndsAQueueReset),
            ("4.2.2.1:12", KeepsAQueueReadyInItsReset),
            ("2.4.1:1", KeepsItsStatus),
            ("2.2.2:3", TakesAllFeatures),
            ("4.2.2.1:3", AcknowledgesAtARead),
            ("2.2.2:4", OffersAReservedBit),
        ],
    ),
    *over_transport(build_net, [("4.2.2.1:6", HasOneGenerationForEver)]),
    *mutants(build_blk, [("2.5.2:1", HasNoConfigurationYet), ("2.2.2:5", TakesEachSetOnce)]),
]
