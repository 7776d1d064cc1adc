"""The measured part of a run: what a guest's requests cost, without its set-up.

A guest marks it by writing a byte to port 0xEA: 1 before its first request, 0 after its last. A
port write is the cheapest mark that is also exact: the CPU stands still while its counters are
read. It disturbs nothing where the VMM has no such port: QEMU and real machines ignore it. Marks
themselves are taken out again: ours by name, and the kernel's by an empty measurement that a guest
makes before (guest_drivers/virtio/workload.c).
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from virtiopy.metrics.exitlog import ExitKind, ExitLog, MergedExits, add_up
from virtiopy.vhost.worker import cpu_seconds, native_threads, worker_threads

log = logging.getLogger(__name__)

#: The port, beside the debug console's.
MEASUREMENT_PORT = 0xEA
BEGIN = 1

#: Measurements that are kept; a guest that marks without end adds no more.
MEASUREMENTS_MAX = 1024

#: What the port is called in exit counts.
PORT_NAME = "measurement port"

_Clock = Callable[[], float]


@dataclass(slots=True, frozen=True)
class Measurement:
    """What happened between two marks.

    `exits` are those to userspace, `kernel` the growth of the accelerator's counters, both of all
    CPUs together. `seconds` is wall-clock time; `cpu_seconds` the CPU time by kind of thread:
    "vcpu" (all of them), "loop",
    "workers" (of the loop, for what blocks), "native" (that work rings in C), "vhost" (the
    kernel's) and "backend" (a vhost-user
    backend's), with 0 where there is none.
    """

    exits: Counter[ExitKind]
    kernel: Mapping[str, int]
    seconds: float
    cpu_seconds: Mapping[str, float]

    def without(self, marks: "Measurement") -> "Measurement":
        """Take from the kernel's counts those of an empty measurement: the marks' own exits."""
        kernel = {
            name: max(0, count - marks.kernel.get(name, 0)) for name, count in self.kernel.items()
        }
        return replace(self, kernel=kernel)


class MeasuredCpu(Protocol):
    """A vCPU, as far as it is measured: its exits, and the thread that runs it."""

    exits: ExitLog

    @property
    def thread(self) -> threading.Thread | None:
        """The thread, None before the vCPU runs."""

    def statistics(self) -> Mapping[str, int]:
        """Read the accelerator's counters of the vCPU."""


class MeasurementPort:
    """Port 0xEA; a vCPU of the guest writes to it, on its own thread.

    `cpus` are all that the guest has; `loop` is the name of the event loop.
    """

    def __init__(self, cpus: Sequence[MeasuredCpu], loop: str) -> None:
        self.measurements: list[Measurement] = []
        #: Finds the folders in /proc of the threads of a backend.
        self.backend_threads: Callable[[], Iterable[Path]] = tuple
        self._cpus = cpus
        self._exits = MergedExits([cpu.exits for cpu in cpus])
        self._loop = loop
        self._lock = threading.Lock()
        self._begun: _Begun | None = None
        self._full = False

    def register_name(self, offset: int) -> str:
        """Name the register, for the exit report."""
        return "mark"

    def read(self, offset: int, size: int) -> bytes:
        """Answer a read: nothing is there to read."""
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        """Begin a measurement, again if one was begun; or end the one that was begun."""
        with self._lock:
            if data[0] == BEGIN:
                # The clocks last here, and first at the end: they leave out what reading takes.
                exits, kernel, clocks = self._exits.counts, self._statistics(), self._clocks()
                self._begun = _Begun(exits, kernel, clocks, _read(clocks), time.monotonic())
            elif self._begun is not None:
                if len(self.measurements) < MEASUREMENTS_MAX:
                    self.measurements.append(self._end(self._begun))
                elif not self._full:
                    self._full = True
                    log.warning(
                        "the guest marks more than %d measurements: the others are left out",
                        MEASUREMENTS_MAX,
                    )
                self._begun = None

    def _statistics(self) -> dict[str, int]:
        return add_up(cpu.statistics() for cpu in self._cpus)

    def _end(self, begun: "_Begun") -> Measurement:
        seconds = time.monotonic() - begun.time
        spent = _read(begun.clocks)
        after = self._statistics()
        exits = self._exits.counts - begun.exits
        return Measurement(
            Counter({kind: n for kind, n in exits.items() if kind.device != PORT_NAME}),
            {name: value - begun.kernel.get(name, 0) for name, value in after.items()},
            seconds,
            {kind: spent[kind] - begun.spent[kind] for kind in spent},
        )

    def _clocks(self) -> dict[str, list[_Clock]]:
        """Return how to read the CPU time of each thread that there is now."""
        threads = threading.enumerate()
        owners = [thread.native_id for thread in threads if thread.native_id is not None]
        workers = f"{self._loop}-worker"
        return {
            "vcpu": [_cpu_clock(cpu.thread) for cpu in self._cpus if cpu.thread is not None],
            "loop": [_cpu_clock(t) for t in threads if t.name == self._loop],
            "workers": [_cpu_clock(t) for t in threads if t.name.startswith(workers)],
            "native": [partial(cpu_seconds, path) for path in native_threads()],
            "vhost": [partial(cpu_seconds, path) for path in worker_threads(*owners)],
            "backend": [partial(cpu_seconds, path) for path in self.backend_threads()],
        }


@dataclass(slots=True, frozen=True)
class _Begun:
    exits: Counter[ExitKind]
    kernel: Mapping[str, int]
    clocks: Mapping[str, list[_Clock]]
    spent: Mapping[str, float]
    time: float


def _cpu_clock(thread: threading.Thread) -> _Clock:
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    return lambda: time.clock_gettime(clock)


def _read(clocks: Mapping[str, list[_Clock]]) -> dict[str, float]:
    return {kind: sum(clock() for clock in each) for kind, each in clocks.items()}
