"""Targets of the lab's kernel: where configfs is not mounted yet, it is."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtiopy.host.disk import DiskImage
from virtiopy.host.target import TARGETS, ScsiTarget, TargetUnit

SERIAL = "5001405000000a02"


def mount_configfs() -> None:
    if not TARGETS.exists():
        command = ["mount", "-t", "configfs", "configfs", str(TARGETS.parent)]
        subprocess.run(command, check=True)


@contextmanager
def scsi_target(
    image: Path, wwpn: str, *, fabric: str = "vhost", target: int = 0
) -> Iterator[None]:
    """Have a target of this name, with the image as LUN 0."""
    mount_configfs()
    unit = TargetUnit(target, 0, DiskImage(image), SERIAL, rotational=False)
    with ScsiTarget([unit], wwpn=wwpn, fabric=fabric):
        yield
