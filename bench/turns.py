"""What a request or a frame costs the device in CPU time: the native worker, beside a bare C loop.

Both are given the same batches by turns, in one thread, with no driver beside it: what other
programs do meanwhile counts for little, as it does not in bench.vhost_user. Frames of 106 bytes go
to a tap and come from it, 64 in a batch, where this process may make one. Example:

    python -m bench.turns --rounds 20000
"""

import argparse
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.common import give_up, require
from bench.vhost_user import make_image
from tests.namespace import Namespace
from virtiopy._native.build import HERE
from virtiopy.host.tap import Tap

#: What these need of the C part, besides the worker that they take in whole.
SOURCES = (
    "blk",
    "burst",
    "dirty",
    "memory",
    "net",
    "net_receive",
    "net_transmit",
    "uring",
    "virtq",
)

ROW = "{:28} {:8.0f} {:8.0f} {:6.2f}"
FRAMES = 64


def build(name: str, folder: Path) -> Path:
    """Compile a program of one file with the worker."""
    program = folder / name
    sources = [Path(__file__).with_name(f"{name}.c"), *(HERE / f"{one}.c" for one in SOURCES)]
    flags = ["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", f"-I{HERE}"]
    subprocess.run(["gcc", *flags, "-o", str(program), *map(str, sources)], check=True)
    return program


def run(command: list[str], files: Sequence[int] = ()) -> list[float]:
    """Run a program; returns the numbers that it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=files)
    if done.returncode:
        give_up(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()}")
    return [float(word) for word in done.stdout.split()]


def requests(folder: Path, rounds: int, mebibytes: int) -> None:
    """Print what requests to a disk cost."""
    program = build("turns", folder)
    image = folder / "disk.img"
    make_image(image, mebibytes)
    for write, batch in itertools.product([False, True], [1, 4, 32]):
        count = max(1, rounds // batch)
        command = [str(program), str(image), str(batch), str(int(write)), str(count)]
        loop, worker, calls = run(command)
        what = f"{'writes' if write else 'reads'}, {batch} in a batch"
        print(ROW.format(what, loop, worker, loop / worker) + f" {calls:6.2f}")


def frames(folder: Path, rounds: int) -> None:
    """Print what frames to a tap and from it cost."""
    program = build("net_turns", folder)
    with (
        Namespace() as namespace,
        contextlib.closing(Tap(namespace.config(create=True))) as tap,
        namespace.inside(partial(packet_socket, tap.name)) as sender,
    ):
        for what, end in (("transmitted", -1), ("received", sender.fileno())):
            files = [tap.fileno(0), *([end] if end >= 0 else [])]
            count = str(max(1, rounds // FRAMES))
            loop, worker = run([str(program), str(files[0]), str(end), count], files)
            print(ROW.format(f"frames {what}", loop, worker, loop / worker))


def packet_socket(interface: str) -> socket.socket:
    """Return a socket whose frames leave by an interface: a tap's reader gets them."""
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind((interface, 0))
    return sender


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=64, help="of the image, in MiB")
    arguments = parser.parse_args()
    require("gcc", "gcc")
    print(f"{'ns of CPU time each':28} {'loop':>8} {'worker':>8} {'ratio':>6} {'calls':>6}")
    with tempfile.TemporaryDirectory() as folder:
        requests(Path(folder), arguments.rounds, arguments.size)
        if os.geteuid() == 0:
            frames(Path(folder), 10 * arguments.rounds)
        else:
            print("frames are not measured: only root can make a tap", file=sys.stderr)
    print("ratio: of the loop's time to the worker's; calls: the worker's, for one request")


if __name__ == "__main__":
    main()
