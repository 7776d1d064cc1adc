"""The VM's side of a SCSI host device that a backend serves."""

from pathlib import Path

from virtiopy._native import ffi
from virtiopy.devices.scsi.features import (
    CDB_SIZE,
    CMD_PER_LUN,
    EVENT_SIZE,
    LUN_MAX,
    MAX_SECTORS,
    SENSE_SIZE,
    TARGET_MAX,
    ScsiFeature,
)
from virtiopy.spec import DeviceId, feature_mask
from virtiopy.vhost.user.device import QUEUE_SIZE, QUEUES_MAX, VhostUserDevice
from virtiopy.vhost.user.frontend import VhostUserFrontend, connect
from virtiopy.vhost.user.messages import ProtocolFeature

#: The queues beside the request queues (5.6.2), and all that there are at least.
_FIXED_QUEUES = 2
_LEAST_QUEUES = _FIXED_QUEUES + 1


class VhostUserScsi(VhostUserDevice):
    """A SCSI host device of a backend's (5.6).

    Its configuration space is the frontend's where the backend has none, as QEMU has it: the sizes
    of CDBs and sense data stay as they are then.
    """

    device_id = DeviceId.SCSI_HOST
    feature_bits = ScsiFeature
    config_size = ffi.sizeof("struct virtio_scsi_config")
    usable = feature_mask(ScsiFeature)

    def _count_queues(self, said: int | None) -> int:
        return max(_LEAST_QUEUES, min(said or _LEAST_QUEUES, QUEUES_MAX))

    def _read_config(self, frontend: VhostUserFrontend) -> bytes:
        if frontend.has(ProtocolFeature.CONFIG):
            return super()._read_config(frontend)
        config = ffi.new("struct virtio_scsi_config *")
        config.num_queues = self._count_queues(frontend.queue_count()) - _FIXED_QUEUES
        # A request has a header and an answer besides its data.
        config.seg_max = QUEUE_SIZE - 2
        config.max_sectors = MAX_SECTORS
        config.cmd_per_lun = min(CMD_PER_LUN, QUEUE_SIZE)
        config.event_info_size = EVENT_SIZE
        config.sense_size, config.cdb_size = SENSE_SIZE, CDB_SIZE
        config.max_target, config.max_lun = TARGET_MAX, LUN_MAX
        return bytes(ffi.buffer(config))


def open_scsi(path: Path) -> VhostUserScsi:
    """Make the SCSI host device that is served at a socket; raises ConfigError."""
    return VhostUserScsi(connect(path), lambda: connect(path))
