"""The interrupt chips of a PC with one CPU, for an accelerator that brings none.

The registers that guests use to take interrupts, by the names of their manuals: the local APIC
(Intel SDM volume 3, chapter 11) with its timer, and the 82093AA IOAPIC. No thermal or performance
interrupts; what is written to their registers does nothing. Interrupts between CPUs reach the one
that sends them, as there is no other. Of the 8259 and the 8254 only
the ports are there: a line below 16 goes to the IOAPIC alone.

Nothing here locks: the accelerator calls from one thread at a time.
"""

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass

LOCAL_APIC_BASE = 0xFEE0_0000
IOAPIC_BASE = 0xFEC0_0000
PAGE_SIZE = 0x1000

#: The ports of both 8259s, their edge/level registers, the 8254, and the speaker beside it.
LEGACY_PORTS = frozenset(
    [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61],
)

_BROADCAST = 0xFF


class ApicRegister(enum.IntEnum):
    """Offsets in the local APIC's page (table 11-1)."""

    ID = 0x020
    VERSION = 0x030
    TASK_PRIORITY = 0x080
    PROCESSOR_PRIORITY = 0x0A0
    EOI = 0x0B0
    LOGICAL_DESTINATION = 0x0D0
    DESTINATION_FORMAT = 0x0E0
    SPURIOUS_INTERRUPT_VECTOR = 0x0F0
    IN_SERVICE = 0x100
    TRIGGER_MODE = 0x180
    INTERRUPT_REQUEST = 0x200
    INTERRUPT_COMMAND = 0x300
    INTERRUPT_COMMAND_HIGH = 0x310
    LVT_TIMER = 0x320
    LVT_THERMAL = 0x330
    LVT_PERFORMANCE = 0x340
    LVT_LINT0 = 0x350
    LVT_LINT1 = 0x360
    LVT_ERROR = 0x370
    INITIAL_COUNT = 0x380
    CURRENT_COUNT = 0x390
    DIVIDE_CONFIGURATION = 0x3E0


#: Integrated APIC, six local vector table entries (11.4.8).
_APIC_VERSION = 0x14 | 5 << 16
_APIC_SOFTWARE_ENABLE = 1 << 8
#: 256 bits in 8 registers, 16 bytes apart.
_BITMAP_SIZE = 0x80

# A local vector table entry (11.5.1), as far as it can be written.
_LVT_MASKED = 1 << 16
_LVT_PERIODIC = 1 << 17
_LVT_WRITABLE = 0xFF | 7 << 8 | 1 << 13 | 1 << 15 | _LVT_MASKED
_LVTS = frozenset(
    [
        ApicRegister.LVT_TIMER,
        ApicRegister.LVT_THERMAL,
        ApicRegister.LVT_PERFORMANCE,
        ApicRegister.LVT_LINT0,
        ApicRegister.LVT_LINT1,
        ApicRegister.LVT_ERROR,
    ]
)

# The interrupt command register (11.6.1).
_ICR_LOGICAL = 1 << 11
_ICR_WRITABLE = 0x000C_CFFF
_SHORTHAND_NONE, _SHORTHAND_OTHERS = 0, 3


