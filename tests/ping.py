"""Echo requests (RFC 792), each of which is to be answered, however long that takes.

ping(8) gives up on the last ones after twice the longest time that an answer took: on a busy
machine that is no loss.
"""

import os
import socket
import struct
import time

from tests.namespace import Namespace
from tests.patience import PATIENCE

_ECHO_REPLY, _ECHO = 0, 8


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _message(identifier: int, sequence: int) -> bytes:
    rest = struct.pack(">HH", identifier, sequence) + bytes(56)
    return struct.pack(">BBH", _ECHO, 0, _checksum(bytes([_ECHO, 0, 0, 0]) + rest)) + rest


def ping(namespace: Namespace, peer: str, count: int = 100, interval: float = 0.01) -> None:
    """Send requests, `interval` seconds apart; raises AssertionError unless each has one answer."""
    identifier = os.getpid() & 0xFFFF
    answers: list[int] = []

    def take(stream: socket.socket, wanted: int, end: float) -> None:
        """Take answers until then, or until there are as many as wanted."""
        while len(answers) < wanted and (left := end - time.monotonic()) > 0:
            stream.settimeout(left)
            try:
                packet = stream.recv(2048)
            except TimeoutError:
                return
            # Behind the header of IPv4.
            kind, _, _, to, sequence = struct.unpack_from(">BBHHH", packet, (packet[0] & 15) * 4)
            if (kind, to) == (_ECHO_REPLY, identifier):
                answers.append(sequence)

    with namespace.inside(
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    ) as stream:
        stream.connect((peer, 0))
        for sequence in range(count - 1):
            stream.send(_message(identifier, sequence))
            take(stream, count, time.monotonic() + interval)
        take(stream, count - 1, time.monotonic() + PATIENCE)
        # An answer that comes twice comes before this one's.
        stream.send(_message(identifier, count - 1))
        take(stream, count, time.monotonic() + PATIENCE)
    assert sorted(answers) == list(range(count)), f"answers of {peer}: {sorted(answers)}"
