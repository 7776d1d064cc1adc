"""Eventfds that another process has too: signalled and read without ever waiting.

os.eventfd_write and os.eventfd_read wait where another process has cleared O_NONBLOCK of the file
that both have.
"""

import errno
import os

from virtiopy._native import ffi, lib


def signal(fd: int) -> None:
    """Add 1 to an eventfd's counter; one that is full stays full.

    Raises OSError for a file that is no eventfd.
    """
    result = lib.vp_eventfd_signal(fd)
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def take(fd: int) -> int | None:
    """Take an eventfd's counter, 0 where it was not signalled.

    None for another kind of file, whose other end was closed. Raises OSError for a file that
    cannot be read so.
    """
    count = ffi.new("uint64_t *")
    result = lib.vp_eventfd_take(fd, count)
    if result == -errno.EAGAIN:
        return 0
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return int(count[0]) if result else None
