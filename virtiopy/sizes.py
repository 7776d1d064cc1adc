"""Sizes in bytes, as people write and read them."""

import re

from virtiopy.errors import ConfigError

#: The largest size, as a signed 64-bit number has it.
SIZE_MAX = (1 << 63) - 1
_DIGITS_MAX = 19

#: Characters of the user's that a sentence quotes.
_QUOTED = 60

#: A longer word is none that a person reads, characters.
_WORD_MAX = 500

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 65536, 64M or 1G, below 2^63; raises ConfigError."""
    match = re.fullmatch(r"0*(\d+)([KMGT]?)(i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{shorten(text)!r} is no size: write it as in 65536, 64M or 1G.")
    # Python makes no number of more than 4300 digits.
    size = int(match[1][:_DIGITS_MAX]) * _UNITS[match[2].upper()]
    if size > SIZE_MAX or len(match[1]) > _DIGITS_MAX:
        raise ConfigError(f"{shorten(text)!r} is larger than any size: give less, as in 64M.")
    return size


def shorten(text: str) -> str:
    """Cut what a user wrote to what a sentence has room for."""
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."


def shorten_words(text: str) -> str:
    """Cut each word of a sentence that is longer than any path, and so the user's."""
    return re.sub(rf"\S{{{_WORD_MAX},}}", lambda word: shorten(word[0]), text)


def format_size(size: int) -> str:
    """Write a size in the largest unit that it is a whole number of; `parse_size` reads it."""
    for unit in "TGMK":
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)
