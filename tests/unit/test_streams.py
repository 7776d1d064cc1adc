"""The host's sides of console ports, with real files, sockets and pseudoterminals."""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.openfiles import open_files
from tests.patience import PATIENCE
from virtiopy.devices.streams import Size, Stream
from virtiopy.errors import ConfigError
from virtiopy.eventloop import EventLoop
from virtiopy.host.stream import FileStream, PtyStream, SocketStream
from virtiopy.host.terminal import TYPED_BYTES, StdioStream

MIB = bytes(range(256)) * 4096


class Guest:
    """A port: takes all input while it `reads`, and writes what it is given as there is room."""

    def __init__(self, stream: Stream, loop: EventLoop) -> None:
        self.lock = threading.RLock()
        self.stream = stream
        self.reads = True
        self.received = bytearray()
        self.connections: list[bool] = []
        self.sizes: list[Size | None] = []
        self._output = b""
        self._changed = threading.Condition(self.lock)
        with self.lock:
            stream.open(loop, self)
            stream.watch_input(True)

    def input_ready(self) -> None:
        if self.reads:
            self.received += self.stream.read(1 << 16)
        self.stream.watch_input(self.reads)
        self._changed.notify_all()

    def room_ready(self) -> None:
        taken = self.stream.write([memoryview(self._output)]) if self._output else 0
        self._output = self._output[taken:]
        self.stream.watch_room(bool(self._output))
        self._changed.notify_all()

    def connection_changed(self) -> None:
        self.connections.append(self.stream.connected)
        self.room_ready()

    def size_changed(self) -> None:
        self.sizes.append(self.stream.size)
        self._changed.notify_all()

    # What the tests do

    def write(self, data: bytes) -> None:
        with self.lock:
            self._output += data
            self.room_ready()

    def read_from_now_on(self, on: bool) -> None:
        with self.lock:
            self.reads = on
            self.stream.watch_input(on)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.lock:
            assert self._changed.wait_for(condition, PATIENCE)

    def wait_for_input(self, data: bytes) -> None:
        self.wait(lambda: len(self.received) >= len(data))
        assert self.received == data

    def wait_written(self) -> None:
        self.wait(lambda: not self._output)

    def wait_connections(self, *connections: bool) -> None:
        self.wait(lambda: self.connections == list(connections))


@contextmanager
def guest_of(stream: Stream) -> Iterator[Guest]:
    """A guest on `stream`, whose loop runs."""
    with EventLoop() as loop:
        guest = Guest(stream, loop)
        loop.start()
        try:
            yield guest
        finally:
            loop.stop()
            stream.close()


def read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := os.read(fd, count - len(data))):
        data += piece
    return data


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what nothing tells of."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# A file


def test_output_goes_to_the_file_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for text in (b"old and long", b"new"):
        with guest_of(FileStream(path)) as guest:
            guest.write(text)
    assert path.read_bytes() == b"new"


def test_output_is_appended_to_the_file_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old, ")
    with guest_of(FileStream(path, append=True)) as guest:
        guest.write(b"new")
    assert path.read_bytes() == b"old, new"


