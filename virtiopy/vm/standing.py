"""Where a guest stands when its run ends before it is done: its CPUs, and each device's driver.

A driver that waits for ever has mostly done one thing that its device could not go along with, or
left one out. What was refused is kept here, and what is found at the end beside it.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from virtiopy.cpu.activity import Activity
from virtiopy.errors import DriverError
from virtiopy.spec import DeviceStatus
from virtiopy.transport.interrupts import StatusInterrupt
from virtiopy.transport.lifecycle import Lifecycle, status_names
from virtiopy.transport.observer import LifecycleObserver, Refusal
from virtiopy.transport.registers import Interrupt
from virtiopy.vm.cputhread import CpuThread

#: How many different refusals of a device are kept; the first say why.
REFUSALS_MAX = 16

#: How long a CPU is watched to see whether it spins, in seconds and times.
_LOOK = 0.002
_LOOKS = 5

#: Bytes of code within which a CPU spins.
_LOOP_SIZE = 128

_INTERRUPTS_ENABLED = 1 << 9

#: Names the code at an address, if the guest's file does.
NameCode = Callable[[int], str | None]


class DriverWatch(LifecycleObserver):
    """Remembers what of a driver's acts a device refused, and the kicks since its reset."""

    def __init__(self) -> None:
        self.refusals: Counter[str] = Counter()
        self.kicks: Counter[int] = Counter()
        self.reset_reason: str | None = None

    def refused(self, refusal: Refusal) -> None:
        """Count a refusal."""
        text = str(refusal)
        if text in self.refusals or len(self.refusals) < REFUSALS_MAX:
            self.refusals[text] += 1

    def kicked(self, index: int) -> None:
        """Count a kick."""
        self.kicks[index] += 1

    def needs_reset(self, reason: str) -> None:
        """Remember why the device needs a reset."""
        self.reset_reason = reason

    def was_reset(self) -> None:
        """Begin again with the kicks; what was refused may be why the driver gave up."""
        self.kicks.clear()
        self.reset_reason = None


@dataclass(slots=True, frozen=True)
class CpuStanding:
    """What a CPU does: `rips` are where it was seen, `symbol` names the code at the last.

    One that `failed` ended the run.
    """

    number: int
    activity: Activity
    rips: Sequence[int]
    interrupts_enabled: bool
    symbol: str | None
    failed: bool = False

    @property
    def spins(self) -> bool:
        """Whether it was seen in one short piece of code alone."""
        return len(self.rips) == _LOOKS and max(self.rips) - min(self.rips) < _LOOP_SIZE

    def describe(self) -> str:
        """Tell a person."""
        if self.activity is Activity.NOT_STARTED:
            return f"CPU {self.number} was not started: no INIT and SIPI came"
        code = f" ({self.symbol})" if self.symbol else ""
        return f"CPU {self.number} at rip {self.rips[-1]:#x}{code} {self._does()}"

    def _does(self) -> str:
        if self.failed:
            return "failed"
        if self.activity is Activity.HALTED:
            if self.interrupts_enabled:
                return "is halted, and waits for an interrupt"
            return "is halted with interrupts off, and does not wake"
        return "spins" if self.spins else "executes code"


@dataclass(slots=True, frozen=True)
class DeviceStanding:
    """How far a device's driver came, and what stands in its way, each fact in a clause."""

    name: str
    status: int
    facts: Sequence[str] = field(default_factory=list)

    def describe(self) -> str:
        """Tell a person."""
        status = f"device status {status_names(self.status)}" if self.status else "no driver"
        return "; ".join([f"{self.name}: {status}", *self.facts])


@dataclass(slots=True, frozen=True)
class Standing:
    """The whole guest."""

    cpus: Sequence[CpuStanding]
    devices: Sequence[DeviceStanding]

    def lines(self) -> list[str]:
        """Tell a person, in a line for each CPU and device."""
        return [cpu.describe() for cpu in self.cpus] + [one.describe() for one in self.devices]


