"""Numbers out of a fuzzer's bytes: the same input is the same case, with and without the fuzzer."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Takes an input apart from its front; past its end there are zeroes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def is_empty(self) -> bool:
        """Whether all was taken."""
        return self._position >= len(self._data)

    def bytes(self, size: int) -> bytes:
        """Take so many bytes."""
        data = self._data[self._position : self._position + size]
        self._position += size
        return data.ljust(size, b"\0")

    def number(self, size: int) -> int:
        """Take a number of `size` bytes."""
        return int.from_bytes(self.bytes(size), "little")

    def one_of(self, values: Sequence[T]) -> T:
        """Take one of at most 256 values, in a byte."""
        return values[self.number(1) % len(values)]
