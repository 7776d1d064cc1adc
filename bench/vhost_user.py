"""4 KiB requests a second of a virtio-blk client: virtiopy, qemu-storage-daemon, a bare C loop.

Raw images of the same content for all, in the page cache; random reads and writes with 1 and 32 in
flight, by a client that polls the used ring and by one that waits for interrupts. The client's
virtqueue is driven by C (vhost_user_client.c), so that it is not what is measured. virtiopy serves
once as it does by default and once with VIRTIOPY_NATIVE=off; floor.c is the least that a device can
do. In a round all run side by side, and the client uses them by turns, a slice each.

    python -m bench.vhost_user --rounds 5
    python -m bench.vhost_user --rounds 5 --svg iops.svg

Where other programs have the CPUs too, real-time priority keeps them out of the figures of the
cells that poll, and short measurements out of theirs:

    chrt --rr 1 python -m bench.vhost_user --only polling --rounds 15 --milliseconds 100

What the sandbox costs: some cells of virtiopy and of the floor, each with the sandbox's filter of
system calls and without.

    python -m bench.vhost_user --sandbox --only "depth 32" --rounds 15 --milliseconds 100
"""

import argparse
import itertools
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.common import (
    VIRTIOPY,
    Start,
    by_slices,
    give_up,
    median_ratio,
    require,
    tell,
    write_json,
)
from tests.guest.vhost_user import STORAGE_DAEMON, Backend
from virtiopy.devices.blk import BlkFeature
from virtiopy.memory import GuestMemory
from virtiopy.sandbox.calls import Ability
from virtiopy.sandbox.program import as_bytes
from virtiopy.spec import Feature, feature_mask
from virtiopy.vhost.user.frontend import VhostUserFrontend, connect
from virtiopy.vhost.vring import Vring
from virtiopy.virtqueue.driver import Allocator, DriverQueue
from virtiopy.virtqueue.queue import QueueState

BLOCK = 4096
QUEUE_SIZE = 128
MEMORY_SIZE = 2 << 20

#: With FLUSH a completed write may be in the page cache alone, for all backends (5.2.6.2).
FEATURES = feature_mask(
    [Feature.VIRTIO_F_VERSION_1, Feature.VIRTIO_F_EVENT_IDX, BlkFeature.VIRTIO_BLK_F_FLUSH]
)

CLIENT = Path(__file__).with_name("vhost_user_client.c")
FLOOR = Path(__file__).with_name("floor.c")

#: The peers, by how qemu-storage-daemon has the kernel do its I/O.
AIO = ["io_uring", "threads"]
OURS = "virtiopy serve blk"
OURS_IN_PYTHON = "virtiopy, VIRTIOPY_NATIVE=off"
FLOOR_NAME = "bare C loop"
OURS_OUTSIDE = "virtiopy, --sandbox off"
FLOOR_INSIDE = "bare C loop, the same filter"

#: Requests in flight: in the table, and in the plot.
DEPTHS = (1, 32)
PLOTTED = (1, 2, 4, 8, 16, 32)

#: Device and client have a CPU each, so that the scheduler's choice is not what is measured.
DEVICE_CPU, CLIENT_CPU = (["taskset", "--cpu-list", str(cpu)] for cpu in (0, 1))

#: In how many parts a measurement is made, with those of the other peers between them.
SLICES = 5

#: The requests a second of each peer, round by round.
Figures = dict[str, list[float]]

#: Starts a peer for an image and a socket; gives the client's first ten numbers.
Peer = Callable[[Path, Path], AbstractContextManager[list[int]]]


def build(source: Path, folder: Path) -> Path:
    """Compile a program of one file."""
    program = folder / source.stem
    flags = ["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", str(program), str(source)], check=True)
    return program


