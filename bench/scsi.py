"""Linux's reads and writes on a SCSI disk and on a block device of the same size, by turns.

One boot has both, with one CPU of the software kind. dd has one request of 4 KiB in flight, past
Linux's page cache.

Example: python -m bench.scsi --rounds 5
"""

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path

from bench.common import VIRTIOPY, give_up, tell, write_json

SIZE = 64 << 20
SCSI, BLK = "virtio-scsi", "virtio-blk"
NAMES = {SCSI: "sda", BLK: "vda"}
SECONDS_MAX = 900

#: What dd does in each direction.
OPERANDS = {
    "read": "if={disk} of=/dev/null iflag=direct",
    "write": "if=/dev/zero of={disk} oflag=direct",
}

MARK = re.compile(r"^IOPS (\S+) (\S+) (\d+) ([\d.]+) ([\d.]+)", re.MULTILINE)


def script(rounds: int, count: int) -> str:
    """Return what the guest's shell runs; its clock has hundredths of a second."""
    now = "$(cut -d ' ' -f 1 /proc/uptime)"
    turns = "".join(
        f"begin={now}; dd bs=4k count={count} {operands.format(disk=f'/dev/{name}')} 2>/dev/null; "
        f"echo IOPS {direction} {name} {count} $begin {now}; "
        for direction, operands in OPERANDS.items()
        for name in NAMES.values()
    )
    return f"for round in $(seq {rounds}); do {turns} done"


def main() -> None:
    """Boot once, and tell both directions' figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000, help="requests a round")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = [Path(folder) / "a.img", Path(folder) / "b.img"]
        for image in images:
            image.touch()
            os.truncate(image, SIZE)
        command = [
            *(str(VIRTIOPY), "linux", "--accel", "tcg", "--mode", "ioeventfd"),
            *("--scsi", f"disk={images[0]}", "--disk", f"{images[1]}"),
            *("--", script(arguments.rounds, arguments.count)),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=SECONDS_MAX
        )
    found = MARK.findall(done.stdout.replace("\r", ""))
    if len(found) != 4 * arguments.rounds:
        give_up(f"virtiopy linux ended with {done.returncode}: {done.stdout}{done.stderr}")
    figures: dict[str, list[float]] = {}
    for direction in OPERANDS:
        results: dict[str, list[float]] = {name: [] for name in NAMES}
        for kind, disk, count, begin, end in found:
            for name, own in NAMES.items():
                if (kind, disk) == (direction, own):
                    results[name].append(int(count) / (float(end) - float(begin)))
        print(f"{direction} of 4 KiB, one in flight, {arguments.count} a round")
        tell(results, "IOPS", 1, peer=BLK)
        figures.update({f"{direction}, {name}": values for name, values in results.items()})
    write_json(arguments.json, figures, "IOPS")


if __name__ == "__main__":
    main()
