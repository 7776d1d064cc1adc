"""What each normative statement asks of a driver, and how the judge can see it kept.

The statements are those of statements/index.toml, made from the specification's sources; what is
said of them is in statements/AREA.toml, in our own words.
"""

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from virtiopy.statements.index import FOLDERS, Index
from virtiopy.statements.latex import Requirements
from virtiopy.statements.said import read
from virtiopy.statements.terms import Condition, Keyword

FOLDER = FOLDERS[Requirements.DRIVER]


class Watcher(enum.Enum):
    """Which part of the judge watches a statement."""

    LIFECYCLE = "lifecycle"  # status, features, queue set-up, kicks: over every transport
    REGISTERS = "registers"  # the registers of virtio-mmio
    RINGS = "rings"  # descriptors, available rings, notification suppression
    NET = "net"
    BLK = "blk"
    CONSOLE = "console"
    RNG = "rng"
    BALLOON = "balloon"
    SCSI = "scsi"
    VSOCK = "vsock"
    FS = "fs"


class Area(enum.Enum):
    """What part of the specification a statement belongs to: each has its file."""

    BASIC = "basic"  # 2 but for 2.7, 3, 6
    SPLIT = "split"  # 2.7
    MMIO = "mmio"  # 4.2
    NET = "net"  # 5.1
    BLK = "blk"  # 5.2
    CONSOLE = "console"  # 5.3
    RNG = "rng"  # 5.4
    BALLOON = "balloon"  # 5.5
    SCSI = "scsi"  # 5.6
    VSOCK = "vsock"  # 5.10
    FS = "fs"  # 5.11


@dataclass(frozen=True, slots=True)
class DriverStatement:
    """One normative statement to a driver.

    Just one of `watcher`, `variant` and `unobservable` is set: who sees whether it is kept, the
    unusual device that puts a driver to the test, or why no device can tell.
    """

    id: str  # its section and its place in it: "2.1.1:2"
    section: str
    title: str  # of the section
    keyword: Keyword
    paraphrase: str  # what the driver does or does not do, in one sentence
    area: Area
    condition: Condition | None  # which features have to be negotiated
    watcher: Watcher | None
    variant: str | None
    unobservable: str | None


class _Record(TypedDict, total=False):
    """One table of an AREA.toml."""

    paraphrase: str
    feature: str
    by: str
    provoked: str
    unobservable: str


@functools.cache
def load() -> Mapping[str, DriverStatement]:
    """Return every statement by its ID, in the specification's order.

    Raises ValueError if the files do not say of each statement of the index just one thing.
    """
    return read(FOLDER, Area, _statement)


def _statement(identity: str, area: Area, record: _Record, index: Index) -> DriverStatement:
    if len(record.keys() & {"by", "provoked", "unobservable"}) != 1:
        raise ValueError(f"{identity}: one of by, provoked and unobservable")
    section = identity.partition(":")[0]
    feature = record.get("feature")
    by = record.get("by")
    return DriverStatement(
        id=identity,
        section=section,
        title=index.titles[section],
        keyword=Keyword(index.statements[identity].keyword),
        paraphrase=record["paraphrase"],
        area=area,
        condition=Condition.parse(feature, index.features) if feature else None,
        watcher=Watcher(by) if by else None,
        variant=record.get("provoked"),
        unobservable=record.get("unobservable"),
    )