def make_image(path: Path, mebibytes: int) -> int:
    """Make an image whose blocks begin with their own numbers; returns how many there are."""
    blocks = (mebibytes << 20) // BLOCK
    with path.open("wb") as image:
        for block in range(blocks):
            image.write(block.to_bytes(8, "little").ljust(BLOCK, b"\0"))
        # What is yet to be written back would be written back meanwhile.
        os.fsync(image.fileno())
    return blocks


def serve_with_virtiopy(image: Path, path: Path) -> Backend:
    options = f"{image},queue-size={QUEUE_SIZE}"
    return Backend(
        [*DEVICE_CPU, str(VIRTIOPY), "serve", "blk", options, "--socket", str(path)], path
    )


def serve_with_python(image: Path, path: Path) -> Backend:
    options = f"{image},queue-size={QUEUE_SIZE}"
    command = [*DEVICE_CPU, "env", "VIRTIOPY_NATIVE=off", str(VIRTIOPY), "serve", "blk", options]
    return Backend([*command, "--socket", str(path)], path)


def serve_outside(image: Path, path: Path) -> Backend:
    options = f"{image},queue-size={QUEUE_SIZE}"
    command = [*DEVICE_CPU, str(VIRTIOPY), "serve", "blk", options, "--sandbox", "off"]
    return Backend([*command, "--socket", str(path)], path)


def serve_with_qemu(aio: str, image: Path, path: Path) -> Backend:
    command = [
        *(*DEVICE_CPU, STORAGE_DAEMON),
        *("--blockdev", f"driver=file,filename={image},node-name=disk,aio={aio}"),
        "--export",
        f"type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={path},writable=on",
    ]
    return Backend(command, path)


@contextmanager
def ring() -> Iterator[tuple[GuestMemory, DriverQueue, list[int]]]:
    """Lay out a ring and its buffers; gives the client's first ten numbers too."""
    with ExitStack() as stack:
        memory = stack.enter_context(GuestMemory.allocate(MEMORY_SIZE))
        allocator = Allocator(0, MEMORY_SIZE)
        queue = DriverQueue(memory, QUEUE_SIZE, allocator, event_idx=True)
        kick, call = (os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2))
        stack.callback(os.close, kick)
        stack.callback(os.close, call)
        slots = allocator.take(QUEUE_SIZE * 32, BLOCK)
        data = allocator.take(QUEUE_SIZE * BLOCK, BLOCK)
        numbers = [
            *(memory.regions[0].fd, MEMORY_SIZE, kick, call, QUEUE_SIZE),
            *(queue.areas.descriptor, queue.areas.driver, queue.areas.device, slots, data),
        ]
        yield memory, queue, numbers


@contextmanager
def over_vhost_user(
    serve: Callable[[Path, Path], Backend], image: Path, path: Path
) -> Iterator[list[int]]:
    """Start a backend and set its device up as a VMM would."""
    with (
        serve(image, path),
        ring() as (memory, queue, numbers),
        VhostUserFrontend(connect(path)) as frontend,
    ):
        kick, call = numbers[2:4]
        frontend.set_features(FEATURES)
        frontend.set_memory(memory)
        frontend.start_ring(0, Vring(QUEUE_SIZE, queue.areas, QueueState(), kick, call), memory)
        yield numbers
        frontend.stop_ring(0)


@contextmanager
def bare_loop(
    program: Path, image: Path, path: Path, seccomp: Path | None = None
) -> Iterator[list[int]]:
    """Start floor.c, which is given the ring itself and needs no socket."""
    with ring() as (_memory, _queue, numbers):
        command = [*DEVICE_CPU, str(program), str(image), *map(str, numbers[:8])]
        command += [] if seccomp is None else [str(seccomp)]
        descriptors = [numbers[0], *numbers[2:4]]
        with subprocess.Popen(command, pass_fds=descriptors) as loop:
            try:
                yield numbers
            finally:
                loop.kill()


@dataclass(slots=True, frozen=True)
class Cell:
    """What the client does: one row of the table."""

    write: bool
    wait: bool
    depth: int

    def __str__(self) -> str:
        way = "interrupts" if self.wait else "polling"
        return f"{'writes' if self.write else 'reads'}, depth {self.depth}, {way}"


