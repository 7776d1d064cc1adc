"""The guest images that come with virtiopy, by name."""

import os
from typing import TYPE_CHECKING

from virtiopy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

#: The folder that they are in.
GUESTS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "guests")

_SUFFIX = ".elf"


def guest_file(name: str) -> str:
    """Return where virtiopy's guest of this name would be."""
    return os.path.join(GUESTS, name + _SUFFIX)


def guest_names() -> list[str]:
    """List the guests that boot by PVH; the hello images are for `virtiopy hello` alone."""
    files = os.listdir(GUESTS) if os.path.isdir(GUESTS) else []
    names = sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX))
    return [name for name in names if not name.startswith("hello-")]


def guest_path(name_or_path: str) -> "Path":
    """Return the file of a guest named or given by its path; raises ConfigError for neither."""
    from pathlib import Path  # noqa: PLC0415 - takes milliseconds, and a small guest does without

    if "/" not in name_or_path:
        own = Path(guest_file(name_or_path))
        if own.exists():
            return own
    path = Path(name_or_path)
    if path.exists():
        return path
    if "/" in name_or_path or "." in name_or_path:
        raise ConfigError(f"The guest image {path} does not exist: name an ELF file.")
    raise ConfigError(
        f"There is no guest {name_or_path!r}: name an ELF file or one of "
        f"{', '.join(guest_names()) or 'the guests, which are not built'}."
    )
