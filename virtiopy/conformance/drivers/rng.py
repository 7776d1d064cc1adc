"""The driver of the entropy device (5.4)."""

from typing import ClassVar

from virtiopy.conformance.drivers.base import WHOLE, DeviceDriver, Framing, Request
from virtiopy.spec import DeviceId

#: The queue (5.4.2).
REQUESTQ = 0


class RngDriver(DeviceDriver):
    """A driver that asks for random bytes."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    name: ClassVar[str] = "rng"

    def request(self, size: int = 64) -> Request:
        """Return a request for up to `size` bytes."""

        def check(content: bytes, length: int) -> None:
            assert 1 <= length <= size, f"{length} random bytes in a buffer of {size} (5.4.6.2)"

        return Request(REQUESTQ, b"", size, check)

    def good_request(self) -> Request:
        """Return a request for 64 bytes."""
        return self.request()

    def read(self, size: int, framing: Framing = WHOLE) -> bytes:
        """Return what the device wrote: at least a byte, and at most `size`."""
        sent = self.send(self.request(size), framing)
        used = self.session.wait_for(REQUESTQ, sent.head)
        return self.check(sent, used)[: used.length]
