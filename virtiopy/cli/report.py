"""What a run cost and found, as tables for a person and as JSON for a program."""

import json
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from virtiopy import __version__
from virtiopy.cli.ending import Ending
from virtiopy.cli.options import note
from virtiopy.cli.tables import number_column, show_table
from virtiopy.cli.tapresults import TapReport
from virtiopy.files import write_output
from virtiopy.metrics.measurement import Measurement
from virtiopy.vm.machine import Machine, RunResult
from virtiopy.vm.standing import Standing

_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def show_tests(console: Console, report: TapReport) -> None:
    """Print how many of the guest's tests passed, by what they are about."""
    if not report.tests:
        return
    table = Table("Guest tests", title_justify="left")
    for outcome in _STYLES:
        number_column(table, outcome)
    groups = report.by_group()
    for group, counts in groups.items():
        table.add_row(group, *(str(counts[outcome] or "") for outcome in _STYLES))
    totals = [sum(counts[outcome] for counts in groups.values()) for outcome in _STYLES]
    table.add_section()
    cells = [
        f"[{style}]{total}[/]" if total else "0"
        for style, total in zip(_STYLES.values(), totals, strict=True)
    ]
    table.add_row("all", *cells)
    show_table(console, table)


def show_measurement(console: Console, measurement: Measurement) -> None:
    """Print what a measured part of a run cost: exits, and the time of each kind of thread."""
    table = Table("Exit to userspace", "device", "register", "direction")
    number_column(table, "count")
    for kind, count in sorted(measurement.exits.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(kind.reason, kind.device, kind.register, kind.direction, str(count))
    table.add_section()
    table.add_row("all", "", "", "", str(measurement.exits.total()))
    show_table(console, table)
    spent = ", ".join(
        f"{kind} {seconds:.2f} s" for kind, seconds in measurement.cpu_seconds.items() if seconds
    )
    console.print(f"It took {measurement.seconds:.2f} s; of CPU time: {spent}.")


def show_exits(console: Console, result: RunResult) -> None:
    """Print the exits to userspace, by reason, device and register, and the kernel's counts."""
    table = Table("Exit to userspace", "device", "register", "direction")
    number_column(table, "count")
    for kind, count in sorted(result.exits.counts.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(kind.reason, kind.device, kind.register, kind.direction, str(count))
    table.add_section()
    table.add_row("all", "", "", "", str(result.exits.total))
    show_table(console, table)
    show_kernel(console, result)


def show_kernel(console: Console, result: RunResult) -> None:
    """Print the accelerator's own counters that moved."""
    if not result.kernel:
        console.print("The accelerator keeps no counters of its own.")
        return
    table = Table("Counted by the kernel")
    number_column(table, "count")
    for name, count in result.kernel.items():
        if count:
            table.add_row(name, str(count))
    light = light_exits(result)
    if light is not None:
        table.add_section()
        table.add_row("exits that the kernel handled itself", str(light))
    show_table(console, table)


def show_facts(console: Console, machine: Machine) -> None:
    """Print the devices' modes, and what they have to tell, but for zeroes."""
    table = Table("Told by the devices", "what")
    number_column(table, "value")
    for slot in machine.slots:
        table.add_row(slot.name, "mode", slot.mode)
        for name, value in slot.device.facts().items():
            if value:
                table.add_row(slot.name, name, str(value))
    if table.row_count:
        show_table(console, table)


def show_standing(console: Console, ending: Ending) -> None:
    """Print where a guest stands that did not end by itself."""
    if ending.standing is None:
        return
    console.print("Where the guest stands:")
    for line in ending.standing.lines():
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _standing(standing: Standing | None) -> dict[str, object] | None:
    if standing is None:
        return None
    return {
        "cpus": [
            {
                "number": cpu.number,
                "activity": cpu.activity,
                "rip": cpu.rips[-1],
                "symbol": cpu.symbol,
                "spins": cpu.spins,
                "interrupts_enabled": cpu.interrupts_enabled,
            }
            for cpu in standing.cpus
        ],
        "devices": [
            {"name": device.name, "status": device.status, "facts": list(device.facts)}
            for device in standing.devices
        ],
    }


def light_exits(result: RunResult) -> int | None:
    """Return how many exits never reached userspace; None where KVM's count cannot tell.

    One exit for a string instruction reaches userspace once an item, so KVM may count fewer.
    """
    light = result.kernel.get("exits", 0) - result.exits.total
    return light if light >= 0 else None


class _Exit(TypedDict):
    reason: str
    device: str
    register: str
    direction: str
    count: int


def write_json(
    machine: Machine,
    ending: Ending,
    report: TapReport,
    path: Path,
    *,
    guest: str,
    passed: bool,
) -> None:
    """Write the run to `path`; raises ConfigError when it cannot be written."""
    result = ending.result
    exits = [
        _Exit(
            reason=kind.reason,
            device=kind.device,
            register=kind.register,
            direction=kind.direction,
            count=count,
        )
        for kind, count in sorted(result.exits.counts.items())
    ]
    document = {
        "virtiopy": __version__,
        "guest": guest,
        "accelerator": machine.accelerator.name,
        "cpus": len(machine.cpus),
        "exit_free": machine.exit_free,
        "passed": passed,
        "status": result.status,
        "reason": ending.reason,
        "standing": _standing(ending.standing),
        "complaint": str(ending.error) if ending.error is not None else None,
        "seconds": round(result.seconds, 6),
        "devices": [
            {
                "name": slot.name,
                "device_id": int(slot.device.device_id),
                "address": slot.placement.address,
                "gsi": slot.placement.gsi,
                "mode": slot.mode.value,
                "offered": slot.transport.lifecycle.offered_names,
                "facts": slot.device.facts(),
            }
            for slot in machine.slots
        ],
        "tests": [
            {
                "number": test.number,
                "description": test.description,
                "outcome": test.outcome,
                "skip_reason": test.skip,
            }
            for test in report.tests
        ],
        "bail_out": report.bail_out,
        "exits": {
            "userspace": exits,
            "userspace_total": result.exits.total,
            "userspace_total_by_cpu": result.exits.totals,
            "kernel": result.kernel or None,
            "light": light_exits(result) if result.kernel else None,
        },
    }
    write_output(path, "The report", json.dumps(document, indent=2) + "\n", told=note)
