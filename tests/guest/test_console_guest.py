import contextlib
import fcntl
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.descriptors import read_exactly, write_all
from tests.guest.support import (
    QEMU,
    VIRTIOPY,
    assert_one_sentence,
    needs_kvm,
    needs_qemu,
    run_guest,
    virtiopy,
)
from tests.patience import PATIENCE
from virtiopy.boot.guests import guest_path

pytestmark = needs_kvm

QUIT = b"\nquit\n"

#: Numbered, so that what is lost, repeated or out of place is seen.
DATA = b"".join(b"%07x\n" % number for number in range(1 << 17))

both_modes = pytest.mark.parametrize("mode", ["trapped", "ioeventfd"])


@dataclass
class Running:
    """A guest that runs while the test is at the host's side of its ports."""

    process: subprocess.Popen[str]
    report_path: Path
    lines: list[str] = field(default_factory=list)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read the guest's output up to a line that matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"no {pattern} in: {''.join(self.lines)}")

    def finish(self) -> str:
        """Wait for the end, which has to be a good one; returns all the output."""
        assert self.process.stdout is not None
        self.lines += self.process.stdout.readlines()
        assert self.process.wait(PATIENCE) == 0, "".join(self.lines)
        return "".join(self.lines)

    def kicks(self) -> int:
        rows = json.loads(self.report_path.read_text())["exits"]["userspace"]
        return sum(row["count"] for row in rows if row["register"] == "QueueNotify")


@contextlib.contextmanager
def running(
    tmp_path: Path, console: str, append: str, *, stdin: int = subprocess.DEVNULL
) -> Iterator[Running]:
    report = tmp_path / "report.json"
    command = [*VIRTIOPY, "run", "--guest", "console", "--console", console]
    command += ["--append", append, "--timeout", str(PATIENCE), "--json", str(report)]
    with subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield Running(process, report)
        finally:
            process.kill()


