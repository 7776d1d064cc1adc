"""What a driver's acts came to: statements kept, and statements broken with the evidence.

A device's acts come to the same where a proxy judges both sides.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from virtiopy.check.catalogue import load
from virtiopy.statements.terms import Keyword

#: How many pieces of evidence are kept of one finding; the others are counted.
EVIDENCE_MOST = 3

#: How many of the driver's last acts are told with a finding.
TRACE_LENGTH = 12

#: Keywords whose statements are broken; SHOULD is a warning, and MAY only permits. What is said of
#: devices without a word of RFC 2119, as that they carry requests out, binds them all the same.
_BINDING = {Keyword.MUST, Keyword.MUST_NOT, Keyword.DEFINITION}


class Statement(Protocol):
    """A normative statement, to drivers, devices or whom else: see DriverStatement."""

    @property
    def id(self) -> str:
        """Its section and its place in that: "2.1.1:2", "ring-states:3"."""

    @property
    def keyword(self) -> Keyword:
        """How binding it is."""

    @property
    def paraphrase(self) -> str:
        """What is done or not done, in one sentence."""

    @property
    def unobservable(self) -> str | None:
        """Why it cannot be seen whether it is kept; None where it can."""


@dataclass(slots=True)
class Finding:
    """A statement that a driver broke, how often, and what followed from it.

    `evidence` says in one sentence each what the driver did, `trace` what it did just before the
    first time, oldest first. `consequences` are findings that the device's state after this one
    explains.
    """

    statement: Statement
    device: str
    evidence: list[str]
    trace: Sequence[str]
    count: int = 1
    consequences: list["Finding"] = field(default_factory=list)

    @property
    def is_error(self) -> bool:
        """Whether the statement is a MUST or MUST NOT: a SHOULD is a warning."""
        return self.statement.keyword in _BINDING

    def __str__(self) -> str:
        return (
            f"{self.device}: {self.evidence[0]} ({self.statement.id} "
            f"{self.statement.keyword.value}: {self.statement.paraphrase})"
        )


class DeviceJudge:
    """Keeps account of one device's driver; what watches the driver calls `kept` and `broke`.

    Any thread may call it. `name` is the device's in the VM, as blk0. `statements` are those that
    the acts are held against: those to drivers, where none are given.
    """

    def __init__(self, name: str, statements: Mapping[str, Statement] | None = None) -> None:
        self._name = name
        self.features = 0  # accepted, in the driver's present life with the device
        self._lock = threading.Lock()
        self._statements = load() if statements is None else statements
        self._kept: Counter[str] = Counter()
        self._findings: dict[str, Finding] = {}
        self._consequences: dict[str, Finding] = {}
        self._cause: Finding | None = None
        self._trace: list[str] = []

    @property
    def name(self) -> str:
        """The device's name in the VM."""
        return self._name

    def note(self, act: str) -> None:
        """Remember an act of the driver, for the trace of a finding."""
        with self._lock:
            self._trace.append(act)
            del self._trace[:-TRACE_LENGTH]

    def kept(self, identity: str) -> None:
        """Book a statement that applied, and that the driver kept."""
        with self._lock:
            self._kept[self._statements[identity].id] += 1

    def broke(self, identity: str, evidence: str, *, fatal: bool = False) -> None:
        """Book a statement that the driver broke.

        After a `fatal` one the device works no queue of the driver's until a reset: what the
        driver breaks until then is a consequence.
        """
        with self._lock:
            statement = self._statements[identity]
            found = self._consequences if self._cause is not None else self._findings
            if identity in self._findings:
                found = self._findings
            finding = found.get(identity)
            if finding is None:
                finding = Finding(statement, self.name, [evidence], tuple(self._trace))
                found[identity] = finding
                if self._cause is not None and found is self._consequences:
                    self._cause.consequences.append(finding)
            else:
                finding.count += 1
                if evidence not in finding.evidence and len(finding.evidence) < EVIDENCE_MOST:
                    finding.evidence.append(evidence)
            if fatal and self._cause is None:
                self._cause = finding

    def check(self, identity: str, holds: bool, evidence: str) -> bool:
        """Book a statement as kept or broken; returns `holds`."""
        if holds:
            self.kept(identity)
        else:
            self.broke(identity, evidence)
        return holds

    def new_life(self) -> None:
        """Begin a life: the driver has reset the device, and what follows has other causes."""
        with self._lock:
            self._cause = None
            self._consequences = {}
            self.features = 0

    @property
    def findings(self) -> list[Finding]:
        """The findings, in the specification's order."""
        with self._lock:
            order = list(self._statements)
            return sorted(self._findings.values(), key=lambda one: order.index(one.statement.id))

    @property
    def exercised(self) -> Counter[str]:
        """How often each statement was kept, by ID."""
        with self._lock:
            return Counter(self._kept)


class Judged(Protocol):
    """What one device's driver came to."""

    @property
    def name(self) -> str:
        """The device's name."""

    @property
    def findings(self) -> list[Finding]:
        """The findings, in the specification's order."""

    @property
    def exercised(self) -> Counter[str]:
        """How often each statement was kept, by ID."""


@dataclass(slots=True, frozen=True)
class Verdict:
    """What all drivers of a run came to; `title` names in a report who was judged.

    `statements` are all that they were held against.
    """

    devices: Sequence[Judged]
    statements: Mapping[str, Statement] = field(default_factory=load)
    title: str = "Drivers"

    @property
    def findings(self) -> list[Finding]:
        """All findings, device by device."""
        return [finding for device in self.devices for finding in device.findings]

    @property
    def errors(self) -> list[Finding]:
        """The findings of MUST and MUST NOT."""
        return [finding for finding in self.findings if finding.is_error]

    def outcomes(self) -> Iterator[tuple[Statement, str, int]]:
        """Yield each statement, "kept", "broken" or "not exercised", and how often."""
        kept: Counter[str] = Counter()
        broken: Counter[str] = Counter()
        for device in self.devices:
            kept.update(device.exercised)
            for finding in device.findings:
                broken[finding.statement.id] += finding.count
        for identity, statement in self.statements.items():
            if broken[identity]:
                yield statement, "broken", broken[identity]
            elif kept[identity]:
                yield statement, "kept", kept[identity]
            else:
                yield statement, "not exercised", 0
