"""Buffers in pieces.

A driver may cut a buffer anywhere (2.7.4), so devices see each side of a chain as a list of
memoryviews, and take it apart by bytes, never by descriptors. Nothing here copies but `gather`
and `scatter`.
"""

from collections.abc import Sequence

Buffers = Sequence[memoryview]


def total(buffers: Buffers) -> int:
    """Bytes in all the pieces."""
    return sum(map(len, buffers))


def split_at(buffers: Buffers, count: int) -> tuple[list[memoryview], list[memoryview]]:
    """Cut after the first `count` bytes; what is shorter leaves the second part empty."""
    head: list[memoryview] = []
    for index, piece in enumerate(buffers):
        if count < len(piece):
            if count > 0:
                head.append(piece[:count])
                return head, [piece[count:], *buffers[index + 1 :]]
            return head, list(buffers[index:])
        head.append(piece)
        count -= len(piece)
    return head, []


def gather(buffers: Buffers) -> bytes:
    """Copy the pieces together."""
    return b"".join(buffers)


def scatter(buffers: Buffers, data: bytes | memoryview) -> int:
    """Copy `data` over the pieces; returns how many bytes found room."""
    position = 0
    if len(buffers) > 1:
        # A slice of bytes would be one more copy.
        data = memoryview(data)
    for piece in buffers:
        if position == len(data):
            break
        count = min(len(piece), len(data) - position)
        piece[:count] = data[position : position + count]
        position += count
    return position
