"""What the benchmarks share: running things by turns, and telling the medians."""

import compileall
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent
VIRTIOPY = Path(sys.executable).with_name("virtiopy")
QEMU = "qemu-system-x86_64"

#: The machine that QEMU runs our guests on: docs and tests use the same.
MICROVM = [
    *("-M", "microvm,accel=kvm,acpi=off,isa-serial=off"),
    *("-global", "virtio-mmio.force-legacy=false"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
    *("-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
]


def compile_modules() -> None:
    """Compile virtiopy's modules, as an installation that is not editable does."""
    compileall.compile_dir(ROOT / "virtiopy", quiet=1)


def give_up(sentence: str) -> NoReturn:
    """End a benchmark that cannot be run here."""
    sys.exit(f"bench: {sentence}")


def require(tool: str, package: str) -> None:
    """End with a remedy when a peer is not installed."""
    if shutil.which(tool) is None:
        give_up(f"{tool} is missing: install {package}.")


def timed_lines(command: Sequence[str], seconds: int) -> Iterator[tuple[float, str]]:
    """Run a command, for so long at most; yield each line that it prints, and when it came.

    Standard error is among them.
    """
    with subprocess.Popen(
        ["timeout", str(seconds), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield time.perf_counter(), line


def time_command(command: Sequence[str | Path], status: int = 0) -> float:
    """Return the seconds from a command's start to its exit, which has to be with `status`."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode != status:
        give_up(f"{command[0]} ended with {done.returncode}: {done.stderr.decode().strip()}")
    return seconds


def by_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure each contestant once a round, so that noise falls on all alike."""
    results: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, measure in contestants.items():
            results[name].append(measure())
        print(f"\rround {turn + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


#: Starts a contestant; gives what measures it once.
Start = Callable[[], AbstractContextManager[Callable[[], float]]]


def by_slices(contestants: Mapping[str, Start], rounds: int, slices: int) -> dict[str, list[float]]:
    """Start all contestants each round, and measure them by turns in so many slices.

    What slows the machine down for longer than a slice slows all contestants of the round alike. A
    round's figure is the mean of its slices.
    """
    results: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for turn in range(rounds):
        with ExitStack() as stack:
            started = {name: stack.enter_context(start()) for name, start in contestants.items()}
            measured: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(slices):
                order = [*order[1:], order[0]]
                for name in order:
                    measured[name].append(started[name]())
        for name, values in measured.items():
            results[name].append(statistics.mean(values))
        print(f"\rround {turn + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios of each round."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def tell(
    results: Mapping[str, list[float]], unit: str, scale: float, peer: str
) -> dict[str, float]:
    """Print the median, the extremes, and the median ratio to `peer`; returns the medians."""
    medians = {name: statistics.median(values) for name, values in results.items()}
    print(f"{'':32} {'median':>10} {'least':>10} {'most':>10} {'ratio':>8}   ({unit})")
    for name, values in results.items():
        print(
            f"{name:32} {medians[name] * scale:10.2f} {min(values) * scale:10.2f} "
            f"{max(values) * scale:10.2f} {median_ratio(values, results[peer]):8.2f}"
        )
    print(f"ratio: to {peer}, the median of all rounds")
    return medians


def write_json(path: Path | None, results: Mapping[str, list[float]], unit: str) -> None:
    """Write every figure to `path`, in `unit`."""
    if path is not None:
        path.write_text(json.dumps({"unit": unit, "results": dict(results)}, indent=2) + "\n")
