"""Values of options: sizes, and devices written as PATH,key=value,..."""

import re
from collections.abc import Iterable

from virtiopy.errors import ConfigError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 65536, 64M or 1G; raises ConfigError."""
    match = re.fullmatch(r"(\d+)([KMGT]?)(i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{text!r} is no size: write it as in 65536, 64M or 1G.")
    return int(match[1]) * _UNITS[match[2].upper()]


class DeviceOptions:
    """`MAIN,key=value,...` taken apart; a comma that belongs to a value is written twice.

    Raises ConfigError for an unknown key, one without a value, or one given twice that is not
    `repeatable`.
    """

    def __init__(
        self, option: str, text: str, keys: Iterable[str], repeatable: Iterable[str] = ()
    ) -> None:
        self._lists: dict[str, list[str]] = {key: [] for key in repeatable}
        known = [*keys, *self._lists]
        self.option = option
        first, *rest = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
        self.main = first
        self._values: dict[str, str] = {}
        for part in rest:
            key, equals, value = part.partition("=")
            if not equals or key not in known:
                raise ConfigError(
                    f"{option} does not know {part!r}: use {', '.join(f'{k}=...' for k in known)}."
                )
            if key in self._lists:
                self._lists[key].append(value)
                continue
            if key in self._values:
                raise ConfigError(f"{option} has {key} twice: give it once.")
            self._values[key] = value

    def text(self, key: str, default: str) -> str:
        """Return a value as it was written."""
        return self._values.get(key, default)

    def texts(self, key: str) -> list[str]:
        """Return the values of a repeatable key, in their order."""
        return self._lists[key]

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return an on/off value."""
        return self.choice(key, ("on", "off"), "on" if default else "off") == "on"

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """Return a value that is one of `choices`."""
        value = self._values.get(key, default)
        allowed = list(choices)
        if value not in allowed:
            raise ConfigError(f"{self.option} has {key}={value}: use one of {', '.join(allowed)}.")
        return value

    def number(self, key: str, default: int, least: int, most: int) -> int:
        """Return a whole number from `least` to `most`."""
        value = self._values.get(key, str(default))
        if not value.isdecimal() or not least <= int(value) <= most:
            raise ConfigError(
                f"{self.option} has {key}={value}: use a number from {least} to {most}."
            )
        return int(value)
