"""The network device (5.1): `device` puts it together, `path` moves the frames."""

from virtiopy.devices.net.device import Net
from virtiopy.devices.net.link import FrameLink
from virtiopy.devices.net.record import RecordedLink

__all__ = ["FrameLink", "Net", "RecordedLink"]
