"""Linux reads a file and finds 10,000 in a share, over 9P: virtiopy and QEMU by turns.

Both boot the same vmlinux and initramfs on the software CPU, with one CPU, and share the same
folder. In each boot the guest does both on the mounted share and, for the floor, on a copy in its
memory (tmpfs), which costs no device anything. QEMU's machine is microvm; see bench.linux. Times
are the host's clock's, between lines that the guest prints.

Example: python -m bench.ninep --rounds 5
"""

import argparse
import os
import tempfile
from pathlib import Path

from bench.common import (
    QEMU,
    VIRTIOPY,
    compile_modules,
    give_up,
    require,
    tell,
    timed_lines,
    write_json,
)
from virtiopy.cache import cache_folder
from virtiopy.cli.kernelrun import DEFAULT_WORDS
from virtiopy.cli.linux import WORDS
from virtiopy.linux import initramfs
from virtiopy.linux.kernels import find_kernel
from virtiopy.linux.unpacked import unpacked

OURS, THEIRS = "virtiopy", "QEMU microvm, accel=tcg"
TAG = "files"
MEMORY = "1G"
FILES_A_FOLDER = 100
SECONDS_MAX = 900

#: What is measured, by the word that the guest prints around it.
MEASURED = {
    "read": "Sequential read of a file, over 9P",
    "find": "find, over 9P",
    "floor-read": "The same read, in the guest's memory",
    "floor-find": "The same find, in the guest's memory",
}


def make_tree(folder: Path, files: int, size: int) -> None:
    """Make the share: a large file, and many small ones."""
    with (folder / "large").open("wb") as large:
        for _ in range(size):
            large.write(os.urandom(1 << 20))
    for number in range(files):
        path = folder / "tree" / str(number // FILES_A_FOLDER) / f"file {number}"
        if number % FILES_A_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"some content")


def script(msize: int, cache: str, files: int) -> str:
    """Return what the guest's shell runs."""
    options = f"trans=virtio,version=9p2000.L,msize={msize},cache={cache}"

    def turn(name: str, command: str) -> str:
        # The serial port prints nothing but the marks while it is measured.
        return f"echo BEGIN {name}; {command}; echo END {name}; "

    def read(folder: str) -> str:
        return f"dd if={folder}/large of=/dev/null bs=256k 2>/dev/null"

    def find(folder: str) -> str:
        return f"[ $(find {folder}/tree -type f | wc -l) = {files} ] || echo FAILED"

    return (
        f"mount -t 9p -o {options} {TAG} /mnt || echo FAILED; "
        + turn("read", read("/mnt"))
        + turn("find", find("/mnt"))
        + "mkdir /copy; mount -t tmpfs tmpfs /copy; cp -r /mnt/large /mnt/tree /copy; "
        + turn("floor-read", read("/copy"))
        + turn("floor-find", find("/copy"))
        + "echo ALL DONE"
    )


def measure(command: list[str]) -> dict[str, float]:
    """Boot once; return the seconds that each thing took."""
    begun: dict[str, float] = {}
    took: dict[str, float] = {}
    output = []
    for now, line in timed_lines(command, SECONDS_MAX):
        output.append(line)
        match line.split():
            case ["BEGIN", name]:
                begun[name] = now
            case ["END", name]:
                took[name] = now - begun[name]
    if took.keys() != MEASURED.keys() or "FAILED" in "".join(output):
        give_up(f"{command[0]} did not come through: {''.join(output[-12:])}")
    return took


def main() -> None:
    """Boot each once a round, and tell the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=64, help="MiB of the file that is read")
    parser.add_argument("--msize", type=int, default=512_000, help="bytes of a 9P message at most")
    parser.add_argument("--cache", default="none", help="the mount's cache=")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    require(QEMU, "qemu-system-x86")
    require("diod", "diod")
    compile_modules()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        share = folder / "share"
        share.mkdir()
        make_tree(share, arguments.files, arguments.size)
        found = find_kernel(cache_folder())
        kernel = str(unpacked(found.image, cache_folder()))
        line = script(arguments.msize, arguments.cache, arguments.files)
        task = initramfs.Task([line], interactive=False)
        initrd = folder / "initrd.img"
        contents = initramfs.Contents(found, ("9pnet_virtio", "9p"))
        initrd.write_bytes(initramfs.build(contents, task, cache_folder()))
        commands = {
            OURS: [
                *(str(VIRTIOPY), "run", "--accel", "tcg", "--serial", "stdout"),
                *("--memory", MEMORY, "--kernel", kernel, "--initrd", str(initrd)),
                *("--share", f"{share},tag={TAG}", "--append", WORDS),
            ],
            THEIRS: [
                *(QEMU, "-M", "microvm,accel=tcg", "-cpu", "max", "-m", MEMORY, "-nodefaults"),
                *("-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
                *("-global", "virtio-mmio.force-legacy=false"),
                *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
                *("-fsdev", f"local,id=f,path={share},security_model=none"),
                *("-device", f"virtio-9p-device,fsdev=f,mount_tag={TAG}"),
                *("-kernel", kernel, "-initrd", str(initrd)),
                *("-append", f"{DEFAULT_WORDS} {WORDS} tsc_early_khz=1000000"),
            ],
        }
        figures: dict[str, dict[str, list[float]]] = {
            what: {who: [] for who in commands} for what in MEASURED
        }
        for turn in range(arguments.rounds):
            for who, command in commands.items():
                for what, seconds in measure(command).items():
                    figures[what][who].append(seconds)
            print(f"round {turn + 1} of {arguments.rounds}", flush=True)
    amounts = {"read": f"{arguments.size} MiB", "find": f"{arguments.files} files"}
    for what, title in MEASURED.items():
        print(f"\n{title}: {amounts[what.removeprefix('floor-')]}")
        tell(figures[what], "seconds", 1, peer=THEIRS)
    flat = {f"{what}, {who}": s for what, each in figures.items() for who, s in each.items()}
    write_json(arguments.json, flat, "seconds")


if __name__ == "__main__":
    main()
