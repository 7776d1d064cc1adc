"""How a VMM's vhost-user frontend speaks, as profiles.toml has it."""

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from virtiopy.devices.registry import entry_of
from virtiopy.errors import ConfigError
from virtiopy.spec import DeviceId, DeviceStatus, feature_mask
from virtiopy.vhost.user.messages import ProtocolFeature, Request

_FILE = Path(__file__).with_name("profiles.toml")

#: The step that shares memory, by whichever of two requests.
MEMORY = "memory"

#: A SET_VRING_CALL with an eventfd that the frontend does not look at.
MASKED = "masked"

#: What stands for every request where a frontend asks for acknowledgements.
ALL = "all"

#: The device type that stands for every one.
ANY = "any"


@dataclass(slots=True, frozen=True)
class Step:
    """A request that a frontend sends, or the sharing of memory.

    `number` is what SET_VRING_ENABLE or SET_STATUS says; `masked` is of SET_VRING_CALL.
    """

    request: Request
    number: int = 0
    masked: bool = False
    shares_memory: bool = False


#: A step, or steps that are done for each ring in turn.
Part = Step | Sequence[Step]


@dataclass(slots=True, frozen=True)
class Profile:
    """How a frontend speaks for a device type; see profiles.toml for each field."""

    frontend: str
    title: str
    connect: Sequence[Part]
    start: Sequence[Part]
    stop: Sequence[Part] | None
    resume: Sequence[Part]
    reset: Sequence[Part] | None
    features: Sequence[str] | None
    protocol: int  # a mask of ProtocolFeature
    protocol_bit: bool
    acknowledged: frozenset[str]  # names of requests, or ALL
    queues: int | None
    config: int | None  # bytes
    guest_addresses: bool
    shared_call: bool
    inflight_as_given: bool
    base: str | None  # "used" or "available"; None for a frontend that never reconnects

    def acknowledges(self, request: Request) -> bool:
        """Say whether it sends a request with need_reply, where it may."""
        return ALL in self.acknowledged or request.name in self.acknowledged


class _Record(TypedDict):
    """A device's table in profiles.toml."""

    connect: list[str | list[str]]
    start: list[str | list[str]]
    stop: NotRequired[list[str | list[str]]]
    resume: NotRequired[list[str | list[str]]]
    reset: NotRequired[list[str | list[str]]]
    features: NotRequired[list[str]]
    protocol: list[str]
    protocol_bit: NotRequired[bool]
    acknowledged: NotRequired[list[str]]
    queues: NotRequired[int]
    config: NotRequired[int]
    user_addresses: NotRequired[str]
    shared_call: NotRequired[bool]
    inflight: NotRequired[str]
    base: NotRequired[str]


class _Frontend(TypedDict):
    """A frontend's table."""

    title: str
    sources: list[str]
    device: dict[str, _Record]


@functools.cache
def _records() -> Mapping[str, _Frontend]:
    with _FILE.open("rb") as file:
        records: dict[str, _Frontend] = tomllib.load(file)
    return records


def frontends() -> Sequence[str]:
    """Return the names of the frontends that there are."""
    return list(_records())


def title_of(frontend: str) -> str:
    """Return what a frontend is called in words, with its version."""
    return _records()[frontend]["title"]


def check_name(name: str) -> Sequence[str]:
    """Return the frontends that a name stands for; raises ConfigError for one that is none."""
    if name == ALL:
        return frontends()
    if name not in _records():
        raise ConfigError(f"There is no frontend {name}: give all, or {', '.join(frontends())}.")
    return [name]


def profile_of(frontend: str, device_id: DeviceId) -> Profile | None:
    """Return how a frontend speaks for a device type; None where it has none of that."""
    found = _records()[frontend]
    entry = entry_of(device_id)
    name = ANY if entry is None else entry.name
    record = found["device"].get(name, found["device"].get(ANY))
    if record is None:
        return None
    start = _parts(record["start"])
    stop = _parts(record["stop"]) if "stop" in record else None
    return Profile(
        frontend=frontend,
        title=found["title"],
        connect=_parts(record["connect"]),
        start=start,
        stop=stop,
        resume=_parts(record["resume"]) if "resume" in record else start,
        reset=_parts(record["reset"]) if "reset" in record else stop,
        features=record.get("features"),
        protocol=feature_mask(ProtocolFeature[name] for name in record["protocol"]),
        protocol_bit=record.get("protocol_bit", True),
        acknowledged=frozenset(record.get("acknowledged", ())),
        queues=record.get("queues"),
        config=record.get("config"),
        guest_addresses=record.get("user_addresses") == "guest",
        shared_call=record.get("shared_call", False),
        inflight_as_given=record.get("inflight") == "as-given",
        base=record.get("base"),
    )


def _parts(record: list[str | list[str]]) -> list[Part]:
    return [
        _step(part) if isinstance(part, str) else [_step(one) for one in part] for part in record
    ]


def _step(text: str) -> Step:
    name, _, beside = text.partition(" ")
    if name == MEMORY:
        return Step(Request.SET_MEM_TABLE, shares_memory=True)
    request = Request[name]
    if request is Request.SET_MEM_TABLE:
        return Step(request)
    if request is Request.SET_STATUS:
        names = [] if beside == "0" else beside.split("|")
        return Step(request, sum(DeviceStatus[one] for one in names))
    if beside == MASKED:
        return Step(request, masked=True)
    return Step(request, int(beside) if beside else 0)
