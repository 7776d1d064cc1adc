"""The entropy device (5.4)."""

import os
from typing import ClassVar

from virtiopy.devices.base import VirtioDevice
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.buffers import scatter, total
from virtiopy.virtqueue.queue import Chain, Virtqueue

#: The most that one buffer gets, bytes: a driver that wants more asks again (5.4.6.2).
REQUEST_MAX = 1 << 16


class Rng(VirtioDevice):
    """An entropy device; its random bytes are the host kernel's, from getrandom(2)."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    serves_legacy_drivers = True
    queue_sizes = (64,)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        """Fill the buffer from its start; returns how many bytes it got."""
        length = min(total(chain.writable), REQUEST_MAX)
        return scatter(chain.writable, os.getrandom(length))
