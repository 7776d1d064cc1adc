"""What is told of each mode, number by number: the same on a terminal and on a page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from virtiopy.exits.model import REGISTERS, Costs, Workload, format_number

_MICROSECONDS = 1e6


@dataclass(slots=True, frozen=True)
class Column:
    """A heading, its lines on a terminal, and the number for all requests.

    The number is None where it is not counted.
    """

    heading: str
    lines: str
    value: Callable[[Costs], float | None]

    def cell(self, costs: Costs) -> str:
        """Write the number for one request."""
        value = self.value(costs)
        return "-" if value is None else format_number(costs.each(value))


def _cpu(costs: Costs, *kinds: str) -> float:
    return sum(costs.cpu_seconds[kind] for kind in kinds) * _MICROSECONDS


_EXITS: Sequence[Column] = (
    Column("to userspace", "to user-\nspace", lambda costs: costs.userspace),
    Column("QueueNotify", "Queue\nNotify", lambda costs: costs.of("QueueNotify")),
    Column("InterruptStatus", "Interrupt\nStatus", lambda costs: costs.of("InterruptStatus")),
    Column("InterruptACK", "Interrupt\nACK", lambda costs: costs.of("InterruptACK")),
    Column("other", "other", lambda costs: costs.userspace - sum(map(costs.of, REGISTERS))),
    Column("counted by the kernel", "kernel's\ncount", lambda costs: costs.kernel.get("exits")),
)

_EVENTS: Sequence[Column] = (
    Column("kicks", "kicks", lambda costs: costs.kicks),
    Column("suppressed", "suppressed", lambda costs: costs.suppressed),
    Column(
        "interrupts",
        "inter-\nrupts",
        lambda costs: costs.kernel.get("irq_injections", costs.interrupts),
    ),
    Column("time", "time", lambda costs: costs.seconds * _MICROSECONDS),
    Column("vCPU", "vCPU", lambda costs: _cpu(costs, "vcpu")),
    Column("loop", "loop", lambda costs: _cpu(costs, "loop", "workers")),
    Column("worker", "worker", lambda costs: _cpu(costs, "native", "vhost", "backend")),
)


@dataclass(slots=True, frozen=True)
class Columns:
    """A table of the modes."""

    title: str
    columns: Sequence[Column]


def tables(workload: Workload) -> list[Columns]:
    """Return the tables, each as wide as a terminal."""
    each = f"a {workload.unit}"
    return [
        Columns(f"Exits {each}", _EXITS),
        Columns(f"Events {each}, and microseconds: elapsed, and CPU time by thread", _EVENTS),
    ]
