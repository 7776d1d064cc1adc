"""How an event is worded, for a person: the same in a live trace and in the suite's evidence."""

from collections.abc import Iterable

from virtiopy.spec import DeviceStatus
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.layout import DescriptorFlag
from virtiopy.virtqueue.queue import Chain

_WORD = 4


def event_line(seconds: float, what: str, count: int = 1) -> str:
    """Word an event that came `count` times in a row, the first of them `seconds` after the start.

    The time is in milliseconds.
    """
    times = f" ({count} times)" if count > 1 else ""
    return f"{seconds * 1e3:9.3f} ms  {what}{times}"


def register_name(offset: int, size: int) -> str:
    """Name the register that an access of `size` bytes at `offset` of a device's registers is to.

    >>> register_name(0x70, 4), register_name(0x104, 2)
    ('Status', 'Config+0x4 (2 bytes)')
    """
    width = f" ({size} bytes)" if size != _WORD else ""
    if offset >= Register.Config:
        return f"Config+{offset - Register.Config:#x}{width}"
    try:
        return Register(offset).name + width
    except ValueError:
        return f"register {offset:#05x}{width}"


def register_value(offset: int, data: bytes) -> str:
    """Word what is read or written at `offset`: a number, and of Status its bits as well."""
    value = int.from_bytes(data, "little")
    words = f" ({status_words(value)})" if offset == Register.Status else ""
    return f"{value:#x}{words}"


def status_words(status: int) -> str:
    """Name the bits of the device status field."""
    words = [bit.name for bit in DeviceStatus if status & bit and bit.name]
    return "|".join(words) or "0"


def piece(address: int, length: int, *, writable: bool) -> str:
    """Word a piece of a buffer; W is one that the device writes."""
    return f"{address:#x}+{length}{' W' * writable}"


def pieces(chain: Chain) -> str:
    """Word the pieces of a chain that carries its descriptors, in their order."""
    return ", ".join(
        piece(one.address, one.length, writable=bool(one.flags & DescriptorFlag.WRITE))
        for one in chain.descriptors
        if not one.flags & DescriptorFlag.INDIRECT
    )


def heads(tokens: Iterable[int]) -> str:
    """Word the heads of chains."""
    return ", ".join(str(token) for token in tokens)