def connect(path: Path) -> socket.socket:
    """Connect as soon as the socket is there."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    end = time.monotonic() + PATIENCE
    while client.connect_ex(str(path)):
        assert time.monotonic() < end
        time.sleep(0.01)
    return client


def receive(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := client.recv(count - len(data))):
        data += piece
    return data


def receive_line(client: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and (piece := client.recv(1)):
        data += piece
    return data


# The guest's own tests


@both_modes
@pytest.mark.parametrize("ports", ["", ",port=org.example.one:file:{}/1,port=größe:file:{}/2"])
def test_the_console_guest_passes(tmp_path: Path, mode: str, ports: str) -> None:
    options = f"file:{tmp_path}/0{ports},mode={mode}".replace("{}", str(tmp_path))
    outcome = run_guest(tmp_path, "console", "--console", options)

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    output = (tmp_path / "0").read_text()
    assert "emergency before\n" in output
    assert "one-byte pieces, direct\n" in output


@needs_qemu
@pytest.mark.parametrize("ports", [1, 2])
def test_the_same_console_guest_passes_on_a_device_of_qemus(tmp_path: Path, ports: int) -> None:
    devices = [
        "-device",
        "virtio-serial-device,max_ports=4" if ports > 1 else "virtio-serial-device",
    ]
    for number in range(ports):
        kind = "virtserialport,name=org.example.one" if number else "virtconsole"
        devices += ["-chardev", f"file,id=c{number},path={tmp_path}/{number}"]
        devices += ["-device", f"{kind},chardev=c{number}"]
    command = [
        *(QEMU, "-M", "microvm,accel=kvm,acpi=off,isa-serial=off"),
        *("-global", "virtio-mmio.force-legacy=false", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-no-reboot", "-kernel", str(guest_path("console"))),
        *("-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
        *devices,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)

    assert "not ok" not in done.stdout
    # isa-debug-exit makes status 0 a 1.
    assert done.returncode == 1, done.stdout + done.stderr


# Echo: both ways, without loss


@both_modes
def test_a_mebibyte_through_a_socket_comes_back_whole(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "console.sock"
    with running(tmp_path, f"socket:{path},wait=on,mode={mode}", "console.mode=echo") as guest:
        with connect(path) as client:
            assert receive_line(client) == b"virtiopy console guest: echo until quit\r\n"
            sender = threading.Thread(target=client.sendall, args=(DATA + QUIT,))
            sender.start()
            assert receive(client, len(DATA + QUIT)) == DATA + QUIT
            sender.join()
        assert f"echoed port=0 bytes={len(DATA + QUIT)}" in guest.finish()
        assert (guest.kicks() == 0) is (mode == "ioeventfd")
    assert not path.exists()


@both_modes
def test_a_mebibyte_through_a_pty_comes_back_whole(tmp_path: Path, mode: str) -> None:
    link = tmp_path / "console"
    with running(tmp_path, f"pty:{link},mode={mode}", "console.mode=echo") as guest:
        assert guest.wait_for("virtiopy: (/dev/pts/.*) is a console's terminal")
        terminal = os.open(link, os.O_RDWR | os.O_NOCTTY)
        guest.wait_for("# ready")
        termios.tcflush(terminal, termios.TCIFLUSH)
        sender = threading.Thread(target=write_all, args=(terminal, b"begin\n" + DATA + QUIT))
        sender.start()
        found = b""
        # The greeting may have come before or after somebody was there.
        while not found.endswith(b"begin\n"):
            found += os.read(terminal, 1)
        assert read_exactly(terminal, len(DATA + QUIT)) == DATA + QUIT
        sender.join()
        os.close(terminal)
        guest.finish()
    assert not link.is_symlink()


def test_a_flood_into_a_client_that_is_slow_arrives_whole(tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    append = "console.mode=flood console.kib=1024"
    with running(tmp_path, f"socket:{path},wait=on", append) as guest:
        with connect(path) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            data = b""
            while len(data) < 1 << 20:
                data += receive(client, 777)
        guest.finish()
    numbers = [int(line[:8], 16) for line in data.splitlines()]
    assert numbers == list(range((1 << 20) // 64))


# Named ports


@both_modes
def test_named_ports_are_channels_of_their_own(tmp_path: Path, mode: str) -> None:
    sockets = [tmp_path / name for name in ("console", "agent", "clipboard")]
    options = (
        f"socket:{sockets[0]},port=org.example.agent:socket:{sockets[1]},"
        f"port=org.example.clipboard:socket:{sockets[2]},mode={mode}"
    )
    with running(tmp_path, options, "console.mode=echo") as guest:
        guest.wait_for("# ready")
        with contextlib.ExitStack() as stack:
            clients = []
            for number, path in enumerate(sockets):
                clients.append(stack.enter_context(connect(path)))
                guest.wait_for(f"# port {number} open 1")
            for number, client in enumerate(clients):
                client.sendall(b"%d" % number * 10000)
            for number, client in enumerate(clients):
                assert receive(client, 10000) == b"%d" % number * 10000
            clients[1].close()
            guest.wait_for("# port 1 open 0")
            with connect(sockets[1]) as again:
                guest.wait_for("# port 1 open 1")
                again.sendall(b"back")
                assert receive(again, 4) == b"back"
            clients[0].sendall(QUIT)
            output = guest.finish()
    assert "# port 1 name org.example.agent\n" in output
    assert "# port 2 name org.example.clipboard\n" in output
    assert "# port 0 console\n" in output
    assert not any(path.exists() for path in sockets)


def test_ports_without_multiport_leave_a_console(tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    options = f"socket:{path},port=unseen:file:{tmp_path}/unseen"
    with running(tmp_path, options, "console.mode=echo console.multiport=0") as guest:
        guest.wait_for("# ready")
        with connect(path) as client:
            client.sendall(b"hello" + QUIT)
            assert receive(client, 5) == b"hello"
        guest.finish()
    assert (tmp_path / "unseen").read_bytes() == b""


# The terminal


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    user, fd = os.openpty()
    resize(fd, 80, 25)
    yield user, fd
    os.close(user)
    os.close(fd)


def resize(fd: int, cols: int, rows: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


class Screen:
    """What a user's terminal shows."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.text = b""

    def wait_for(self, text: bytes) -> None:
        while text not in self.text:
            self.text += os.read(self._fd, 4096)

    def read_to_the_end(self, process: subprocess.Popen[bytes]) -> int:
        """Show what a program prints until it ends; returns its status."""
        while process.poll() is None:
            if select.select([self._fd], [], [], 0.01)[0]:
                self.text += os.read(self._fd, 4096)
        return process.wait()


