"""Run one workload in every mode, each in a fresh VM of the same configuration."""

import contextlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from virtiopy.accel import select
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError, GuestError, HostError
from virtiopy.exits.backend import Served
from virtiopy.exits.guest import Guest
from virtiopy.exits.model import Costs, Row, Workload
from virtiopy.memory import GuestMemory
from virtiopy.vm.machine import Machine, RunResult
from virtiopy.vm.slots import IoMode

#: What a guest says last. Linux does not count kicks.
_MEASURED = re.compile(
    r"^# measured requests=(\d+)(?: kicks=(\d+) suppressed=(\d+))? interrupts=(\d+)\r?$",
    re.MULTILINE,
)

#: What else has to go on during a run: given the device, a context for the run.
Surroundings = Callable[[VirtioDevice], contextlib.AbstractContextManager[object]]


def nothing_else(device: VirtioDevice) -> contextlib.AbstractContextManager[object]:
    """Return a context in which nothing goes on."""
    return contextlib.nullcontext()


@dataclass(slots=True, frozen=True)
class Setup:
    """The VM and its guest: the same in each mode.

    `build` makes the device for a mode, `name`d in the counts, and `serve` a process that serves
    the same; they raise ConfigError and HostError. A run takes `timeout` seconds at most.
    """

    workload: Workload
    guest: Guest
    name: str
    build: Callable[[IoMode], VirtioDevice]
    serve: Callable[[], Served]
    accelerator: str = "auto"
    timeout: float = 300.0
    note: Callable[[str], None] = lambda line: None
    surroundings: Surroundings = field(default=nothing_else)


def compare(
    setup: Setup,
    modes: Sequence[IoMode],
    exit_free: Sequence[bool],
    *,
    progress: Callable[[str], None],
) -> tuple[list[Row], str]:
    """Run the workload in each mode, with registers of each kind.

    Returns a row for each, and the accelerator's name.

    `progress` is given a line for each that was measured. Raises HostError where nothing can be
    measured at all, and as `measure` does.
    """
    rows: list[Row] = []
    names: list[str] = []
    for mode, without_exits in itertools.product(modes, exit_free):
        row, name = measure(setup, mode, exit_free=without_exits)
        rows.append(row)
        if row.costs is not None:
            names.append(name)
            progress(f"{row.name}: {row.costs.seconds:.2f} seconds")
    if not names:
        raise HostError(f"No mode can be measured. {rows[0].missing}")
    return rows, names[0]


def measure(setup: Setup, mode: IoMode, *, exit_free: bool) -> tuple[Row, str]:
    """Run the workload once; returns what it cost, and the accelerator's name.

    What the host lacks makes a row that says why. Raises ConfigError, and GuestError for a guest
    that fails.
    """
    try:
        with contextlib.ExitStack() as stack:
            memory = stack.enter_context(GuestMemory.allocate(setup.guest.memory_size))
            accelerator = select(
                setup.accelerator, memory, for_kernel=setup.guest.is_kernel, note=setup.note
            )
            stack.callback(accelerator.close)
            output = bytearray()
            served = stack.enter_context(setup.serve()) if mode is IoMode.VHOST_USER else None
            machine = stack.enter_context(
                Machine(
                    memory,
                    accelerator,
                    console=output.extend,
                    ignore_unassigned=setup.guest.is_kernel,
                    exit_free=exit_free,
                )
            )
            if served is None:
                device = setup.build(mode)
            else:
                device = served.open_device()
                machine.measurement_port.backend_threads = served.threads
            try:
                slot = machine.add_device(device, setup.name, mode)
            except ConfigError as error:
                # This device is not for that mode, as no disk is for vhost-net.
                return Row(mode, exit_free, missing=str(error)), ""
            setup.guest.boot(machine, output.extend, stack)
            with setup.surroundings(device):
                result = machine.run(setup.timeout)
            if slot.mode is not mode:
                why = f"{setup.name} was worked in {slot.mode} mode: {device.refusal}"
                return Row(mode, exit_free, missing=why), ""
            costs = _costs(setup, mode, result, output.decode(errors="replace"))
            return Row(mode, exit_free, costs), accelerator.name
    except HostError as error:
        return Row(mode, exit_free, missing=str(error)), ""


def _costs(setup: Setup, mode: IoMode, result: RunResult, output: str) -> Costs:
    if result.status is None:
        raise GuestError(
            f"The guest was not done after {setup.timeout:g} seconds in {mode} mode: ask for fewer "
            f"{setup.workload.unit}s, or give it more time with --timeout."
        )
    # A command's own output comes before.
    counts = next(reversed([*_MEASURED.finditer(output)]), None)
    if result.status != 0 or counts is None:
        told = [line for line in output.splitlines() if not line.startswith("# measured")]
        last = "\n".join(told).strip().splitlines()[-1:] or ["nothing"]
        raise GuestError(f"The guest failed in {mode} mode; the last that it said is {last[0]!r}.")
    marks, measured = result.measurements
    requests, kicks, suppressed, interrupts = (
        None if number is None else int(number) for number in counts.groups()
    )
    assert requests is not None
    assert interrupts is not None
    if not requests:
        raise GuestError(
            f"The guest made no {setup.workload.unit} of {setup.name} in {mode} mode: measure what "
            "uses the device, a disk without the guest's page cache (iflag=direct, --direct=1)."
        )
    return Costs(requests, kicks, suppressed, interrupts, measured.without(marks))
