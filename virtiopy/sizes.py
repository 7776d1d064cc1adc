"""Sizes in bytes, as people write and read them."""

import re

from virtiopy.errors import ConfigError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 65536, 64M or 1G; raises ConfigError."""
    match = re.fullmatch(r"(\d+)([KMGT]?)(i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{text!r} is no size: write it as in 65536, 64M or 1G.")
    return int(match[1]) * _UNITS[match[2].upper()]


def format_size(size: int) -> str:
    """Write a size in the largest unit that it is a whole number of; `parse_size` reads it."""
    for unit in "TGMK":
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)
