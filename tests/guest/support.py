"""What tests of whole VMs share: the command line as a user has it, images, QEMU."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE
from virtiopy.boot.guests import guest_path

VIRTIOPY = [sys.executable, "-m", "virtiopy"]
QEMU = "qemu-system-x86_64"

needs_kvm = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm cannot be opened"
)
needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is missing")

#: Runs a command in a network and a mount namespace of its own.
ISOLATED = ["unshare", "--net", "--mount", "--propagation", "private"]

needs_isolation = pytest.mark.skipif(
    subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode != 0,
    reason="unshare --net --mount does not work here: it takes root, outside of a chroot",
)

SECTOR = 512
PATTERN_SECTORS = 64


def with_command(folder: Path) -> dict[str, str]:
    """Make `virtiopy` a command in a new folder; return the environment in which it is found."""
    folder.mkdir()
    tool = folder / "virtiopy"
    tool.write_text(f'#!/bin/sh\nexec {shlex.join(VIRTIOPY)} "$@"\n')
    tool.chmod(0o755)
    root = Path(__file__).parents[2]
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(root)}


@dataclass(slots=True, frozen=True)
class Outcome:
    """How a run of the command line ended."""

    status: int
    output: str
    errors: str
    report: dict[str, Any]

    def exits(self, device: str, register: str) -> int:
        """Exits to userspace about one register."""
        return sum(
            row["count"]
            for row in self.report["exits"]["userspace"]
            if (row["device"], row["register"]) == (device, register)
        )

    def failures(self) -> list[str]:
        """The names of the guest's tests that failed."""
        return [t["description"] for t in self.report["tests"] if t["outcome"] == "failed"]


def virtiopy(*arguments: str | Path) -> Outcome:
    """Run the command line."""
    command = [*VIRTIOPY, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    return Outcome(done.returncode, done.stdout, done.stderr, {})


def run_guest(tmp_path: Path, guest: str | Path, *arguments: str | Path) -> Outcome:
    """Run `virtiopy run --guest GUEST ...` with a JSON report."""
    path = tmp_path / "report.json"
    done = virtiopy("run", "--guest", guest, "--json", path, *arguments)
    report = json.loads(path.read_text()) if path.exists() else {}
    return Outcome(done.status, done.output, done.errors, report)


def run_in_qemu(guest: str, *arguments: str, append: str = "", accel: str = "kvm") -> None:
    """Run a guest in QEMU's microvm, on the devices in `arguments`; it has to pass."""
    command = [
        *(QEMU, "-M", f"microvm,accel={accel},acpi=off,isa-serial=off"),
        *("-global", "virtio-mmio.force-legacy=false", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-no-reboot", "-kernel", str(guest_path(guest)), "-append", append),
        *("-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=1", *arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert "not ok" not in done.stdout
    # isa-debug-exit makes status 0 a 1.
    assert done.returncode == 1, done.stdout + done.stderr


def assert_one_sentence(outcome: Outcome, *words: str) -> None:
    """Check what a fault of the user's ends in: one sentence with `words`, status 2."""
    lines = outcome.errors.strip().splitlines()
    assert outcome.status == 2, outcome
    assert len(lines) == 1, outcome.errors
    assert lines[0].startswith("virtiopy: ")
    assert lines[0].endswith(".")
    for word in words:
        assert word in lines[0], lines[0]


def greeting(mode: str) -> str:
    """What `virtiopy hello` says of a mode: the guest's line, and its exits, one for a byte."""
    return f"{mode}: Hello, World! (exits: 1 HLT, 14 of the console port)\n"


def make_image(path: Path, size: int = 4 << 20) -> Path:
    """Make an image whose every sector says its number, so that strays are seen."""
    path.write_bytes(b"".join(n.to_bytes(8, "big") * 64 for n in range(size // SECTOR)))
    return path


def final_pattern() -> bytes:
    """What the blk guest leaves in the first sectors."""
    words = (s << 32 | i << 8 | 0xB5 for s in range(PATTERN_SECTORS) for i in range(SECTOR // 8))
    return b"".join(word.to_bytes(8, "little") for word in words)


def holds_final_pattern(image: Path) -> bool:
    """Say whether the blk guest's last writes are in the image file."""
    with image.open("rb") as stream:
        return stream.read(PATTERN_SECTORS * SECTOR) == final_pattern()
