"""Values of options: sizes, and devices written as PATH,key=value,..."""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

from virtiopy.errors import ConfigError
from virtiopy.sizes import parse_size, shorten

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DeviceOptions", "Seconds", "accelerator_option", "note", "parse_size"]

ACCELERATORS = ("auto", "kvm", "tcg")


class DeviceOptions:
    """`MAIN,key=value,...` taken apart; a comma that belongs to a value is written twice.

    Raises ConfigError for an unknown key, one without a value, or one given twice that is not
    `repeatable`.

    Each key of `parts` begins a part, which ends where the next begins: what follows of its own
    keys, by that mapping, is the part's, with the same `repeatable` ones.
    """

    def __init__(
        self,
        option: str,
        text: str,
        keys: Iterable[str],
        repeatable: Iterable[str] = (),
        parts: Mapping[str, Iterable[str]] = MappingProxyType({}),
    ) -> None:
        #: What begins each part, and its keys; its `main` is the value of the first.
        self.parts: list[tuple[str, DeviceOptions]] = []
        self._lists: dict[str, list[str]] = {key: [] for key in repeatable}
        known = dict.fromkeys([*keys, *self._lists, *parts, *chain(*parts.values())])
        self.option = option
        first, *rest = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
        self.main = first
        self._values: dict[str, str] = {}
        for part in rest:
            key, equals, value = part.partition("=")
            if not equals or key not in known:
                raise ConfigError(
                    f"{option} does not know {part!r}: use {', '.join(f'{k}=...' for k in known)}"
                    f"{'; a comma of a value is written twice' if not equals else ''}."
                )
            if key in parts:
                self.parts.append((key, DeviceOptions(option, "", parts[key], self._lists)))
                self.parts[-1][1].main = value
            elif self.parts and key in parts[self.parts[-1][0]]:
                self.parts[-1][1]._take(key, value)
            elif any(key in keys for keys in parts.values()):
                raise ConfigError(self._misplaced(key, parts))
            else:
                self._take(key, value)

    def _misplaced(self, key: str, parts: Mapping[str, Iterable[str]]) -> str:
        if not self.parts:
            return f"{self.option} has {key} before what it is of: begin with {' or '.join(parts)}."
        part = self.parts[-1][0]
        return f"{self.option} has {key} of a {part}, which takes {', '.join(parts[part])}."

    def _take(self, key: str, value: str) -> None:
        if key in self._lists:
            self._lists[key].append(value)
            return
        if key in self._values:
            raise ConfigError(f"{self.option} has {key} twice: give it once.")
        self._values[key] = value

    @property
    def keys(self) -> list[str]:
        """The keys that were given."""
        return [*self._values, *(key for key, values in self._lists.items() if values)]

    @property
    def folder(self) -> "Path":
        """The folder that comes first; raises ConfigError for none, which Path has for `.`."""
        if not self.main:
            raise ConfigError(
                f"{self.option} names no folder: begin with one, or with . for the one you are in."
            )
        from pathlib import Path

        return Path(self.main)

    def prefer(self, key: str, value: str) -> None:
        """Take a value for a key that was not given."""
        self._values.setdefault(key, value)

    def text(self, key: str, default: str) -> str:
        """Return a value as it was written."""
        return self._values.get(key, default)

    def word(self, key: str, default: str) -> str:
        """Return a value that is text and no path; raises ConfigError for bytes that are none."""
        value = self.text(key, default)
        if not is_text(value):
            raise ConfigError(f"{self.option} has {key}={value!r}, which is no UTF-8 text.")
        return value

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
        # Python makes no number of more than 4300 digits.
        if not value.isdecimal() or len(value) > 20 or not least <= int(value) <= most:
            raise ConfigError(
                f"{self.option} has {key}={shorten(value)}: use a number from {least} to {most}."
            )
        return int(value)


def is_text(value: str) -> bool:
    """Say whether an argument of the command line is UTF-8, and not any bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_mode(text: str) -> int:
    """Return a file's mode that is written as in 0660; raises ConfigError."""
    if not re.fullmatch("0?[0-7]{3}", text):
        raise ConfigError(f"{shorten(text)!r} is no mode of a socket: write it as in 0660.")
    return int(text, 8)


class Seconds(click.FloatRange):
    """A number of seconds, as a type of click's: a range that NaN is not in."""

    name = "number of seconds"

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number that is meant, or say why there is none."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return seconds


def accelerator_option(function: Callable[..., int]) -> Callable[..., int]:
    """Give a subcommand the option --accel."""
    return click.option(
        "--accel",
        type=click.Choice(ACCELERATORS),
        default="auto",
        show_default=True,
        help="What executes the guest: KVM, a software CPU, or KVM where it opens.",
    )(function)


@functools.cache
def note(line: str) -> None:
    """Tell something on standard error, once."""
    click.echo(f"virtiopy: {line}", err=True)
