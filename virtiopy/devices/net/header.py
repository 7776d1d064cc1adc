"""struct virtio_net_hdr: what precedes every frame (5.1.9), and what a driver may say in it."""

import enum
from dataclasses import dataclass

from virtiopy._native import ffi
from virtiopy.virtqueue.buffers import Buffers, gather, split_at

#: Bytes of the header that the link has before each frame, and the driver, whatever it negotiates
#: of what this device offers (5.1.9).
HEADER_SIZE = ffi.sizeof("struct virtio_net_hdr_v1")

#: The header of a legacy driver without MRG_RXBUF: it has no num_buffers (5.1.9, legacy interface).
LEGACY_HEADER_SIZE = ffi.offsetof("struct virtio_net_hdr_v1", "num_buffers")

#: An Ethernet header: destination, source, EtherType.
ETHERNET_HEADER = 14
#: What a VLAN tag adds to it.
VLAN_TAG = 4
#: How far the header is looked at for tags: two are usual (IEEE 802.1ad), and more are possible.
ETHERNET_HEADER_MOST = ETHERNET_HEADER + 4 * VLAN_TAG
_ETHERTYPE = slice(12, 14)
_VLAN_ETHERTYPES = (b"\x81\x00", b"\x88\xa8")

#: The longest frame that asks for segmentation: Ethernet and IPv6 headers, IPv6's most payload
#: (5.1.9.3).
MAX_GSO_FRAME = 65589

#: A TCP header without options.
_TCP_HEADER = 20

_NO_OFFLOADS = bytes(HEADER_SIZE)


class HeaderFlag(enum.IntFlag):
    """VIRTIO_NET_HDR_F_* (5.1.9)."""

    NEEDS_CSUM = 1
    DATA_VALID = 2


class GsoType(enum.IntEnum):
    """VIRTIO_NET_HDR_GSO_* (5.1.9); ECN is a bit beside the others."""

    NONE = 0
    TCPV4 = 1
    TCPV6 = 4
    ECN = 0x80


# Plain ints, for the paths that every frame takes.
NEEDS_CSUM = int(HeaderFlag.NEEDS_CSUM)
CHECKSUM_FLAGS = int(HeaderFlag.NEEDS_CSUM | HeaderFlag.DATA_VALID)
GSO_NONE = int(GsoType.NONE)


class HeaderError(Exception):
    """A header that cannot be meant: the frame is not sent."""


@dataclass(slots=True, frozen=True)
class TxRules:
    """What the negotiated features let a driver's header say.

    `gso_types` are the values of gso_type other than NONE, `mtu` is the link's, bytes, where the
    driver was told it (VIRTIO_NET_F_MTU): without that no frame is too long (5.1.4.1).
    """

    checksum: bool
    gso_types: frozenset[int]
    mtu: int | None

    def is_too_long(self, frame: Buffers, length: int) -> bool:
        """Say whether a frame of `length` bytes, not to be segmented, is longer than it may be."""
        if self.mtu is None or length <= self.mtu + ETHERNET_HEADER:
            return length > MAX_GSO_FRAME
        return length > longest_frame(_start(frame), self.mtu)

    def check(self, header: bytes, frame: Buffers, frame_length: int) -> bytes:
        """Return the header to send a frame of `frame_length` bytes with; raises HeaderError.

        The host's own parser never sees a field that was not looked at: unknown flags and the
        unused num_buffers are left out (5.1.9.2.2, 5.1.9.2), as is csum_start without NEEDS_CSUM;
        and hdr_len, on which no reader may rely, is at most the frame's length (5.1.9.2.2).
        """
        if header == _NO_OFFLOADS:
            return header
        fields = ffi.from_buffer("struct virtio_net_hdr_v1 *", header)
        safe = ffi.new("struct virtio_net_hdr_v1 *")
        if fields.flags & NEEDS_CSUM:
            self._check_checksum(fields.csum_start, fields.csum_offset, frame_length)
            safe.flags = NEEDS_CSUM
            safe.csum_start = fields.csum_start
            safe.csum_offset = fields.csum_offset
        if fields.gso_type != GSO_NONE:
            self._check_segmentation(fields.gso_type, fields.gso_size, safe.flags)
            self._check_segments(frame, safe.csum_start + _TCP_HEADER + fields.gso_size)
            safe.gso_type = fields.gso_type
            safe.gso_size = fields.gso_size
            safe.hdr_len = min(fields.hdr_len, frame_length)
        return bytes(ffi.buffer(safe))

    def _check_checksum(self, start: int, offset: int, frame_length: int) -> None:
        if not self.checksum:
            raise HeaderError("NEEDS_CSUM without VIRTIO_NET_F_CSUM (5.1.9.2.1)")
        if start < ETHERNET_HEADER or start + offset + 2 > frame_length:
            raise HeaderError(
                f"csum_start {start} and csum_offset {offset} are outside of the frame's payload "
                "(5.1.9.2.1)"
            )

    def _check_segmentation(self, gso_type: int, size: int, flags: int) -> None:
        if gso_type not in self.gso_types:
            raise HeaderError(f"gso_type {gso_type:#x} was not negotiated (5.1.9.2.1)")
        if not flags & NEEDS_CSUM:
            raise HeaderError("a gso_type without NEEDS_CSUM (5.1.9.2.1)")
        if size == 0:
            raise HeaderError("a gso_type with gso_size 0 (5.1.9.2.1)")

    def _check_segments(self, frame: Buffers, longest: int) -> None:
        """Check the length of the segments: each repeats the headers, up to TCP's."""
        if self.mtu is not None and longest > longest_frame(_start(frame), self.mtu):
            raise HeaderError(f"segments of {longest} bytes, and mtu is {self.mtu} (5.1.4.2)")


def ethernet_header(start: bytes) -> int:
    """Return the bytes of the Ethernet header of a frame that begins with `start`, tags and all.

    `start` has ETHERNET_HEADER_MOST bytes, or the whole frame.
    """
    length = ETHERNET_HEADER
    while length < ETHERNET_HEADER_MOST and start[length - 2 : length] in _VLAN_ETHERTYPES:
        length += VLAN_TAG
    return length


def is_vlan_tagged(start: bytes) -> bool:
    """Say whether a frame that begins with `start` has a VLAN tag."""
    return start[_ETHERTYPE] in _VLAN_ETHERTYPES


def longest_frame(start: bytes, mtu: int) -> int:
    """Return how long a frame that begins with `start` may be, unsegmented, bytes (5.1.4.1)."""
    return mtu + ethernet_header(start)


def _start(frame: Buffers) -> bytes:
    return gather(split_at(frame, ETHERNET_HEADER_MOST)[0])
