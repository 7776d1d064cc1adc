"""The logical units of a device: which there are, and what an address finds (5.6.6.1)."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from virtiopy.devices.scsi.address import Address, parse_field
from virtiopy.devices.scsi.features import LUN_MAX, TARGET_MAX
from virtiopy.devices.scsi.spc import AbsentUnit, PrimaryUnit, ReportLunsUnit
from virtiopy.devices.scsi.unit import LogicalUnit


class Units:
    """Logical units by their addresses. Raises ValueError for an address that there cannot be.

    The mappings are replaced and never changed: workers look units up without a lock.
    """

    def __init__(self, units: Mapping[Address, PrimaryUnit]) -> None:
        self.by_address: Mapping[Address, PrimaryUnit] = {}
        # What answers for LUNs that a target does not have, and its REPORT LUNS unit.
        self._absent: Mapping[int, PrimaryUnit] = {}
        self._report_luns: Mapping[int, PrimaryUnit] = {}
        self._all_report_luns = ReportLunsUnit()
        self._all_report_luns.list_units = self._all
        self.replace(units)

    def replace(self, units: Mapping[Address, PrimaryUnit]) -> None:
        """Have these units, and no others."""
        for address, unit in units.items():
            if not (0 <= address.target <= TARGET_MAX and 0 <= address.lun <= LUN_MAX):
                raise ValueError(f"there is no address {address}")
            unit.address = address
            unit.list_units = partial(self._of, address.target)
        absent: dict[int, PrimaryUnit] = {}
        report_luns: dict[int, PrimaryUnit] = {}
        for target in {address.target for address in units}:
            absent[target] = self._absent.get(target) or AbsentUnit()
            report_luns[target] = self._report_luns.get(target) or ReportLunsUnit()
            for unit in (absent[target], report_luns[target]):
                unit.list_units = partial(self._of, target)
        self.by_address, self._absent, self._report_luns = dict(units), absent, report_luns

    def find(self, lun: bytes) -> LogicalUnit | None:
        """Return what a `lun` field addresses; None where there is no such target."""
        address = parse_field(lun)
        if isinstance(address, Address):
            return self.by_address.get(address) or self._absent.get(address.target)
        if address is None:
            return None
        if address.target is None:
            return self._all_report_luns
        return self._report_luns.get(address.target)

    def every(self) -> Iterable[LogicalUnit]:
        """Return all that a driver can have talked to, but for those that are not there."""
        return [*self.by_address.values(), self._all_report_luns, *self._report_luns.values()]

    # What REPORT LUNS lists

    def _of(self, target: int) -> Sequence[bytes]:
        return [address.entry for address in sorted(self.by_address) if address.target == target]

    def _all(self) -> Sequence[bytes]:
        return [address.field for address in sorted(self.by_address)]
