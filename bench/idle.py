"""What virtiopy costs when there is nothing to do: CPU time, and memory beyond the guest's.

An idle VM with a native disk and a native network device, and `virtiopy serve blk` after its driver
has had some seconds of requests and waits. Limits: half a percent of a CPU, and 40 MiB. Example:

    python -m bench.idle --seconds 30
"""

import argparse
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.common import VIRTIOPY, give_up, require
from bench.vhost_user import Bench, Cell, make_image, over_vhost_user
from tests.guest.vhost_user import Backend
from tests.namespace import Namespace

TICK = os.sysconf("SC_CLK_TCK")

#: What an idle process may cost: of a CPU, and in MiB.
CPU_LIMIT, MEMORY_LIMIT = 0.005, 40.0


def cpu_seconds(process: int) -> float:
    """Return the CPU time of all threads that there are, to the nanosecond, by the scheduler."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return sum(int((one / "schedstat").read_text().split()[0]) for one in threads) / 1e9


def memory_beyond_the_guests(process: int) -> float:
    """Return the MiB of a process that are no shared memory: its own, and its share of files."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    found = re.finditer(r"^Pss_(?:Anon|File): +(\d+) kB", rollup, re.MULTILINE)
    kibibytes = sum(int(match[1]) for match in found)
    return kibibytes / 1024


@contextmanager
def idle_vm(folder: Path) -> Iterator[int]:
    """Run a guest that waits for frames; gives its process."""
    image = folder / "vm.img"
    make_image(image, 16)
    with Namespace() as namespace:
        command = [
            *(str(VIRTIOPY), "run", "--guest", "net", "--append", "net.mode=serve"),
            *("--net", f"tap=t0,create=on,netns={namespace.name},mode=native"),
            *("--disk", f"{image},mode=native", "--timeout", "0"),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith("# ready"):
                        break
                else:
                    give_up("the guest did not come up")
                yield process.pid
            finally:
                process.terminate()


@contextmanager
def idle_backend(folder: Path) -> Iterator[int]:
    """Serve a disk whose driver has nothing more to ask; gives its process."""
    bench = Bench(folder, 64, 10_000)
    backends: list[Backend] = []

    def serve(image: Path, path: Path) -> Backend:
        command = [str(VIRTIOPY), "serve", "blk", str(image), "--socket", str(path)]
        backends.append(Backend(command, path))
        return backends[-1]

    with over_vhost_user(serve, bench.image, folder / "blk.sock") as numbers:
        bench.drive(numbers, Cell(write=False, wait=True, depth=32))
        yield backends[0].process.pid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    require("gcc", "gcc")
    print(f"{'idle for ' + str(arguments.seconds) + ' s':32} {'% of a CPU':>12} {'MiB':>8}")
    within = True
    for name, start in (("VM, native disk and tap", idle_vm), ("serve blk", idle_backend)):
        with tempfile.TemporaryDirectory() as folder, partial(start, Path(folder))() as process:
            # The last of what came before is done.
            time.sleep(1)
            before, begin = cpu_seconds(process), time.perf_counter()
            time.sleep(arguments.seconds)
            share = (cpu_seconds(process) - before) / (time.perf_counter() - begin)
            memory = memory_beyond_the_guests(process)
        within = within and share < CPU_LIMIT and memory <= MEMORY_LIMIT
        print(f"{name:32} {100 * share:12.3f} {memory:8.1f}")
    print(f"limits: {100 * CPU_LIMIT} % and {MEMORY_LIMIT} MiB: {'kept' if within else 'NOT KEPT'}")


if __name__ == "__main__":
    main()
