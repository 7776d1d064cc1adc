"""What a launcher's process does: it starts one program, again and again, each time on a socket.

It runs in a root that was made for it (virtiopy.host.launcher), reads one datagram a start from its
standard input, and writes one byte there when it is ready. The program has a socket as its standard
input: the one that came with the datagram, or else one that it accepts its client from, which then
is what the datagram's answer brings. There is one program at a time: the next takes the place of
the one before.
"""

import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from virtiopy.sandbox.helper import Confinement
from virtiopy.sandbox.landlock import READ, WRITE, Access, Rule, landlock_version

#: Where the folder is that the program is for.
INSIDE: Final = "/share"

#: The first version of Landlock that can let files be moved from folder to folder.
_MOVES = 2

_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
#: The dynamic loader, which the kernel executes beside a program.
_LOADER = "/lib64/ld-linux-x86-64.so.2"


def confine(program: str) -> None:
    """Give up every file but the folder's and the libraries', and every program but this one."""
    if landlock_version() < _MOVES:
        return
    everything = ~Access.EXECUTE
    rules = [
        *(Rule(Path(name), READ) for name in _LIBRARIES),
        *(Rule(Path(name).resolve(), READ | Access.EXECUTE) for name in (_LOADER, program)),
        *(Rule(Path("/dev", name), Access.READ_FILE | WRITE) for name in ("null", "urandom")),
        # Where there is one: of its own PID namespace.
        Rule(Path("/proc"), READ),
        # What is mounted for reading alone stays so.
        Rule(Path(INSIDE), everything),
    ]
    with Confinement(rules) as confinement:
        confinement.before_exec()()


class _Started:
    """A program that runs, and a copy of its socket, by which the end of its peer is seen."""

    def __init__(self, command: list[str], stream: socket.socket) -> None:
        self._stream = stream
        null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (1, 2)]
        self._pid = os.posix_spawn(
            command[0],
            command,
            {},
            file_actions=[(os.POSIX_SPAWN_DUP2, stream.fileno(), 0), *null],
        )
        try:
            self._ended = os.pidfd_open(self._pid)
        except OSError:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            raise

    def filenos(self) -> list[int]:
        """Return what is ready when it is to end, or has."""
        return [self._ended, self._stream.fileno()]

    def end(self) -> None:
        """Kill it: all that it has answered, it has done."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._ended)
        # Its peer sees this end.
        self._stream.close()


def _listen(requests: socket.socket) -> socket.socket:
    """Make a socket that listens, and answer with one that is connected to it."""
    listener = socket.socket(socket.AF_UNIX)
    # A name of the kernel's, in a network namespace that has no others.
    listener.bind("")
    listener.listen(1)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())
        socket.send_fds(requests, [b"\0"], [client.fileno()])
    return listener


def serve(requests: socket.socket, command: list[str]) -> None:
    """Start the program as often as is asked for, until the peer is gone."""
    started: _Started | None = None
    while True:
        poll = select.poll()
        poll.register(requests, select.POLLIN)
        if started is not None:
            ended, stream = started.filenos()
            poll.register(ended, select.POLLIN)
            # That its peer is gone is told whatever is asked for.
            poll.register(stream, 0)
        ready = [fd for fd, _ in poll.poll()]
        if started is not None and set(ready) & set(started.filenos()):
            started.end()
            started = None
        if requests.fileno() not in ready:
            continue
        data, fds, _, _ = socket.recv_fds(requests, 1, 1, socket.MSG_CMSG_CLOEXEC)
        if not data:
            break
        if started is not None:
            started.end()
            started = None
        its = socket.socket(fileno=fds[0]) if fds else _listen(requests)
        try:
            started = _Started(command, its)
        except OSError:
            its.close()
    if started is not None:
        started.end()


def main() -> None:
    """Start sys.argv[1:] whenever standard input says so."""
    command = sys.argv[1:]
    requests = socket.socket(fileno=0)
    confine(command[0])
    requests.send(b"\0")
    # What it had to say until now, the one who started it has heard.
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
    serve(requests, command)
