"""What becomes of frames that are sent (5.1.9.2)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.net import (
    BROADCAST,
    NO_OFFLOADS,
    OTHER_MAC,
    Gso,
    Header,
    HeaderFlag,
    NetDriver,
)
from virtiopy.conformance.drivers.packets import Packet, Sum, packet
from virtiopy.conformance.report.difference import difference
from virtiopy.conformance.sessions.base import Session

#: A payload of several segments, and the size of those, bytes.
PAYLOAD = bytes(range(256)) * 16
SEGMENT = 1000


def tcp(payload: bytes, *, version: int = 4, state: Sum = Sum.COMPLETE) -> Packet:
    """Make a frame with a TCP segment."""
    return packet(
        "tcp", payload, version=version, destination=BROADCAST, source=OTHER_MAC, state=state
    )


def large(made: Packet, gso_type: Gso, hdr_len: int) -> Header:
    """Return the header of a frame that is to be segmented."""
    return Header(
        flags=HeaderFlag.NEEDS_CSUM,
        gso_type=gso_type,
        hdr_len=hdr_len,
        gso_size=SEGMENT,
        csum_start=made.start,
        csum_offset=made.offset,
    )


@pytest.mark.clause("5.1.9.2.2:1")
def test_flags_that_the_device_does_not_know_are_ignored(session: Session, net: NetDriver) -> None:
    net.start()
    flags = 0x80
    if not session.offers("VIRTIO_NET_F_IPSEC"):
        flags |= (
            HeaderFlag.SECURITY | HeaderFlag.SECURITY_ERR | HeaderFlag.SECURITY_SA_SOFT_EXPIRY_WARN
        )
    for flag in (1 << bit for bit in range(8) if flags >> bit & 1):
        frame = net.frame(200)
        assert net.outcome(frame, Header(flags=flag)) == [(NO_OFFLOADS, frame)], f"flag {flag:#x}"


@pytest.mark.clause("5.1.9.2.2:2")
@pytest.mark.parametrize(
    ("start", "offset"), [(0, 0), (14, 6), (34, 16), (20, 0xFFFF), (0xFFFF, 2), (0xFFFF, 0xFFFF)]
)
def test_csum_start_and_csum_offset_say_nothing_without_needs_csum(
    net: NetDriver, start: int, offset: int
) -> None:
    net.start()
    frame = net.frame(200)
    came_out = net.outcome(frame, Header(csum_start=start, csum_offset=offset))
    same(len(came_out), 1, "the number of frames that came out")
    [(header, out)] = came_out
    same(out, frame, "another frame came out")
    same(header.flags, 0, "flags of what came out")


@pytest.mark.clause("5.1.9.2.2:6", "5.1.9.2.2:7")
@pytest.mark.parametrize(
    ("version", "feature", "gso_type"),
    [(4, "VIRTIO_NET_F_HOST_TSO4", Gso.TCPV4), (6, "VIRTIO_NET_F_HOST_TSO6", Gso.TCPV6)],
    ids=["TSO4", "TSO6"],
)
def test_a_wrong_hdr_len_of_a_large_frame_makes_no_difference(
    session: Session, net: NetDriver, version: int, feature: str, gso_type: Gso
) -> None:
    session.require(feature)
    net.start(without=["VIRTIO_NET_F_GUEST_HDRLEN"])
    made = tcp(PAYLOAD, version=version, state=Sum.PARTIAL)

    def sent(hdr_len: int) -> list[tuple[int, int, int, bytes]]:
        came_out = net.outcome(made.frame, large(made, gso_type, hdr_len))
        return [(h.flags, h.gso_type, h.gso_size, frame) for h, frame in came_out]

    right = sent(made.headers)
    payload = b"".join(frame[made.headers :] for *_, frame in right)
    assert not difference(payload, PAYLOAD), "not all of it was sent"
    for wrong in (0, 1, 14, made.headers - 1, made.headers + 1, len(made.frame), 0xFFFF):
        same = sent(wrong) == right  # in a name: pytest would explain large frames line by line
        assert same, f"with hdr_len {wrong} something else was sent"


@pytest.mark.clause("5.1.9.2.2:6")
def test_hdr_len_says_nothing_of_a_frame_that_is_not_segmented(net: NetDriver) -> None:
    net.start(without=["VIRTIO_NET_F_GUEST_HDRLEN"])
    for hdr_len in (1, 54, 0xFFFF):
        frame = net.frame(200)
        came_out = net.outcome(frame, Header(hdr_len=hdr_len))
        assert [out for _, out in came_out] == [frame], f"hdr_len {hdr_len}"


@pytest.mark.clause("5.1.9.2.2:12")
@pytest.mark.parametrize("state", [Sum.WRONG, Sum.COMPLETE], ids=["wrong", "right"])
def test_nothing_is_said_of_a_checksum_that_the_driver_says_nothing_of(
    net: NetDriver, state: Sum
) -> None:
    net.start()
    made = tcp(b"conformance", state=state)
    [(header, frame)] = net.outcome(made.frame)
    same(frame, made.frame, "another frame came out")
    said = header.flags & (HeaderFlag.DATA_VALID | HeaderFlag.NEEDS_CSUM)
    same(said, 0, "what flags say of the checksum")