def cells(depths: Sequence[int]) -> list[Cell]:
    """Return every combination, in the table's order."""
    return [
        Cell(write, wait, depth)
        for write, depth, wait in itertools.product([False, True], depths, [False, True])
    ]


class Bench:
    """An image in the page cache, and the client."""

    def __init__(self, folder: Path, mebibytes: int, milliseconds: int = 1000) -> None:
        self._folder = folder
        self._milliseconds = milliseconds
        self._mebibytes = mebibytes
        self.image = folder / "disk.img"
        self._blocks = make_image(self.image, mebibytes)
        self._client = build(CLIENT, folder)

    def drive(self, numbers: list[int], cell: Cell) -> float:
        """Have the client use a ring; returns the requests a second."""
        settings = [
            *(self._blocks, cell.depth, int(cell.wait), int(cell.write)),
            self._milliseconds // SLICES,
        ]
        done = subprocess.run(
            [*CLIENT_CPU, str(self._client), *map(str, [*numbers, *settings])],
            pass_fds=[numbers[0], numbers[2], numbers[3]],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            give_up(done.stderr.strip())
        return float(done.stdout)

    def compare(self, peers: Mapping[str, Peer], cell: Cell, rounds: int) -> Figures:
        """Have the client use the rings of all peers by turns; returns the requests a second."""
        # One more than peers: none has the same image in two rounds after one another, as where in
        # the host's memory an image is counts too.
        images = itertools.cycle([self._image(index) for index in range(len(peers) + 1)])

        @contextmanager
        def start(peer: Peer, path: Path) -> Iterator[Callable[[], float]]:
            with peer(next(images), path) as numbers:
                yield partial(self.drive, numbers, cell)

        contestants: dict[str, Start] = {
            name: partial(start, peer, self._folder / f"blk{index}.sock")
            for index, (name, peer) in enumerate(peers.items())
        }
        return by_slices(contestants, rounds, SLICES)

    def _image(self, index: int) -> Path:
        path = self._folder / f"disk{index}.img"
        if not path.exists():
            make_image(path, self._mebibytes)
        return path

    def compare_reads(
        self,
        what: str,
        contestants: Mapping[str, Callable[[Path, Path], Backend]],
        depth: int,
        rounds: int,
        peer: str,
    ) -> Figures:
        """Have backends read 4 KiB by turns, with interrupts, and tell; `what` is in the names."""
        what = f"{what}depth {depth}, interrupts"
        print(f"\n4 KiB random reads, {what}")
        peers: dict[str, Peer] = {
            name: partial(over_vhost_user, serve) for name, serve in contestants.items()
        }
        figures = self.compare(peers, Cell(write=False, wait=True, depth=depth), rounds)
        tell(figures, "IOPS", 1, peer=peer)
        return {f"{name}, {what}": values for name, values in figures.items()}


#: Of each cell, what each peer came to.
Table = dict[Cell, Figures]


def tell_sandbox(table: Table) -> None:
    """Print how virtiopy compares with the floor, both with the sandbox's filter and without."""
    print(f"\n{'virtiopy: median ratio':32} {'in the sandbox':>14} {'outside':>8} {'across':>8}")
    for cell, figures in table.items():
        print(
            f"{cell!s:32} {median_ratio(figures[OURS], figures[FLOOR_INSIDE]):14.2f} "
            f"{median_ratio(figures[OURS_OUTSIDE], figures[FLOOR_NAME]):8.2f} "
            f"{median_ratio(figures[OURS], figures[FLOOR_NAME]):8.2f}"
        )
    print("across: virtiopy in the sandbox, the floor outside")


def tell_ratios(table: Table) -> None:
    """Print how virtiopy compares with the floor and with the better qemu-storage-daemon."""
    print(f"\n{'virtiopy: median ratio':32} {'to the floor':>14} {'to the better QEMU':>20}")
    for cell, figures in table.items():
        medians = {name: statistics.median(values) for name, values in figures.items()}
        daemons = [name for name in figures if name.startswith(STORAGE_DAEMON)]
        better = max(daemons, key=medians.__getitem__)
        ours = figures[OURS]
        daemon = f"{median_ratio(ours, figures[better]):.2f} ({better.rpartition('=')[2]})"
        print(f"{cell!s:32} {median_ratio(ours, figures[FLOOR_NAME]):14.2f} {daemon:>20}")


def plot(table: Table, path: Path) -> None:
    """Draw the requests a second over the depth: medians, with what lies between the extremes."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for row, write in enumerate([False, True]):
        for column, wait in enumerate([False, True]):
            panel = axes[row][column]
            here = [cell for cell in table if (cell.write, cell.wait) == (write, wait)]
            depths = [cell.depth for cell in here]
            for name in table[here[0]]:
                values = [table[cell][name] for cell in here]
                [line] = panel.plot(depths, list(map(statistics.median, values)), "o-", label=name)
                panel.fill_between(
                    *(depths, list(map(min, values)), list(map(max, values))),
                    color=line.get_color(),
                    alpha=0.15,
                )
            way = "interrupts" if wait else "polling"
            panel.set_title(f"{'writes' if write else 'reads'}, {way}")
            panel.set_xscale("log", base=2)
            panel.set_xticks(depths, labels=map(str, depths))
            panel.set_ylim(bottom=0)
            panel.set_xlabel("requests in flight")
            panel.set_ylabel("4 KiB requests a second")
    axes[0][0].legend()
    figure.savefig(path, format="svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="of the image, in MiB")
    parser.add_argument("--milliseconds", type=int, default=1000, help="that a measurement takes")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument(
        "--svg", type=Path, help="plot depths of 1 to 32 to this file, and measure those between"
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="cells whose name has this in it: 'depth 1,', say",
    )
    parser.add_argument(
        "--sandbox", action="store_true", help="tell what the sandbox costs, without QEMU's"
    )
    arguments = parser.parse_args()
    if not arguments.sandbox:
        require(STORAGE_DAEMON, "qemu-system-common")
    require("gcc", "gcc")
    require("taskset", "util-linux")
    table: Table = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.size, arguments.milliseconds)
        floor = partial(bare_loop, build(FLOOR, Path(folder)))
        ours = partial(over_vhost_user, serve_with_virtiopy)
        seccomp = Path(folder, "filter")
        seccomp.write_bytes(as_bytes(Ability(0)))
        sandboxed: dict[str, Peer] = {
            OURS: ours,
            OURS_OUTSIDE: partial(over_vhost_user, serve_outside),
            FLOOR_INSIDE: partial(floor, seccomp=seccomp),
            FLOOR_NAME: floor,
        }
        peers: dict[str, Peer] = {
            OURS: ours,
            OURS_IN_PYTHON: partial(over_vhost_user, serve_with_python),
            **{
                f"{STORAGE_DAEMON}, aio={aio}": partial(
                    over_vhost_user, partial(serve_with_qemu, aio)
                )
                for aio in AIO
            },
            FLOOR_NAME: floor,
        }
        if arguments.sandbox:
            peers = sandboxed
        for cell in cells(PLOTTED if arguments.svg else DEPTHS):
            if arguments.only not in str(cell):
                continue
            print(f"\n4 KiB random {cell}")
            table[cell] = bench.compare(peers, cell, arguments.rounds)
            tell(table[cell], "IOPS", 1, peer=FLOOR_NAME)
    (tell_sandbox if arguments.sandbox else tell_ratios)(table)
    if arguments.svg is not None:
        plot(table, arguments.svg)
    results = {
        f"{name}, {cell}": values
        for cell, figures in table.items()
        for name, values in figures.items()
    }
    write_json(arguments.json, results, "IOPS")


if __name__ == "__main__":
    main()
