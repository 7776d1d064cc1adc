"""The SCSI host device (5.6): targets and logical units, each a disk or a CD-ROM."""

from virtiopy.devices.scsi.address import Address
from virtiopy.devices.scsi.device import Scsi
from virtiopy.devices.scsi.features import ScsiFeature
from virtiopy.devices.scsi.mmc import Cdrom
from virtiopy.devices.scsi.sbc import ScsiDisk
from virtiopy.devices.scsi.unit import LogicalUnit

__all__ = ["Address", "Cdrom", "LogicalUnit", "Scsi", "ScsiDisk", "ScsiFeature"]
