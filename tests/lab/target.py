"""A target of the kernel's (LIO) for vhost-scsi, made in configfs and taken away again."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

CONFIG = Path("/sys/kernel/config")
TARGET = CONFIG / "target"


def _folder(stack: ExitStack, path: Path) -> Path:
    """Make a folder, which is to make something in the kernel; it is removed at the end."""
    path.mkdir()
    stack.callback(path.rmdir)
    return path


@contextmanager
def scsi_target(image: Path, wwpn: str) -> Iterator[None]:
    """Have a target of this name, with the image as LUN 0 of target 0."""
    if not TARGET.exists():
        subprocess.run(["mount", "-t", "configfs", "configfs", CONFIG], check=True)
    name = f"virtiopy-{os.getpid()}"
    with ExitStack() as stack:
        fabric = TARGET / "vhost"
        if not fabric.exists():
            _folder(stack, fabric)
        hba = _folder(stack, TARGET / "core" / f"fileio_{os.getpid()}")
        store = _folder(stack, hba / name)
        size = image.stat().st_size
        (store / "control").write_text(f"fd_dev_name={image},fd_dev_size={size}")
        (store / "enable").write_text("1")
        group = _folder(stack, _folder(stack, fabric / wwpn) / "tpgt_0")
        (group / "nexus").write_text(f"naa.{int(wwpn[4:], 16) + 1:x}")
        stack.callback((group / "nexus").write_text, "NULL")
        link = _folder(stack, group / "lun" / "lun_0") / name
        link.symlink_to(store)
        stack.callback(link.unlink)
        yield
