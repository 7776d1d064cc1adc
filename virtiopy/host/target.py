"""Targets of the kernel's (LIO), made of images in configfs, and taken away again.

Each folder there is an object of the kernel's: a backstore for an image (core/fileio_N/NAME), a
target of a fabric's (FABRIC/WWPN), a portal group of it (tpgt_N), and its logical units
(lun/lun_N), which links to backstores make (the kernel's Documentation/target).
"""

import contextlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virtiopy.closing import Closing
from virtiopy.errors import HostError
from virtiopy.host.disk import SECTOR_SIZE, CacheMode, DiskImage

#: Where the kernel has its targets, once target_core_mod is loaded and configfs is mounted.
TARGETS = Path("/sys/kernel/config/target")

#: How a name begins that is made up here: NAA 5, and the number of LIO's maker.
_NAA = "naa.5001405"
_NAA_DIGITS = 9


@dataclass(slots=True, frozen=True)
class TargetUnit:
    """A logical unit: an image, which stays open and claimed, and what it says of itself."""

    target: int
    lun: int
    image: DiskImage
    serial: str
    rotational: bool = True


class ScsiTarget(Closing):
    """A target with these units, as long as it is open; it closes their images at its end.

    `fabric` says who can use it: "vhost", or "loopback" for this kernel's own SCSI drivers. Raises
    HostError, with the remedy, where the kernel makes none.
    """

    def __init__(
        self,
        units: Sequence[TargetUnit],
        *,
        wwpn: str | None = None,
        fabric: str = "vhost",
        targets: Path = TARGETS,
    ) -> None:
        #: Its name.
        self.wwpn = wwpn or _make_name()
        self._targets = targets
        with contextlib.ExitStack() as stack:
            for unit in units:
                stack.callback(unit.image.close)
            try:
                self._make(stack, units, fabric)
            except OSError as error:
                raise HostError(_why_not(targets, error)) from error
            self._made = stack.pop_all()

    def close(self) -> None:
        """Take the target away, and close the images."""
        self._made.close()

    def _make(self, stack: contextlib.ExitStack, units: Sequence[TargetUnit], fabric: str) -> None:
        stores = [self._make_store(stack, unit) for unit in units]
        # Making the folder loads the fabric's module.
        with contextlib.suppress(FileExistsError):
            (self._targets / fabric).mkdir()
        target = _folder(stack, self._targets / fabric / self.wwpn)
        groups: dict[int, Path] = {}
        for unit, store in zip(units, stores, strict=True):
            if unit.target not in groups:
                group = groups[unit.target] = _folder(stack, target / f"tpgt_{unit.target}")
                (group / "nexus").write_text(_make_name())
                stack.callback((group / "nexus").write_text, "NULL")
            lun = _folder(stack, groups[unit.target] / "lun" / f"lun_{unit.lun}")
            link = lun / store.name
            link.symlink_to(store)
            stack.callback(link.unlink)

    def _make_store(self, stack: contextlib.ExitStack, unit: TargetUnit) -> Path:
        store = _folder(stack, self._free_adapter(stack) / f"virtiopy-{os.getpid()}")
        image = unit.image
        size = image.size // SECTOR_SIZE * SECTOR_SIZE
        # The file that is open, by a name without commas.
        name = f"/proc/self/fd/{image.fileno()}"
        buffered = "" if image.cache is CacheMode.WRITETHROUGH else ",fd_buffered_io=1"
        (store / "control").write_text(f"fd_dev_name={name},fd_dev_size={size}{buffered}")
        (store / "wwn" / "vpd_unit_serial").write_text(unit.serial)
        (store / "enable").write_text("1")
        if not unit.rotational:
            (store / "attrib" / "is_nonrot").write_text("1")
        if image.can_punch_holes:
            # A kernel before 5.15 cannot unmap blocks of a file: the unit does without.
            with contextlib.suppress(OSError):
                for unmaps in ("emulate_tpu", "emulate_tpws"):
                    (store / "attrib" / unmaps).write_text("1")
        return store

    def _free_adapter(self, stack: contextlib.ExitStack) -> Path:
        """Make the folder of an adapter that has no backstore yet: each has a number."""
        for number in itertools.count():
            path = self._targets / "core" / f"fileio_{number}"
            with contextlib.suppress(FileExistsError):
                return _folder(stack, path)
        raise AssertionError("numbers do not end")


def _folder(stack: contextlib.ExitStack, path: Path) -> Path:
    """Make a folder, which is to make something in the kernel; it is removed at the end."""
    path.mkdir()
    stack.callback(path.rmdir)
    return path


def _make_name() -> str:
    return f"{_NAA}{os.urandom(8).hex()[:_NAA_DIGITS]}"


def _why_not(targets: Path, error: OSError) -> str:
    if os.geteuid() != 0:
        return "Only root makes a target of the kernel's: run as root, or use mode=ioeventfd."
    if not targets.exists():
        return (
            f"{targets} does not exist: load the module with `modprobe target_core_mod`, mount "
            "configfs at /sys/kernel/config, or use mode=ioeventfd."
        )
    return (
        f"The kernel makes no target ({error.strerror}, {error.filename}): load target_core_file "
        "and vhost_scsi, see what dmesg says, or use mode=ioeventfd."
    )