def test_a_file_that_cannot_be_written_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent/log cannot be written \(No such file"):
        FileStream(tmp_path / "absent" / "log")


def test_a_full_disk_drops_output_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with guest_of(FileStream(Path("/dev/full"))) as guest:
        guest.write(b"lost")
        guest.write(b"lost")
    assert [record.message for record in caplog.records] == [
        "/dev/full: No space left on device: output is dropped"
    ]


def test_a_file_grows_up_to_its_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log"
    with guest_of(FileStream(path, limit=6)) as guest:
        for text in (b"first ", b"lost", b"lost"):
            guest.write(text)
    assert path.read_bytes() == b"first "
    assert len(caplog.records) == 1
    assert "limit= gives it more" in caplog.text


def test_a_fifo_whose_reader_is_slow_gets_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    with guest_of(FileStream(path)) as guest:
        guest.write(MIB)
        assert read_exactly(reader, len(MIB)) == MIB
    os.close(reader)


# A socket


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "console.sock"


def test_a_client_of_the_socket_talks_to_the_guest(path: Path) -> None:
    with guest_of(SocketStream(path)) as guest, connect(path) as client:
        guest.wait_connections(True)
        client.sendall(b"in")
        guest.wait_for_input(b"in")
        guest.write(b"out")
        assert client.recv(10) == b"out"


def test_clients_may_come_and_go(path: Path) -> None:
    with guest_of(SocketStream(path)) as guest:
        for number in range(3):
            with connect(path) as client:
                guest.wait_connections(*[True, False] * number, True)
                client.sendall(b"%d" % number)
                guest.wait_for_input(b"012"[: number + 1])
            guest.wait_connections(*[True, False] * (number + 1))


def test_what_a_client_wrote_before_it_left_is_read_and_then_the_next_is_served(
    path: Path,
) -> None:
    with guest_of(SocketStream(path)) as guest:
        guest.read_from_now_on(False)
        for data in (b"first", b"second"):
            with connect(path) as client:
                client.sendall(data)
        guest.wait_connections(True, False)
        guest.read_from_now_on(True)
        guest.wait_for_input(b"firstsecond")


def test_a_second_client_waits_until_the_first_leaves(path: Path) -> None:
    with guest_of(SocketStream(path)) as guest, connect(path) as first:
        guest.wait_connections(True)
        with connect(path) as second:
            second.sendall(b"second")
            first.sendall(b"first")
            guest.wait_for_input(b"first")
            first.close()
            guest.wait_for_input(b"firstsecond")


def test_a_client_that_has_shut_down_its_writing_still_reads(path: Path) -> None:
    with guest_of(SocketStream(path)) as guest, connect(path) as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        guest.wait_for_input(b"last words")
        guest.write(b"answer")
        assert client.recv(10) == b"answer"
        assert guest.connections == [True]


def test_output_without_a_client_is_dropped_and_counted(path: Path) -> None:
    stream = SocketStream(path)
    with guest_of(stream) as guest:
        guest.write(b"nobody")
        guest.wait_written()
        assert stream.dropped == 6
        with connect(path) as client:
            guest.wait_connections(True)
            guest.write(b"somebody")
            assert client.recv(20) == b"somebody"


def test_output_waits_for_the_first_client_where_that_is_asked_for(path: Path) -> None:
    with guest_of(SocketStream(path, wait=True)) as guest:
        guest.write(b"held, ")
        with connect(path) as client:
            assert client.recv(6) == b"held, "


def test_output_that_waits_for_a_client_that_leaves_is_dropped(path: Path) -> None:
    with guest_of(SocketStream(path)) as guest, connect(path) as client:
        guest.wait_connections(True)
        guest.write(MIB * 4)
        client.close()
        guest.wait_written()
        guest.wait_connections(True, False)


def test_a_slow_client_gets_every_byte_and_a_slow_guest_too(path: Path) -> None:
    with guest_of(SocketStream(path)) as guest, connect(path) as client:
        guest.read_from_now_on(False)
        client.setblocking(True)
        guest.wait_connections(True)
        sender = threading.Thread(target=client.sendall, args=(MIB,))
        sender.start()
        guest.write(MIB)
        assert read_exactly(client.fileno(), len(MIB)) == MIB
        guest.read_from_now_on(True)
        guest.wait_for_input(MIB)
        sender.join()


def test_the_socket_is_removed_at_the_end_and_no_file_stays_open(path: Path) -> None:
    before = open_files()
    with guest_of(SocketStream(path)) as guest, connect(path):
        guest.wait_connections(True)
    assert not path.exists()
    assert open_files() == before


def test_a_socket_that_was_left_behind_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with guest_of(SocketStream(path)) as guest, connect(path):
        guest.wait_connections(True)


def test_a_socket_that_somebody_listens_at_is_refused(path: Path) -> None:
    with closing(SocketStream(path)), pytest.raises(ConfigError, match="Another process listens"):
        SocketStream(path)


def test_a_file_in_the_place_of_a_socket_is_refused_and_stays(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is no socket: name another path"):
        SocketStream(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["absent/console.sock", "x" * 120])
def test_a_path_where_no_socket_can_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="No socket can be made at"):
        SocketStream(tmp_path / name)


# A pseudoterminal


@contextmanager
def terminal_of(stream: PtyStream) -> Iterator[int]:
    fd = os.open(stream.path, os.O_RDWR | os.O_NOCTTY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_whoever_opens_the_pseudoterminal_talks_to_the_guest() -> None:
    stream = PtyStream()
    with guest_of(stream) as guest, terminal_of(stream) as terminal:
        guest.wait_connections(True)
        os.write(terminal, b"in\r\x03\n")
        guest.wait_for_input(b"in\r\x03\n")
        guest.write(b"out\n")
        assert read_exactly(terminal, 4) == b"out\n"


def test_the_pseudoterminal_can_be_opened_again() -> None:
    stream = PtyStream()
    with guest_of(stream) as guest:
        for number in range(3):
            with terminal_of(stream) as terminal:
                guest.wait_connections(*[True, False] * number, True)
                os.write(terminal, b"%d" % number)
            guest.wait_connections(*[True, False] * (number + 1))
            guest.wait_for_input(b"012"[: number + 1])


def test_output_with_nobody_at_the_pseudoterminal_is_dropped_and_counted() -> None:
    stream = PtyStream()
    with guest_of(stream) as guest:
        guest.write(b"nobody")
        guest.wait_written()
        assert stream.dropped == 6


def test_output_waits_for_the_first_who_opens_where_that_is_asked_for() -> None:
    stream = PtyStream(wait=True)
    with guest_of(stream) as guest:
        guest.write(b"held")
        with terminal_of(stream) as terminal:
            assert read_exactly(terminal, 4) == b"held"


def test_a_slow_pseudoterminal_gets_every_byte_and_a_slow_guest_too() -> None:
    stream = PtyStream()
    with guest_of(stream) as guest, terminal_of(stream) as terminal:
        guest.wait_connections(True)
        guest.read_from_now_on(False)
        sender = threading.Thread(target=write_all, args=(terminal, MIB))
        sender.start()
        guest.write(MIB)
        assert read_exactly(terminal, len(MIB)) == MIB
        guest.read_from_now_on(True)
        guest.wait_for_input(MIB)
        sender.join()


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def test_what_was_written_last_can_still_be_read_while_the_device_closes() -> None:
    stream = PtyStream()
    tail = MIB[:3000]
    with guest_of(stream) as guest, terminal_of(stream) as terminal:
        guest.wait_connections(True)
        guest.write(tail)
        guest.wait_written()
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(read_exactly(terminal, len(tail))))
        stream_closer = threading.Thread(target=stream.close)
        stream_closer.start()
        reader.start()
        reader.join()
        stream_closer.join()
    assert found == [tail]


def test_a_link_names_the_pseudoterminal_and_goes_with_it(tmp_path: Path) -> None:
    link = tmp_path / "console"
    before = open_files()
    with guest_of(PtyStream(link)) as guest:
        assert isinstance(guest.stream, PtyStream)
        assert os.readlink(link) == guest.stream.path
    assert not link.is_symlink()
    assert open_files() == before


def test_a_link_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "console"
    link.symlink_to("/dev/pts/99999")
    stream = PtyStream(link)
    with closing(stream):
        assert os.readlink(link) == stream.path


def test_a_file_in_the_place_of_the_link_is_refused_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "console"
    link.write_text("precious")
    before = open_files()
    with pytest.raises(ConfigError, match=r"No link can be made at .*console \(File exists\)"):
        PtyStream(link)
    assert link.read_text() == "precious"
    assert open_files() == before


# Standard input and output that are no terminal


@contextmanager
def stdio(input_fd: int, output_fd: int) -> Iterator[Guest]:
    with guest_of(StdioStream(input_fd, output_fd)) as guest:
        yield guest


def test_pipes_are_passed_through_to_the_byte() -> None:
    (input_end, feeder), (reader, output_end) = os.pipe(), os.pipe()
    data = bytes(range(256)) + b"\x01x\x01\x01"
    with stdio(input_end, output_end) as guest:
        os.write(feeder, data)
        guest.wait_for_input(data)
        guest.write(data)
        assert read_exactly(reader, len(data)) == data
    for fd in (input_end, feeder, reader, output_end):
        assert os.get_blocking(fd)
        os.close(fd)


def test_the_end_of_the_input_leaves_the_output_as_it_is() -> None:
    (input_end, feeder), (reader, output_end) = os.pipe(), os.pipe()
    with stdio(input_end, output_end) as guest:
        os.write(feeder, b"last")
        os.close(feeder)
        guest.wait_for_input(b"last")
        guest.write(b"still here")
        assert read_exactly(reader, 10) == b"still here"
        assert guest.stream.connected
    for fd in (input_end, reader, output_end):
        os.close(fd)


def test_input_may_come_from_a_file_and_output_go_to_one(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(MIB)
    with (
        (tmp_path / "in").open("rb") as source,
        (tmp_path / "out").open("wb") as sink,
        stdio(source.fileno(), sink.fileno()) as guest,
    ):
        guest.wait_for_input(MIB)
        guest.write(MIB)
        guest.wait_written()
    assert (tmp_path / "out").read_bytes() == MIB


def test_dev_null_is_an_input_that_has_ended() -> None:
    with (
        open("/dev/null", "r+b", buffering=0) as null,
        stdio(null.fileno(), null.fileno()) as guest,
    ):
        guest.write(b"gone")
        guest.wait_written()
        assert guest.received == b""


def test_sockets_are_made_to_block_again() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with stdio(ours.fileno(), ours.fileno()) as guest:
            theirs.sendall(b"in")
            guest.wait_for_input(b"in")
            guest.write(b"out")
            assert theirs.recv(10) == b"out"
        assert os.get_blocking(ours.fileno())


def test_output_whose_reader_is_gone_is_dropped() -> None:
    (input_end, feeder), (reader, output_end) = os.pipe(), os.pipe()
    with stdio(input_end, output_end) as guest:
        os.close(reader)
        guest.write(MIB)
        guest.wait_written()
    for fd in (input_end, feeder, output_end):
        os.close(fd)


def test_standard_input_can_be_had_once_at_a_time() -> None:
    with open("/dev/null", "r+b", buffering=0) as null:
        fds = null.fileno(), null.fileno()
        with closing(StdioStream(*fds)), pytest.raises(ConfigError, match="one port only"):
            StdioStream(*fds)
        StdioStream(*fds).close()


# A terminal


class Terminal:
    """A pseudoterminal that plays the user's: `user` is where they type, `fd` is ours."""

    def __init__(self) -> None:
        self.user, self.fd = os.openpty()
        self.resize(80, 25)
        self.mode = termios.tcgetattr(self.fd)

    def resize(self, cols: int, rows: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    @property
    def is_raw(self) -> bool:
        local = termios.tcgetattr(self.fd)[tty.LFLAG]
        return not local & (termios.ECHO | termios.ICANON | termios.ISIG)

    @property
    def is_restored(self) -> bool:
        return termios.tcgetattr(self.fd) == self.mode

    def type(self, data: bytes) -> None:
        write_all(self.user, data)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    os.close(terminal.user)
    os.close(terminal.fd)


@contextmanager
def console(terminal: Terminal, on_leave: Callable[[], None] = lambda: None) -> Iterator[Guest]:
    with guest_of(StdioStream(terminal.fd, terminal.fd, on_leave=on_leave)) as guest:
        yield guest


def test_a_terminal_is_raw_while_the_stream_is_open(terminal: Terminal) -> None:
    before = open_files()
    with console(terminal) as guest:
        assert terminal.is_raw
        terminal.type(b"\x03\x04\x1a\r\x11\x13\x1c")
        guest.wait_for_input(b"\x03\x04\x1a\r\x11\x13\x1c")
    assert terminal.is_restored
    assert open_files() == before


def test_the_line_ends_of_whoever_else_prints_are_still_processed(terminal: Terminal) -> None:
    with console(terminal):
        os.write(terminal.fd, b"a line\n")
        assert read_exactly(terminal.user, 8) == b"a line\r\n"
        assert os.get_blocking(terminal.fd)


def test_a_terminal_that_is_slow_gets_every_byte(terminal: Terminal) -> None:
    data = MIB.replace(b"\n", b"")
    with console(terminal) as guest:
        guest.write(data)
        assert read_exactly(terminal.user, len(data)) == data


@pytest.mark.parametrize(
    ("typed", "passed"),
    [
        (b"a\x01\x01b", b"a\x01b"),
        (b"a\x01qb", b"a\x01qb"),
        (b"\x01\x01\x01\x01", b"\x01\x01"),
        (b"x", b"x"),
    ],
)
def test_ctrl_a_is_sent_by_typing_it_twice(terminal: Terminal, typed: bytes, passed: bytes) -> None:
    left: list[None] = []
    with console(terminal, lambda: left.append(None)) as guest:
        for byte in typed:
            terminal.type(bytes([byte]))
        guest.wait_for_input(passed)
    assert left == []


def test_ctrl_a_x_leaves_even_when_the_guest_takes_no_input(terminal: Terminal) -> None:
    left = threading.Event()
    with console(terminal, left.set) as guest:
        guest.read_from_now_on(False)
        terminal.type(b"typed ahead\x01x")
        assert left.wait(PATIENCE)
        guest.read_from_now_on(True)
        guest.wait_for_input(b"typed ahead")


def test_what_is_pasted_waits_for_a_slow_guest(terminal: Terminal) -> None:
    data = b"p" * (4 * TYPED_BYTES)
    with console(terminal) as guest:
        guest.read_from_now_on(False)
        paster = threading.Thread(target=terminal.type, args=(data,))
        paster.start()
        guest.read_from_now_on(True)
        guest.wait_for_input(data)
        paster.join()


def test_the_size_follows_the_terminal(terminal: Terminal) -> None:
    handler = signal.getsignal(signal.SIGWINCH)
    with console(terminal) as guest:
        assert guest.stream.size == Size(80, 25)
        terminal.resize(132, 43)
        os.kill(os.getpid(), signal.SIGWINCH)
        guest.wait(lambda: guest.sizes == [Size(132, 43)])
        os.kill(os.getpid(), signal.SIGWINCH)
    assert signal.getsignal(signal.SIGWINCH) == handler


# Programs that end while their terminal is raw

# The leader is what a shell is: it puts the program into the foreground, and says when it stops.
PROGRAM = """
import fcntl, os, signal, sys, termios, threading
from virtiopy.eventloop import EventLoop
from virtiopy.host.terminal import StdioStream

def report(text):
    os.write(int(sys.argv[1]), text.encode() + b"\\n")

def lead(pid):
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.setpgid(pid, pid)
    report(str(pid))
    os.tcsetpgrp(0, pid)
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            report("ended %d" % os.waitstatus_to_exitcode(status))
            return
        report("stopped")

class User:
    lock = threading.RLock()
    def input_ready(self): pass
    def room_ready(self): pass
    def connection_changed(self): pass
    def size_changed(self): pass

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
begin, go = os.pipe()
if pid := os.fork():
    lead(os.write(go, b"1") and pid)
    sys.exit()
os.read(begin, 1)
while os.tcgetpgrp(0) != os.getpid():
    pass
stream = StdioStream()
loop = EventLoop()
stream.open(loop, User())
report("raw")
sys.stderr = open(os.devnull, "w")
exec(sys.argv[2])
"""


# Waits for signals, and runs their handlers. A signal that comes just before pause(2) is one that
# it does not wake up for; the interpreter's wake-up file is.
UNTIL_A_SIGNAL = """
import select
wake, written = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(written)
while True:
    select.select([wake], [], [])
    os.read(wake, 4096)
"""


@contextmanager
def program(terminal: Terminal, body: str) -> Iterator[tuple[int, Callable[[], str]]]:
    """Run a program whose controlling terminal this is; gives its process, and its reports."""

    reader, writer = os.pipe()
    with (
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(writer), body],
            stdin=terminal.fd,
            stdout=terminal.fd,
            pass_fds=[writer],
            start_new_session=True,
        ) as leader,
        os.fdopen(reader) as reports,
    ):
        os.close(writer)

        def next_report() -> str:
            return reports.readline().strip()

        pid = int(next_report())
        try:
            assert next_report() == "raw"
            yield pid, next_report
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            leader.wait()


@pytest.mark.parametrize(
    ("body", "status"),
    [("1 / 0", 1), ("sys.exit(3)", 3), ("stream.close(); sys.exit(0)", 0)],
)
def test_the_terminal_is_restored_however_the_program_ends(
    terminal: Terminal, body: str, status: int
) -> None:
    with program(terminal, body) as (_, next_report):
        assert next_report() == f"ended {status}"
        assert terminal.is_restored


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_the_terminal_is_restored_when_a_signal_ends_the_program(
    terminal: Terminal, number: signal.Signals
) -> None:
    with program(terminal, UNTIL_A_SIGNAL) as (pid, next_report):
        assert terminal.is_raw
        os.kill(pid, number)
        assert next_report() == f"ended {-number}"
        assert terminal.is_restored


def test_the_terminal_is_restored_after_an_interrupt(terminal: Terminal) -> None:
    with program(terminal, UNTIL_A_SIGNAL) as (pid, next_report):
        os.kill(pid, signal.SIGINT)
        assert next_report() == f"ended {-signal.SIGINT}"
        assert terminal.is_restored


def test_a_program_that_is_stopped_gives_the_terminal_back_meanwhile(terminal: Terminal) -> None:
    with program(terminal, UNTIL_A_SIGNAL) as (pid, next_report):
        for _ in range(2):
            os.kill(pid, signal.SIGTSTP)
            assert next_report() == "stopped"
            assert terminal.is_restored
            os.kill(pid, signal.SIGCONT)
            wait_until(lambda: terminal.is_raw)
        os.kill(pid, signal.SIGTERM)
        assert next_report() == f"ended {-signal.SIGTERM}"
        assert terminal.is_restored


def test_handlers_that_the_program_has_are_left_alone(terminal: Terminal) -> None:
    def mine(*_: object) -> None:
        """Do nothing."""

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with console(terminal):
            assert signal.getsignal(signal.SIGTERM) is mine
            assert signal.getsignal(signal.SIGHUP) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
