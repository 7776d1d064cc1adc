"""Packets that no driver may send to a socket device (5.10.6)."""

from virtiopy.conformance.drivers.vsock import (
    EVENT,
    HEADER_SIZE,
    PORT,
    RX,
    TX,
    Op,
    VsockDriver,
    packet,
)
from virtiopy.conformance.hostile.acts import Act, Stage, chain, on_queues
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.sessions.memory import SPARE
from virtiopy.conformance.suite.hostile.cases import each
from virtiopy.virtqueue.driver import Piece

#: 8 MiB that nothing else is in.
HUGE = SPARE[1] - SPARE[0]

#: The guest of the suite's own device; another's packets are dropped.
CID = 42


def sent(op: int, data: bytes = b"", **fields: int) -> bytes:
    """Return a packet of the guest's."""
    fields.setdefault("src_cid", CID)
    length = fields.pop("length", len(data))
    return packet(op, data, length=length, **fields)


HEADER = sent(Op.REQUEST)


def connections(number: int) -> Act:
    """Return the act of asking for connections, and of using each in every way there is."""

    def do(stage: Stage) -> None:
        session = stage.session
        for port in range(number):
            for op in (Op.REQUEST, *range(10), Op.RW, Op.SHUTDOWN, Op.RW):
                data = bytes(64) if op == Op.RW else b""
                content = sent(op, data, src_port=port, flags=3 * (op == Op.SHUTDOWN))
                stage.submit(stage.queue.place([session.place(content)]))
                stage.settle()
                stage.queue.take_all_used()

    return Act(f"every-operation-{number}-times", "5.10.6.5", do)


PACKETS = (
    Act("packet-of-0-bytes", "5.10.6", chain(0)),
    Act("packet-of-1-byte", "5.10.6", chain(HEADER[:1])),
    Act("packet-of-43-bytes", "5.10.6", chain(HEADER[: HEADER_SIZE - 1])),
    Act("packet-with-room", "5.10.6.4", chain(HEADER, 64)),
    Act("room-alone", "5.10.6.4", chain(64)),
    Act("packet-of-ones", "5.10.6", chain(b"\xff" * HEADER_SIZE)),
    Act("packet-of-zeroes", "5.10.6", chain(bytes(HEADER_SIZE))),
    Act("operation-0", "5.10.6", chain(sent(0))),
    Act("operation-ffff", "5.10.6", chain(sent(0xFFFF))),
    Act("type-0", "5.10.6.2", chain(sent(Op.REQUEST, kind=0))),
    Act("in-the-hosts-name", "5.10.6.4", chain(sent(Op.REQUEST, src_cid=2))),
    Act("in-anothers-name", "5.10.6.4", chain(sent(Op.REQUEST, src_cid=CID + 1))),
    Act("upper-half-of-a-cid", "5.10.6", chain(sent(Op.REQUEST, src_cid=CID | 1 << 63))),
    Act("to-itself", "5.10.6.2", chain(sent(Op.REQUEST, dst_cid=CID))),
    Act("to-another-guest", "5.10.6.2", chain(sent(Op.REQUEST, dst_cid=0xFFFF_FFFF))),
    Act("no-payload-where-there-is-to-be", "5.10.6", chain(sent(Op.RW, length=4096))),
    Act("payload-of-4-gib", "5.10.6", chain(sent(Op.RW, bytes(64), length=0xFFFF_FFFF))),
    Act("payload-of-8-mib", "5.10.6.3", chain(sent(Op.RW, length=HUGE), Piece(SPARE[0], HUGE))),
    Act("response-to-nothing", "5.10.6.5", chain(sent(Op.RESPONSE))),
    Act("data-for-nothing", "5.10.6.5", chain(sent(Op.RW, bytes(4096), src_port=9))),
    Act("shutdown-of-nothing", "5.10.6.5", chain(sent(Op.SHUTDOWN, flags=0xFFFF_FFFF))),
    Act("credit-of-none", "5.10.6.3", chain(sent(Op.CREDIT_UPDATE, buf_alloc=0, fwd_cnt=1))),
    Act("no-room-at-all", "5.10.6.3", chain(sent(Op.REQUEST, buf_alloc=0, fwd_cnt=0xFFFF_FFFF))),
    Act("payload-of-a-request", "5.10.6", chain(sent(Op.REQUEST, bytes(4096), dst_port=PORT))),
    connections(3),
)

BUFFERS = (
    Act("buffer-of-0-bytes", "5.10.6.4", chain(0)),
    Act("buffer-of-43-bytes", "5.10.6.4", chain(HEADER_SIZE - 1)),
    Act("buffer-for-a-header-alone", "5.10.6.4", chain(HEADER_SIZE)),
    Act("buffer-to-read", "5.10.6.4", chain(HEADER)),
    Act("buffer-of-8-mib", "5.10.6.4", chain(Piece(SPARE[0], HUGE, writable=True))),
)

EVENTS = (
    Act("event-to-read", "5.10.6.7", chain(b"event")),
    Act("event-in-a-byte", "5.10.6.7", chain(1)),
    Act("event-in-much", "5.10.6.7", chain(4096)),
)


@each("act", PACKETS)
def test_a_packet_that_no_driver_may_send(
    act: Act, session: Session, vsock: VsockDriver, judge: Judge
) -> None:
    on_queues(act, [TX], session, vsock, judge)


@each("act", BUFFERS)
def test_a_buffer_for_packets_that_no_driver_may_give(
    act: Act, session: Session, vsock: VsockDriver, judge: Judge
) -> None:
    on_queues(act, [RX], session, vsock, judge)


@each("act", EVENTS)
def test_a_buffer_for_events_that_no_driver_may_give(
    act: Act, session: Session, vsock: VsockDriver, judge: Judge
) -> None:
    on_queues(act, [EVENT], session, vsock, judge)
