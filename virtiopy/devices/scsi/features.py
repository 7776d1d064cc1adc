"""Feature bits and the numbers of the configuration space (5.6.3, 5.6.4)."""

import enum

from virtiopy._native import ffi

#: Bytes of an event: event_info_size.
EVENT_SIZE = ffi.sizeof("struct virtio_scsi_event")

#: The largest numbers there are of targets and LUNs.
TARGET_MAX = 255
LUN_MAX = 16383

#: The defaults of fields that the driver can change, bytes.
SENSE_SIZE, CDB_SIZE = 96, 32

#: A hint to the driver: sectors of 512 bytes a request, and requests a logical unit at a time.
MAX_SECTORS = 0xFFFF
CMD_PER_LUN = 128


class ScsiFeature(enum.IntEnum):
    """Feature bits (5.6.3)."""

    VIRTIO_SCSI_F_INOUT = 0
    VIRTIO_SCSI_F_HOTPLUG = 1
    VIRTIO_SCSI_F_CHANGE = 2
    VIRTIO_SCSI_F_T10_PI = 3
