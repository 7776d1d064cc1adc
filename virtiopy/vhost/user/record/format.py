"""The file format of recordings, version 1: JSON, an object a line.

The first line is the header, {"format": "virtiopy recording", "version": 1}. Each further line is
an event, in the order in which the proxy saw it; its first key says which, and `at` when, in
seconds from the beginning. Bytes are in base64. docs/proxy.md describes each.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from virtiopy.errors import ConfigError
from virtiopy.vhost.user.messages import REGIONS_MAX

FORMAT = "virtiopy recording"
VERSION = 1

#: What comes with a message, and what a message has room for.
_FILES_MAX = REGIONS_MAX
_WORD_MAX = 0xFFFF_FFFF
_QUEUE_MAX = 0xFFFF

#: No line of a recording is longer, characters: a chain's bytes are the most of it.
LINE_MAX = 256 << 20


@dataclass(slots=True, frozen=True)
class SessionEvent:
    """A frontend came; `number` counts from 1."""

    number: int


@dataclass(slots=True, frozen=True)
class MessageEvent:
    """A message, as it was; `files` is how many came with it."""

    request: int
    name: str
    from_frontend: bool
    flags: int
    payload: bytes
    files: int


#: A descriptor: guest address of its table, its place in it, address, length, flags, next.
Raw = tuple[int, int, int, int, int, int]


@dataclass(slots=True, frozen=True)
class AvailableEvent:
    """A chain became available; `data` is what its device-readable buffers hold, one after another.

    `chain` numbers the chains of the session. A `malformed` one has the descriptors as far as
    they could be read, and no data.
    """

    chain: int
    queue: int
    head: int
    descriptors: tuple[Raw, ...]
    data: bytes
    malformed: bool = False


@dataclass(slots=True, frozen=True)
class UsedEvent:
    """The device used a chain; `data` is what it wrote, None where that may be there no more."""

    chain: int
    queue: int
    length: int
    data: bytes | None


@dataclass(slots=True, frozen=True)
class NotifiedEvent:
    """A kick of a queue, or a call."""

    queue: int
    is_kick: bool


@dataclass(slots=True, frozen=True)
class MissedEvent:
    """So many chains of a queue were seen too late, and are not in the recording."""

    queue: int
    count: int


@dataclass(slots=True, frozen=True)
class LimitEvent:
    """The recording ends here: it has the bytes of its limit."""

    limit: int


Event = (
    SessionEvent
    | MessageEvent
    | AvailableEvent
    | UsedEvent
    | NotifiedEvent
    | MissedEvent
    | LimitEvent
)

_Line = Mapping[str, Any]


def header() -> str:
    """Return the first line."""
    return json.dumps({"format": FORMAT, "version": VERSION}) + "\n"


def encode(event: Event, at: float) -> str:
    """Return the line of an event that was `at` seconds after the beginning."""
    return json.dumps({**_encode(event), "at": round(at, 6)}, separators=(",", ":")) + "\n"


def _encode(event: Event) -> dict[str, object]:
    match event:
        case SessionEvent(number):
            return {"session": number}
        case MessageEvent():
            return {
                "message": event.name,
                "request": event.request,
                "from": "frontend" if event.from_frontend else "backend",
                "flags": event.flags,
                "files": event.files,
                "payload": _text(event.payload),
            }
        case AvailableEvent():
            line: dict[str, object] = {
                "available": event.chain,
                "queue": event.queue,
                "head": event.head,
                "descriptors": event.descriptors,
                "data": _text(event.data),
            }
            return line | ({"malformed": True} if event.malformed else {})
        case UsedEvent():
            line = {"used": event.chain, "queue": event.queue, "length": event.length}
            return line | ({} if event.data is None else {"data": _text(event.data)})
        case NotifiedEvent(queue, is_kick):
            return {"kick" if is_kick else "call": queue}
        case MissedEvent(queue, count):
            return {"missed": count, "queue": queue}
        case LimitEvent(limit):
            return {"limit": limit}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


class CutOffError(ConfigError):
    """The recording's last line is not whole."""


def read(path: Path) -> Iterator[Event]:
    """Yield the events of a recording, one after the other.

    Raises ConfigError for a file that is none, of another version, or not readable; and
    CutOffError after the last whole line of one that was cut off.
    """
    try:
        stream = path.open(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The recording {path} cannot be read ({error.strerror}): name a file that "
            "virtiopy proxy --record has written."
        ) from error
    with stream:
        try:
            yield from _read(path, stream)
        except UnicodeDecodeError as error:
            raise _no_recording(path, "it is no text") from error


def _read(path: Path, stream: IO[str]) -> Iterator[Event]:
    first = stream.readline(LINE_MAX)
    try:
        head = json.loads(first)
        version = head["version"] if head["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_recording(path, "its first line is none of a recording's") from error
    if version != VERSION:
        raise ConfigError(
            f"The recording {path} is of version {version!r}, and this virtiopy plays version "
            f"{VERSION}: play it with the virtiopy that wrote it, or record again."
        )
    number = 1
    while line := stream.readline(LINE_MAX):
        number += 1
        if not line.endswith("\n"):
            raise CutOffError(f"The recording {path} is cut off in line {number}.")
        try:
            yield decode(line)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _no_recording(path, f"its line {number} is no event") from error


def _no_recording(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} is no recording ({why}): name a file that virtiopy proxy --record has written."
    )


def decode(text: str) -> Event:
    """Return the event of a line; raises ValueError, KeyError or TypeError for what is none."""
    line: _Line = json.loads(text)
    if "session" in line:
        return SessionEvent(_number(line, "session"))
    if "message" in line:
        return MessageEvent(
            _number(line, "request", _WORD_MAX),
            str(line["message"]),
            {"frontend": True, "backend": False}[line["from"]],
            _number(line, "flags", _WORD_MAX),
            _bytes(line["payload"]),
            _number(line, "files", _FILES_MAX),
        )
    if "available" in line:
        return AvailableEvent(
            _number(line, "available"),
            _number(line, "queue", _QUEUE_MAX),
            _number(line, "head", _QUEUE_MAX),
            tuple(_descriptor(one) for one in line["descriptors"]),
            _bytes(line["data"]),
            bool(line.get("malformed", False)),
        )
    if "used" in line:
        data = _bytes(line["data"]) if "data" in line else None
        chain, queue = _number(line, "used"), _number(line, "queue", _QUEUE_MAX)
        return UsedEvent(chain, queue, _number(line, "length"), data)
    for key in ("kick", "call"):
        if key in line:
            return NotifiedEvent(_number(line, key, _QUEUE_MAX), key == "kick")
    if "missed" in line:
        return MissedEvent(_number(line, "queue", _QUEUE_MAX), _number(line, "missed"))
    return LimitEvent(_number(line, "limit"))


def _number(line: _Line, key: str, most: int = (1 << 64) - 1) -> int:
    value = line[key]
    if not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{key} is {value!r}")
    return value


def _bytes(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError("bytes that are no text")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("bytes that are not in base64") from error


def _descriptor(numbers: Iterable[object]) -> Raw:
    found = [one for one in numbers if isinstance(one, int) and 0 <= one < 1 << 64]
    table, index, address, length, flags, following = found
    if length > _WORD_MAX or max(index, flags, following) > _QUEUE_MAX:
        raise ValueError("a descriptor of other numbers than one has room for")
    return (table, index, address, length, flags, following)
