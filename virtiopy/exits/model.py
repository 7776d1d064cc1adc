"""What a comparison found, and where it was found."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from virtiopy.metrics.exitlog import ExitKind
from virtiopy.metrics.measurement import Measurement

#: The registers of virtio-mmio that a request may touch (4.2.2).
REGISTERS = ("QueueNotify", "InterruptStatus", "InterruptACK")


def format_number(value: float) -> str:
    """Write a number for a person: two decimals, none where it is large."""
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


@dataclass(slots=True, frozen=True)
class Costs:
    """What `requests` requests cost, set-up left out.

    `kicks`, `suppressed` (kicks that the device had said it needs not) and `interrupts` (that were
    taken) are the guest's own counts, the others the host's. Linux counts no kicks: None.
    """

    requests: int
    kicks: int | None
    suppressed: int | None
    interrupts: int
    measured: Measurement

    @property
    def userspace(self) -> int:
        """All exits to userspace."""
        return self.measured.exits.total()

    @property
    def kernel(self) -> Mapping[str, int]:
        """The kernel's own counters; empty where the accelerator has none."""
        return self.measured.kernel

    @property
    def seconds(self) -> float:
        """The time that all requests took."""
        return self.measured.seconds

    @property
    def cpu_seconds(self) -> Mapping[str, float]:
        """The CPU time of each kind of thread; see Measurement."""
        return self.measured.cpu_seconds

    def by_register(self) -> list[tuple[ExitKind, int]]:
        """Count exits to userspace by register and direction, most first."""
        return sorted(self.measured.exits.items(), key=lambda item: (-item[1], item[0]))

    def of(self, register: str) -> int:
        """Count exits to userspace about one register of any device, in both directions."""
        return sum(n for kind, n in self.measured.exits.items() if kind.register == register)

    def each(self, count: float) -> float:
        """Say how much of a count there is for each request."""
        return count / self.requests


@dataclass(slots=True, frozen=True)
class Row:
    """One mode: what it cost, or why it is `missing`.

    `exit_free` says whether registers were read without exits.
    """

    mode: str
    exit_free: bool
    costs: Costs | None = None
    missing: str | None = None

    @property
    def name(self) -> str:
        """The mode in a word or two."""
        return f"{self.mode} exit-free" if self.exit_free else self.mode

    @property
    def slug(self) -> str:
        """The name as an identifier."""
        return self.name.replace(" ", "-")


@dataclass(slots=True, frozen=True)
class Workload:
    """What the guest does: `count` `unit`s ("packet"), `what` ("sent"), `depth` at a time.

    A `command` in Linux decides for itself how many, and how many at a time: both are None.
    """

    device: str
    unit: str
    what: str
    count: int | None
    depth: int | None
    command: str | None = None

    @property
    def sentence(self) -> str:
        """Say it in words."""
        if self.command is not None:
            return f"The {self.unit}s of `{self.command}` in {self.what}"
        flight = "one" if self.depth == 1 else str(self.depth)
        return f"{self.count} {self.unit}s {self.what}, {flight} at a time"


@dataclass(slots=True, frozen=True)
class Host:
    """Where it was measured."""

    kernel: str
    cpu: str
    cpus: int

    @classmethod
    def current(cls) -> "Host":
        """Describe this host."""
        cpuinfo = Path("/proc/cpuinfo").read_text()
        found = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
        name = found[1] if found else os.uname().machine
        return cls(os.uname().release, name, os.cpu_count() or 1)


@dataclass(slots=True, frozen=True)
class Comparison:
    """All rows of one command."""

    command: str
    date: datetime
    host: Host
    accelerator: str
    workload: Workload
    rows: Sequence[Row]

    @property
    def measured(self) -> list[tuple[Row, Costs]]:
        """The rows that are not missing."""
        return [(row, row.costs) for row in self.rows if row.costs is not None]
