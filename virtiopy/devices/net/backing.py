"""What another worker needs of a network device besides a pair of queues: a queue of its link."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from virtiopy.devices.delegation import Backing
from virtiopy.devices.gate import Gate
from virtiopy.devices.net.control import ReceiveFilter
from virtiopy.devices.net.features import Terms
from virtiopy.devices.net.path import NetCounters


class FrameRules(Protocol):
    """What frames are subject to: a network device has it, and changes it meanwhile."""

    terms: Terms
    filter: ReceiveFilter
    counts: NetCounters


@dataclass(slots=True, frozen=True)
class LinkBacking(Backing):
    """A queue of a link, for the worker of a pair of virtqueues.

    `file` is the queue's; the worker polls for `busy_poll` microseconds before it sleeps: None for
    what it does by itself. A worker that looks at frames keeps to `rules`; what it reads while the
    `gate` is shut waits, and goes to `put_back` where the worker is to leave the queues meanwhile.
    """

    kind: ClassVar[str] = "network device"

    file: int
    busy_poll: int | None = None
    rules: FrameRules | None = None
    gate: Gate | None = None
    put_back: Callable[[bytes], None] | None = None
