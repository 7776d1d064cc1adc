"""The comparison as JSON, under names that stay: docs/exits.md lists them."""

from typing import TypedDict

from virtiopy import __version__
from virtiopy.exits.differences import differences
from virtiopy.exits.model import Comparison, Costs, Row

#: Counted up when a name goes or changes its meaning; new names may come without.
SCHEMA = 1


class RegisterExits(TypedDict):
    """Exits to userspace of one kind."""

    reason: str
    device: str
    register: str
    direction: str
    count: int
    per_request: float


class PartOfDifference(TypedDict):
    """One counter's part of a difference, null where no counter tells."""

    counter: str | None
    count: int
    why: str


class DifferenceBetween(TypedDict):
    """Two counts of one thing, and what leads from the first to the second."""

    what: str
    ours_is: str
    ours: int
    theirs_is: str
    theirs: int
    parts: list[PartOfDifference]


class PerRequest(TypedDict):
    """What one request cost; times are seconds. Null where the accelerator does not count."""

    userspace_exits: float
    queue_notify_exits: float
    kernel_exits: float | None
    interrupts_injected: float | None
    kicks: float | None
    kicks_suppressed: float | None
    seconds: float
    cpu_seconds: dict[str, float]


class Measured(TypedDict):
    """What a mode cost, for all requests together."""

    requests: int
    per_request: PerRequest
    userspace_exits: int
    registers: list[RegisterExits]
    kernel: dict[str, int] | None
    interrupts_taken: int
    kicks: int | None
    kicks_suppressed: int | None
    seconds: float
    cpu_seconds: dict[str, float]
    differences: list[DifferenceBetween]


class Mode(TypedDict):
    """A row: `measured` is null where `missing` says why."""

    mode: str
    exit_free: bool
    missing: str | None
    measured: Measured | None


class HostDescription(TypedDict):
    """Where it was measured."""

    kernel: str
    cpu: str
    cpus: int


class WorkloadDescription(TypedDict):
    """What the guest did; with a `command` in Linux, `requests` and `depth` are that one's own."""

    device: str
    unit: str
    what: str
    requests: int | None
    depth: int | None
    command: str | None


class Document(TypedDict):
    """The whole file."""

    schema: int
    virtiopy: str
    command: str
    date: str
    host: HostDescription
    accelerator: str
    workload: WorkloadDescription
    set_up_excluded: bool
    modes: list[Mode]


def document(comparison: Comparison) -> Document:
    """Return the comparison as JSON has it."""
    host, workload = comparison.host, comparison.workload
    return Document(
        schema=SCHEMA,
        virtiopy=__version__,
        command=comparison.command,
        date=comparison.date.isoformat(timespec="seconds"),
        host=HostDescription(kernel=host.kernel, cpu=host.cpu, cpus=host.cpus),
        accelerator=comparison.accelerator,
        workload=WorkloadDescription(
            device=workload.device,
            unit=workload.unit,
            what=workload.what,
            requests=workload.count,
            depth=workload.depth,
            command=workload.command,
        ),
        set_up_excluded=True,
        modes=[_mode(row) for row in comparison.rows],
    )


def _mode(row: Row) -> Mode:
    return Mode(
        mode=row.mode,
        exit_free=row.exit_free,
        missing=row.missing,
        measured=None if row.costs is None else _measured(row.costs),
    )


def _measured(costs: Costs) -> Measured:
    measured = costs.measured
    return Measured(
        requests=costs.requests,
        per_request=_per_request(costs),
        userspace_exits=costs.userspace,
        registers=[
            RegisterExits(
                reason=kind.reason,
                device=kind.device,
                register=kind.register,
                direction=kind.direction,
                count=count,
                per_request=costs.each(count),
            )
            for kind, count in costs.by_register()
        ],
        kernel=dict(costs.kernel) or None,
        interrupts_taken=costs.interrupts,
        kicks=costs.kicks,
        kicks_suppressed=costs.suppressed,
        seconds=measured.seconds,
        cpu_seconds=dict(measured.cpu_seconds),
        differences=[
            DifferenceBetween(
                what=found.what,
                ours_is=found.ours_is,
                ours=found.ours,
                theirs_is=found.theirs_is,
                theirs=found.theirs,
                parts=[
                    PartOfDifference(counter=part.counter or None, count=part.count, why=part.why)
                    for part in found.parts
                ],
            )
            for found in differences(costs)
        ],
    )


def _per_request(costs: Costs) -> PerRequest:
    kernel = costs.kernel
    return PerRequest(
        userspace_exits=costs.each(costs.userspace),
        queue_notify_exits=costs.each(costs.of("QueueNotify")),
        kernel_exits=costs.each(kernel["exits"]) if "exits" in kernel else None,
        interrupts_injected=(
            costs.each(kernel["irq_injections"]) if "irq_injections" in kernel else None
        ),
        kicks=None if costs.kicks is None else costs.each(costs.kicks),
        kicks_suppressed=None if costs.suppressed is None else costs.each(costs.suppressed),
        seconds=costs.each(costs.measured.seconds),
        cpu_seconds={kind: costs.each(s) for kind, s in costs.measured.cpu_seconds.items()},
    )
