"""From process start to exit: the smallest guest in virtiopy and in QEMU's microvm, by turns.

All are on KVM, and print the same through the same port; `greet` is the same image in virtiopy and
in QEMU, and the guest of `hello` begins in long mode, as virtiopy starts it. The second table is
CPU time, which other programs of the host change less. Example:

    python -m bench.hello --rounds 20
"""

import argparse
import resource
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.common import (
    MICROVM,
    QEMU,
    VIRTIOPY,
    by_turns,
    compile_modules,
    require,
    tell,
    time_command,
    write_json,
)
from virtiopy.boot.guests import guest_path

HELLO = "virtiopy hello --mode long"
GREET = "virtiopy run --guest greet"
PEER = "QEMU microvm, greet"


def cpu_time() -> float:
    """Return the seconds of CPU time of all processes that this one has started and seen end."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(
    cpu: dict[str, list[float]], name: str, command: Sequence[str | Path], status: int = 0
) -> float:
    """Return the seconds that a command takes, and add those of CPU time to `cpu`."""
    before = cpu_time()
    seconds = time_command(command, status)
    cpu.setdefault(name, []).append(cpu_time() - before)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    require(QEMU, "qemu-system-x86")
    compile_modules()
    greet = str(guest_path("greet"))
    cpu: dict[str, list[float]] = {}
    contestants = {
        HELLO: partial(run, cpu, HELLO, [VIRTIOPY, "hello", "--mode", "long", "--accel", "kvm"]),
        GREET: partial(run, cpu, GREET, [VIRTIOPY, "run", "--guest", "greet"]),
        # isa-debug-exit ends QEMU with (status << 1) | 1.
        PEER: partial(run, cpu, PEER, [QEMU, *MICROVM, "-kernel", greet], 1),
    }
    results = by_turns(contestants, arguments.rounds)
    tell(results, "milliseconds", 1e3, peer=PEER)
    print()
    tell(cpu, "milliseconds of CPU time", 1e3, peer=PEER)
    results |= {f"{name}, CPU time": values for name, values in cpu.items()}
    write_json(arguments.json, results, "seconds")


if __name__ == "__main__":
    main()
