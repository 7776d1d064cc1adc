"""The serial port COM1: a 16550A, as the data sheets of National Semiconductor's PC16550D have it.

It sends as fast as the host's side takes: the transmitter is nearly always empty, and the driver
is told so by an interrupt where it asks for one. What comes in waits in a FIFO of 16 bytes, and
beyond that with the host.
"""

import enum
import threading
import time
from collections import deque
from collections.abc import Callable

from virtiopy.devices.streams import Stream
from virtiopy.eventloop import EventLoop

#: The registers' ports and interrupt: COM1's.
SERIAL_PORT, SERIAL_PORTS, SERIAL_GSI = 0x3F8, 8, 4

FIFO_SIZE = 16

#: What waits for the host's side, bytes, before the transmitter tells the driver that it is full.
WAITING_MAX = 1 << 16

#: How long the end of the output may take, and how often it is tried, seconds.
_LINGER_SECONDS, _LINGER_LOOK = 1.0, 0.002


class Register(enum.IntEnum):
    """Offsets; DATA and INTERRUPT_ENABLE are the divisor's while DLAB is set."""

    DATA = 0
    INTERRUPT_ENABLE = 1
    INTERRUPT_IDENTIFICATION = 2  # to write: FIFO_CONTROL
    LINE_CONTROL = 3
    MODEM_CONTROL = 4
    LINE_STATUS = 5
    MODEM_STATUS = 6
    SCRATCH = 7


# INTERRUPT_ENABLE.
_IER_RECEIVED = 1 << 0
_IER_TRANSMITTER_EMPTY = 1 << 1
_IER_WRITABLE = 0x0F

# INTERRUPT_IDENTIFICATION, most urgent first.
_IIR_NONE = 0x01
_IIR_TRANSMITTER_EMPTY = 0x02
_IIR_RECEIVED = 0x04
_IIR_FIFOS = 0xC0

# FIFO_CONTROL.
_FCR_ENABLE = 1 << 0
_FCR_CLEAR_RECEIVER = 1 << 1

_LCR_DLAB = 1 << 7

# MODEM_CONTROL.
_MCR_OUT2 = 1 << 3  # lets interrupts through to the line
_MCR_LOOP = 1 << 4

# LINE_STATUS.
_LSR_DATA_READY = 1 << 0
_LSR_TRANSMITTER_EMPTY = 3 << 5

#: MODEM_STATUS: the other end is there (DCD, DSR), and ready (CTS).
_MSR_CONNECTED = 0xB0


