"""The host's side of a block device, played by the suite: its disk, and what a crash leaves."""

import os
import tempfile
from pathlib import Path

from virtiopy.conformance.targets.hosts import Host
from virtiopy.devices.blk import Blk
from virtiopy.host.disk import DiskImage
from virtiopy.virtqueue.buffers import Buffers, gather


class CrashDisk(DiskImage):
    """A disk image, and the one that there would be after a crash now (5.2.6.2).

    Only stable writes and what was flushed are in that. The file itself has everything.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        super().__init__(path, readonly=readonly)
        self._persistent = bytearray(path.read_bytes())

    def write(self, offset: int, buffers: Buffers, *, stable: bool = False) -> None:
        """Write; only where that is to be stable it survives."""
        super().write(offset, buffers, stable=stable)
        if stable:
            data = gather(buffers)
            self._persistent[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Have everything survive that was written."""
        super().flush()
        self._persistent[:] = self.path.read_bytes()

    def after_crash(self, offset: int, length: int) -> bytes:
        """Return what would be there after a crash."""
        return bytes(self._persistent[offset : offset + length])


class BlkHost(Host):
    """A disk: a file of `sectors` sectors of 512 bytes, whose content says where it is."""

    def __init__(self, sectors: int = 4096) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="virtiopy-")
        self._path = Path(self._folder.name) / "disk.img"
        self._path.write_bytes(b"".join(sector_content(sector) for sector in range(sectors)))
        self._disk: CrashDisk
        self._device: Blk

    def open(self, *, readonly: bool = False) -> CrashDisk:
        """Return the disk for the device, whose it is from then on."""
        self._disk = CrashDisk(self._path, readonly=readonly)
        return self._disk

    def attach(self, device: Blk) -> None:
        """Say whose disk it is."""
        self._device = device

    def content(self, sector: int, count: int = 1) -> bytes:
        """Return what is on the disk now."""
        with self._path.open("rb") as file:
            file.seek(sector * 512)
            return file.read(count * 512)

    def after_crash(self, sector: int, count: int = 1) -> bytes:
        """Return what would be on the disk after a crash now."""
        return self._disk.after_crash(sector * 512, count * 512)

    @property
    def allocated(self) -> int:
        """Bytes of the host's storage that the disk takes."""
        with self._path.open("rb") as file:
            # Some file systems only know it then.
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_blocks * 512

    def resize(self, sectors: int) -> None:
        """Have the disk grow or shrink."""
        os.truncate(self._path, sectors * 512)
        self._device.capacity_changed()

    def close(self) -> None:
        """Remove the disk."""
        self._folder.cleanup()


def sector_content(sector: int) -> bytes:
    """Return what is in a sector of a fresh disk: its number, over and over."""
    return sector.to_bytes(8, "little") * 64
