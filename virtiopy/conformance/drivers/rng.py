"""The driver of the entropy device (5.4)."""

from typing import ClassVar

from virtiopy.conformance.clauses.definitions import WRITTEN
from virtiopy.conformance.drivers.base import WHOLE, DeviceDriver, Framing, Request
from virtiopy.conformance.problems import BrokenError
from virtiopy.conformance.sessions.base import STALE
from virtiopy.spec import DeviceId

#: The queue (5.4.2).
REQUESTQ = 0

#: The statement that each answer is about.
RANDOM = "5.4.6.2:1"

#: So many random bytes are not all the same by chance.
CERTAIN = 16


class RngDriver(DeviceDriver):
    """A driver that asks for random bytes."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    name: ClassVar[str] = "rng"

    def request(self, size: int = 64) -> Request:
        """Return a request for up to `size` bytes."""

        def check(content: bytes, length: int) -> None:
            if not length:
                raise BrokenError(f"no random byte in a buffer of {size}", RANDOM)
            if length >= CERTAIN and set(content[:length]) == {STALE}:
                raise BrokenError(f"the used length is {length}, and no byte was written", WRITTEN)

        return Request(REQUESTQ, b"", size, check)

    def good_request(self) -> Request:
        """Return a request for 64 bytes."""
        return self.request()

    def read(self, size: int, framing: Framing = WHOLE) -> bytes:
        """Return what the device wrote: at least a byte, and at most `size`."""
        sent = self.send(self.request(size), framing)
        used = self.session.wait_for(REQUESTQ, sent.head)
        return self.check(sent, used)[: used.length]
