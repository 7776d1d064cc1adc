"""Files that virtiopy writes for its user: what is there already is replaced only if it is ours.

A file of virtiopy's has a mark: an extended attribute, or its name near the beginning, where the
form has room for it. A file with neither, that holds anything, is the user's.
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO

from virtiopy.errors import ConfigError

_ATTRIBUTE = "user.virtiopy"
_NAME = b"virtiopy"

#: How far a file's name for its maker may be from its start, bytes.
_HEAD = 4096

#: Stands for standard output where a file's name is asked for.
STANDARD_OUTPUT = Path("-")


def mark(fd: int) -> None:
    """Mark an open file as virtiopy's, on a file system that can."""
    with contextlib.suppress(OSError):
        os.setxattr(fd, _ATTRIBUTE, b"1")


def is_marked(path: Path) -> bool:
    """Say whether a regular file has virtiopy's mark."""
    with contextlib.suppress(OSError):
        os.getxattr(path, _ATTRIBUTE)
        return True
    return False


def _names_us(path: Path) -> bool:
    with path.open("rb") as file:
        return _NAME in file.read(_HEAD)


def is_special(path: Path) -> bool:
    """Say whether this is written in place: a pipe, a terminal, or a file that a shell opened."""
    if path.is_relative_to("/dev") or path.is_relative_to("/proc/self/fd"):
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode) and not path.is_dir()
    except OSError:
        return False


def check_output(path: Path, what: str) -> bool:
    """Look whether a file can be written here, before long work; says whether one is replaced.

    `what` is the file's name in a sentence, as "The report". Raises ConfigError, with the remedy.
    """
    if path == STANDARD_OUTPUT or is_special(path):
        return False
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if path.is_symlink():
            raise ConfigError(
                f"{what} {path} is a symbolic link, which virtiopy does not follow to write: "
                f"name the file itself."
            )
        if path.is_dir():
            raise ConfigError(f"{what} {path} is a folder: name a file.")
        exists = path.exists() and path.stat().st_size > 0
        ours = exists and (is_marked(path) or _names_us(path))
    except OSError as error:
        raise _cannot(path, what, error) from error
    if exists and not ours:
        raise ConfigError(
            f"{what} {path} would replace a file that virtiopy did not make: name another file, "
            "or remove this one."
        )
    if not os.access(path.parent, os.W_OK):
        raise _cannot(path, what, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return exists


def create_output(path: Path, what: str) -> int:
    """Create a file here, which takes the place of one of virtiopy's at once; returns it open.

    Its mode is 0600 whatever the umask. Raises ConfigError.
    """
    check_output(path, what)
    try:
        if is_special(path):
            return os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        fd, beside = _make_beside(path)
        mark(fd)
        Path(beside).replace(path)
    except OSError as error:
        raise _cannot(path, what, error) from error
    return fd


def open_output(path: Path, what: str) -> BinaryIO:
    """Create a file here, as `create_output` does, for bytes."""
    return os.fdopen(create_output(path, what), "wb")


def write_output(
    path: Path, what: str, text: str, *, told: Callable[[str], None] = lambda line: None
) -> None:
    """Write a file of text, whole or not at all; `told` is given a line where one is replaced.

    `-` is standard output. Raises ConfigError.
    """
    if path == STANDARD_OUTPUT:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    replaces = check_output(path, what)
    try:
        if is_special(path):
            with path.open("w", encoding="utf-8") as stream:
                stream.write(text)
            return
        _write_beside(path, text)
    except OSError as error:
        raise _cannot(path, what, error) from error
    if replaces:
        told(f"{what} {path} takes the place of an earlier one.")


def _write_beside(path: Path, text: str) -> None:
    fd, beside = _make_beside(path)
    try:
        mark(fd)
        stream: IO[str]
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(beside).replace(path)
    except OSError:
        Path(beside).unlink(missing_ok=True)
        raise


def _cannot(path: Path, what: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"{what} {path} cannot be written ({error.strerror}): "
        "name a file in a folder that you can write to, on a disk with room."
    )


def _make_beside(path: Path) -> tuple[int, str]:
    """Make a new file in a file's folder; returns its open file and its path."""
    # Imported late: it brings a dozen modules, and most runs write no file.
    import tempfile  # noqa: PLC0415

    return tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