class _Timer:
    """The timer, counting nanoseconds (11.5.4). `clock` is the time, in nanoseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.initial = 0
        self.divide_configuration = 0
        self.periodic = False
        self._due: int | None = None

    @property
    def _unit(self) -> int:
        """How many nanoseconds a count is: a power of two, 1 to 128."""
        encoded = self.divide_configuration & 3 | self.divide_configuration >> 1 & 4
        return 1 << (encoded + 1 & 7)

    @property
    def due(self) -> int | None:
        """When it next reaches zero, as the clock tells time; None when it stands still."""
        return self._due

    def load(self, count: int) -> None:
        """Count down from here; from 0 it stands still."""
        self.initial = count
        self._due = self._clock() + count * self._unit if count else None

    def current(self) -> int:
        """Return the current count."""
        if self._due is None:
            return 0
        return max(0, self._due - self._clock()) // self._unit

    def expire(self) -> bool:
        """Say whether it has reached zero, and let it go on from there."""
        now = self._clock()
        if self._due is None or now < self._due:
            return False
        if self.periodic:
            # Of periods that went by while the host was busy, one is told.
            period = self.initial * self._unit
            self._due += ((now - self._due) // period + 1) * period
        else:
            self._due = None
        return True


class LocalApic:
    """The local APIC of CPU 0. `on_eoi` is told the vectors of level-triggered interrupts.

    `clock` is the time by which its timer runs, in nanoseconds.
    """

    def __init__(
        self, on_eoi: Callable[[int], None], clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._on_eoi = on_eoi
        self._timer = _Timer(clock)
        self._lvt: dict[int, int] = dict.fromkeys(_LVTS, _LVT_MASKED)
        self._command = 0
        self._command_high = 0
        self._task_priority = 0
        self._logical_destination = 0
        self._destination_format = 0xFFFF_FFFF
        self._spurious = 0xFF
        # One bit a vector, as the registers of these names.
        self._in_service = 0
        self._trigger_mode = 0
        self._request = 0

    @property
    def _processor_priority(self) -> int:
        """What a vector's class must be above to interrupt the CPU (11.8.3.1)."""
        serving = max(self._in_service.bit_length() - 1, 0)
        if self._task_priority >> 4 >= serving >> 4:
            return self._task_priority
        return serving & 0xF0

    def is_addressed(self, destination: int, *, logical: bool) -> bool:
        """Say whether a message to `destination` is for this APIC (11.6.2), in the flat model."""
        if not logical:
            return destination in (0, _BROADCAST)
        return bool(destination & self._logical_destination >> 24)

    def request(self, vector: int, *, level: bool) -> None:
        """Take an interrupt message; ignored while software has the APIC disabled (11.4.7.2)."""
        # Vectors 0-15 are illegal (11.5.2).
        if not self._spurious & _APIC_SOFTWARE_ENABLE or vector < 16:
            return
        self._request |= 1 << vector
        self._trigger_mode &= ~(1 << vector)
        self._trigger_mode |= level << vector

    @property
    def deadline(self) -> int | None:
        """When `run_timer` has something to do, by the clock; None for never."""
        return self._timer.due

    def run_timer(self) -> None:
        """Let the timer interrupt, where it is due."""
        entry = self._lvt[ApicRegister.LVT_TIMER]
        if self._timer.expire() and not entry & _LVT_MASKED:
            self.request(entry & 0xFF, level=False)

    def _send(self, command: int) -> None:
        """Send an interrupt to CPUs (11.6.1): what is for this one, if it is a plain vector."""
        shorthand = command >> 18 & 3
        ours = shorthand != _SHORTHAND_OTHERS
        if shorthand == _SHORTHAND_NONE:
            ours = self.is_addressed(self._command_high >> 24, logical=bool(command & _ICR_LOGICAL))
        if ours and command >> 8 & 7 in (_FIXED, _LOWEST_PRIORITY):
            self.request(command & 0xFF, level=False)

    def pending(self) -> int | None:
        """Return the vector that the CPU is to be interrupted with, if any (11.8.3)."""
        vector = self._request.bit_length() - 1
        if vector < 0 or vector >> 4 <= self._processor_priority >> 4:
            return None
        return vector

    def acknowledge(self) -> int | None:
        """Give `pending`'s vector to the CPU: from requested it becomes in service (11.8.4)."""
        vector = self.pending()
        if vector is not None:
            self._request &= ~(1 << vector)
            self._in_service |= 1 << vector
        return vector

    def _end_of_interrupt(self) -> None:
        """End the most urgent interrupt in service (11.8.5)."""
        vector = self._in_service.bit_length() - 1
        if vector < 0:
            return
        self._in_service &= ~(1 << vector)
        if self._trigger_mode >> vector & 1:
            self._on_eoi(vector)

    def read(self, offset: int) -> int:
        """Return the register at `offset` in the page."""
        for start, bitmap in (
            (ApicRegister.IN_SERVICE, self._in_service),
            (ApicRegister.TRIGGER_MODE, self._trigger_mode),
            (ApicRegister.INTERRUPT_REQUEST, self._request),
        ):
            if start <= offset < start + _BITMAP_SIZE and not offset & 0xF:
                return bitmap >> (offset - start) * 2 & 0xFFFF_FFFF
        match offset:
            case ApicRegister.VERSION:
                return _APIC_VERSION
            case ApicRegister.TASK_PRIORITY:
                return self._task_priority
            case ApicRegister.PROCESSOR_PRIORITY:
                return self._processor_priority
            case ApicRegister.LOGICAL_DESTINATION:
                return self._logical_destination
            case ApicRegister.DESTINATION_FORMAT:
                return self._destination_format
            case ApicRegister.SPURIOUS_INTERRUPT_VECTOR:
                return self._spurious
            case ApicRegister.INTERRUPT_COMMAND:
                return self._command
            case ApicRegister.INTERRUPT_COMMAND_HIGH:
                return self._command_high
            case ApicRegister.INITIAL_COUNT:
                return self._timer.initial
            case ApicRegister.CURRENT_COUNT:
                return self._timer.current()
            case ApicRegister.DIVIDE_CONFIGURATION:
                return self._timer.divide_configuration
        return self._lvt.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Write the register at `offset` in the page."""
        match offset:
            case ApicRegister.TASK_PRIORITY:
                self._task_priority = value & 0xFF
            case ApicRegister.EOI:
                self._end_of_interrupt()
            case ApicRegister.LOGICAL_DESTINATION:
                self._logical_destination = value & 0xFF00_0000
            case ApicRegister.DESTINATION_FORMAT:
                self._destination_format = value | 0x0FFF_FFFF
            case ApicRegister.SPURIOUS_INTERRUPT_VECTOR:
                self._spurious = value & 0x1FF
            case ApicRegister.INTERRUPT_COMMAND:
                self._command = value & _ICR_WRITABLE
                self._send(self._command)
            case ApicRegister.INTERRUPT_COMMAND_HIGH:
                self._command_high = value & 0xFF00_0000
            case ApicRegister.LVT_TIMER:
                self._lvt[offset] = value & (_LVT_WRITABLE | _LVT_PERIODIC)
                self._timer.periodic = bool(value & _LVT_PERIODIC)
            case ApicRegister.INITIAL_COUNT:
                self._timer.load(value & 0xFFFF_FFFF)
            case ApicRegister.DIVIDE_CONFIGURATION:
                self._timer.divide_configuration = value & 0xB
        if offset in _LVTS and offset != ApicRegister.LVT_TIMER:
            self._lvt[offset] = value & _LVT_WRITABLE


class IoApicRegister(enum.IntEnum):
    """What the index register selects (82093AA, 3.2)."""

    ID = 0x00
    VERSION = 0x01
    ARBITRATION = 0x02
    REDIRECTION_TABLE = 0x10


#: Offsets in the IOAPIC's page (82093AA, 3.1).
IOREGSEL = 0x00
IOWIN = 0x10

IOAPIC_PINS = 24
_IOAPIC_VERSION = 0x11 | (IOAPIC_PINS - 1) << 16

# A redirection table entry (82093AA, 3.2.4).
_MASKED = 1 << 16
_LEVEL_TRIGGERED = 1 << 15
_REMOTE_IRR = 1 << 14
_DELIVERY_STATUS = 1 << 12
_LOGICAL = 1 << 11
_READ_ONLY = _REMOTE_IRR | _DELIVERY_STATUS
_FIXED, _LOWEST_PRIORITY = 0, 1


@dataclass(slots=True)
class _Pin:
    """An input: its redirection table entry, and the level of the line."""

    entry: int = _MASKED
    level: bool = False


class IoApic:
    """The IOAPIC; `send(vector, destination, logical, level)` carries its messages."""

    def __init__(self, send: Callable[[int, int, bool, bool], None]) -> None:
        self._send = send
        self._index = 0
        self._id = 0
        self._pins = [_Pin() for _ in range(IOAPIC_PINS)]

    def set_line(self, number: int, level: bool) -> None:
        """Set the level of an input; an edge that comes while it is masked is lost."""
        pin = self._pins[number]
        rising = level and not pin.level
        pin.level = level
        if rising or pin.entry & _LEVEL_TRIGGERED:
            self._service(pin)

    def _service(self, pin: _Pin) -> None:
        entry = pin.entry
        if not pin.level or entry & (_MASKED | _REMOTE_IRR):
            return
        if entry >> 8 & 7 not in (_FIXED, _LOWEST_PRIORITY):
            return
        level = bool(entry & _LEVEL_TRIGGERED)
        if level:
            pin.entry |= _REMOTE_IRR
        self._send(entry & 0xFF, entry >> 56, bool(entry & _LOGICAL), level)

    def end_of_interrupt(self, vector: int) -> None:
        """Take a local APIC's word that a level-triggered interrupt was served."""
        for pin in self._pins:
            if pin.entry & _REMOTE_IRR and pin.entry & 0xFF == vector:
                pin.entry &= ~_REMOTE_IRR
                self._service(pin)

    def read(self, offset: int) -> int:
        """Return the register at `offset` in the page."""
        if offset == IOREGSEL:
            return self._index
        if offset != IOWIN:
            return 0
        match self._index:
            case IoApicRegister.ID | IoApicRegister.ARBITRATION:
                return self._id
            case IoApicRegister.VERSION:
                return _IOAPIC_VERSION
        number, high = divmod(self._index - IoApicRegister.REDIRECTION_TABLE, 2)
        if not 0 <= number < IOAPIC_PINS:
            return 0
        return self._pins[number].entry >> 32 * high & 0xFFFF_FFFF

    def write(self, offset: int, value: int) -> None:
        """Write the register at `offset` in the page."""
        if offset == IOREGSEL:
            self._index = value & 0xFF
        elif offset == IOWIN:
            self._write_selected(value)

    def _write_selected(self, value: int) -> None:
        if self._index == IoApicRegister.ID:
            self._id = value & 0x0F00_0000
            return
        number, high = divmod(self._index - IoApicRegister.REDIRECTION_TABLE, 2)
        if not 0 <= number < IOAPIC_PINS:
            return
        pin = self._pins[number]
        if high:
            pin.entry = value << 32 | pin.entry & 0xFFFF_FFFF
            return
        pin.entry &= ~0xFFFF_FFFF | _READ_ONLY
        pin.entry |= value & ~_READ_ONLY
        if not value & _LEVEL_TRIGGERED:
            pin.entry &= ~_REMOTE_IRR
        else:
            self._service(pin)


class InterruptChips:
    """A local APIC, an IOAPIC wired to it, and the ports of the chips from before them."""

    def __init__(self) -> None:
        self.io_apic = IoApic(self._carry)
        self.local_apic = LocalApic(self.io_apic.end_of_interrupt)
        self._ports = dict.fromkeys(LEGACY_PORTS, 0)

    def _carry(self, vector: int, destination: int, logical: bool, level: bool) -> None:
        if self.local_apic.is_addressed(destination, logical=logical):
            self.local_apic.request(vector, level=level)

    def read_port(self, port: int) -> int:
        """Return what was last written to one of LEGACY_PORTS."""
        return self._ports[port]

    def write_port(self, port: int, value: int) -> None:
        """Remember a byte that does nothing."""
        self._ports[port] = value & 0xFF
