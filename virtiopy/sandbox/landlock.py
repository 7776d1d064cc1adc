"""Landlock: which files a process may still open (the kernel's userspace-api/landlock)."""

import enum
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from virtiopy._native import lib
from virtiopy.closing import Closing
from virtiopy.errors import HostError


class Access(enum.IntFlag):
    """What Landlock can forbid: LANDLOCK_ACCESS_FS_*."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14


READ = Access.READ_FILE | Access.READ_DIR
#: Of an open file: that it can be opened once more.
WRITE = Access.WRITE_FILE | Access.TRUNCATE
#: Of a folder: to replace a file in it, as `virtiopy.files` does.
REPLACE = READ | WRITE | Access.MAKE_REG | Access.REMOVE_FILE
#: What there is to allow of a file that is no folder.
_OF_FILES = Access.EXECUTE | Access.READ_FILE | WRITE

#: The accesses that came with a version, but for the first's.
_SINCE = {2: Access.REFER, 3: Access.TRUNCATE}
#: TCP's bind and connect, since version 4: LANDLOCK_ACCESS_NET_*.
_NETWORK = 0b11
#: Abstract Unix sockets of other processes, since version 6: LANDLOCK_SCOPE_*.
_SCOPED = 0b01


@dataclass(slots=True, frozen=True)
class Rule:
    """A file, or a folder and what is beneath it, and what may be done there."""

    path: Path
    access: Access


def landlock_version() -> int:
    """Return the version of the kernel's Landlock; 0 where it has none, or it is switched off."""
    return max(0, lib.vp_landlock_version())


def _handled(version: int) -> Access:
    handled = Access(0)
    for access in Access:
        if all(version >= since for since, later in _SINCE.items() if access in later):
            handled |= access
    return handled


class Ruleset(Closing):
    """What a kernel of this version of Landlock is to forbid, but for what `allow` is given.

    All connections over TCP and to abstract sockets are forbidden where the kernel can, unless
    `network` says that they are needed. Raises HostError where it makes no ruleset.
    """

    def __init__(self, version: int, *, network: bool = False) -> None:
        self._handled = _handled(version)
        size = 8 if version < 4 else 16 if version < 6 else 24
        self.fd = lib.vp_landlock_new(
            int(self._handled),
            _NETWORK if version >= 4 and not network else 0,
            _SCOPED if version >= 6 and not network else 0,
            size,
        )
        if self.fd < 0:
            raise HostError(
                f"Landlock cannot be used ({os.strerror(-self.fd)}): use --sandbox off to do "
                "without the sandbox."
            )

    def close(self) -> None:
        """Close it: a process that is restricted by it stays so."""
        os.close(self.fd)

    def allow(self, rules: Iterable[Rule]) -> None:
        """Allow what there is of `rules`; a file that does not exist needs no rule."""
        for rule in rules:
            try:
                fd = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                access = rule.access & self._handled
                if not stat.S_ISDIR(os.fstat(fd).st_mode):
                    access &= _OF_FILES
                # The kernel refuses pipes and sockets, which it does not restrict either.
                if access:
                    lib.vp_landlock_allow(self.fd, fd, int(access))
            finally:
                os.close(fd)
