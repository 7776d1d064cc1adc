"""What a link has to bring: frames that tell by themselves which of them they are (5.1.9).

Each has its number in its source address and all over its payload, so that a frame of 14 bytes is
known, and so is where a part of a longer one came from.
"""

from collections import deque

from virtiopy.conformance.report.difference import difference

#: Bytes of an Ethernet header: no frame is shorter.
SHORTEST = 14

#: The EtherType of local experiments.
_ETHERTYPE = b"\x88\xb5"

#: How much of what was seen a wrong frame is looked for in.
_REMEMBERED = 256


def numbered(number: int, size: int, destination: bytes) -> bytes:
    """Return frame `number`, `size` bytes long, SHORTEST at least."""
    source = b"\x02\0" + number.to_bytes(4, "big")
    words = range((size - SHORTEST) // 4 + 1)
    payload = b"".join(
        (number * 0x9E3779B1 + word & 0xFFFF_FFFF).to_bytes(4, "big") for word in words
    )
    return (destination + source + _ETHERTYPE + payload)[:size]


def number_of(frame: bytes) -> int | None:
    """Return which frame this is by its source address; None for one that is not numbered."""
    if len(frame) < SHORTEST or frame[6:8] != b"\x02\0" or frame[12:14] != _ETHERTYPE:
        return None
    return int.from_bytes(frame[8:12], "big")


class Way:
    """The frames that are on their way through one queue, in their order."""

    def __init__(self) -> None:
        self._expected: deque[tuple[int, bytes]] = deque()
        self._arrived: deque[int] = deque(maxlen=_REMEMBERED)

    def __len__(self) -> int:
        return len(self._expected)

    @property
    def next_size(self) -> int:
        """How many bytes the next frame has that is to come; 0 where none is."""
        return len(self._expected[0][1]) if self._expected else 0

    def send(self, number: int, frame: bytes) -> None:
        """Take a frame that has set out."""
        self._expected.append((number, frame))

    def arrive(self, frame: bytes) -> str:
        """Take a frame that came; returns what is wrong with it, or "" where it is the next."""
        if not self._expected:
            return f"{self._named(frame)} came, and none was to come"
        number, expected = self._expected[0]
        if frame == expected:
            self._expected.popleft()
            self._arrived.append(number)
            return ""
        found = number_of(frame)
        if found == number:
            return f"frame {number} of {len(expected)} bytes: {difference(frame, expected)}"
        return f"{self._named(frame)} came, and frame {number} of {len(expected)} bytes was to come"

    def missing(self) -> str:
        """Return which frames have not come; "" where all have."""
        if not self._expected:
            return ""
        number, frame = self._expected[0]
        more = f", nor {len(self._expected) - 1} after it" if len(self._expected) > 1 else ""
        return f"frame {number} of {len(frame)} bytes has not come{more}"

    def _named(self, frame: bytes) -> str:
        number = number_of(frame)
        if number is None:
            return f"a frame of {len(frame)} bytes that was never sent ({frame[:16].hex(' ', 4)})"
        return (
            f"frame {number}, which had come before,"
            if number in self._arrived
            else f"frame {number}"
        )
