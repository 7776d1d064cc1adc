"""Folders of the host's that a guest is to have."""

import os
from pathlib import Path

from virtiopy.errors import ConfigError


def check_folder(folder: Path, what: str) -> None:
    """See that there is such a folder, which we may read; `what` is what users know it as.

    Raises ConfigError.
    """
    try:
        is_folder = folder.is_dir()
    except PermissionError:
        # What it lies in cannot be searched.
        is_folder = True
    if not is_folder:
        raise ConfigError(f"{what} {folder} is no folder: name one that is.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigError(f"{what} {folder} cannot be read: name a folder that can.")
