"""A helper program's own sandbox: it is put on between fork and exec."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from virtiopy._native import lib
from virtiopy.closing import Closing
from virtiopy.sandbox.landlock import READ, WRITE, Access, Rule, Ruleset, landlock_version

#: What a program of the distribution's reads to start, to find a host by its name, and to trust it.
_READ = (
    "/etc/ld.so.cache",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/nsswitch.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/dev/urandom",
    "/proc/self",
    "/proc/sys/vm/overcommit_memory",
    "/sys/dev/block",
    "/sys/devices",
)
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib64")


def helper_rules(folder: Path, images: Iterable[Path]) -> Iterator[Rule]:
    """Allow a helper its own folder, its images, and to be a program at all."""
    for name in _PROGRAMS:
        yield Rule(Path(name), READ | Access.EXECUTE)
    for name in _READ:
        yield Rule(Path(name), READ)
    yield Rule(Path("/dev/null"), Access.READ_FILE | WRITE)
    yield Rule(
        folder,
        READ | WRITE | Access.MAKE_REG | Access.MAKE_SOCK | Access.REMOVE_FILE | Access.REMOVE_DIR,
    )
    # The folder itself, which is taken away at the end, when it is empty.
    yield Rule(folder.parent, Access.REMOVE_DIR)
    for image in images:
        yield Rule(image, Access.READ_FILE | WRITE)


class Confinement(Closing):
    """Which files a helper may open; all, where the kernel has no Landlock."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        version = landlock_version()
        self._ruleset = None if version == 0 else Ruleset(version, network=True)
        if self._ruleset is not None:
            self._ruleset.allow(rules)

    def close(self) -> None:
        """Confine no more helpers."""
        if self._ruleset is not None:
            self._ruleset.close()
            self._ruleset = None

    def before_exec(self) -> Callable[[], None]:
        """Return what is called in the child, between fork and exec."""
        ruleset = -1 if self._ruleset is None else self._ruleset.fd

        def confine() -> None:
            error = lib.vp_confine(ruleset)
            if error < 0:
                raise OSError(-error, os.strerror(-error))

        return confine


def capability_options(images: Iterable[Path]) -> list[str]:
    """Return the options of setpriv(1) that leave a helper no capabilities.

    One stays where an image is another user's, which root may open by that alone.
    """
    if os.geteuid() != 0:
        return []
    others = any(image.stat().st_uid != 0 for image in images)
    kept = ",+dac_override" if others else ""
    return ["--inh-caps=-all", "--ambient-caps=-all", f"--bounding-set=-all{kept}"]