@contextlib.contextmanager
def at_terminal(fd: int, *options: str, append: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a console guest whose standard input, output and errors are a terminal."""
    command = [*VIRTIOPY, "run", "--guest", "console", *options, "--append", append]
    with subprocess.Popen(command, stdin=fd, stdout=fd, stderr=fd) as process:
        try:
            yield process
        finally:
            process.kill()


@both_modes
@pytest.mark.parametrize("port", ["", ",port=org.example.one:file:/dev/null"])
def test_the_terminal_is_the_guests_and_the_size_follows_it(
    terminal: tuple[int, int], mode: str, port: str
) -> None:
    user, fd = terminal
    before = termios.tcgetattr(fd)
    console = f"stdio{port},mode={mode}"
    with at_terminal(fd, "--console", console, append="console.mode=echo") as process:
        screen = Screen(user)
        screen.wait_for(b"# size 80 25")
        screen.wait_for(b"# ready")
        assert not termios.tcgetattr(fd)[tty.LFLAG] & (termios.ICANON | termios.ECHO)
        write_all(user, b"<\x03\x1a\x04\x01\x01>")
        screen.wait_for(b"<\x03\x1a\x04\x01>")
        resize(fd, 132, 43)
        process.send_signal(signal.SIGWINCH)
        screen.wait_for(b"# size 132 43")
        if port:
            screen.wait_for(b"# port 0 size 132 43")
        write_all(user, QUIT)
        assert screen.read_to_the_end(process) == 0
    assert termios.tcgetattr(fd) == before


@pytest.mark.parametrize(
    "number", [None, signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=["Ctrl-a x", *"THI"]
)
def test_the_terminal_is_restored_when_the_run_is_ended(
    terminal: tuple[int, int], number: signal.Signals | None
) -> None:
    user, fd = terminal
    before = termios.tcgetattr(fd)
    with at_terminal(fd, "--console", "stdio", append="console.mode=echo") as process:
        screen = Screen(user)
        screen.wait_for(b"# ready")
        if number is None:
            write_all(user, b"\x01x")
        else:
            process.send_signal(number)
        assert screen.read_to_the_end(process) == 128 + (number or signal.SIGINT)
    assert termios.tcgetattr(fd) == before


# Bad input of the user's


@pytest.mark.parametrize(
    ("console", "words"),
    [
        ("tty", ["stdio, pty, pty:LINK, socket:PATH, file:PATH"]),
        ("socket:", ["'socket:'", "socket:PATH"]),
        ("file:/absent/log", ["/absent/log cannot be written"]),
        ("socket:/absent/s", ["No socket can be made at /absent/s"]),
        ("socket:/etc/passwd", ["/etc/passwd exists and is no socket"]),
        ("pty:/etc/passwd", ["No link can be made at /etc/passwd"]),
        ("file:/dev/null,port=:stdio", ["a name of its own"]),
        ("file:/dev/null,port=a:stdio,port=a:stdio", ["a name of its own"]),
        ("stdio,port=a:stdio", ["one port only"]),
        ("file:/dev/null,wait=maybe", ["wait=maybe"]),
        ("file:/dev/null,size=80x25", ["'size=80x25'", "port=..."]),
    ],
)
def test_a_console_that_cannot_be_had_is_refused_in_one_sentence(
    console: str, words: list[str]
) -> None:
    outcome = virtiopy("run", "--guest", "console", "--console", console)
    lines = [line for line in outcome.errors.splitlines() if "is a console's terminal" not in line]
    assert_one_sentence(type(outcome)(outcome.status, "", "\n".join(lines), {}), *words)


def test_a_console_that_is_refused_leaves_no_socket_behind(tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    outcome = virtiopy(
        "run", "--guest", "console", "--console", f"socket:{path},port=a:file:/absent/log"
    )
    assert outcome.status == 2
    assert not path.exists()
