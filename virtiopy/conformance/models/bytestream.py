"""What a port of bytes has to bring: a stream of which each part tells where it belongs (5.3.6)."""

from virtiopy.conformance.report.difference import difference

#: Bytes of a word, which says how many there are before it.
_WORD = 4

#: How far around what is wrong its place in the stream is looked for, bytes.
_NEAR = 1 << 16


def at(start: int, size: int) -> bytes:
    """Return `size` bytes of the stream from byte `start` on."""
    first = start // _WORD
    words = range(first, (start + size) // _WORD + 1)
    data = b"".join((word * 0x9E3779B1 & 0xFFFF_FFFF).to_bytes(_WORD, "big") for word in words)
    return data[start - first * _WORD :][:size]


class ByteStream:
    """The bytes of one way through a port: how many were written, and how many have come."""

    def __init__(self) -> None:
        self.written = 0
        self.come = 0

    def write(self, size: int) -> bytes:
        """Return the next bytes to be written."""
        data = at(self.written, size)
        self.written += size
        return data

    @property
    def on_the_way(self) -> int:
        """How many bytes were written and have not come."""
        return self.written - self.come

    def arrive(self, data: bytes) -> str:
        """Take bytes that came; returns what is wrong with them, or ""."""
        expected = at(self.come, min(len(data), self.on_the_way))
        if len(data) > len(expected):
            return f"{len(data) - len(expected)} bytes more came than were written"
        wrong = difference(data, expected)
        if not wrong:
            self.come += len(data)
            return ""
        good = next(place for place in range(len(data)) if data[place] != expected[place])
        where = self.come + good
        return f"after {where} bytes {_named(data[good:], where)}: {wrong}"

    def missing(self) -> str:
        """Return what has not come."""
        return f"{self.come} bytes came, of {self.written}"


def _named(data: bytes, where: int) -> str:
    """Say what bytes are that came where others belong."""
    start = max(0, where - _NEAR)
    place = at(start, 2 * _NEAR).find(data[: 2 * _WORD])
    if len(data) < 2 * _WORD or place < 0:
        return "came what was not written"
    away = start + place - where
    return f"{away} bytes were left out" if away > 0 else f"came what had come {-away} bytes before"
