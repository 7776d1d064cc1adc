"""What each normative statement of the specification asks, and how it can be seen to be kept.

The statements are those of index.toml, which virtiopy.statements.index makes from the
specification's sources; what is said of them is in AREA.toml, in our own words.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from virtiopy.statements.index import FOLDERS, Index
from virtiopy.statements.latex import Requirements
from virtiopy.statements.said import read
from virtiopy.statements.terms import Condition, Keyword


class Area(enum.Enum):
    """What part of the specification a clause belongs to."""

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
    VHOST_USER = "vhost-user"  # the protocol's own, which are no sentences of the specification's


#: The areas of the specification, each with its file.
OF_VIRTIO = [area for area in Area if area is not Area.VHOST_USER]


class Transport(enum.Enum):
    """How a driver may reach the device."""

    MMIO = "mmio"  # the driver writes the device status; registers are those of 4.2
    PCI = "pci"  # the driver writes the device status; no session here speaks it yet
    VHOST_USER = "vhost-user"  # it has none: features, configuration space and rings only


@dataclass(frozen=True, slots=True)
class Clause:
    """One normative statement to a device."""

    id: str  # its section and its place in it: "5.2.6.2:3"
    section: str
    title: str  # of the section
    keyword: Keyword
    paraphrase: str  # what the device does or does not do, in one sentence
    area: Area
    feature: str | None  # what it depends on, as Condition.parse reads it
    transports: frozenset[Transport]  # over which a driver can tell
    host_side: (
        bool  # a test also needs the device's other side: a frame to receive, a log, an image
    )
    unobservable: str | None  # why no driver can tell whether it is kept
    condition: Condition | None  # `feature`, to be asked
    bears: Sequence[str] = ()  # statements that cannot be judged where this one is broken

    def applies(self, offered: int) -> bool:
        """Say whether the clause concerns a device that offers the feature set `offered`."""
        return self.condition is None or self.condition.holds(offered)


class _Record(TypedDict, total=False):
    """One table of an AREA.toml."""

    paraphrase: str
    feature: str
    transports: list[str]
    host_side: bool
    unobservable: str
    bears: list[str]


def load(folder: Path = FOLDERS[Requirements.DEVICE]) -> Mapping[str, Clause]:
    """Return every clause by its ID, in the specification's order.

    Raises ValueError if the files do not say of each statement of the index just one thing.
    """
    return read(folder, OF_VIRTIO, _clause)


def _clause(identity: str, area: Area, record: _Record, index: Index) -> Clause:
    section = identity.partition(":")[0]
    feature = record.get("feature")
    transports = record.get("transports", [transport.value for transport in Transport])
    return Clause(
        id=identity,
        section=section,
        title=index.titles[section],
        keyword=Keyword(index.statements[identity].keyword),
        paraphrase=record["paraphrase"],
        area=area,
        feature=feature,
        transports=frozenset(Transport(name) for name in transports),
        host_side=record.get("host_side", False),
        unobservable=record.get("unobservable"),
        condition=Condition.parse(feature, index.features) if feature else None,
        bears=record.get("bears", ()),
    )
