"""A link whose frames are recorded as they pass."""

from collections.abc import Sequence
from typing import Protocol

from virtiopy.devices.net.header import HEADER_SIZE
from virtiopy.devices.net.link import FrameLink
from virtiopy.errors import ConfigError
from virtiopy.virtqueue.buffers import Buffers, gather, split_at


class Recorder(Protocol):
    """Where frames are recorded."""

    def record(self, frame: bytes, *, inbound: bool) -> None:
        """Add a frame, without its struct virtio_net_hdr; inbound ones go to the guest."""

    def close(self) -> None:
        """Add no more."""


class RecordedLink:
    """`link`, with every frame recorded both ways.

    As with tcpdump on a tap, frames that are to be segmented are seen whole, checksums that are to
    be completed are seen incomplete, and what the device's receive filter drops is seen too.
    """

    def __init__(self, link: FrameLink, recorder: Recorder) -> None:
        self._link = link
        self._recorder = recorder
        self.name = link.name
        self.mtu = link.mtu
        self.pairs = link.pairs
        self.fileno = link.fileno
        self.set_offloads = link.set_offloads
        self.set_pairs = link.set_pairs
        self.state_fileno = link.state_fileno
        self.is_up = link.is_up
        self.dropped = link.dropped

    def read(self, pair: int, buffers: Buffers) -> int:
        """Read the next frame, and record it."""
        length = self._link.read(pair, buffers)
        frame, _ = split_at(split_at(buffers, HEADER_SIZE)[1], length - HEADER_SIZE)
        self._recorder.record(gather(frame), inbound=True)
        return length

    def write(self, pair: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Send a frame, and record it where the link took it."""
        # The guest could change it meanwhile: what is recorded is what is sent.
        data = b"".join(buffers)
        self._link.write(pair, [data])
        self._recorder.record(data[HEADER_SIZE:], inbound=False)

    def worker_file(self, pair: int, mtu: int) -> int:
        """Raise ConfigError: no frame is to pass unseen."""
        raise ConfigError(
            f"Frames that others move cannot be recorded here: leave out pcap=..., and run "
            f"`tcpdump -i {self.name}` instead."
        )

    def close(self) -> None:
        """Close the link and the recorder."""
        self._link.close()
        self._recorder.close()
