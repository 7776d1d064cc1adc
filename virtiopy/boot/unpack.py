"""Unpacking what kernels are packed with.

Each format is told by its first bytes, and unpacked up to its own end: a kernel's payload has its
unpacked size after it, and perhaps padding.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from virtiopy.errors import ConfigError

#: The most that a kernel may unpack to, bytes: more is a damaged file, or a trap.
UNPACKED_MAX = 1 << 30

#: The size of a block before it was packed, in lz4's legacy format; and its longest packed.
_LZ4_BLOCK = 8 << 20
_LZ4_MAGIC = bytes.fromhex("02214c18")


class PackedDataError(Exception):
    """The data is not what its first bytes promise; the text says in what way."""


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _to_the_end(unpacker: _Unpacker, data: bytes) -> bytes:
    unpacked = unpacker.decompress(data, UNPACKED_MAX)
    if not unpacker.eof:
        raise PackedDataError("its end is missing")
    return unpacked


def _gzip(data: bytes) -> bytes:
    return _to_the_end(zlib.decompressobj(wbits=31), data)


def _xz(data: bytes) -> bytes:
    return _to_the_end(lzma.LZMADecompressor(lzma.FORMAT_AUTO), data)


def _bzip2(data: bytes) -> bytes:
    return _to_the_end(bz2.BZ2Decompressor(), data)


def _zstd(data: bytes) -> bytes:
    import zstandard  # noqa: PLC0415 - an optional dependency

    try:
        # As large a window as any kernel is packed with.
        unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        return unpacker.stream_reader(data).read(UNPACKED_MAX)
    except zstandard.ZstdError as error:
        raise PackedDataError(str(error)) from error


def _lz4(data: bytes) -> bytes:
    import lz4.block  # noqa: PLC0415 - an optional dependency

    unpacked = bytearray()
    position = len(_LZ4_MAGIC)
    while position + 4 <= len(data):
        size = int.from_bytes(data[position : position + 4], "little")
        position += 4
        # What is no block is the size that follows the last one.
        if not 0 < size <= len(data) - position:
            break
        try:
            unpacked += lz4.block.decompress(
                data[position : position + size], uncompressed_size=_LZ4_BLOCK
            )
        except lz4.block.LZ4BlockError as error:
            raise PackedDataError(str(error)) from error
        position += size
    return bytes(unpacked)


@dataclass(slots=True, frozen=True)
class _Format:
    name: str
    magic: bytes
    unpack: Callable[[bytes], bytes] | None
    #: What brings the library that it needs, if the standard one has none.
    package: str = ""


_FORMATS = (
    _Format("gzip", b"\x1f\x8b", _gzip),
    _Format("xz", b"\xfd7zXZ\0", _xz),
    _Format("lzma", b"\x5d\0\0", _xz),
    _Format("bzip2", b"BZh", _bzip2),
    _Format("zstd", b"\x28\xb5\x2f\xfd", _zstd, "zstandard"),
    _Format("lz4", _LZ4_MAGIC, _lz4, "lz4"),
    _Format("lzo", b"\x89LZO", None),
)


def packed_with(data: bytes) -> str | None:
    """Name what the data is packed with; None where it is nothing that is known."""
    found = next((form for form in _FORMATS if data.startswith(form.magic)), None)
    return None if found is None else found.name


class DamagedError(ConfigError):
    """Packed data is not whole, or not what it was."""


def unpack(data: bytes, what: str) -> bytes:
    """Unpack data whose format is known; `what` is whose data it is, for messages.

    Raises ConfigError where that cannot be done: DamagedError where it cannot be anywhere.
    """
    form = next(form for form in _FORMATS if data.startswith(form.magic))
    if form.unpack is None:
        raise ConfigError(
            f"{what} is packed with {form.name}, which virtiopy cannot unpack: build it with "
            "gzip, xz, zstd, lz4 or bzip2, or give its vmlinux."
        )
    try:
        return form.unpack(data)
    except ImportError as error:
        raise ConfigError(
            f"{what} is packed with {form.name}, and Python's {form.package} is not here: "
            f"install it with pip install {form.package}, or give its vmlinux."
        ) from error
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, PackedDataError) as error:
        raise DamagedError(
            f"{what} is packed with {form.name}, and damaged ({error}): copy it again."
        ) from error
