"""An initramfs: a cpio archive of the format `newc`, as Linux unpacks it.

Documentation/driver-api/early-userspace/buffer-format.rst of Linux. Archives may stand one after
the other: what comes later is added.
"""

import os
import stat
from dataclasses import dataclass, field

_MAGIC = b"070701"
_ALIGNMENT = 4


@dataclass(slots=True)
class Archive:
    """A file tree. Folders are added with what is in them; everything is root's, and of no time."""

    _entries: dict[str, bytes] = field(default_factory=dict)

    def _add(
        self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        path = path.strip("/")
        parent = path.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.folder(parent)
        name = os.fsencode(path) + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = [
            *(len(self._entries) + 1, mode, 0, 0, links, 0, len(content)),
            *(0, 0, *device, len(name), 0),
        ]
        header = _MAGIC + b"".join(b"%08X" % number for number in numbers)
        self._entries[path] = _padded(header + name) + _padded(content)

    def folder(self, path: str) -> None:
        """Add a folder."""
        self._add(path, stat.S_IFDIR | 0o755)

    def file(self, path: str, content: bytes, *, executable: bool = False) -> None:
        """Add a file."""
        self._add(path, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, os.fsencode(target))

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a device node."""
        self._add(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def __contains__(self, path: str) -> bool:
        return path.strip("/") in self._entries

    def encoded(self) -> bytes:
        """Return the archive."""
        end = Archive()
        end._add("TRAILER!!!", 0)
        return b"".join(self._entries.values()) + end._entries["TRAILER!!!"]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
