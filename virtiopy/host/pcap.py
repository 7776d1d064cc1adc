"""A record of a link's frames that Wireshark and tcpdump read (pcapng)."""

import contextlib
import logging
import time
from pathlib import Path

from virtiopy.errors import ConfigError
from virtiopy.files import open_output
from virtiopy.host.limits import OUTPUT_LIMIT

log = logging.getLogger(__name__)

#: The flags option of an Enhanced Packet Block, and its values for the direction (pcapng, 4.3).
_EPB_FLAGS = 2
_INBOUND = 1
_OUTBOUND = 2


class PcapFile:
    """A pcapng file with one Ethernet interface, named `interface`.

    Each frame is in the file when `record` returns, so that the file can be read meanwhile, and
    after a crash. Raises ConfigError where the file cannot be written; a disk that is full later,
    or a file of `limit` bytes, ends the record, and nothing else.
    """

    def __init__(self, path: Path, interface: str, limit: int = OUTPUT_LIMIT) -> None:
        from dpkt import pcapng  # noqa: PLC0415 - only who records needs it

        self._path = path
        self._limit = limit
        self._block = pcapng.EnhancedPacketBlockLE
        self._options = {
            direction: [
                pcapng.PcapngOptionLE(code=_EPB_FLAGS, data=direction.to_bytes(4, "little")),
                pcapng.PcapngOptionLE(),
            ]
            for direction in (_INBOUND, _OUTBOUND)
        }
        interface_block = pcapng.InterfaceDescriptionBlockLE(
            snaplen=0,
            opts=[
                pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_IF_NAME, data=interface.encode()),
                pcapng.PcapngOptionLE(),
            ],
        )
        self._file = open_output(path, "The pcap file")
        try:
            self._writer = pcapng.Writer(self._file, idb=interface_block)
            self._file.flush()
        except OSError as error:
            self.close()
            raise ConfigError(
                f"The pcap file {path} cannot be written ({error.strerror}): "
                "name a file in a folder that you can write to, on a disk with room."
            ) from error

    def record(self, frame: bytes, *, inbound: bool) -> None:
        """Add a frame; inbound ones go to the guest."""
        if self._file.closed:
            return
        block = self._block(
            caplen=len(frame),
            pkt_len=len(frame),
            pkt_data=frame,
            opts=self._options[_INBOUND if inbound else _OUTBOUND],
        )
        try:
            self._writer.writepkt(block, time.time())
            self._file.flush()
        except OSError as error:
            log.warning("the pcap file %s ends here: %s", self._path, error)
            self.close()
            return
        if self._file.tell() >= self._limit:
            log.warning(
                "the pcap file %s ends here: it has the %d bytes of its limit; "
                "pcap-limit= gives it more",
                self._path,
                self._limit,
            )
            self.close()

    def close(self) -> None:
        """Close the file."""
        # What a full disk did not take is tried again, in vain.
        with contextlib.suppress(OSError):
            self._file.close()
