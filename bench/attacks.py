"""What hostile frontends and guests cost: the longest wait of a good request, the end, and memory.

Each attack of a frontend is made on a `virtiopy serve blk` of its own, in the modes of a disk.
Where it attacks by its sessions, a good request is a whole session of another frontend's. The
others are made on a VM, where a good request is one on the control socket, and the end is that by
SIGTERM or by --timeout, whatever takes longer.
Example: python -m bench.attacks --seconds 5

    python -m bench.attacks --only vm --program OTHER/.venv/bin/virtiopy    another version
"""

import argparse
import itertools
import os
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.guest.attacks import ANSWER_BOUND, ATTACKS, END_BOUND, GROWTH_BOUND, Cost, measure
from tests.guest.session_attacks import SESSION_ATTACKS, measure_sessions
from tests.guest.support import VIRTIOPY
from tests.guest.vm_attacks import NEVER, VM_ATTACKS, measure_vm
from tests.namespace import MAY_HAVE_TAPS


def _milliseconds(seconds: float) -> str:
    return "never" if seconds == NEVER else f"{seconds * 1000:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each attack")
    parser.add_argument("--only", choices=["serve", "sessions", "vm"], help="one kind alone")
    parser.add_argument(
        "--program", type=Path, default=None, help="the virtiopy of the sessions and the VMs"
    )
    arguments = parser.parse_args()
    program = VIRTIOPY if arguments.program is None else [str(arguments.program)]
    table = Table("Attack", "On", "Longest wait", "End", "Memory", "Served meanwhile", "Lines")

    def add(name: str, where: str, cost: Cost) -> None:
        table.add_row(
            name,
            where,
            _milliseconds(cost.answer),
            _milliseconds(cost.end),
            f"{cost.growth:+.0f} MiB",
            str(cost.answers),
            str(cost.lines),
        )

    with tempfile.TemporaryDirectory() as scratch:
        folders = map(Path(scratch, "attack").with_suffix, (f".{n}" for n in itertools.count()))
        for name, mode in itertools.product(ATTACKS, ("native", "ioeventfd")):
            if arguments.only in {None, "serve"}:
                (folder := next(folders)).mkdir()
                add(name, mode, measure(ATTACKS[name], mode, folder, arguments.seconds))
        for name, session in SESSION_ATTACKS.items():
            if arguments.only in {None, "sessions"} and (MAY_HAVE_TAPS or not session.has_tap):
                (folder := next(folders)).mkdir()
                cost = measure_sessions(name, folder, arguments.seconds, program)
                add(name, f"serve {session.device}", cost)
        for name, attack in VM_ATTACKS.items():
            if arguments.only in {None, "vm"} and (os.geteuid() == 0 or not attack.needs_root):
                (folder := next(folders)).mkdir()
                add(name, "a VM", measure_vm(name, folder, arguments.seconds, program))
    bounds = f"{ANSWER_BOUND * 1000:.0f} ms", f"{END_BOUND * 1000:.0f} ms"
    table.add_section()
    table.add_row("bound", "", *bounds, f"{GROWTH_BOUND:.0f} MiB", "", "")
    Console().print(table)


if __name__ == "__main__":
    main()
