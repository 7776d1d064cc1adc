"""Headers that lie, and commands that no driver may give a network device (5.1.9)."""

from virtiopy.conformance.drivers.net import RECEIVEQ, TRANSMITQ, Header, NetDriver
from virtiopy.conformance.hostile.acts import Act, chain, on_queues
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.suite.hostile.cases import each

NEEDS_CSUM = 1
MAX = 0xFFFF
FRAME = b"\xff" * 6 + bytes.fromhex("020000000099") + b"\x88\xb5" + bytes(100)
IPV4 = FRAME[:12] + b"\x08\x00\x45" + bytes(99)

#: The GSO types of TCP over IPv4 and IPv6, of UDP, and what is none (5.1.9).
GSO_TYPES = (1, 4, 3, 5, 0x7F, 0xFF)


def sent(header: Header, frame: bytes = FRAME) -> bytes:
    """Return what is in a transmit buffer."""
    return header.encode() + frame


TRANSMITTED = (
    Act("header-of-5-bytes", "5.1.9.2", chain(bytes(5))),
    Act("header-of-11-bytes", "5.1.9.2", chain(bytes(11))),
    Act("header-alone", "5.1.9.2", chain(bytes(12))),
    Act("frame-of-a-byte", "5.1.9.2", chain(sent(Header(), b"x"))),
    Act("frame-of-70000-bytes", "5.1.9.2", chain(sent(Header(), FRAME + bytes(70000)))),
    Act("frame-of-a-mib", "5.1.9.2", chain(sent(Header(), FRAME + bytes(1 << 20)))),
    Act("checksum-behind-the-frame", "5.1.9.2", chain(sent(Header(NEEDS_CSUM, 0, 0, 0, MAX, MAX)))),
    Act("checksum-at-the-last-byte", "5.1.9.2", chain(sent(Header(NEEDS_CSUM, 0, 0, 0, 113, 0)))),
    Act("unknown-flags", "5.1.9.2", chain(sent(Header(0xFE)))),
    Act("num-buffers-9", "5.1.9.2", chain(sent(Header(num_buffers=9)))),
    Act("hdr-len-ffff", "5.1.9.2", chain(sent(Header(NEEDS_CSUM, 1, MAX, 100, 14, 16), IPV4))),
    *(
        Act(f"gso-{kind}-size-{size}", "5.1.9.2", chain(sent(Header(flags, kind, 0, size), frame)))
        for kind in GSO_TYPES
        for size, flags, frame in ((0, 0, FRAME), (1, NEEDS_CSUM, IPV4), (MAX, NEEDS_CSUM, FRAME))
    ),
    Act("room-to-write", "5.1.9.2", chain(sent(Header()), 64)),
)

SUPPLIED = (
    Act("buffer-of-a-byte", "5.1.9.3.1", chain(1)),
    Act("buffer-of-a-header", "5.1.9.3.1", chain(12)),
    Act("buffer-to-read", "5.1.9.3.1", chain(bytes(1526))),
)

COMMANDS = (
    Act("command-of-0-bytes", "5.1.9.5", chain(1)),
    Act("command-of-a-byte", "5.1.9.5", chain(b"\0", 1)),
    Act("command-without-ack", "5.1.9.5", chain(b"\0\0\0")),
    Act("command-without-data", "5.1.9.5", chain(b"\0\0", 1)),
    Act("ack-of-64-bytes", "5.1.9.5", chain(b"\0\0\0", 64)),
    *(
        Act(f"class-{kind}-command-{command}", "5.1.9.5", chain(bytes([kind, command]), 1))
        for kind in (0, 1, 2, 3, 4, 5, 6, 0x7F, 0xFF)
        for command in (0, 1, 0xFF)
    ),
    Act("mac-table-that-lies", "5.1.9.5.2", chain(b"\1\0" + b"\xff" * 4 + bytes(12), 1)),
    Act("mac-table-of-2-to-31", "5.1.9.5.2", chain(b"\1\0" + b"\0\0\0\x80" + bytes(12), 1)),
    Act("mac-of-3-bytes", "5.1.9.5.2", chain(b"\1\1\2\0\0", 1)),
    Act("vlan-of-a-byte", "5.1.9.5.3", chain(b"\2\0\1", 1)),
    Act("vlan-ffff", "5.1.9.5.3", chain(b"\2\0\xff\xff", 1)),
    Act("vlan-never-added", "5.1.9.5.3", chain(b"\2\1\x05\0", 1)),
    Act("0-pairs", "5.1.9.5.6", chain(b"\4\0\0\0", 1)),
    Act("ffff-pairs", "5.1.9.5.6", chain(b"\4\0\xff\xff", 1)),
    Act("command-of-64-kib", "5.1.9.5", chain(b"\1\0" + bytes(1 << 16), 1)),
)


@each("act", TRANSMITTED)
def test_a_frame_that_no_driver_may_send(
    act: Act, session: Session, net: NetDriver, judge: Judge
) -> None:
    on_queues(act, [TRANSMITQ], session, net, judge)


@each("act", SUPPLIED)
def test_a_receive_buffer_that_no_driver_may_supply(
    act: Act, session: Session, net: NetDriver, judge: Judge
) -> None:
    on_queues(act, [RECEIVEQ], session, net, judge)


@each("act", COMMANDS)
def test_a_command_that_no_driver_may_give(
    act: Act, session: Session, net: NetDriver, judge: Judge
) -> None:
    queue = net.control_queue
    if queue is None:
        raise NotApplicableError("VIRTIO_NET_F_CTRL_VQ was not negotiated")
    on_queues(act, [queue], session, net, judge)
