"""4 KiB requests a second of `virtiopy serve blk` with its sandbox on and off.

The same client and image for both, by turns, in the modes of a disk: a thread in C, and Python.
Example: python -m bench.sandbox --rounds 5
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

from bench.common import VIRTIOPY, require, write_json
from bench.vhost_user import QUEUE_SIZE, Bench
from tests.guest.vhost_user import Backend

#: By what works the rings.
MODES = ["native", "ioeventfd"]


def serve(mode: str, sandbox: str, image: Path, path: Path) -> Backend:
    options = f"{image},queue-size={QUEUE_SIZE},mode={mode}"
    command = [str(VIRTIOPY), "serve", "blk", options, "--socket", str(path), "--sandbox", sandbox]
    return Backend(command, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="of the image, in MiB")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    require("gcc", "gcc")
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.size)
        for mode in MODES:
            for depth in (1, 32):
                results |= bench.compare_reads(
                    f"mode={mode}, ",
                    {f"sandbox {choice}": partial(serve, mode, choice) for choice in ("off", "on")},
                    depth,
                    arguments.rounds,
                    "sandbox off",
                )
    write_json(arguments.json, results, "IOPS")


if __name__ == "__main__":
    main()
