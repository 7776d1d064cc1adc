"""What a request costs the device in CPU time: the native worker, beside the bare C loop.

Both are given the same batches by turns, in one thread, with no driver beside it: what other
programs do meanwhile counts for little, as it does not in bench.vhost_user. Example:

    python -m bench.turns --rounds 20000
"""

import argparse
import itertools
import subprocess
import tempfile
from pathlib import Path

from bench.common import give_up, require
from bench.vhost_user import make_image
from virtiopy._native.build import HERE

#: What turns.c needs of the C part, besides the worker that it takes in whole.
SOURCES = ("blk", "dirty", "memory", "virtq")


def build(folder: Path) -> Path:
    """Compile turns.c with the worker."""
    program = folder / "turns"
    sources = [Path(__file__).with_name("turns.c"), *(HERE / f"{name}.c" for name in SOURCES)]
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{HERE}"]
    subprocess.run(["gcc", *flags, "-o", str(program), *map(str, sources)], check=True)
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=64, help="of the image, in MiB")
    arguments = parser.parse_args()
    require("gcc", "gcc")
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        image = Path(folder, "disk.img")
        make_image(image, arguments.size)
        print(
            f"{'ns of CPU time a request':28} {'loop':>8} {'worker':>8} {'ratio':>6} {'calls':>6}"
        )
        for write, batch in itertools.product([False, True], [1, 4, 32]):
            rounds = max(1, arguments.rounds // batch)
            command = [str(program), str(image), str(batch), str(int(write)), str(rounds)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                give_up(f"turns ended with {done.returncode}: {done.stderr.strip()}")
            loop, worker, calls = map(float, done.stdout.split())
            what = f"{'writes' if write else 'reads'}, {batch} in a batch"
            print(f"{what:28} {loop:8.0f} {worker:8.0f} {loop / worker:6.2f} {calls:6.2f}")
    print("ratio: of the loop's time to the worker's; calls: the worker's, for one request")


if __name__ == "__main__":
    main()
