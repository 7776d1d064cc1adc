"""Frames with TCP or UDP in them, and the sums in those (RFC 768, 791, 1071, 8200, 9293)."""

import enum
from dataclasses import dataclass

ETHERNET_HEADER = 14
IPV4_HEADER = 20
IPV6_HEADER = 40

_ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
_PROTOCOLS = {"tcp": 6, "udp": 17}

#: Where the checksum is in a TCP and in a UDP header, and how long those are, bytes.
_SUM_OFFSETS = {"tcp": 16, "udp": 6}
_HEADERS = {"tcp": 20, "udp": 8}

_TCP_ACK, _TCP_CWR = 0x10, 0x80

_ADDRESSES = {
    4: (bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])),
    6: (
        bytes.fromhex("20010db8000000000000000000000001"),
        bytes.fromhex("20010db8000000000000000000000002"),
    ),
}


class Sum(enum.Enum):
    """What is in the place of a packet's checksum."""

    COMPLETE = "complete"
    #: The sum of the pseudo header: what comes after it is to be summed up yet.
    PARTIAL = "partial"
    WRONG = "wrong"


@dataclass(slots=True, frozen=True)
class Packet:
    """A frame; its TCP or UDP header is at `start`, the checksum `offset` bytes behind that.

    `headers` is how many bytes there are before the payload.
    """

    frame: bytes
    start: int
    offset: int
    headers: int


def ones_sum(data: bytes) -> int:
    """Return the ones' complement sum of big-endian 16 bit words."""
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def packet(
    kind: str,
    payload: bytes,
    *,
    version: int = 4,
    destination: bytes,
    source: bytes,
    state: Sum = Sum.COMPLETE,
    cwr: bool = False,
    ports: tuple[int, int] = (40000, 9),
) -> Packet:
    """Make a frame with a "tcp" or "udp" packet over IP version 4 or 6; `cwr` is TCP's flag."""
    header = bytearray(_HEADERS[kind])
    header[0:4] = ports[0].to_bytes(2, "big") + ports[1].to_bytes(2, "big")
    if kind == "tcp":
        header[12] = _HEADERS["tcp"] // 4 << 4
        header[13] = _TCP_ACK | (_TCP_CWR if cwr else 0)
        header[14:16] = b"\xff\xff"
    else:
        header[4:6] = (len(header) + len(payload)).to_bytes(2, "big")
    offset = _SUM_OFFSETS[kind]
    pseudo = _pseudo_sum(version, kind, len(header) + len(payload))
    value = pseudo
    if state is not Sum.PARTIAL:
        value = 0xFFFF - ones_sum(pseudo.to_bytes(2, "big") + header + payload)
    if state is Sum.WRONG:
        value ^= 0x5555
    header[offset : offset + 2] = value.to_bytes(2, "big")
    ip = _ip_header(version, kind, len(header) + len(payload))
    start = ETHERNET_HEADER + len(ip)
    frame = destination + source + _ETHERTYPES[version] + ip + header + payload
    return Packet(frame, start, offset, start + len(header))


def _pseudo_sum(version: int, kind: str, length: int) -> int:
    addresses = b"".join(_ADDRESSES[version])
    return ones_sum(addresses + _PROTOCOLS[kind].to_bytes(2, "big") + length.to_bytes(4, "big"))


def _ip_header(version: int, kind: str, length: int) -> bytes:
    source, destination = _ADDRESSES[version]
    protocol = _PROTOCOLS[kind]
    if version == 6:
        return (
            b"\x60\0\0\0" + length.to_bytes(2, "big") + bytes([protocol, 64]) + source + destination
        )
    total = (IPV4_HEADER + length).to_bytes(2, "big")
    start = b"\x45\0" + total + b"\0\1\x40\0" + bytes([64, protocol])
    checksum = 0xFFFF - ones_sum(start + source + destination)
    return start + checksum.to_bytes(2, "big") + source + destination


def is_complete(made: Packet, frame: bytes) -> bool:
    """Say whether the checksum in a frame, which is like `made`, is right for what follows it."""
    kind = "tcp" if made.offset == _SUM_OFFSETS["tcp"] else "udp"
    version = 4 if made.start == ETHERNET_HEADER + IPV4_HEADER else 6
    pseudo = _pseudo_sum(version, kind, len(frame) - made.start)
    return ones_sum(pseudo.to_bytes(2, "big") + frame[made.start :]) == 0xFFFF


def complete(frame: bytes, start: int, offset: int) -> bytes:
    """Sum a frame up from `start`, and put the checksum `offset` bytes behind that (5.1.9)."""
    at = start + offset
    checksum = 0xFFFF - ones_sum(frame[start:])
    return frame[:at] + checksum.to_bytes(2, "big") + frame[at + 2 :]


def toeplitz(key: bytes, data: bytes) -> int:
    """Return the Toeplitz hash that receive-side scaling selects a queue by (5.1.9.4.4)."""
    bits = int.from_bytes(key, "big")
    result = 0
    for position in range(8 * len(data)):
        if data[position // 8] >> (7 - position % 8) & 1:
            result ^= bits >> (8 * len(key) - 32 - position) & 0xFFFFFFFF
    return result


def hashed(made: Packet) -> bytes:
    """Return what of a TCP or UDP packet goes into its hash: addresses and ports (5.1.9.4.4.2)."""
    addresses = 8 if made.start == ETHERNET_HEADER + IPV4_HEADER else 32
    return made.frame[made.start - addresses : made.start + 4]
