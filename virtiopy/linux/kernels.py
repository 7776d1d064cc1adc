"""Linux kernels that are here to be booted; and Debian's, fetched where there is none.

Debian's package is downloaded and unpacked, never installed.
"""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from virtiopy.boot.bzimage import BzImage
from virtiopy.boot.content import read_content
from virtiopy.errors import ConfigError, HostError

#: The package that depends on the newest kernel's.
METAPACKAGE = "linux-image-amd64"

_DEPENDENCY = re.compile(r"^ *Depends: (linux-image-\d\S*-amd64)$", re.MULTILINE)
_DIGITS = re.compile(r"(\d+)")


class NoKernelError(HostError):
    """There is no kernel, and none to be had; the text says what is missing."""


@dataclass(slots=True, frozen=True)
class LinuxKernel:
    """A kernel: `image` is what boots, `modules` the folder of its modules, where it has one."""

    image: Path
    version: str
    modules: Path | None

    @classmethod
    def of(cls, image: Path) -> Self:
        """Look at a bzImage; its modules are beside it in a package, or the system's.

        Raises ConfigError where it cannot be read.
        """
        version = _version(image)
        folders = [
            root / "lib" / "modules" / version
            for root in (image.parent.parent, image.parent, Path("/"), Path("/usr"))
        ]
        return cls(image, version, next((f for f in folders if version and f.is_dir()), None))


def _version(image: Path) -> str:
    """Return the version that a bzImage tells of itself; for another file what its name ends in."""
    try:
        content = read_content(image)
    except OSError as error:
        raise ConfigError(
            f"The kernel {image} cannot be read ({error.strerror}): name a bzImage or a vmlinux."
        ) from error
    bzimage = BzImage.parse(image, content)
    if bzimage is not None and bzimage.version:
        return bzimage.version
    return image.name.partition("-")[2]


def find_kernel(cache: Path, note: Callable[[str], None] = lambda line: None) -> LinuxKernel:
    """Return the newest kernel in /boot that has modules, else Debian's in `cache`.

    `note` is told when it has to be fetched. Raises NoKernelError.
    """
    readable = [path for path in Path("/boot").glob("vmlinuz-*") if os.access(path, os.R_OK)]
    for image in sorted(readable, key=_by_version, reverse=True):
        kernel = LinuxKernel.of(image)
        if kernel.modules is not None:
            return kernel
    return debian_kernel(cache, note)


def _by_version(path: Path) -> list[tuple[int, str]]:
    """Sort 6.10 after 6.9."""
    return [(int(part) if part.isdigit() else -1, part) for part in _DIGITS.split(path.name)]


def debian_kernel(
    cache: Path, note: Callable[[str], None] = lambda line: None, package: str = METAPACKAGE
) -> LinuxKernel:
    """Return the newest of Debian's kernels in the folder `cache`, fetched there if there is none.

    `package` is one that depends on it, or itself. Raises NoKernelError.
    """
    if kernel := _newest(cache, package):
        return kernel
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise NoKernelError(
                f"There is no {tool} to fetch Debian's kernel with: name another with --kernel, "
                f"or unpack the package that {package} depends on into {cache}/linux-image-VERSION."
            )
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another process may have fetched it while this one waited.
        found = _newest(cache, package)
        if found is None:
            note(f"fetching Debian's kernel into {cache}, once")
            found = _fetch(cache, package)
    return found


def _newest(cache: Path, package: str) -> LinuxKernel | None:
    flavour = package.removeprefix("linux-image-")
    unpacked = [
        path
        for path in cache.glob(f"linux-image-*{flavour}")
        if ("cloud" in path.name) == ("cloud" in flavour)
    ]
    if not unpacked:
        return None
    newest = max(unpacked, key=lambda path: path.stat().st_mtime)
    images = sorted(newest.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise NoKernelError(f"{newest} holds {len(images)} kernels, not one: remove it.")
    return LinuxKernel.of(images[0])


def _fetch(cache: Path, metapackage: str) -> LinuxKernel:
    package = _resolve(metapackage)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as name:
        fetched = Path(name)
        # Root's download would warn that the user _apt cannot write here.
        _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=fetched)
        (archive,) = fetched.glob("*.deb")
        _run("dpkg-deb", "-x", str(archive), "root", cwd=fetched)
        if (depmod := shutil.which("depmod", path=f"{os.defpath}:/usr/sbin:/sbin")) is not None:
            # Installing the package would do this. virtme-ng would, at each first boot.
            _run(depmod, "-b", "root", package.removeprefix("linux-image-"), cwd=fetched)
        # In one step, so that a folder of this name is always whole.
        (fetched / "root").rename(cache / package)
    kernel = _newest(cache, metapackage)
    assert kernel is not None
    return kernel


def _resolve(metapackage: str) -> str:
    """Name the package that the metapackage stands for now."""
    found = _DEPENDENCY.search(_run("apt-cache", "depends", metapackage, check=False))
    if found is None and os.geteuid() == 0:
        # A fresh container has no package lists.
        _run("apt-get", "-q", "update")
        found = _DEPENDENCY.search(_run("apt-cache", "depends", metapackage, check=False))
    if found is None:
        raise NoKernelError(
            f"apt knows no package {metapackage}: run apt-get update, with Debian's main "
            "archive for amd64 among the sources; or name a kernel with --kernel."
        )
    return found[1]


def _run(*command: str, cwd: Path | None = None, check: bool = True) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )
    if check and done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it gives no reason"])[-1]
        raise NoKernelError(f"`{' '.join(command)}` fails: {reason}: name a kernel with --kernel.")
    return done.stdout
