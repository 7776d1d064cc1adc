"""The content of files that are read whole into a guest."""

import errno
import stat
from pathlib import Path

#: More than any kernel or ramdisk is, bytes.
LIMIT = 4 << 30


def read_content(path: Path) -> bytes:
    """Read a file or a pipe; raises OSError, also for a device, which may never end."""
    status = path.stat()
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        raise OSError(errno.EINVAL, "it is a device")
    if status.st_size > LIMIT:
        raise OSError(errno.EFBIG, f"it has more than {LIMIT >> 30}G")
    return path.read_bytes()
