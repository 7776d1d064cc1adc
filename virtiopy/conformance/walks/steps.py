"""The steps of a random walk, and the file that they are kept in: a line each.

    start size=16 without=VIRTIO_F_EVENT_IDX
    send queue=0 count=3 framing=indirect kick=yes
    bad queue=0 act=loop-of-two
    wait queue=0

Queues are numbers modulo how many there are. Empty lines, and those that begin with #, say nothing.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from virtiopy.errors import ConfigError


@dataclass(slots=True, frozen=True)
class Step:
    """Something that a driver does."""

    word: ClassVar[str]

    def __str__(self) -> str:
        """Return its line."""
        fields = [f"{f.name}={_write(getattr(self, f.name))}" for f in dataclasses.fields(self)]
        return " ".join([self.word, *fields])


@dataclass(slots=True, frozen=True)
class Start(Step):
    """Reset, negotiate all but some features, and set up queues of up to `size` entries."""

    word = "start"
    size: int = 64
    without: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class Send(Step):
    """Make good requests available in one of the queues that the suite can work.

    `framing` is whole, halves, indirect or bytes, as far as a driver may cut them so.
    """

    word = "send"
    queue: int = 0
    count: int = 1
    framing: str = "whole"
    kick: bool = True


@dataclass(slots=True, frozen=True)
class Bad(Step):
    """Do a hostile act to one of all the queues."""

    word = "bad"
    queue: int = 0
    act: str = "half-written"


@dataclass(slots=True, frozen=True)
class Kick(Step):
    """Kick a queue."""

    word = "kick"
    queue: int = 0


@dataclass(slots=True, frozen=True)
class Wait(Step):
    """Wait until every good request of a queue was used."""

    word = "wait"
    queue: int = 0


@dataclass(slots=True, frozen=True)
class Reset(Step):
    """Reset the device, start it as before, and have it serve a good request."""

    word = "reset"


@dataclass(slots=True, frozen=True)
class ResetQueue(Step):
    """Reset a queue, and set it up again with up to `size` entries."""

    word = "reset-queue"
    queue: int = 0
    size: int = 64


@dataclass(slots=True, frozen=True)
class Reconnect(Step):
    """Leave a vhost-user backend when nothing is in flight, and go on with the same rings."""

    word = "reconnect"


@dataclass(slots=True, frozen=True)
class ReadConfig(Step):
    """Read bytes of the configuration space."""

    word = "read-config"
    offset: int = 0
    size: int = 4


@dataclass(slots=True, frozen=True)
class WriteConfig(Step):
    """Write zeroes to the configuration space."""

    word = "write-config"
    offset: int = 0
    size: int = 4


#: Every kind of step.
KINDS: tuple[type[Step], ...] = (
    Start,
    Send,
    Bad,
    Kick,
    Wait,
    Reset,
    ResetQueue,
    Reconnect,
    ReadConfig,
    WriteConfig,
)

_BY_WORD = {kind.word: kind for kind in KINDS}


def _write(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value)


def _read(text: str, like: object) -> object:
    if isinstance(like, bool):
        return {"yes": True, "no": False}[text]
    if isinstance(like, int):
        return int(text)
    if isinstance(like, tuple):
        return tuple(filter(None, text.split(",")))
    return text


def parse_step(line: str) -> Step:
    """Return the step of a line; raises ValueError or LookupError for what is none."""
    word, *fields = line.split()
    kind = _BY_WORD[word]
    likes = {field.name: field.default for field in dataclasses.fields(kind)}
    values = {}
    for field in fields:
        name, _, text = field.partition("=")
        values[name] = _read(text, likes[name])
    return kind(**values)


def load(path: Path) -> list[Step]:
    """Return the steps of a file; raises ConfigError."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The walk {path} cannot be read: give a file of a walk's steps."
        ) from error
    steps = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            try:
                steps.append(parse_step(line))
            except (ValueError, LookupError) as error:
                raise ConfigError(
                    f"Line {number} of the walk {path} is no step ({line.strip()}): "
                    f"write one as {Send()}."
                ) from error
    return steps


def save(path: Path, steps: Sequence[Step], remarks: Sequence[str]) -> None:
    """Write a file that `load` reads; each remark is one line."""
    lines = [*(f"# {remark}" for remark in remarks), *map(str, steps)]
    path.write_text("\n".join(lines) + "\n")
