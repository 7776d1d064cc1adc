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

#: Where those are in the configuration space, and how long each is, bytes.
SENSE_SIZE_AT = ffi.offsetof("struct virtio_scsi_config", "sense_size")
CDB_SIZE_AT = ffi.offsetof("struct virtio_scsi_config", "cdb_size")
SIZE_FIELD = ffi.sizeof("uint32_t")

#: A hint to the driver: sectors of 512 bytes a request, and requests a logical unit at a time.
MAX_SECTORS = 0xFFFF
CMD_PER_LUN = 128


class ScsiFeature(enum.IntEnum):
    """Feature bits (5.6.3)."""

    VIRTIO_SCSI_F_INOUT = 0
    VIRTIO_SCSI_F_HOTPLUG = 1
    VIRTIO_SCSI_F_CHANGE = 2
    VIRTIO_SCSI_F_T10_PI = 3


def make_config(
    num_queues: int, queue_size: int, *, sense_size: int = SENSE_SIZE, cdb_size: int = CDB_SIZE
) -> bytes:
    """Return struct virtio_scsi_config of a host with so many request queues (5.6.4)."""
    config = ffi.new("struct virtio_scsi_config *")
    config.num_queues = num_queues
    # A request has a header and an answer besides its data.
    config.seg_max = max(1, queue_size - 2)
    config.max_sectors = MAX_SECTORS
    config.cmd_per_lun = min(CMD_PER_LUN, queue_size)
    config.event_info_size = EVENT_SIZE
    config.sense_size, config.cdb_size = sense_size, cdb_size
    config.max_target, config.max_lun = TARGET_MAX, LUN_MAX
    return bytes(ffi.buffer(config))
