"""Switching off and resetting: the sleep and reset registers that the ACPI tables name."""

import enum
from collections.abc import Callable

from virtiopy.boot.acpi import RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_TYPE_OFF

#: The sleep control and status registers, and the reset register beside them.
POWER_PORT, POWER_PORTS = SLEEP_CONTROL_PORT, 3

_CONTROL, _STATUS, _RESET = range(3)
_NAMES = ("sleep control", "sleep status", "reset")
# Of the sleep control register (ACPI 6.5, table 4.19).
_SLEEP_ENABLE = 1 << 5
_TYPE_SHIFT, _TYPE_MASK = 2, 7


class PowerEvent(enum.StrEnum):
    """What a guest asked for."""

    OFF = "switched itself off"
    RESET = "reset itself"


class PowerRegisters:
    """The registers; `happened` is told, on the CPU's thread, what the guest asked for.

    What is written that means neither does nothing, and everything reads as 0.
    """

    def __init__(self, happened: Callable[[PowerEvent], None]) -> None:
        self._happened = happened

    def register_name(self, offset: int) -> str:
        """Name the register, for the exit report."""
        return _NAMES[offset]

    def read(self, offset: int, size: int) -> bytes:
        """Return zeroes: no state is asleep, and no wake-up waits."""
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        """Take what the guest asks for."""
        value = data[0]
        if offset == _CONTROL and value & _SLEEP_ENABLE:
            if value >> _TYPE_SHIFT & _TYPE_MASK == SLEEP_TYPE_OFF:
                self._happened(PowerEvent.OFF)
        elif offset == _RESET and value == RESET_VALUE:
            self._happened(PowerEvent.RESET)