def stand_of_cpu(thread: CpuThread, name_code: NameCode) -> CpuStanding:
    """Look at a CPU whose thread has ended, and let it run a moment to see whether it spins.

    What it asks of userspace meanwhile is not answered: it cannot go on afterwards.
    """
    cpu = thread.cpu
    activity = cpu.activity()
    registers = cpu.get_registers()
    rips = [registers.rip]
    while (
        activity is Activity.RUNNING
        and thread.failure is None
        and len(rips) < _LOOKS
        and _runs_for_a_moment(thread)
    ):
        rips.append(cpu.get_registers().rip)
        activity = cpu.activity()
    registers = cpu.get_registers()
    return CpuStanding(
        thread.number,
        activity,
        rips,
        bool(registers.rflags & _INTERRUPTS_ENABLED),
        name_code(registers.rip),
        failed=thread.failure is not None,
    )


def _runs_for_a_moment(thread: CpuThread) -> bool:
    """Run a CPU for a moment; says whether it asked nothing of userspace."""
    asked: list[object] = []

    def refuse(access: object) -> bool:
        asked.append(access)
        return False

    timer = threading.Timer(_LOOK, thread.cpu.stop)
    timer.start()
    exit_ = thread.cpu.run(refuse)
    timer.cancel()
    timer.join()
    return exit_ is None and not asked


def stand_of_device(lifecycle: Lifecycle, watch: DriverWatch) -> DeviceStanding:
    """Look at a device, whose loop does not run."""
    with lifecycle.device.lock:
        facts = [
            f"refused: {text}" + (f" ({count} times)" if count > 1 else "")
            for text, count in watch.refusals.items()
        ]
        if watch.reset_reason is not None:
            facts.append(f"needs a reset: {watch.reset_reason}")
        facts += [*_what_is_left_out(lifecycle), *_what_waits(lifecycle, watch)]
        return DeviceStanding(lifecycle.name, lifecycle.status, facts)


def _what_is_left_out(lifecycle: Lifecycle) -> Sequence[str]:
    status = lifecycle.status
    if not status or status & DeviceStatus.DEVICE_NEEDS_RESET:
        return []
    if not status & DeviceStatus.FEATURES_OK:
        return ["features are not negotiated: FEATURES_OK is not set (3.1.1)"]
    configs = [lifecycle.queue_config(n) for n in range(len(lifecycle.device.queue_sizes))]
    idle = [str(index) for index, config in enumerate(configs) if config and not config.ready]
    facts = []
    if idle:
        facts.append(f"queue{'s' if len(idle) > 1 else ''} {', '.join(idle)} not ready")
    if not status & DeviceStatus.DRIVER_OK:
        facts.append("DRIVER_OK is not set (3.1.1)")
    return facts


def _what_waits(lifecycle: Lifecycle, watch: DriverWatch) -> Sequence[str]:
    interrupt = lifecycle.interrupts
    if not isinstance(interrupt, StatusInterrupt) or interrupt.delegated:
        # What another worker has done is not seen here.
        return []
    facts = [fact for fact in (_untaken(lifecycle, watch, n) for n in lifecycle.queues) if fact]
    with interrupt.lock:
        # What the driver has acknowledged, and the kernel took.
        interrupt.watcher.before_event()
        pending = interrupt.events
    if names := [event.name for event in Interrupt if pending & event and event.name]:
        facts.append(f"not acknowledged: interrupt {' and '.join(names)}")
    return facts


def _untaken(lifecycle: Lifecycle, watch: DriverWatch, index: int) -> str | None:
    try:
        if not lifecycle.queues[index].enable_kicks():
            return None
    except DriverError as error:
        return f"queue {index}: {error}"
    kicks = watch.kicks[index]
    told = f"{kicks} kicks came" if kicks else "never kicked"
    return f"queue {index} has available buffers that are not taken, {told}"
