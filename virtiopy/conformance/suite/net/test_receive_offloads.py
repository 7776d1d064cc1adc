"""Checksums and segmentation of received frames (5.1.9.4.1).

The link may hold frames with offloads that only a driver before this one has asked for, and a
header may say what the link was not asked to say: what the driver is given is the device's affair.
What a link says of a frame's checksum counts as found out by the device.
"""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.inbox import Inbox, Received
from virtiopy.conformance.drivers.net import (
    NO_OFFLOADS,
    OTHER_MAC,
    UNKNOWN_GSO,
    Gso,
    Header,
    HeaderFlag,
    NetDriver,
)
from virtiopy.conformance.drivers.packets import Packet, Sum, complete, is_complete, packet
from virtiopy.conformance.problems import NotApplicableError, about
from virtiopy.conformance.report.difference import difference
from virtiopy.conformance.sessions.base import Session

GUEST_CSUM = "VIRTIO_NET_F_GUEST_CSUM"
GUEST_TSO4 = "VIRTIO_NET_F_GUEST_TSO4"
GUEST_TSO6 = "VIRTIO_NET_F_GUEST_TSO6"
GUEST_ECN = "VIRTIO_NET_F_GUEST_ECN"
GUEST_UFO = "VIRTIO_NET_F_GUEST_UFO"
GUEST_USO4 = "VIRTIO_NET_F_GUEST_USO4"
GUEST_USO6 = "VIRTIO_NET_F_GUEST_USO6"

#: The features that let frames come which are to be segmented.
GUEST_GSO = (GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO, GUEST_USO4, GUEST_USO6)

TUNNELLED = Gso.UDP_TUNNEL_IPV4 | Gso.UDP_TUNNEL_IPV6

#: A payload of several segments, and the size of those, bytes.
PAYLOAD = bytes(range(256)) * 16
SEGMENT = 1000

#: The UDP port and the header of VXLAN, which other frames follow.
VXLAN_PORT = 4789
VXLAN = b"\x08\0\0\0\0\0\x2a\0"


def make(net: NetDriver, kind: str, version: int = 4, *, payload: bytes = PAYLOAD) -> Packet:
    """Make a frame for the driver whose checksum is to be completed yet."""
    return packet(
        kind,
        payload,
        version=version,
        destination=net.mac,
        source=OTHER_MAC,
        state=Sum.PARTIAL,
    )


def small(net: NetDriver, kind: str, version: int, state: Sum) -> Packet:
    """Make a frame for the driver that is not to be segmented."""
    return packet(
        kind,
        b"conformance",
        version=version,
        destination=net.mac,
        source=OTHER_MAC,
        state=state,
    )


def header(made: Packet, gso_type: int = Gso.NONE, flags: int = HeaderFlag.NEEDS_CSUM) -> Header:
    """Return the header that a link gives a frame."""
    return Header(
        flags=flags,
        gso_type=gso_type,
        hdr_len=made.headers if gso_type else 0,
        gso_size=SEGMENT if gso_type else 0,
        csum_start=made.start,
        csum_offset=made.offset,
    )


def received(
    net: NetDriver, *frames: tuple[Packet, Header], without: tuple[str, ...] = ()
) -> list[Received]:
    """Start a driver for whom frames wait in the link already; returns what it is given."""
    for made, said in frames:
        net.link.inject(said.encode() + made.frame)
    net.start(without=without)
    inbox = Inbox(net)
    # What comes after the start, and asks for nothing, comes through in any case.
    plain = small(net, "udp", 4, Sum.COMPLETE)
    got = [*inbox.before(), *inbox.outcome(plain.frame)]
    assert any(frame.frame == plain.frame for frame in got), "a plain frame was not received"
    return got


def all_kinds(net: NetDriver) -> list[tuple[Packet, Header]]:
    """Return a frame to be segmented of each kind that there is."""
    return [
        (made, header(made, gso_type | ecn))
        for made, gso_type in [
            (make(net, "tcp", 4), Gso.TCPV4),
            (make(net, "tcp", 6), Gso.TCPV6),
            (make(net, "udp", 4), Gso.UDP),
            (make(net, "udp", 4), Gso.UDP_L4),
            (make(net, "udp", 6), Gso.UDP_L4),
        ]
        for ecn in (Gso.NONE, Gso.ECN)
    ]


def gso_types(got: list[Received]) -> set[int]:
    """Return the kinds of segmentation that frames ask for, without the bits beside them."""
    return {frame.header.gso_type & ~(Gso.ECN | TUNNELLED) for frame in got}


# Without GUEST_CSUM


