"""From process start to exit: the smallest guest in virtiopy and in QEMU's microvm, by turns.

Example: python -m bench.hello --rounds 20
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    require(QEMU, "qemu-system-x86")
    compile_modules()
    greet = str(guest_path("greet"))
    # isa-debug-exit ends QEMU with (status << 1) | 1.
    contestants = {
        "virtiopy hello --mode long": lambda: time_command([VIRTIOPY, "hello", "--mode", "long"]),
        "virtiopy run --guest greet": lambda: time_command([VIRTIOPY, "run", "--guest", "greet"]),
        "QEMU microvm, greet": lambda: time_command([QEMU, *MICROVM, "-kernel", greet], status=1),
    }
    results = by_turns(contestants, arguments.rounds)
    tell(results, "milliseconds", 1e3, peer="QEMU microvm, greet")
    write_json(arguments.json, results, "seconds")


if __name__ == "__main__":
    main()
