"""A console's stream is a terminal, which is put back however the program ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.descriptors import read_exactly
from tests.openfiles import open_files
from tests.patience import PATIENCE
from tests.unit.streams.bench import MIB, Terminal, console
from virtiopy.devices.streams import Size
from virtiopy.host.terminal import TYPED_BYTES


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what nothing tells of."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# A terminal


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
