"""Where a logical unit is: the `lun` field of requests and events (5.6.6.1).

byte 0: 1    byte 1: target    bytes 2, 3: a single level LUN structure    bytes 4 to 7: 0
"""

from dataclasses import dataclass
from typing import Final

#: Bytes of the field.
LUN_FIELD_SIZE = 8

#: The REPORT LUNS well-known logical unit, of the whole device (5.6.6.1).
REPORT_LUNS: Final = bytes.fromhex("c101 000000000000")

#: The same of one target, in place of a LUN.
_TARGETS_REPORT_LUNS = 0xC101

#: The methods of a single level LUN structure (SAM-5, 4.7.7), in its two highest bits.
_PERIPHERAL = 0 << 14
_FLAT_SPACE = 1 << 14
_METHOD_MASK = 3 << 14

#: LUNs that the peripheral device addressing method can tell.
_PERIPHERAL_LUNS = 256


@dataclass(slots=True, frozen=True, order=True)
class Address:
    """A target and a LUN."""

    target: int
    lun: int

    def __str__(self) -> str:
        return f"{self.target}:{self.lun}"

    @property
    def field(self) -> bytes:
        """The `lun` field that addresses it."""
        return bytes([1, self.target]) + self.entry[:2] + bytes(4)

    @property
    def entry(self) -> bytes:
        """What stands for it in the target's list of LUNs (REPORT LUNS), 8 bytes.

        Linux takes the numbers of events from the list's form, and knows LUNs below 256 in the
        peripheral device addressing method alone.
        """
        method = _PERIPHERAL if self.lun < _PERIPHERAL_LUNS else _FLAT_SPACE
        return (method | self.lun).to_bytes(2, "big") + bytes(6)


@dataclass(slots=True, frozen=True)
class WellKnown:
    """The REPORT LUNS well-known logical unit: of one target, or of the whole device."""

    target: int | None = None


def parse_field(field: bytes) -> Address | WellKnown | None:
    """Return what a `lun` field addresses; None for a field that can address nothing."""
    if field == REPORT_LUNS:
        return WellKnown()
    if field[0] != 1 or any(field[4:]):
        return None
    target, level = field[1], int.from_bytes(field[2:4], "big")
    if level == _TARGETS_REPORT_LUNS:
        return WellKnown(target)
    method, lun = level & _METHOD_MASK, level & ~_METHOD_MASK
    if method == _FLAT_SPACE or (method == _PERIPHERAL and lun < _PERIPHERAL_LUNS):
        return Address(target, lun)
    return None
