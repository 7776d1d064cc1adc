"""The real-time clock: Motorola's MC146818A, as a PC has it at ports 0x70 and 0x71.

It tells the host's time, in UTC, binary or BCD as the driver asks; what is set is not kept. It
has no interrupts. The rest of its memory is the driver's, and forgotten at the end.
"""

import enum
import time
from collections.abc import Callable

#: The index's port and the data's.
RTC_PORT, RTC_PORTS = 0x70, 2

_SIZE = 128


class Register(enum.IntEnum):
    """What the index selects."""

    SECONDS = 0x00
    MINUTES = 0x02
    HOURS = 0x04
    DAY_OF_WEEK = 0x06
    DAY_OF_MONTH = 0x07
    MONTH = 0x08
    YEAR = 0x09
    A = 0x0A
    B = 0x0B
    C = 0x0C
    D = 0x0D
    CENTURY = 0x32


#: The divider chain at 32,768 Hz; the update-in-progress bit above it is never set.
_A_RUNNING = 0x26
_B_24_HOURS = 1 << 1
_B_BINARY = 1 << 2
_B_WRITABLE = _B_24_HOURS | _B_BINARY
_D_VALID = 1 << 7
_PM = 1 << 7


class RealTimeClock:
    """A clock. `now` is the time in seconds since 1970."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._index = 0
        self._b = _B_24_HOURS
        self._memory = bytearray(_SIZE)

    def register_name(self, offset: int) -> str:
        """Name the register, for the exit report."""
        return ("index", "data")[offset]

    def read(self, offset: int, size: int) -> bytes:
        """Return what the index selects."""
        return (self._read() if offset else 0xFF).to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:
        """Set the index, or what it selects."""
        if not offset:
            # The highest bit masks NMIs, of which there are none.
            self._index = data[0] % _SIZE
        elif self._index == Register.B:
            self._b = data[0] & _B_WRITABLE
        else:
            self._memory[self._index] = data[0]

    def _read(self) -> int:
        date = time.gmtime(self._now())
        match self._index:
            case Register.SECONDS:
                return self._number(min(date.tm_sec, 59))
            case Register.MINUTES:
                return self._number(date.tm_min)
            case Register.HOURS:
                return self._hours(date.tm_hour)
            case Register.DAY_OF_WEEK:
                return self._number((date.tm_wday + 1) % 7 + 1)
            case Register.DAY_OF_MONTH:
                return self._number(date.tm_mday)
            case Register.MONTH:
                return self._number(date.tm_mon)
            case Register.YEAR:
                return self._number(date.tm_year % 100)
            case Register.CENTURY:
                return self._number(date.tm_year // 100)
            case Register.A:
                return _A_RUNNING
            case Register.B:
                return self._b
            case Register.C:
                return 0
            case Register.D:
                return _D_VALID
        return self._memory[self._index]

    def _number(self, value: int) -> int:
        return value if self._b & _B_BINARY else value // 10 << 4 | value % 10

    def _hours(self, hour: int) -> int:
        if self._b & _B_24_HOURS:
            return self._number(hour)
        return self._number((hour + 11) % 12 + 1) | (_PM if hour >= 12 else 0)
