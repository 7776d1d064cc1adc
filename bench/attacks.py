"""What hostile frontends cost: the longest wait of a good request, the end by SIGTERM, and memory.

Each attack is made on a `virtiopy serve blk` of its own, in the modes of a disk.
Example: python -m bench.attacks --seconds 5
"""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.guest.attacks import ANSWER_BOUND, ATTACKS, END_BOUND, GROWTH_BOUND, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each attack")
    arguments = parser.parse_args()
    table = Table("Attack", "Mode", "Longest wait", "End by SIGTERM", "Memory", "Served meanwhile")
    for name, attack in ATTACKS.items():
        for mode in ("native", "ioeventfd"):
            with tempfile.TemporaryDirectory() as folder:
                cost = measure(attack, mode, Path(folder), arguments.seconds)
            table.add_row(
                name,
                mode,
                f"{cost.answer * 1000:.0f} ms",
                f"{cost.end * 1000:.0f} ms",
                f"{cost.growth:+.0f} MiB",
                str(cost.answers),
            )
    bounds = f"{ANSWER_BOUND * 1000:.0f} ms", f"{END_BOUND * 1000:.0f} ms"
    table.add_section()
    table.add_row("bound", "", *bounds, f"{GROWTH_BOUND:.0f} MiB", "")
    Console().print(table)


if __name__ == "__main__":
    main()
