"""The VM's side of a SCSI host device that a backend serves."""

from pathlib import Path

from virtiopy._native import ffi
from virtiopy.devices.scsi.features import ScsiFeature, make_config
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
        queues = self._count_queues(frontend.queue_count()) - _FIXED_QUEUES
        return make_config(queues, QUEUE_SIZE)


def open_scsi(path: Path) -> VhostUserScsi:
    """Make the SCSI host device that is served at a socket; raises ConfigError."""
    backend = "virtiopy serve scsi disk=disk.img --socket {socket}"
    return VhostUserScsi(connect(path, backend), lambda: connect(path, backend))
