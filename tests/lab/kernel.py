"""Debian's kernel for the lab: its package downloaded and unpacked, never installed."""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

#: The package that depends on the newest kernel's.
METAPACKAGE = "linux-image-amd64"

_DEPENDENCY = re.compile(r"^ *Depends: (linux-image-\d\S*-amd64)$", re.MULTILINE)


class LabMissingError(Exception):
    """The lab is not to be had here; the text says what is missing, and how to get it."""


@dataclass(slots=True, frozen=True)
class LabKernel:
    """An unpacked kernel package: `image` is what boots, its modules are beside it."""

    folder: Path
    image: Path

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Find the kernel in an unpacked package."""
        images = sorted(folder.glob("boot/vmlinuz-*"))
        if len(images) != 1:
            raise LabMissingError(f"{folder} holds {len(images)} kernels, not one: remove it")
        return cls(folder, images[0])


def get_kernel(cache: Path) -> LabKernel:
    """Return the newest kernel in the folder `cache`, fetched there if there is none.

    Raises LabMissingError.
    """
    if kernel := _newest(cache):
        return kernel
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise LabMissingError(
                f"there is no {tool} to fetch Debian's kernel with: on another distribution, "
                f"unpack its package {METAPACKAGE} depends on into {cache}/linux-image-VERSION"
            )
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Somebody else may have fetched it while we waited.
        return _newest(cache) or _fetch(cache)


def _newest(cache: Path) -> LabKernel | None:
    unpacked = sorted(cache.glob("linux-image-*"), key=lambda path: path.stat().st_mtime)
    return LabKernel.of(unpacked[-1]) if unpacked else None


def _fetch(cache: Path) -> LabKernel:
    package = _resolve()
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as name:
        fetched = Path(name)
        # Root's download would warn that the user _apt cannot write here.
        _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=fetched)
        (archive,) = fetched.glob("*.deb")
        _run("dpkg-deb", "-x", str(archive), "root", cwd=fetched)
        # Installing the package would do this. virtme-ng would, at each first boot.
        version = package.removeprefix("linux-image-")
        _run("depmod", "-b", "root", version, cwd=fetched)
        # In one step, so that a folder of this name is always whole.
        (fetched / "root").rename(cache / package)
    return LabKernel.of(cache / package)


def _resolve() -> str:
    """Name the package that the metapackage stands for now."""
    found = _DEPENDENCY.search(_run("apt-cache", "depends", METAPACKAGE, check=False))
    if found is None and os.geteuid() == 0:
        # A fresh container has no package lists.
        _run("apt-get", "-q", "update")
        found = _DEPENDENCY.search(_run("apt-cache", "depends", METAPACKAGE, check=False))
    if found is None:
        raise LabMissingError(
            f"apt knows no package {METAPACKAGE}: run apt-get update, with Debian's main "
            "archive for amd64 among the sources"
        )
    return found[1]


def _run(*command: str, cwd: Path | None = None, check: bool = True) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )
    if check and done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it gives no reason"])[-1]
        raise LabMissingError(f"`{' '.join(command)}` fails: {reason}")
    return done.stdout
