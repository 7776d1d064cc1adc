"""The socket device (5.10): stream and seqpacket sockets between a guest and its host."""

from virtiopy.devices.vsock.device import Vsock
from virtiopy.devices.vsock.features import SocketType, VsockFeature

__all__ = ["SocketType", "Vsock", "VsockFeature"]
