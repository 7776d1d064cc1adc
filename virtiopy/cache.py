"""Where what takes long to make is kept."""

import os
from typing import TYPE_CHECKING

import virtiopy

if TYPE_CHECKING:
    from pathlib import Path


def cache_path() -> str:
    """Return the folder: VIRTIOPY_CACHE, else a checkout's own, else the user's.

    It need not exist. What is in it can be removed at any time.
    """
    given = os.environ.get("VIRTIOPY_CACHE")
    if given:
        return given
    checkout = os.path.dirname(os.path.dirname(virtiopy.__file__))
    if os.path.exists(os.path.join(checkout, "pyproject.toml")):
        # Resolved, for a link there to a folder that several checkouts share.
        return os.path.realpath(os.path.join(checkout, "build", "lab"))
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "virtiopy")


def cache_folder() -> "Path":
    """Return `cache_path` as a Path."""
    from pathlib import Path  # noqa: PLC0415 - takes milliseconds, and a small guest does without

    return Path(cache_path())
