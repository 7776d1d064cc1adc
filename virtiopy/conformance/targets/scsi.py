"""The host's side of a SCSI host device, played by the suite."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from virtiopy.conformance.targets.hosts import Host
from virtiopy.devices.scsi import Address, Cdrom, Scsi, ScsiDisk
from virtiopy.devices.scsi.spc import PrimaryUnit
from virtiopy.host.disk import DiskImage

#: Bytes of each image, and where the units are.
IMAGE_SIZE = 1 << 20
DISK, CDROM = Address(0, 0), Address(0, 1)


class ScsiHost(Host):
    """Images of a disk and of a disc, and a hand on what is plugged in."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="virtiopy-")
        self._device: Scsi

    def _image(self, name: str, *, readonly: bool = False) -> DiskImage:
        path = Path(self._folder.name) / name
        if not path.exists():
            path.write_bytes(b"".join(n.to_bytes(8, "little") * 64 for n in range(2048)))
        return DiskImage(path, readonly=readonly)

    def open_units(self) -> Mapping[Address, PrimaryUnit]:
        """Return the units of the device, whose they are from then on."""
        disk = ScsiDisk(self._image("disk.img"), serial="conformance")
        return {DISK: disk, CDROM: Cdrom(self._image("disc.iso", readonly=True))}

    def attach(self, device: Scsi) -> None:
        """Say whose units they are."""
        self._device = device

    def resize(self, size: int) -> None:
        """Have the disk grow or shrink, to so many bytes."""
        os.truncate(Path(self._folder.name) / "disk.img", size)
        self._device.capacity_changed(DISK)

    def resize_disc(self, size: int) -> None:
        """Have the disc grow or shrink, which no event tells."""
        os.truncate(Path(self._folder.name) / "disc.iso", size)
        self._device.capacity_changed(CDROM)

    def plug(self, target: int, lun: int) -> None:
        """Plug a disk in."""
        address = Address(target, lun)
        self._device.add_unit(address, ScsiDisk(self._image(f"{target}-{lun}.img")))

    def unplug(self, target: int, lun: int) -> None:
        """Unplug a unit."""
        self._device.remove_unit(Address(target, lun))

    def close(self) -> None:
        """Remove the images."""
        self._folder.cleanup()