class SerialPort:
    """A 16550A. Its registers are the CPU's thread's to use; its stream is the event loop's.

    `set_interrupt` sets the level of its line; it is called with the port's lock held, from either.
    Output goes to `output` byte by byte as well, for who keeps it.
    """

    def __init__(
        self,
        set_interrupt: Callable[[bool], None],
        output: Callable[[bytes], None] = lambda data: None,
        stream: Stream | None = None,
    ) -> None:
        self._set_interrupt = set_interrupt
        self._output = output
        self._stream = stream
        self.lock = threading.RLock()
        self._received: deque[int] = deque()
        self._waiting = bytearray()
        self._level = False
        self._empty_pending = False
        self._divisor = 1
        self._enabled = 0
        self._fifos = False
        self._line_control = 0
        self._modem_control = 0
        self._scratch = 0
        self._ready: Callable[[], None] | None = None

    # The bus's side

    def register_name(self, offset: int) -> str:
        """Name the register, for the exit report."""
        return Register(offset).name.lower()

    def read(self, offset: int, size: int) -> bytes:
        """Return a register; the bytes beyond the first read as 0."""
        with self.lock:
            return self._read(offset).to_bytes(size, "little")

    def _read(self, offset: int) -> int:
        match offset:
            case Register.DATA:
                if self._line_control & _LCR_DLAB:
                    return self._divisor & 0xFF
                return self._take_byte()
            case Register.INTERRUPT_ENABLE:
                return self._divisor >> 8 if self._line_control & _LCR_DLAB else self._enabled
            case Register.INTERRUPT_IDENTIFICATION:
                cause = self._cause()
                if cause == _IIR_TRANSMITTER_EMPTY:
                    # To be told of it is to have taken it.
                    self._empty_pending = False
                    self._update()
                return cause | (_IIR_FIFOS if self._fifos else 0)
            case Register.LINE_CONTROL:
                return self._line_control
            case Register.MODEM_CONTROL:
                return self._modem_control
            case Register.LINE_STATUS:
                empty = len(self._waiting) < WAITING_MAX
                ready = _LSR_DATA_READY if self._received else 0
                return ready | (_LSR_TRANSMITTER_EMPTY if empty else 0)
            case Register.MODEM_STATUS:
                return self._modem_status()
        return self._scratch

    def _modem_status(self) -> int:
        if not self._modem_control & _MCR_LOOP:
            return _MSR_CONNECTED
        # In a loop the outputs are the inputs: RTS is CTS, DTR is DSR, OUT1 is RI, OUT2 is DCD.
        control = self._modem_control
        return (control & 2) << 3 | (control & 1) << 5 | (control & 4) << 4 | (control & 8) << 4

    def write(self, offset: int, data: bytes) -> None:
        """Take what is written to a register."""
        with self.lock:
            self._write(offset, data[0])

    def _write(self, offset: int, value: int) -> None:
        match offset:
            case Register.DATA:
                if self._line_control & _LCR_DLAB:
                    self._divisor = self._divisor & 0xFF00 | value
                else:
                    self._send(value)
            case Register.INTERRUPT_ENABLE:
                if self._line_control & _LCR_DLAB:
                    self._divisor = self._divisor & 0xFF | value << 8
                    return
                if value & ~self._enabled & _IER_TRANSMITTER_EMPTY:
                    self._empty_pending = True
                self._enabled = value & _IER_WRITABLE
            case Register.INTERRUPT_IDENTIFICATION:
                self._fifos = bool(value & _FCR_ENABLE)
                if value & _FCR_CLEAR_RECEIVER:
                    self._received.clear()
            case Register.LINE_CONTROL:
                self._line_control = value
            case Register.MODEM_CONTROL:
                self._modem_control = value & 0x1F
            case Register.SCRATCH:
                self._scratch = value
        self._update()

    def _send(self, value: int) -> None:
        if self._modem_control & _MCR_LOOP:
            if len(self._received) < FIFO_SIZE:
                self._received.append(value)
        else:
            self._output(bytes([value]))
            # A driver that writes on when it is told of no room loses what it writes.
            if self._stream is not None and len(self._waiting) < WAITING_MAX:
                self._waiting.append(value)
                self._flush()
        self._empty_pending = len(self._waiting) < WAITING_MAX

    def _take_byte(self) -> int:
        if not self._received:
            return 0
        value = self._received.popleft()
        self._update()
        if not self._received and self._ready is not None:
            self._ready()
        return value

    def _cause(self) -> int:
        if self._enabled & _IER_RECEIVED and self._received:
            return _IIR_RECEIVED
        if self._enabled & _IER_TRANSMITTER_EMPTY and self._empty_pending:
            return _IIR_TRANSMITTER_EMPTY
        return _IIR_NONE

    def _update(self) -> None:
        allowed = self._modem_control & _MCR_OUT2 and not self._modem_control & _MCR_LOOP
        level = bool(allowed) and self._cause() != _IIR_NONE
        if level != self._level:
            self._level = level
            self._set_interrupt(level)

    # The host's side: a StreamUser

    def attach(self, loop: EventLoop) -> None:
        """Start to use the stream, on its event loop."""
        if self._stream is None:
            return
        stream = self._stream
        look = loop.bottom_half(self.input_ready, "serial input")
        self._ready = look.schedule
        with self.lock:
            stream.open(loop, self)
            stream.watch_input(True)

    def input_ready(self) -> None:
        """Take what there is room for."""
        with self.lock:
            if self._stream is None:
                return
            room = FIFO_SIZE - len(self._received)
            data = self._stream.read(room) if room else b""
            self._received.extend(data)
            self._stream.watch_input(len(self._received) < FIFO_SIZE)
            self._update()

    def room_ready(self) -> None:
        """Go on with output that had to wait."""
        with self.lock:
            full = len(self._waiting) >= WAITING_MAX
            self._flush()
            if full and len(self._waiting) < WAITING_MAX:
                self._empty_pending = True
                self._update()

    def size_changed(self) -> None:
        """Do nothing: a serial line tells no size."""

    def connection_changed(self) -> None:
        """Do nothing: a serial line is always open."""

    def _flush(self) -> None:
        assert self._stream is not None
        if self._waiting:
            written = self._stream.write([memoryview(bytes(self._waiting))])
            del self._waiting[:written]
        self._stream.watch_room(bool(self._waiting))

    def close(self) -> None:
        """Close the stream, when it has taken what waits for it; or after a second."""
        deadline = time.monotonic() + _LINGER_SECONDS
        with self.lock:
            if self._stream is None:
                return
            while self._waiting and time.monotonic() < deadline:
                self._flush()
                if self._waiting:
                    time.sleep(_LINGER_LOOK)
            self._stream.close()
            self._stream = None
