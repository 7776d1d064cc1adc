"""Programs of the host's that go into an initramfs, with the libraries that they need."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from virtiopy.errors import ConfigError
from virtiopy.linux.cpio import Archive

#: Where the host may have programs that no user's PATH names.
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x[0-9a-f]+\)")


def find_program(name: str) -> Path:
    """Return a program's file, by name or path; raises ConfigError where there is none."""
    if "/" in name:
        found: str | None = name if Path(name).is_file() else None
    else:
        found = shutil.which(name) or shutil.which(name, path=_SEARCH)
    if found is None:
        raise ConfigError(
            f"There is no program {name}, on this host or in busybox: install it, or name its file."
        )
    return Path(found)


def libraries(program: Path) -> Iterator[Path]:
    """Yield the shared libraries that a program needs, and its loader; none for a static one."""
    listed = subprocess.run(
        ["ldd", str(program.resolve())], capture_output=True, text=True, check=False
    )
    for match in _LIBRARY.finditer(listed.stdout):
        yield Path(match[1])


def add_program(archive: Archive, program: Path) -> None:
    """Add a program as /usr/bin/NAME, and its libraries where it looks for them."""
    archive.file(f"usr/bin/{program.name}", program.read_bytes(), executable=True)
    for library in libraries(program):
        if str(library) not in archive:
            archive.file(str(library), library.read_bytes(), executable=True)
