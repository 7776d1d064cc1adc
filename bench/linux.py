"""Time to a shell of Linux, and of reads there, on the software CPU: virtiopy and QEMU by turns.

Both are given the same vmlinux and initramfs, a virtio-mmio disk, one CPU and a serial console,
and neither uses KVM. QEMU's machine is microvm, which is told the frequency of its time stamp
counter on the kernel's command line: Linux does not get it out of that machine's PIT on a busy
host.

Example: python -m bench.linux --rounds 5
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.common import (
    QEMU,
    VIRTIOPY,
    by_turns,
    compile_modules,
    give_up,
    require,
    tell,
    timed_lines,
)
from virtiopy.cache import cache_folder
from virtiopy.cli.kernelrun import DEFAULT_WORDS
from virtiopy.cli.linux import WORDS
from virtiopy.linux import initramfs
from virtiopy.linux.kernels import find_kernel
from virtiopy.linux.unpacked import unpacked

SHELL, DONE = "THE SHELL IS UP", "THE READS ARE DONE"
MEMORY = "512M"
SECONDS_MAX = 600


def make_initrd(folder: Path, reads: int) -> Path:
    """Make an initramfs whose shell tells when it is up, reads, and tells when that is done."""
    contents = initramfs.Contents(find_kernel(cache_folder()), ("virtio_blk",))
    line = (
        f"echo {SHELL}; dd if=/dev/vda of=/dev/null bs=4k count={reads} iflag=direct 2>/dev/null; "
        f"echo {DONE}"
    )
    path = folder / "initrd.img"
    task = initramfs.Task([line], interactive=False)
    path.write_bytes(initramfs.build(contents, task, cache_folder()))
    return path


def measure(command: list[str]) -> tuple[float, float]:
    """Return seconds from the start to the shell, and from there to the end of the reads."""
    start = time.perf_counter()
    seen: dict[str, float] = {}
    for now, line in timed_lines(command, SECONDS_MAX):
        for mark in (SHELL, DONE):
            if mark in line:
                seen[mark] = now
    if len(seen) != 2:
        give_up(f"{command[0]} did not come to a shell and through its reads.")
    return seen[SHELL] - start, seen[DONE] - seen[SHELL]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    require(QEMU, "qemu-system-x86")
    compile_modules()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kernel = str(unpacked(find_kernel(cache_folder()).image, cache_folder()))
        initrd = str(make_initrd(folder, arguments.reads))
        disk = folder / "disk.img"
        disk.write_bytes(bytes(max(arguments.reads * 4096, 1 << 20)))
        ours = [
            *(str(VIRTIOPY), "run", "--accel", "tcg", "--serial", "stdout", "--memory", MEMORY),
            *("--kernel", kernel, "--initrd", initrd, "--disk", str(disk), "--append", WORDS),
        ]
        words = f"{DEFAULT_WORDS} {WORDS} tsc_early_khz=1000000"
        theirs = [
            *(QEMU, "-M", "microvm,accel=tcg", "-cpu", "max", "-m", MEMORY, "-nodefaults"),
            *("-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
            *("-global", "virtio-mmio.force-legacy=false"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
            *("-drive", f"if=none,id=d,file={disk},format=raw"),
            *("-device", "virtio-blk-device,drive=d"),
            *("-kernel", kernel, "-initrd", initrd, "-append", words),
        ]
        reads: dict[str, list[float]] = {}

        def timed(label: str, command: list[str]) -> Callable[[], float]:
            def run() -> float:
                shell, reading = measure(command)
                reads.setdefault(label, []).append(reading)
                return shell

            return run

        peer = "QEMU microvm, accel=tcg"
        shells = by_turns(
            {
                "virtiopy run --accel tcg": timed("virtiopy run --accel tcg", ours),
                peer: timed(peer, theirs),
            },
            arguments.rounds,
        )
    print("Process start to shell")
    tell(shells, "seconds", 1, peer=peer)
    print(f"{arguments.reads} reads of 4 KiB by dd, O_DIRECT, depth 1")
    tell(reads, "seconds", 1, peer=peer)
    if arguments.json is not None:
        figures = {"unit": "seconds", "shell": shells, "reads": reads}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
