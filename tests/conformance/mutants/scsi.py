"""SCSI host devices with a fault."""

from tests.conformance.mutants import mutants
from virtiopy.conformance.targets.builders import build_scsi
from virtiopy.devices.scsi import Address, Scsi, ScsiFeature
from virtiopy.devices.scsi.command import ScsiStatus
from virtiopy.devices.scsi.requests import Outcome, Request, Response
from virtiopy.devices.scsi.spc import PrimaryUnit
from virtiopy.spec import has_feature


class KeepsItsSizes(Scsi):
    """Forgets a driver, and not what it set."""

    def reset(self) -> None:
        before = self.config_space()[20:28]
        super().reset()
        self.write_config(20, before[:4])
        self.write_config(24, before[4:])


class _Answers(Scsi):
    """Answers something else."""

    def replaced(self, outcome: Outcome) -> Outcome:
        return outcome

    def execute(self, request: Request, *, at_once: bool = False) -> Outcome | None:
        outcome = super().execute(request, at_once=at_once)
        return None if outcome is None else self.replaced(outcome)


class IsAlwaysGood(_Answers):
    """Has no status but GOOD."""

    def replaced(self, outcome: Outcome) -> Outcome:
        return Outcome(outcome.response, outcome.transferred, ScsiStatus.GOOD)


class CountsNoResidual(_Answers):
    """Says that all was transferred."""

    def replaced(self, outcome: Outcome) -> Outcome:
        return Outcome(outcome.response, 1 << 10, outcome.status, outcome.sense)


class KnowsNoOverrun(_Answers):
    """Calls an overrun a failure."""

    def replaced(self, outcome: Outcome) -> Outcome:
        if outcome.response is Response.OVERRUN:
            return Outcome(Response.FAILURE)
        return outcome


class KnowsNoBadTarget(_Answers):
    """Has a failure for a target that is none."""

    def replaced(self, outcome: Outcome) -> Outcome:
        if outcome.response is Response.BAD_TARGET:
            return Outcome(Response.FAILURE)
        return outcome


class TellsOfUnitsAnyway(Scsi):
    """Takes HOTPLUG for accepted."""

    def negotiated(self, driver_features: int) -> None:
        super().negotiated(driver_features | 1 << ScsiFeature.VIRTIO_SCSI_F_HOTPLUG)


class TellsOfDiscs(Scsi):
    """Reports a parameter change of an MMC device, as of a disk that was resized."""

    def capacity_changed(self, address: Address) -> None:
        if address == Address(0, 1) and has_feature(
            self.driver_features, ScsiFeature.VIRTIO_SCSI_F_CHANGE
        ):
            address = Address(0, 0)
            self.units[address].measure = lambda: True  # type: ignore[method-assign]
        super().capacity_changed(address)


class ForgetsThatItLostEvents(Scsi):
    """Drops the first event of a driver that has no buffer, and is silent about it."""

    def add_unit(self, address: Address, unit: PrimaryUnit) -> None:
        features, self.driver_features = self.driver_features, 0
        try:
            super().add_unit(address, unit)
        finally:
            self.driver_features = features


MUTANTS = [
    *mutants(
        build_scsi,
        [
            ("5.6.4.2:1", KeepsItsSizes),
            ("5.6.6.1.1:1", IsAlwaysGood),
            ("5.6.6.1.1:1", CountsNoResidual),
            ("5.6.6.1.1:2", KnowsNoOverrun),
            ("5.6.6.1.1:2", KnowsNoBadTarget),
            ("5.6.6.3.2:1", ForgetsThatItLostEvents),
            ("5.6.6.3.2:3", TellsOfUnitsAnyway),
            ("5.6.6.3.2:4", TellsOfDiscs),
        ],
    ),
]