@pytest.mark.clause("5.1.9.4.1:5")
def test_flags_are_0_without_guest_csum(net: NetDriver) -> None:
    frames = [
        (made, header(made, flags=flags))
        for made, flags in [
            (small(net, "tcp", 4, Sum.COMPLETE), HeaderFlag.DATA_VALID),
            (small(net, "tcp", 6, Sum.PARTIAL), HeaderFlag.NEEDS_CSUM),
            (small(net, "udp", 4, Sum.COMPLETE), 0xFC),
        ]
    ]
    got = received(net, *frames, without=(GUEST_CSUM, *GUEST_GSO))
    same(sorted({frame.header.flags for frame in got}), [0], "flags")


@pytest.mark.clause("5.1.9.4.1:6")
@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_checksums_are_complete_without_guest_csum(net: NetDriver, kind: str, version: int) -> None:
    whole = small(net, kind, version, Sum.COMPLETE)
    partial = small(net, kind, version, Sum.PARTIAL)
    got = received(
        net,
        (whole, NO_OFFLOADS),
        (partial, header(partial)),
        without=(GUEST_CSUM, *GUEST_GSO),
    )
    alike = [frame.frame for frame in got if frame.frame[:34] == whole.frame[:34]]
    assert whole.frame in alike, "a frame with a right checksum was not received"
    wrong = [one for one in alike if len(one) == len(whole.frame) and not is_complete(whole, one)]
    assert not wrong, "a frame was received whose checksum is not complete"


# Without one of the features, and without all


@pytest.mark.clause("5.1.9.4.1:7")
def test_no_tcpv4_without_guest_tso4(net: NetDriver) -> None:
    without = (GUEST_TSO4, GUEST_ECN)
    kinds = gso_types(received(net, *all_kinds(net), without=without))
    assert Gso.TCPV4 not in kinds, "a frame was received with gso_type TCPV4"


@pytest.mark.clause("5.1.9.4.1:8")
def test_no_udp_fragments_without_guest_ufo(net: NetDriver) -> None:
    kinds = gso_types(received(net, *all_kinds(net), without=(GUEST_UFO,)))
    assert Gso.UDP not in kinds, "a frame was received with gso_type UDP"


@pytest.mark.clause("5.1.9.4.1:9")
def test_no_tcpv6_without_guest_tso6(net: NetDriver) -> None:
    without = (GUEST_TSO6, GUEST_ECN)
    kinds = gso_types(received(net, *all_kinds(net), without=without))
    assert Gso.TCPV6 not in kinds, "a frame was received with gso_type TCPV6"


@pytest.mark.clause("5.1.9.4.1:10")
def test_no_udp_segments_without_guest_uso(net: NetDriver) -> None:
    without = (GUEST_USO4, GUEST_USO6)
    kinds = gso_types(received(net, *all_kinds(net), without=without))
    assert Gso.UDP_L4 not in kinds, "a frame was received with gso_type UDP_L4"


@pytest.mark.clause("5.1.9.4.1:26")
def test_nothing_is_to_be_segmented_without_any_such_feature(net: NetDriver) -> None:
    unknown = make(net, "tcp")
    kinds = [*all_kinds(net), (unknown, header(unknown, UNKNOWN_GSO))]
    got = received(net, *kinds, without=GUEST_GSO)
    same(sorted({frame.header.gso_type for frame in got}), [Gso.NONE], "gso_type")


def tunnelled(net: NetDriver) -> Packet:
    """Make a frame with another in it that is to be segmented."""
    return make(net, "udp", payload=VXLAN + make(net, "tcp").frame)


@pytest.mark.clause("5.1.9.4.1:11", "5.1.9.4.1:21")
@pytest.mark.parametrize(
    "bit", [Gso.UDP_TUNNEL_IPV4, Gso.UDP_TUNNEL_IPV6, TUNNELLED], ids=["IPv4", "IPv6", "both"]
)
def test_nothing_tunnelled_is_to_be_segmented_without_the_feature(net: NetDriver, bit: Gso) -> None:
    made = tunnelled(net)
    got = received(net, (made, header(made, Gso.TCPV4 | bit)))
    with about("5.1.9.4.1:11"):
        tunnels = [frame for frame in got if frame.header.gso_type & TUNNELLED]
        assert not tunnels, "a frame was received with the bits of a tunnel in gso_type"
    with about("5.1.9.4.1:21"):
        large = [one for one in got if one.header.gso_type and one.frame == made.frame]
        assert not large, "a tunnelled frame was received as one to be segmented"


