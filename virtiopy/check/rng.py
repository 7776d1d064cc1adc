"""Buffers of an entropy device's driver, held against 5.4."""

from typing import ClassVar

from virtiopy.check.requests import RequestJudge
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.buffers import total
from virtiopy.virtqueue.queue import Chain, Virtqueue


class RngJudge(RequestJudge):
    """Judges buffers of an entropy device's driver."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY

    def request(self, queue: Virtqueue, chain: Chain) -> None:
        """Judge one buffer."""
        self._judge.check(
            "5.4.6.1:1",
            not total(chain.readable),
            f"a device-readable buffer of {total(chain.readable)} bytes in the queue",
        )
