"""A tap in a network namespace of its own, and the other end of it."""

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path
from types import TracebackType

from virtiopy.closing import Closing

NAME = "lab0"

#: Local Experimental Ethertype 1 (IEEE 802): nobody else on the link speaks it.
ETHERTYPE = 0x88B5

HEADER_SIZE = 12

_CLONE_NEWNET = 0x4000_0000

# linux/if_tun.h
_TUNSETIFF = 0x4004_54CA
_TUNSETVNETHDRSZ = 0x4004_54D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000

# linux/sockios.h, linux/if.h
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Namespace:
    """The calling thread is in a new network namespace, until the end of the `with`."""

    def __enter__(self) -> None:
        self._before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if _libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _libc.setns(self._before, _CLONE_NEWNET)
        os.close(self._before)


class TapLink(Closing):
    """`tap` is for the device; `wire` sends to it, and receives what it sends.

    The namespace has no name, and goes when both are closed.
    """

    def __init__(self) -> None:
        with _Namespace():
            self.tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(self.tap, _TUNSETIFF, struct.pack("16sH22x", NAME.encode(), flags))
            fcntl.ioctl(self.tap, _TUNSETVNETHDRSZ, struct.pack("i", HEADER_SIZE))
            # No router solicitations among the frames.
            quiet = Path("/proc/sys/net/ipv6/conf", NAME, "disable_ipv6")
            if quiet.exists():
                quiet.write_text("1")
            self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            fcntl.ioctl(self.wire, _SIOCSIFFLAGS, struct.pack("16sH22x", NAME.encode(), _IFF_UP))
            self.wire.bind((NAME, ETHERTYPE))
            self.wire.settimeout(20)

    def close(self) -> None:
        """Close both ends, and so take the tap away."""
        self.wire.close()
        os.close(self.tap)


def frame(number: int) -> bytes:
    """Return a broadcast frame that carries its number."""
    head = b"\xff" * 6 + bytes.fromhex("020000000001") + ETHERTYPE.to_bytes(2, "big")
    return (head + number.to_bytes(4, "big")).ljust(60, b"\0")


def number_of(data: bytes) -> int | None:
    """Return the number of a frame of ours, None for any other."""
    if int.from_bytes(data[12:14], "big") != ETHERTYPE:
        return None
    return int.from_bytes(data[14:18], "big")