@pytest.mark.clause("5.1.9.4.1:12", "5.1.9.4.1:25")
def test_no_outer_checksum_is_to_be_completed_without_the_feature(net: NetDriver) -> None:
    made = tunnelled(net)
    flags = HeaderFlag.NEEDS_CSUM | HeaderFlag.UDP_TUNNEL_CSUM
    plain = small(net, "tcp", 4, Sum.COMPLETE)
    got = received(
        net,
        (made, header(made, Gso.TCPV4 | Gso.UDP_TUNNEL_IPV4, flags)),
        (plain, Header(flags=HeaderFlag.UDP_TUNNEL_CSUM)),
    )
    with about("5.1.9.4.1:12"):
        flagged = [frame for frame in got if frame.header.flags & HeaderFlag.UDP_TUNNEL_CSUM]
        assert not flagged, "a frame was received with UDP_TUNNEL_CSUM in flags"
    with about("5.1.9.4.1:25"):
        large = [one for one in got if one.header.gso_type and one.frame == made.frame]
        assert not large, "a tunnelled frame was received as one to be segmented"


@pytest.mark.clause("5.1.9.4.1:30")
def test_rsc_info_is_clear_without_rsc_ext(net: NetDriver) -> None:
    made = small(net, "tcp", 4, Sum.COMPLETE)
    got = received(net, (made, Header(flags=HeaderFlag.RSC_INFO | HeaderFlag.DATA_VALID)))
    flagged = [frame for frame in got if frame.header.flags & HeaderFlag.RSC_INFO]
    assert not flagged, "a frame was received with RSC_INFO in flags"


@pytest.mark.clause("5.1.9.4.1:39")
def test_security_is_clear_without_ipsec(net: NetDriver) -> None:
    made = small(net, "tcp", 4, Sum.COMPLETE)
    got = received(net, (made, Header(flags=HeaderFlag.SECURITY | HeaderFlag.DATA_VALID)))
    flagged = [frame for frame in got if frame.header.flags & HeaderFlag.SECURITY]
    assert not flagged, "a frame was received with SECURITY in flags"


@pytest.mark.clause("5.1.9.4.1:42")
def test_security_err_is_clear_without_ipsec(net: NetDriver) -> None:
    made = small(net, "tcp", 4, Sum.COMPLETE)
    got = received(net, (made, Header(flags=HeaderFlag.SECURITY_ERR | HeaderFlag.DATA_VALID)))
    flagged = [frame for frame in got if frame.header.flags & HeaderFlag.SECURITY_ERR]
    assert not flagged, "a frame was received with SECURITY_ERR in flags"


def congested(net: NetDriver) -> tuple[Packet, Header]:
    """Return a frame to be segmented that has TCP's CWR flag, and the header of it."""
    made = packet(
        "tcp",
        PAYLOAD,
        destination=net.mac,
        source=OTHER_MAC,
        state=Sum.PARTIAL,
        cwr=True,
    )
    return made, header(made, Gso.TCPV4 | Gso.ECN)


@pytest.mark.clause("5.1.9.4.1:13")
def test_no_large_frame_with_ecn_without_guest_ecn(net: NetDriver) -> None:
    made, said = congested(net)
    got = received(net, (made, said), without=(GUEST_ECN,))
    large = [one for one in got if one.header.gso_type and one.frame == made.frame]
    assert not large, "a large frame with CWR was received as one to be segmented"


# With the features


def started(net: NetDriver, offload: str) -> Inbox:
    """Start a driver that takes an offload, which the device has to have asked its link for."""
    net.start()
    if offload not in net.link.offloads:
        raise NotApplicableError(f"the device does not ask its link for the offload {offload}")
    return Inbox(net)


@pytest.mark.clause("5.1.9.4.1:14")
@pytest.mark.feature(GUEST_ECN, GUEST_TSO4)
def test_a_large_frame_with_ecn_says_so(net: NetDriver) -> None:
    inbox = started(net, "ecn")
    made, said = congested(net)
    got = inbox.outcome(made.frame, said)
    assert got, "a frame was lost that the device has asked its link for"
    for frame in got:
        if frame.header.gso_type:
            kind = frame.header.gso_type
            assert kind & Gso.ECN, f"gso_type is {kind:#x}, without ECN"


