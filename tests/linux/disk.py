"""A disk that Linux has used, and what is left of it."""

import hashlib
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.guest.vhost_user import Backend
from tests.lab.machine import Lab
from tests.linux.guest import boot, chardev
from tests.patience import PATIENCE

QUEUES = 4
IMAGE_SIZE = 1 << 30
_KNOWN_SIZE = 4 << 20

#: What runs in the guest and on the host, by its Debian package.
_TOOLS = {"fio": "fio", "mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs", "debugfs": "e2fsprogs"}

_PATH = {"PATH": os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])}


@dataclass(slots=True)
class LinuxDisk:
    """An image, its backend, and Linux with a vhost-user-blk disk of it; `share` is theirs both."""

    image: Path
    share: Path
    backend: Backend
    known: bytes = field(default_factory=lambda: os.urandom(_KNOWN_SIZE))

    def boot(self, config: pytest.Config, *fio: str) -> Lab:
        """Boot Linux, which makes a file system, runs fio with these options, and checks."""
        (self.share / "known").write_bytes(self.known)
        device = f"vhost-user-blk-pci,chardev=disk,num-queues={QUEUES}"
        return boot(
            config,
            self.share,
            "blk.sh",
            *fio,
            qemu=[*chardev("disk", self.backend.path), "-device", device],
            modules=("virtio_blk", "ext4"),
            tools=_TOOLS,
            cpus=QUEUES,
        )

    # What the guest says

    def fio_job(self) -> dict[str, Any]:
        """Return what fio reports of all jobs together."""
        text = (self.share / "fio.json").read_text()
        # What it has to say before the report is in the same file.
        (job,) = json.loads(text[text.index("{") :])["jobs"]
        assert isinstance(job, dict)
        return job

    def completed(self) -> list[int]:
        """Return how many reads and writes were completed, again and again while fio ran."""
        try:
            text = (self.share / "counters.txt").read_text()
        except FileNotFoundError:
            return []
        # The last line may be in the middle of being written. See Documentation/block/stat.rst.
        lines = [line.split() for line in text.split("\n")[:-1]]
        return [int(fields[0]) + int(fields[4]) for fields in lines]

    def interrupts(self) -> list[int]:
        """Count the interrupts of each queue."""
        text = (self.share / "interrupts.txt").read_text()
        lines = sorted(re.findall(r"^.* virtio\d+-req\.\d+$", text, re.MULTILINE))
        return [sum(map(int, re.findall(r" (\d+)(?= )", line))) for line in lines]

    def sums(self) -> dict[str, str]:
        """Return the SHA-256 of each file, by its name."""
        lines = (self.share / "sums.txt").read_text().splitlines()
        return {name: digest for digest, name in (line.split() for line in lines)}

    # What the host finds in the image

    def check_on_host(self) -> subprocess.CompletedProcess[str]:
        """Run e2fsck on the image, changing nothing."""
        return _run("e2fsck", "-f", "-n", str(self.image))

    def sum_on_host(self, name: str) -> str:
        """Return the SHA-256 of a file that is in the image."""
        copy = self.image.with_name("copy")
        copy.unlink(missing_ok=True)
        done = _run("debugfs", "-R", f"dump /{name} {copy}", str(self.image))
        assert copy.exists(), done.stderr
        return hashlib.sha256(copy.read_bytes()).hexdigest()


def make_image(path: Path) -> Path:
    """Make an empty raw image."""
    with path.open("wb") as stream:
        stream.truncate(IMAGE_SIZE)
    return path


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=os.environ | _PATH,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
