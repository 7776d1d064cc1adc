"""The files that a process has open or comes to need, as rules for Landlock."""

import fcntl
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import virtiopy
from virtiopy._native import lib
from virtiopy.files import STANDARD_OUTPUT, is_special
from virtiopy.sandbox.landlock import READ, REPLACE, WRITE, Access, Rule

#: What the interpreter and the C library read.
_READ = (
    "/usr/lib",
    "/usr/share/zoneinfo",
    "/usr/share/terminfo",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/terminfo",
    "/dev/urandom",
    # The CPU time of the kernel's vhost threads is measured here. What is private to a process is
    # not to be had, as Landlock lets none outside be traced.
    "/proc",
    "/sys/devices/system/cpu",
)
#: What is opened again when a device's rings are given to the kernel, as `ctl mode` does.
_WRITTEN = ("/dev/null", "/dev/vhost-net", "/dev/vhost-vsock", "/dev/vhost-scsi")


def interpreter_rules() -> Iterator[Rule]:
    """Allow what Python imports late to be read."""
    roots = [sys.prefix, sys.base_prefix, str(Path(virtiopy.__file__).parent), *sys.path]
    here = Path.cwd()
    for root in dict.fromkeys(map(Path, filter(None, roots))):
        # The folder that Python was started in holds the user's files, and not Python's.
        if root.is_absolute() and root != here and root != Path("/"):
            yield Rule(root, READ)
    for name in _READ:
        yield Rule(Path(name), READ)
    for name in _WRITTEN:
        yield Rule(Path(name), Access.READ_FILE | WRITE)


def written(path: Path) -> Rule:
    """Allow a file to be written at the end: in its folder, where it takes an older one's place."""
    if path == STANDARD_OUTPUT or is_special(path):
        return Rule(path, Access.READ_FILE | WRITE)
    return Rule(path.parent, REPLACE)


def removed(path: Path) -> Rule:
    """Allow a file of ours to be taken away at the end."""
    return Rule(path.parent, Access.REMOVE_FILE)


def open_file_rules() -> Iterator[Rule]:
    """Allow what is open to be opened once more, as it is; and our sockets to be taken away."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            mode = os.fstat(fd).st_mode
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        except OSError:
            # The list's own file.
            continue
        if stat.S_ISSOCK(mode):
            yield from _socket_rules(fd)
        elif stat.S_ISREG(mode) or stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
            access = Access(0) if flags & os.O_ACCMODE == os.O_WRONLY else Access.READ_FILE
            if flags & os.O_ACCMODE != os.O_RDONLY:
                access |= WRITE
            yield Rule(Path("/proc/self/fd", name), access)
            if stat.S_ISCHR(mode):
                yield from _terminal_rules(fd)


def _socket_rules(fd: int) -> Iterator[Rule]:
    with socket.socket(fileno=os.dup(fd)) as held:
        if held.family == socket.AF_UNIX and held.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            path = held.getsockname()
            if isinstance(path, str) and path:
                yield removed(Path(path))


def _terminal_rules(fd: int) -> Iterator[Rule]:
    """Allow a pseudoterminal's other side to be opened: to see whether all was read."""
    try:
        number = int.from_bytes(fcntl.ioctl(fd, lib.TIOCGPTN, bytes(4)), sys.byteorder)
    except OSError:
        return
    yield Rule(Path(f"/dev/pts/{number}"), Access.READ_FILE)
