"""Socket devices: packets, connections and credit (5.10)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.vsock import (
    BUFFER,
    HOST_CID,
    NO_PORT,
    PORT,
    RESERVED,
    Op,
    Packet,
    Type,
    VsockDriver,
)
from virtiopy.conformance.sessions.base import Session

STREAM = "VIRTIO_VSOCK_F_STREAM"
SEQPACKET = "VIRTIO_VSOCK_F_SEQPACKET"
NO_IMPLIED_STREAM = "VIRTIO_VSOCK_F_NO_IMPLIED_STREAM"

#: Packets that are answered, and for which no buffer is there: any device can hold so many.
FEW = 8


@pytest.mark.clause("5.10.3.2:1")
def test_no_implied_stream_is_offered(session: Session, vsock: VsockDriver) -> None:
    assert session.offers(NO_IMPLIED_STREAM), f"{NO_IMPLIED_STREAM} is not offered"


@pytest.mark.clause("5.10.3.2:2")
def test_without_a_feature_of_the_devices_there_are_stream_sockets(vsock: VsockDriver) -> None:
    _ = vsock.vsock_host
    vsock.start(without=[STREAM, SEQPACKET, NO_IMPLIED_STREAM])
    vsock.supply()
    vsock.connect()


@pytest.mark.clause("5.10.3.2:3")
@pytest.mark.feature(SEQPACKET)
def test_with_seqpacket_alone_a_stream_is_accepted_or_refused(vsock: VsockDriver) -> None:
    _ = vsock.vsock_host
    vsock.start(without=[STREAM, NO_IMPLIED_STREAM])
    vsock.supply(2)
    vsock.send_packet(Op.REQUEST, src_port=1)
    answer = vsock.wait_packet()
    assert answer.op in {Op.RESPONSE, Op.RST}, f"operation {answer.op} answers a REQUEST"
    vsock.connect(Type.SEQPACKET)


@pytest.mark.clause("5.10.6.4.2:1")
def test_the_guests_context_id_is_no_reserved_one(vsock: VsockDriver) -> None:
    vsock.start()
    cid = vsock.guest_cid
    assert cid not in RESERVED, f"guest_cid is {cid:#x}, which is reserved (5.10.4)"
    same(cid >> 32, 0, "the upper half of guest_cid")


@pytest.mark.clause("5.10.6.4.2:2")
@pytest.mark.parametrize("kind", [0, 3, 0xFFFF])
@pytest.mark.parametrize("op", [Op.REQUEST, Op.RW, Op.CREDIT_REQUEST], ids=lambda op: op.name)
def test_an_unknown_type_is_answered_by_a_rst(vsock: VsockDriver, op: Op, kind: int) -> None:
    vsock.start()
    vsock.supply()
    vsock.send_packet(op, kind=kind, src_port=1000, dst_port=PORT)
    answer = vsock.wait_packet()
    same(answer.op, Op.RST, "the operation of the answer")
    same((answer.src_cid, answer.src_port), (HOST_CID, PORT), "its source")
    same((answer.dst_cid, answer.dst_port), (vsock.guest_cid, 1000), "its destination")


@pytest.mark.clause("5.10.6.1.2:1")
def test_packets_are_taken_while_the_rx_queue_is_empty(vsock: VsockDriver) -> None:
    vsock.start()
    for port in range(FEW):
        # Each wants an answer, and is used all the same.
        vsock.send_packet(Op.REQUEST, src_port=port, dst_port=NO_PORT)
    vsock.supply(FEW)
    answers = [vsock.wait_packet() for _ in range(FEW)]
    same({answer.op for answer in answers}, {Op.RST}, "the operations of the answers")
    same(sorted(answer.dst_port for answer in answers), list(range(FEW)), "their ports")


def data_of(vsock: VsockDriver, count: int) -> tuple[bytes, list[Packet]]:
    """Return at least so many bytes that have come, and the packets."""
    data, packets = b"", []
    while len(data) < count:
        packets.append(vsock.wait_packet())
        if packets[-1].op == Op.RW:
            data += packets[-1].data
    return data, packets


@pytest.mark.clause("5.10.6.3.2:1")
@pytest.mark.parametrize("room", [1, 100, 3 * BUFFER])
def test_no_more_data_is_sent_than_there_is_room_for(
    session: Session, vsock: VsockDriver, room: int
) -> None:
    host = vsock.vsock_host
    vsock.start()
    vsock.supply(12)
    port = vsock.connect(room=room)
    said = bytes(n % 251 for n in range(room + 300))
    host.accept().say(said)
    data, _ = data_of(vsock, room)
    same(data, said[:room], "what came of it")

    def more() -> bool:
        return any(packet.op == Op.RW for packet in vsock.take_packets())

    session.never("data for which there is no room", more)
    vsock.send_packet(Op.CREDIT_UPDATE, src_port=port, buf_alloc=room + 300, fwd_cnt=0)
    data, _ = data_of(vsock, 300)
    same(data, said[room:], "the rest")


@pytest.mark.clause("5.10.6.3.2:2")
def test_credit_tells_how_much_has_left_the_buffer(vsock: VsockDriver) -> None:
    host = vsock.vsock_host
    vsock.start()
    vsock.supply(12)
    port, sent = vsock.connect(), 0
    program = host.accept()
    for size in (1, 1000, BUFFER):
        vsock.send_packet(Op.RW, bytes(size), src_port=port)
        sent += size
        same(len(program.heard(size)), size, "the bytes that the program received")
        vsock.send_packet(Op.CREDIT_REQUEST, src_port=port)
        answer = vsock.wait_packet()
        while answer.op == Op.CREDIT_UPDATE and answer.fwd_cnt < sent:
            # Told by itself, before the program had it all.
            answer = vsock.wait_packet()
        same(answer.op, Op.CREDIT_UPDATE, "the operation that answers a CREDIT_REQUEST")
        same(answer.fwd_cnt, sent, "fwd_cnt")
        assert answer.buf_alloc >= BUFFER, f"buf_alloc is {answer.buf_alloc}"


@pytest.mark.clause("5.10.6.3.2:2")
def test_credit_is_valid_in_packets_of_data_too(vsock: VsockDriver) -> None:
    host = vsock.vsock_host
    vsock.start()
    vsock.supply(4)
    port = vsock.connect()
    program = host.accept()
    vsock.send_packet(Op.RW, b"12345", src_port=port)
    same(program.heard(5), b"12345", "what the program received")
    program.say(b"answer")
    data, packets = data_of(vsock, 6)
    same(data, b"answer", "what came back")
    same(packets[-1].fwd_cnt, 5, "fwd_cnt")
    assert packets[-1].buf_alloc, "buf_alloc is 0, and data were taken"
