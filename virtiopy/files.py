"""Files that virtiopy writes for its user: what is there already is replaced only if it is ours.

A file of virtiopy's has a mark: an extended attribute, with the file's size and time once it is
whole, so that a file that its user has changed since is the user's. Where there is no attribute, a
field for the file's maker counts, in forms that have one. A file with neither, that holds anything,
is the user's.
"""

import contextlib
import errno
import io
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO

from virtiopy.errors import ConfigError

_ATTRIBUTE = "user.virtiopy"

#: What the attribute is while a file is written, and stays where virtiopy is killed.
_BEGUN = b"1"

#: How files begin that name virtiopy as their maker: reports in JSON and HTML, plots in PNG. The
#: word alone says nothing: a disk's label may be virtiopy, too.
_MAKER = re.compile(
    rb'\{\s*(?:"schema": \d+,\s*)?"virtiopy": "'
    rb'|<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta name="generator" content="virtiopy">'
    rb"|\x89PNG\r\n\x1a\n.{29}tEXtSoftware\0virtiopy",
    re.DOTALL,
)

#: How far the field for the maker may reach, bytes.
_HEAD = 256

#: Stands for standard output where a file's name is asked for.
STANDARD_OUTPUT = Path("-")


def mark(fd: int) -> None:
    """Mark an open file as virtiopy's, on a file system that can; `finish` it after writing."""
    with contextlib.suppress(OSError):
        os.setxattr(fd, _ATTRIBUTE, _BEGUN)


def finish(fd: int) -> None:
    """Note in a marked file's mark what the file is now: what changes it afterwards is a user."""
    with contextlib.suppress(OSError):
        os.getxattr(fd, _ATTRIBUTE)
        os.setxattr(fd, _ATTRIBUTE, _stamp(os.fstat(fd)))


def is_marked(path: Path) -> bool:
    """Say whether a regular file has virtiopy's mark, and is as virtiopy left it."""
    found = _mark_of(path)
    return found is not None and found in {_BEGUN, _stamp(path.stat())}


def _mark_of(path: Path) -> bytes | None:
    try:
        return os.getxattr(path, _ATTRIBUTE)
    except OSError:
        return None


def _stamp(status: os.stat_result) -> bytes:
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _is_ours(path: Path) -> bool:
    if _mark_of(path) is not None:
        return is_marked(path)
    with path.open("rb") as file:
        return _MAKER.match(file.read(_HEAD)) is not None


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
    if path == STANDARD_OUTPUT:
        return False
    try:
        if path.is_block_device():
            raise ConfigError(
                f"{what} {path} would overwrite a block device, and what is on it: name a file."
            )
        if is_special(path):
            return False
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
        ours = exists and _is_ours(path)
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

    Its mode is 0600 whatever the umask. Who has written it calls `finish` before closing it.
    Raises ConfigError.
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
    """Create a file here, as `create_output` does, for bytes; it is finished when it is closed."""
    return _Output(io.FileIO(create_output(path, what), "wb"))


class _Output(io.BufferedWriter):
    """A file that is finished, in the sense of `finish`, when it is closed."""

    def close(self) -> None:
        """Write what is buffered, and close the file."""
        if self.closed:
            return
        try:
            self.flush()
            finish(self.fileno())
        finally:
            super().close()


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
            stream.flush()
            finish(fd)
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
