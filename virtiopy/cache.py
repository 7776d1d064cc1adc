"""Where what takes long to make is kept."""

import os
from pathlib import Path

import virtiopy


def cache_folder() -> Path:
    """Return the folder: VIRTIOPY_CACHE, else a checkout's own, else the user's.

    It need not exist. What is in it can be removed at any time.
    """
    given = os.environ.get("VIRTIOPY_CACHE")
    if given:
        return Path(given)
    checkout = Path(virtiopy.__file__).parents[1]
    if (checkout / "pyproject.toml").exists():
        # Resolved, for a link there to a folder that several checkouts share.
        return (checkout / "build" / "lab").resolve()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "virtiopy"
