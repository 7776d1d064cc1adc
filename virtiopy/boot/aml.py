"""ACPI Machine Language, as much as a table of devices needs (ACPI 6.5, chapter 20).

Each function returns the encoding of one term; a table's body is the bytes of its terms, one after
the other.
"""

import enum

_ZERO, _ONE = b"\x00", b"\x01"
_NAME, _SCOPE, _BUFFER, _PACKAGE = b"\x08", b"\x10", b"\x11", b"\x12"
_BYTE, _WORD, _DWORD, _QWORD, _STRING = b"\x0a", b"\x0b", b"\x0c", b"\x0e", b"\x0d"
_DEVICE = b"\x5b\x82"


class Trigger(enum.IntEnum):
    """How an interrupt is signalled (6.4.3.6), active high."""

    LEVEL = 0
    EDGE = 1


def name_path(path: str) -> bytes:
    """Encode a name such as `_HID`, or a path from the root; each has up to four letters."""
    root = b"\\" if path.startswith("\\") else b""
    segments = path.removeprefix("\\").split(".")
    encoded = b"".join(segment.ljust(4, "_").encode("ascii") for segment in segments)
    if len(encoded) != 4 * len(segments) or len(segments) > 2:
        raise ValueError(f"{path} is no path of one or two names of four letters")
    return root + (b"\x2e" if len(segments) == 2 else b"") + encoded


def integer(value: int) -> bytes:
    """Encode an integer, in the fewest bytes."""
    if value < 2:
        return (_ZERO, _ONE)[value]
    for prefix, size in ((_BYTE, 1), (_WORD, 2), (_DWORD, 4), (_QWORD, 8)):
        if value < 1 << 8 * size:
            return prefix + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} has more than 64 bits")


def string(text: str) -> bytes:
    """Encode a string of ASCII characters."""
    return _STRING + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """Encode an EISA identifier such as PNP0501, as EISAID does (19.3.4)."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    vendor = letters[0] << 10 | letters[1] << 5 | letters[2]
    compressed = vendor << 16 | int(text[3:], 16)
    return _DWORD + compressed.to_bytes(4, "big")


def _sized(content: bytes) -> bytes:
    """Put the length of a package before it, which counts its own bytes (20.2.4)."""
    length = len(content) + 1
    if length < 1 << 6:
        return bytes([length]) + content
    for following in (1, 2, 3):
        length = len(content) + 1 + following
        if length < 1 << 4 + 8 * following:
            first = following << 6 | length & 0xF
            return bytes([first]) + (length >> 4).to_bytes(following, "little") + content
    raise ValueError(f"a package of {len(content)} bytes is too long")


def name(path: str, value: bytes) -> bytes:
    """Name a value."""
    return _NAME + name_path(path) + value


def package(*values: bytes) -> bytes:
    """Encode a list of values."""
    return _PACKAGE + _sized(bytes([len(values)]) + b"".join(values))


def scope(path: str, *terms: bytes) -> bytes:
    """Put terms into a scope that is there."""
    return _SCOPE + _sized(name_path(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """Make a device."""
    return _DEVICE + _sized(name_path(path) + b"".join(terms))


# What a device uses: resources, section 6.4


def resources(*descriptors: bytes) -> bytes:
    """Encode a resource template: a buffer of descriptors, and the end tag without a checksum."""
    content = b"".join(descriptors) + b"\x79\x00"
    return _BUFFER + _sized(integer(len(content)) + content)


def memory(address: int, size: int) -> bytes:
    """Describe a range of guest physical addresses below 4 GiB (6.4.3.4)."""
    body = b"\x01" + address.to_bytes(4, "little") + size.to_bytes(4, "little")
    return b"\x86" + len(body).to_bytes(2, "little") + body


def ports(first: int, count: int) -> bytes:
    """Describe I/O ports (6.4.2.5), 16 bits of whose addresses are decoded."""
    start = first.to_bytes(2, "little")
    return b"\x47\x01" + start + start + b"\x01" + bytes([count])


def interrupt(gsi: int, trigger: Trigger) -> bytes:
    """Describe an interrupt that a device consumes and shares with none (6.4.3.6)."""
    body = bytes([1 | trigger << 1, 1]) + gsi.to_bytes(4, "little")
    return b"\x89" + len(body).to_bytes(2, "little") + body
