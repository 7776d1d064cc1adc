"""What the accelerators do side by side: speed of a loop, price of a trapped write, time to stop.

The guests are a few instructions in 32-bit protected mode. Example:
python -m bench.accelerators --rounds 9 --json figures.json
"""

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.common import by_turns
from virtiopy.accel import AcceleratorName, select
from virtiopy.accel.base import Cpu
from virtiopy.cpu.exits import ExitReason, IoExit, MmioExit
from virtiopy.cpu.x86 import Registers, protected_mode
from virtiopy.errors import HostError
from virtiopy.memory import GuestMemory

ADDRESS = 0x1000
MMIO = 0xD000_0000

#: again: dec ecx; jnz again; hlt
LOOP = bytes.fromhex("4975fdf4")
#: again: mov [edx], eax; dec ecx; jnz again; hlt
WRITES = bytes.fromhex("89024975fbf4")
#: again: jmp again
SPIN = bytes.fromhex("ebfe")

#: Turns of the loops: enough to time, and bearable where ring 0 is interpreted.
LOOP_TURNS = {AcceleratorName.KVM: 100_000, AcceleratorName.TCG: 50_000_000}
WRITE_TURNS = {AcceleratorName.KVM: 2_000, AcceleratorName.TCG: 50_000}


@dataclass(slots=True, frozen=True)
class Figure:
    """A thing to measure."""

    name: str
    unit: str
    scale: float
    measure: Callable[[AcceleratorName], float]


def run_code(name: AcceleratorName, code: bytes, turns: int, work: Callable[[Cpu], float]) -> float:
    """Set a CPU up to run `code`, with the turns in ecx, and measure what `work` does with it."""
    with GuestMemory.allocate(1 << 20) as memory:
        memory.write(ADDRESS, code)
        accelerator = select(name, memory, interrupts=False)
        cpu = accelerator.create_cpu()
        try:
            cpu.set_system_registers(protected_mode())
            cpu.set_registers(Registers(rip=ADDRESS, rcx=turns, rdx=MMIO))
            return work(cpu)
        finally:
            cpu.close()
            accelerator.close()


def take(access: IoExit | MmioExit) -> bool:
    """Answer a write as the cheapest device there can be."""
    return True


def time_to_halt(cpu: Cpu) -> float:
    start = time.perf_counter()
    exit_ = cpu.run(take)
    seconds = time.perf_counter() - start
    assert exit_ is not None
    assert exit_.reason is ExitReason.HLT
    return seconds


def loop_speed(name: AcceleratorName) -> float:
    """Instructions a second."""
    turns = LOOP_TURNS[name]
    return 2 * turns / run_code(name, LOOP, turns, time_to_halt)


def write_cost(name: AcceleratorName) -> float:
    """Seconds a trapped write, the loop around it included."""
    turns = WRITE_TURNS[name]
    return run_code(name, WRITES, turns, time_to_halt) / turns


def time_to_stop(name: AcceleratorName) -> float:
    """Seconds from `stop` in one thread to the end of `run` in another."""

    def work(cpu: Cpu) -> float:
        ended: list[float] = []

        def run() -> None:
            cpu.run(take)
            ended.append(time.perf_counter())

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(0.01)  # let it spin
        start = time.perf_counter()
        cpu.stop()
        thread.join()
        return ended[0] - start

    return run_code(name, SPIN, 0, work)


FIGURES = [
    Figure("loop", "million instructions a second", 1e-6, loop_speed),
    Figure("trapped MMIO write", "microseconds", 1e6, write_cost),
    Figure("stop a spinning guest", "milliseconds", 1e3, time_to_stop),
]


def opens(name: AcceleratorName) -> bool:
    """Say whether the host has the accelerator; if not, tell why."""
    try:
        with GuestMemory.allocate(1 << 20) as memory:
            select(name, memory, interrupts=False).close()
    except HostError as error:
        print(f"without {name}: {error}", file=sys.stderr)
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--json", type=Path, nargs="?", const=Path("/dev/stdout"), help="write every figure"
    )
    arguments = parser.parse_args()
    names = [n for n in (AcceleratorName.KVM, AcceleratorName.TCG) if opens(n)]
    report = []
    for figure in FIGURES:
        contestants = {
            str(name): (lambda figure=figure, name=name: figure.measure(name)) for name in names
        }
        results = by_turns(contestants, arguments.rounds)
        medians = {name: statistics.median(values) for name, values in results.items()}
        told = ", ".join(f"{name} {value * figure.scale:.2f}" for name, value in medians.items())
        print(f"{figure.name:24} {told}   ({figure.unit}, medians of {arguments.rounds})")
        scaled = {name: [v * figure.scale for v in values] for name, values in results.items()}
        report.append(
            {
                "name": figure.name,
                "unit": figure.unit,
                "medians": {name: value * figure.scale for name, value in medians.items()},
                "values": scaled,
            }
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