@pytest.mark.clause("5.1.9.4.1:17", "5.1.9.4.1:19", "5.1.9.4.1:20")
@pytest.mark.feature(GUEST_CSUM)
@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_checksum_that_is_to_be_completed_can_be(net: NetDriver, kind: str, version: int) -> None:
    inbox = started(net, "checksum")
    made = small(net, kind, version, Sum.PARTIAL)
    [got] = inbox.outcome(made.frame, header(made))
    if got.header.flags & HeaderFlag.NEEDS_CSUM:
        with about("5.1.9.4.1:19"):
            assert not difference(got.frame, made.frame), "it is not the pseudo header's sum"
        whole = complete(got.frame, got.header.csum_start, got.header.csum_offset)
        with about("5.1.9.4.1:20"):
            right = is_complete(made, whole)
            assert right, "csum_start and csum_offset do not lead to a right sum"
    else:
        assert is_complete(made, got.frame), "a checksum was received that is not complete"


@pytest.mark.clause("5.1.9.4.1:18", "5.1.9.4.1:33")
@pytest.mark.feature(GUEST_CSUM)
@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_wrong_checksum_is_not_said_to_be_right(net: NetDriver, kind: str, version: int) -> None:
    inbox = started(net, "checksum")
    made = small(net, kind, version, Sum.WRONG)
    for frame in inbox.outcome(made.frame):
        with about("5.1.9.4.1:18"):
            flags = frame.header.flags
            assert not flags & HeaderFlag.NEEDS_CSUM, "a wrong checksum is said to be to complete"
        with about("5.1.9.4.1:33"):
            assert not flags & HeaderFlag.DATA_VALID, "a wrong checksum is said to be right"


@pytest.mark.clause("5.1.9.4.1:32", "5.1.9.4.1:33")
@pytest.mark.feature(GUEST_CSUM)
@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_checksum_that_is_said_to_be_right_is(net: NetDriver, kind: str, version: int) -> None:
    inbox = started(net, "checksum")
    made = small(net, kind, version, Sum.COMPLETE)
    [got] = inbox.outcome(made.frame, Header(flags=HeaderFlag.DATA_VALID))
    if got.header.flags & HeaderFlag.DATA_VALID:
        assert is_complete(made, got.frame), "DATA_VALID is set, and the checksum is wrong"
    same(got.frame, made.frame, "another frame was received")


#: By IP version: the feature, what the link is asked for, and gso_type.
TSO = {4: (GUEST_TSO4, "tso4", Gso.TCPV4), 6: (GUEST_TSO6, "tso6", Gso.TCPV6)}


@pytest.mark.clause("5.1.9.4.1:27", "5.1.9.4.1:28", "5.1.9.4.1:31")
@pytest.mark.parametrize("version", TSO, ids=["TSO4", "TSO6"])
def test_a_large_frame_says_how_it_is_to_be_segmented(
    session: Session, net: NetDriver, version: int
) -> None:
    feature, offload, gso_type = TSO[version]
    session.require(feature)
    inbox = started(net, offload)
    made = make(net, "tcp", version)
    got = inbox.outcome(made.frame, header(made, gso_type))
    payload = b"".join(frame.frame[made.headers :] for frame in got)
    assert not difference(payload, PAYLOAD), "not all of a large frame was received"
    for frame in got:
        if frame.header.gso_type:
            with about("5.1.9.4.1:28"):
                same(frame.header.gso_type, gso_type, "gso_type")
                same(frame.header.gso_size, SEGMENT, "gso_size")
            with about("5.1.9.4.1:27"):
                assert frame.header.flags & HeaderFlag.NEEDS_CSUM, "NEEDS_CSUM is clear"
            with about("5.1.9.4.1:31"):
                length = frame.header.hdr_len
                assert length >= made.headers, f"hdr_len is {length}, of {made.headers}"


@pytest.mark.clause("5.1.9.4.1:27", "5.1.9.4.1:28")
@pytest.mark.parametrize("version", TSO, ids=["TSO4", "TSO6"])
def test_no_large_frame_leaves_out_how_it_is_to_be_segmented(
    session: Session, net: NetDriver, version: int
) -> None:
    feature, offload, gso_type = TSO[version]
    session.require(feature)
    inbox = started(net, offload)
    made = make(net, "tcp", version)
    for said in (
        Header(flags=HeaderFlag.DATA_VALID, gso_type=gso_type, hdr_len=54, gso_size=SEGMENT),
        Header(flags=1, gso_type=gso_type, hdr_len=54, csum_start=34, csum_offset=16),
    ):
        for frame in inbox.outcome(made.frame, said):
            if frame.header.gso_type:
                with about("5.1.9.4.1:27"):
                    assert frame.header.flags & HeaderFlag.NEEDS_CSUM, "NEEDS_CSUM is clear"
                with about("5.1.9.4.1:28"):
                    assert frame.header.gso_size, "gso_size is 0"
