"""Frames and hashes of the conformance suite, by numbers that others have published."""

import pytest

from virtiopy.conformance.drivers.packets import (
    Sum,
    complete,
    hashed,
    is_complete,
    packet,
    toeplitz,
)

#: The key and two results of the verification suite for receive-side scaling.
KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)
VECTORS = [
    ("420995bb", "a18e6450", 2794, 1766, 0x51CCC178),
    ("c75c6f02", "41458c53", 14230, 4739, 0xC626B0EA),
]


@pytest.mark.parametrize(("source", "destination", "port", "other_port", "result"), VECTORS)
def test_the_toeplitz_hash_is_that_of_the_verification_suite(
    source: str, destination: str, port: int, other_port: int, result: int
) -> None:
    ports = port.to_bytes(2, "big") + other_port.to_bytes(2, "big")
    assert toeplitz(KEY, bytes.fromhex(source + destination) + ports) == result


def test_what_is_hashed_is_addresses_and_ports() -> None:
    made = packet("tcp", b"", destination=bytes(6), source=bytes(6), ports=(1, 2))
    assert hashed(made) == bytes([192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_partial_checksum_is_completed_to_a_right_one(kind: str, version: int) -> None:
    made = packet(
        kind,
        b"odd",
        version=version,
        destination=bytes(6),
        source=bytes(6),
        state=Sum.PARTIAL,
    )
    assert not is_complete(made, made.frame)
    assert is_complete(made, complete(made.frame, made.start, made.offset))
