"""What an entry of the registry says of a device: its names, its option, and where its parts are.

Parts that lie above this folder, as the device's driver in the conformance suite does, are named by
their place, "package.module:name", and imported when they are wanted: an entry imports nothing, and
no arrow points up.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeVar

from virtiopy.devices.base import VirtioDevice
from virtiopy.spec import DeviceId

_T = TypeVar("_T")


class Options(Protocol):
    """The value of a device's option, taken apart: MAIN,key=value,...

    Each method raises ConfigError, with the remedy, for a value that is none.
    """

    @property
    def option(self) -> str:
        """The option's name, as "--disk"."""

    @property
    def main(self) -> str:
        """What comes before the first key."""

    @property
    def keys(self) -> Sequence[str]:
        """The keys that were given."""

    def text(self, key: str, default: str) -> str:
        """Return a value as it was written."""

    def texts(self, key: str) -> Sequence[str]:
        """Return the values of a repeatable key, in their order."""

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return an on/off value."""

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """Return a value that is one of `choices`."""

    def number(self, key: str, default: int, least: int, most: int) -> int:
        """Return a whole number from `least` to `most`."""


@dataclass(slots=True, frozen=True)
class NoOptions:
    """Options of which none was given."""

    option: str
    main: str = ""
    keys: Sequence[str] = ()

    def text(self, key: str, default: str) -> str:
        """Return the default."""
        return default

    def texts(self, key: str) -> Sequence[str]:
        """Return nothing."""
        return ()

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return the default."""
        return default

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """Return the default."""
        return default

    def number(self, key: str, default: int, least: int, most: int) -> int:
        """Return the default."""
        return default


def find(place: str) -> object:
    """Return what is at a place, "package.module:name"."""
    module, _, name = place.partition(":")
    found: object = getattr(importlib.import_module(module), name)
    return found


def find_class(place: str, base: type[_T]) -> type[_T]:
    """Return the class at a place, which is a subclass of `base`."""
    found = find(place)
    if not isinstance(found, type) or not issubclass(found, base):
        raise TypeError(f"{place} is no {base.__name__}")
    return found


@dataclass(slots=True, frozen=True)
class Option:
    """The option of the command line that attaches a device.

    `keys` may follow the first part of its value as key=value, `repeatable` ones several times;
    every device knows `mode` too. Without `has_main` there is no first part: the value is
    key=value,... and may be left out. Each key of `parts` begins a part of the value, with keys of
    its own after it.
    """

    name: str
    metavar: str
    help: str
    keys: tuple[str, ...] = ()
    repeatable: tuple[str, ...] = ()
    has_main: bool = True
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))


#: Requests in flight at most: what the guest has room for (guest_drivers/virtio/workload.h).
DEPTH_MAX = 128


@dataclass(slots=True, frozen=True)
class Direction:
    """One way that a workload goes: what it is called, the guest's arguments for it.

    In `arguments`, {count} and {depth} stand for the requests in all, and those in flight.
    `surroundings` is the place of what goes on outside of the guest meanwhile: a function of the
    Options, which returns an exits.runner.Surroundings.
    """

    what: str
    arguments: str
    surroundings: str | None = None


@dataclass(slots=True, frozen=True)
class Workload:
    """What `virtiopy exits` measures of a device: requests of the guest driver's, each a `unit`.

    `metavar` and `help` are of the device's option there. `count` is how many requests there are
    where the user says nothing, and `count_option` is where they say it. `directions` are the
    choices of --direction, the first for users who make none. `adds` are options of the device, by
    key, where they are not given. The guest driver has up to `depth_max` requests in flight.
    """

    metavar: str
    help: str
    unit: str
    count: int
    directions: Mapping[str, Direction]
    count_option: str = "--requests"
    adds: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    depth_max: int = DEPTH_MAX


@dataclass(slots=True, frozen=True)
class LinuxCounter:
    """What Linux counts of the device: requests, each a `unit`; `script` prints their number.

    The shell script names the first device of the type, as /dev/vda and eth0 are.
    """

    unit: str
    script: str


@dataclass(slots=True, frozen=True)
class Example:
    """A request that any device of the type serves: what it reads, and what it answers."""

    readable: bytes
    answer: bytes
    queue: int = 0


@dataclass(slots=True, frozen=True)
class DeviceEntry:
    """A device of virtiopy's."""

    #: What it is called on the command line and in reports; its devices are NAME0, NAME1, ...
    name: str

    device_id: DeviceId

    #: What it is, in a sentence: "block device".
    kind: str

    #: The place of its class.
    device: str

    option: Option

    #: The place of what makes the device of the option's value: it is given Options, and raises
    #: ConfigError, with the remedy, and HostError.
    build: str

    #: The place of what finds the mode out from the value, given the VM's mode; None where the
    #: device has no mode but those that every device has.
    choose_mode: str | None = None

    #: The modes, besides those of its class, in which `build` makes another device: the value says
    #: mode=MODE then.
    built_in: tuple[str, ...] = ()

    #: The place of what makes the VM's side of one that another process serves, of its socket's
    #: path and the Options; None where there is no such thing.
    vhost_user: str | None = None

    #: The place of what says what one that is ours needs in the sandbox, once it is set up, of the
    #: Options: a function that returns a cli.sandboxed.Needs. None where that is nothing.
    needs: str | None = None

    #: Whether it can be served to another VMM.
    served: bool = True

    #: Whether this process works its rings: the conformance suite can have it here then.
    in_process: bool = True

    #: The place of what makes it in order to be served, where that differs: it is given Options,
    #: and returns the device and the Lease (vhost.user.rings) of its rings.
    build_served: str | None = None

    #: The place of what has another program than virtiopy serve it, to be measured: it is given
    #: Options, and returns an exits.backend.Served. None where no other does.
    served_by: str | None = None

    #: The guest driver that exercises it, where that has another name.
    guest: str = ""

    #: Its word in the names of feature bits, where that is not its own name in capitals.
    feature_word: str = ""

    #: What `virtiopy exits` measures of it, if it does.
    workload: Workload | None = None

    #: The place of its driver in the conformance suite; or what a driver is made of, that sends
    #: this one request in every way.
    suite_driver: str | None = None
    example: Example | None = None

    #: The places of what makes it for the suite, by the names of `inproc:NAME`; one is made of the
    #: option without a value where there are none.
    rigs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    #: The place of what judges its driver's requests, if anything does.
    judge: str | None = None

    #: The modules of Linux that `virtiopy linux` loads where there is such a device.
    linux_modules: tuple[str, ...] = ()

    #: What `virtiopy exits -- COMMAND` measures of it in Linux, if it does.
    linux_counter: LinuxCounter | None = None

    @property
    def device_class(self) -> type[VirtioDevice]:
        """Its class."""
        return find_class(self.device, VirtioDevice)

    @property
    def guest_driver(self) -> str:
        """The name of the guest driver that exercises it."""
        return self.guest or self.name

    @property
    def feature_prefix(self) -> str:
        """How the names of its own feature bits begin in the specification."""
        return f"VIRTIO_{self.feature_word or self.name.upper()}_F_"
