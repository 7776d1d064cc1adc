"""The VM's side of a 9P device that a backend serves."""

from pathlib import Path

from virtiopy.devices.ninep import TAG_MAX, NineP, NinePFeature
from virtiopy.errors import PeerError
from virtiopy.spec import DeviceId
from virtiopy.vhost.user.device import VhostUserDevice
from virtiopy.vhost.user.frontend import VhostUserFrontend, connect
from virtiopy.vhost.user.messages import ProtocolFeature

#: Bytes of the tag's length, which the configuration space begins with.
_LENGTH = 2


class VhostUserNineP(VhostUserDevice):
    """A 9P device of a backend's, which says the tag that drivers know it by.

    Another backend that takes over knows none of the driver's files: its requests end with errors
    until the share is mounted again.
    """

    device_id = DeviceId.NINE_P
    feature_bits = NinePFeature
    config_size = _LENGTH + TAG_MAX
    usable = NineP.features

    def _count_queues(self, said: int | None) -> int:
        return 1

    def _read_config(self, frontend: VhostUserFrontend) -> bytes:
        if not frontend.has(ProtocolFeature.CONFIG):
            raise PeerError("it has no CONFIG, by which a 9P device's tag is had")
        length = int.from_bytes(frontend.get_config(_LENGTH), "little")
        if not 0 < length <= TAG_MAX:
            raise PeerError(f"it has a mount tag of {length} bytes, not 1 to {TAG_MAX}")
        tag = frontend.get_config(length, _LENGTH)
        return length.to_bytes(_LENGTH, "little") + tag


def open_ninep(path: Path) -> VhostUserNineP:
    """Make the 9P device that is served at a socket; raises ConfigError."""
    backend = "virtiopy serve ninep folder,tag=files --socket {socket}"
    return VhostUserNineP(connect(path, backend), lambda: connect(path, backend))
