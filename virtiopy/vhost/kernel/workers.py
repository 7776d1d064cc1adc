"""Which of the kernel's vhost devices works which device's rings: by what is behind the device."""

from virtiopy.devices.delegation import Backing, QueueWorker
from virtiopy.devices.vsock.delegation import GuestBacking
from virtiopy.memory import GuestMemory
from virtiopy.vhost.kernel.pair import open_pair
from virtiopy.vhost.kernel.vsock import open_packets


def open_vhost(memory: GuestMemory, backing: Backing) -> QueueWorker:
    """Open the vhost device for a device in `memory`: an OpenWorker.

    Raises HostError where there is none, ConfigError for a device that none works.
    """
    if isinstance(backing, GuestBacking):
        return open_packets(memory, backing)
    return open_pair(memory, backing)
