import os
import threading
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from virtiopy.eventloop import EventLoop
from virtiopy.host.stream import FileStream, PtyStream
from virtiopy.virtqueue.buffers import Buffers, total
from virtiopy.vm.serial import FIFO_SIZE, WAITING_MAX, Register, SerialPort

DATA_READY, TRANSMITTER_EMPTY = 0x01, 0x60
NONE, THR_EMPTY, RECEIVED = 0x01, 0x02, 0x04
OUT2, LOOP = 0x08, 0x10


class Line:
    """The interrupt line, and the port on it."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0
        self.output = bytearray()
        self.port = SerialPort(self.set, self.output.extend)

    def set(self, level: bool) -> None:
        self.edges += level and not self.level
        self.level = level

    def read(self, register: Register) -> int:
        return self.port.read(register, 1)[0]

    def write(self, register: Register, value: int) -> None:
        self.port.write(register, bytes([value]))


@pytest.fixture
def line() -> Line:
    line = Line()
    line.write(Register.MODEM_CONTROL, OUT2)
    return line


def test_what_is_written_is_output(line: Line) -> None:
    for byte in b"hello":
        line.write(Register.DATA, byte)
        assert line.read(Register.LINE_STATUS) == TRANSMITTER_EMPTY
    assert line.output == b"hello"


def test_the_driver_is_told_that_the_transmitter_is_empty_once_for_each_time(line: Line) -> None:
    line.write(Register.INTERRUPT_ENABLE, 2)
    assert line.level
    assert line.read(Register.INTERRUPT_IDENTIFICATION) == THR_EMPTY
    assert not line.level
    assert line.read(Register.INTERRUPT_IDENTIFICATION) == NONE

    line.write(Register.DATA, ord("x"))
    assert line.level
    assert line.edges == 2


def test_enabling_the_transmitters_interrupt_again_raises_it_again(line: Line) -> None:
    line.write(Register.INTERRUPT_ENABLE, 2)
    line.read(Register.INTERRUPT_IDENTIFICATION)
    line.write(Register.INTERRUPT_ENABLE, 0)
    line.write(Register.INTERRUPT_ENABLE, 2)
    assert line.level


def test_no_interrupt_leaves_the_port_without_out2() -> None:
    line = Line()
    line.write(Register.INTERRUPT_ENABLE, 2)
    assert not line.level
    assert line.read(Register.INTERRUPT_IDENTIFICATION) == THR_EMPTY


def test_the_divisor_is_behind_dlab(line: Line) -> None:
    line.write(Register.LINE_CONTROL, 0x83)
    line.write(Register.DATA, 12)
    line.write(Register.INTERRUPT_ENABLE, 1)
    assert (line.read(Register.DATA), line.read(Register.INTERRUPT_ENABLE)) == (12, 1)
    line.write(Register.LINE_CONTROL, 0x03)
    assert line.output == b""
    assert line.read(Register.INTERRUPT_ENABLE) == 0


def test_a_driver_finds_a_16550a() -> None:
    line = Line()
    line.write(Register.SCRATCH, 0x5A)
    assert line.read(Register.SCRATCH) == 0x5A
    line.write(Register.INTERRUPT_IDENTIFICATION, 1)
    assert line.read(Register.INTERRUPT_IDENTIFICATION) >> 6 == 3
    line.write(Register.INTERRUPT_IDENTIFICATION, 0)
    assert line.read(Register.INTERRUPT_IDENTIFICATION) >> 6 == 0
    # What Linux looks for in a loop: RTS and OUT2 come back as CTS and DCD.
    line.write(Register.MODEM_CONTROL, LOOP | 0x0A)
    assert line.read(Register.MODEM_STATUS) & 0xF0 == 0x90


def test_in_a_loop_output_comes_back_as_input(line: Line) -> None:
    line.write(Register.MODEM_CONTROL, LOOP)
    line.write(Register.DATA, 0x41)
    assert line.output == b""
    assert line.read(Register.LINE_STATUS) & DATA_READY
    assert line.read(Register.DATA) == 0x41


@pytest.mark.parametrize("register", list(Register))
@pytest.mark.parametrize("size", [1, 2, 4])
def test_rubbish_in_any_register_leaves_the_port_working(register: Register, size: int) -> None:
    line = Line()
    for value in (0x00, 0x5A, 0xFF):
        line.port.write(register, bytes([value] * size))
        assert len(line.port.read(register, size)) == size
    line.write(Register.LINE_CONTROL, 0x03)
    line.write(Register.MODEM_CONTROL, OUT2)
    line.write(Register.DATA, ord("!"))
    assert line.output.endswith(b"!")


class Loop:
    """A port with a stream on a running event loop."""

    def __init__(self, stream: PtyStream | FileStream) -> None:
        self.interrupted = threading.Event()
        self.loop = EventLoop("devices")
        self.port = SerialPort(self.set, stream=stream)
        self.port.write(Register.MODEM_CONTROL, bytes([OUT2]))
        self.port.write(Register.INTERRUPT_ENABLE, b"\1")
        self.port.attach(self.loop)
        self.loop.start()

    def set(self, level: bool) -> None:
        (self.interrupted.set if level else self.interrupted.clear)()

    def close(self) -> None:
        self.loop.stop()
        self.port.close()
        self.loop.close()

    def take(self, count: int) -> bytes:
        taken = bytearray()
        while len(taken) < count:
            assert self.interrupted.wait(PATIENCE), taken
            if self.port.read(Register.LINE_STATUS, 1)[0] & DATA_READY:
                taken += self.port.read(Register.DATA, 1)
        return bytes(taken)


def test_what_is_typed_comes_in_by_interrupts_however_much_it_is() -> None:
    stream = PtyStream(None, wait=False)
    rig = Loop(stream)
    terminal = os.open(stream.path, os.O_RDWR | os.O_NOCTTY)
    try:
        text = bytes(range(0x61, 0x7B)) * 10
        assert len(text) > 4 * FIFO_SIZE
        os.write(terminal, text)
        assert rig.take(len(text)) == text
    finally:
        os.close(terminal)
        rig.close()


def test_output_goes_to_the_stream_to_its_last_byte(tmp_path: Path) -> None:
    rig = Loop(FileStream(tmp_path / "log"))
    for byte in b"x" * 5000 + b"\n":
        rig.port.write(Register.DATA, bytes([byte]))
    rig.close()
    assert (tmp_path / "log").read_bytes() == b"x" * 5000 + b"\n"


class StuckStream:
    """A host's side that takes nothing until it is told to."""

    connected, size = True, None

    def __init__(self) -> None:
        self.room = 0
        self.taken = bytearray()
        self.watched = False

    def open(self, loop: EventLoop, user: object) -> None:
        pass

    def read(self, count: int) -> bytes:
        return b""

    def write(self, buffers: Buffers) -> int:
        count = min(self.room, total(buffers))
        self.taken += b"".join(buffers)[:count]
        self.room -= count
        return count

    def watch_input(self, on: bool) -> None:
        pass

    def watch_room(self, on: bool) -> None:
        self.watched = on

    def close(self) -> None:
        pass


def test_a_driver_that_is_told_of_no_room_cannot_fill_the_hosts_memory() -> None:
    stream = StuckStream()
    port = SerialPort(lambda level: None, stream=stream)
    for _ in range(WAITING_MAX):
        assert port.read(Register.LINE_STATUS, 1)[0] == TRANSMITTER_EMPTY
        port.write(Register.DATA, b"x")
    assert port.read(Register.LINE_STATUS, 1)[0] == 0
    port.write(Register.DATA, b"y")

    assert stream.watched
    stream.room = 2 * WAITING_MAX
    port.room_ready()
    assert port.read(Register.LINE_STATUS, 1)[0] == TRANSMITTER_EMPTY
    assert stream.taken == b"x" * WAITING_MAX
