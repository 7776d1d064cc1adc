"""The socket device (5.10) over its registers, between a guest and programs of the test's."""

from collections.abc import Iterator

import pytest

from tests.unit.vsock_bench import (
    CID,
    EVENT,
    GUEST_PORT,
    HOST_PORT,
    ROOM,
    RX,
    SEQPACKET,
    STREAM,
    TX,
    Bench,
    open_bench,
)
from virtiopy.devices.vsock import Vsock, VsockFeature
from virtiopy.devices.vsock.connection import BUFFER_SIZE, PACKET_MAX
from virtiopy.devices.vsock.device import CONNECTIONS_MAX, PORT_MIN, RESETS_MAX
from virtiopy.devices.vsock.features import HOST_CID, Boundary, Operation, Shutdown, SocketType
from virtiopy.devices.vsock.packet import HEADER_SIZE, Header, pack_header
from virtiopy.spec import DeviceId, DeviceStatus
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.driver import Piece

REQUEST, RESPONSE, RST = Operation.REQUEST, Operation.RESPONSE, Operation.RST
RW, SHUTDOWN = Operation.RW, Operation.SHUTDOWN
CREDIT_UPDATE, CREDIT_REQUEST = Operation.CREDIT_UPDATE, Operation.CREDIT_REQUEST


@pytest.fixture
def bench() -> Iterator[Bench]:
    with open_bench() as bench:
        yield bench


# Features and configuration (5.10.3, 5.10.4)


def test_the_guest_finds_its_context_id(bench: Bench) -> None:
    assert bench.driver.read(Register.DeviceID) == DeviceId.SOCKET
    assert bench.driver.read_config(0, 8) == CID


@pytest.mark.parametrize("cid", [0, 1, 2, 0xFFFF_FFFF, 1 << 32, (1 << 64) - 1])
def test_a_reserved_context_id_is_no_guests(cid: int) -> None:
    with pytest.raises(ValueError, match="reserved"):
        Vsock(cid)


@pytest.mark.parametrize(
    ("features", "types"),
    [
        ((), {STREAM}),
        ((VsockFeature.VIRTIO_VSOCK_F_STREAM,), {STREAM}),
        ((VsockFeature.VIRTIO_VSOCK_F_SEQPACKET,), {STREAM, SEQPACKET}),
        ((VsockFeature.VIRTIO_VSOCK_F_NO_IMPLIED_STREAM,), set()),
        (
            (
                VsockFeature.VIRTIO_VSOCK_F_SEQPACKET,
                VsockFeature.VIRTIO_VSOCK_F_NO_IMPLIED_STREAM,
            ),
            {SEQPACKET},
        ),
    ],
)
def test_types_that_were_not_negotiated_are_refused(
    bench: Bench, features: tuple[int, ...], types: set[SocketType]
) -> None:
    bench.driver.start(features)
    bench.buffers.clear()
    bench.supply(8)
    for kind in (STREAM, SEQPACKET):
        bench.send(REQUEST, kind=kind, src_port=GUEST_PORT + kind)
        [(header, _)] = bench.packets()
        assert (header.op, header.type) == (RESPONSE if kind in types else RST, kind)


# Connections that the guest begins


def test_a_guest_and_a_program_talk(bench: Bench) -> None:
    program = bench.connect()
    bench.send(RW, b"to the host")
    assert program.received == b"to the host"
    program.say(b"to the guest")
    [(header, data)] = bench.packets()
    assert data == b"to the guest"
    assert header == Header(
        *(HOST_CID, CID, HOST_PORT, GUEST_PORT, 12, STREAM, RW, 0, BUFFER_SIZE, 11)
    )


def test_a_port_at_which_no_program_listens_refuses(bench: Bench) -> None:
    bench.send(REQUEST, dst_port=HOST_PORT + 1)
    [(header, _)] = bench.packets()
    assert header == Header(HOST_CID, CID, HOST_PORT + 1, GUEST_PORT, 0, STREAM, RST, 0, 0, 0)
    assert bench.device.facts()["refused"] == 1


@pytest.mark.parametrize("op", [op for op in range(9) if op not in {REQUEST, RST}])
def test_a_packet_of_no_connection_is_answered_by_a_reset(bench: Bench, op: int) -> None:
    bench.send(op)
    assert bench.ops() == [RST]


def test_a_reset_is_never_answered(bench: Bench) -> None:
    bench.send(RST)
    bench.send(RST, kind=9)
    assert bench.ops() == []


@pytest.mark.parametrize("kind", [0, 3, 0xFFFF])
def test_a_type_that_there_is_not_is_answered_by_a_reset(bench: Bench, kind: int) -> None:
    bench.send(REQUEST, kind=kind)
    [(header, _)] = bench.packets()
    assert (header.op, header.type) == (RST, kind)


def test_another_cid_than_the_hosts_refuses_in_its_own_name(bench: Bench) -> None:
    bench.send(REQUEST, dst_cid=7)
    [(header, _)] = bench.packets()
    assert (header.op, header.src_cid, header.dst_cid) == (RST, 7, CID)


@pytest.mark.parametrize("cid", [0, 2, 43, CID | 1 << 32])
def test_a_packet_in_anothers_name_is_dropped(bench: Bench, cid: int) -> None:
    bench.send(REQUEST, src_cid=cid)
    assert bench.ops() == []
    assert bench.device.facts()["dropped"] == 1


def test_as_many_connections_as_there_may_be_and_no_more(bench: Bench) -> None:
    bench.supply(16)
    for number in range(CONNECTIONS_MAX):
        bench.connect(src_port=number)
        if number % 16 == 15:
            bench.supply(16)
    bench.send(REQUEST, src_port=CONNECTIONS_MAX)
    assert bench.ops() == [RST]
    bench.send(RST, src_port=7)
    bench.connect(src_port=CONNECTIONS_MAX)


# Connections that a program begins


def test_a_program_calls_the_guest(bench: Bench) -> None:
    program = bench.call()
    [(header, _)] = bench.packets()
    assert (header.op, header.src_port, header.dst_port) == (REQUEST, PORT_MIN, GUEST_PORT)
    program.say(b"early")
    assert bench.ops() == []
    bench.send(RESPONSE, dst_port=PORT_MIN)
    assert program.host_port == PORT_MIN
    program.say()
    [(_, data)] = bench.packets()
    assert data == b"early"


def test_a_guest_refuses_a_program(bench: Bench) -> None:
    program = bench.call()
    bench.send(RST, dst_port=PORT_MIN)
    assert program.closed
    assert bench.ops() == [REQUEST]


def test_a_program_that_leaves_before_the_answer_takes_its_request_back(bench: Bench) -> None:
    program = bench.call()
    program.hang_up()
    assert bench.ops() == [REQUEST, RST]
    assert program.closed


def test_a_program_that_leaves_before_it_was_announced_is_not_heard_of(bench: Bench) -> None:
    bench.driver.start()
    bench.buffers.clear()
    bench.call().hang_up()
    bench.supply()
    assert bench.ops() == []


def test_ports_of_programs_are_not_those_in_use(bench: Bench) -> None:
    bench.host.listening.add(PORT_MIN)
    bench.connect(dst_port=PORT_MIN)
    bench.call()
    [(header, _)] = bench.packets()
    assert header.src_port == PORT_MIN + 1


def test_a_guest_without_a_driver_is_called_by_no_program(bench: Bench) -> None:
    bench.driver.reset()
    assert bench.call().closed


# Credit (5.10.6.3)


def test_a_guest_gets_no_more_than_it_has_room_for(bench: Bench) -> None:
    program = bench.connect(buf_alloc=10)
    program.say(b"0123456789abcdef")
    [(_, data), (ask, _)] = bench.packets()
    assert (data, ask.op) == (b"0123456789", CREDIT_REQUEST)
    program.say(b"more")
    assert bench.ops() == []
    bench.send(CREDIT_UPDATE, buf_alloc=10, fwd_cnt=6)
    [(_, data), (ask, _)] = bench.packets()
    assert (data, ask.op) == (b"abcdef", CREDIT_REQUEST)
    bench.send(CREDIT_UPDATE, buf_alloc=10, fwd_cnt=16)
    [(_, data)] = bench.packets()
    assert data == b"more"


@pytest.mark.parametrize(
    ("buf_alloc", "fwd_cnt"), [(0, 0), (0, 5), (100, 101), (100, 1 << 31), (1, 0xFFFF_FF00)]
)
def test_a_guest_that_counts_what_it_did_not_get_gets_nothing(
    bench: Bench, buf_alloc: int, fwd_cnt: int
) -> None:
    program = bench.connect(buf_alloc=buf_alloc, fwd_cnt=fwd_cnt)
    program.say(b"bytes")
    assert RW not in bench.ops()


def test_credit_goes_round_the_counters_end(bench: Bench) -> None:
    program = bench.connect()
    connection = bench.device.connections[HOST_PORT, GUEST_PORT]
    connection.sent = (1 << 32) - 2
    bench.send(CREDIT_UPDATE, buf_alloc=8, fwd_cnt=(1 << 32) - 2)
    program.say(b"0123456789")
    assert [data for _, data in bench.packets()] == [b"01234567", b""]
    bench.send(CREDIT_UPDATE, buf_alloc=8, fwd_cnt=6)
    assert [data for _, data in bench.packets()] == [b"89"]


def test_what_a_program_has_no_room_for_waits_and_takes_the_guests_credit(bench: Bench) -> None:
    bench.host.room = 4
    program = bench.connect()
    bench.send(RW, b"0123456789")
    bench.send(CREDIT_REQUEST)
    [(header, _)] = bench.packets()
    assert (header.op, header.buf_alloc, header.fwd_cnt) == (CREDIT_UPDATE, BUFFER_SIZE, 4)
    program.take(3)
    program.take(100)
    assert program.received == b"0123456789"
    bench.send(CREDIT_REQUEST)
    [(header, _)] = bench.packets()
    assert header.fwd_cnt == 10


def test_a_guest_is_told_of_room_before_it_runs_out(bench: Bench) -> None:
    bench.connect()
    for _ in range(BUFFER_SIZE // 2 // 4096):
        bench.send(RW, bytes(4096))
    assert bench.ops() == []
    bench.send(RW, b"x")
    [(header, _)] = bench.packets()
    assert (header.op, header.fwd_cnt) == (CREDIT_UPDATE, BUFFER_SIZE // 2 + 1)


def test_a_guest_that_sends_more_than_there_is_room_for_is_cut_off(bench: Bench) -> None:
    bench.host.room = 0
    program = bench.connect()
    for _ in range(BUFFER_SIZE // (1 << 16)):
        bench.send(RW, bytes(1 << 16))
    assert not program.closed
    bench.send(RW, b"x")
    assert bench.ops() == [RST]
    assert not bench.device.connections
    # What was sent by the rules is received all the same.
    program.take(1 << 20)
    assert len(program.received) == BUFFER_SIZE
    assert program.closed


@pytest.mark.parametrize("reader", ["program", "guest"])
def test_where_both_sides_are_full_each_goes_on_as_the_other_reads(
    bench: Bench, reader: str
) -> None:
    bench.host.room = 0
    program = bench.connect(buf_alloc=10)
    for _ in range(BUFFER_SIZE // (1 << 16)):
        bench.send(RW, bytes(1 << 16), buf_alloc=10)
    program.say(b"0123456789abcdef")
    assert bench.ops()[-2:] == [RW, CREDIT_REQUEST]
    program.say(b"more")
    assert bench.ops() == []
    if reader == "program":
        # The guest believes that there is no room.
        program.take(1)
        [(header, _)] = bench.packets()
        assert (header.op, header.fwd_cnt) == (CREDIT_UPDATE, 1)
    else:
        bench.send(CREDIT_UPDATE, buf_alloc=10, fwd_cnt=1)
        [(_, data), (ask, _)] = bench.packets()
        assert (data, ask.op) == (b"a", CREDIT_REQUEST)


# Ends (5.10.6.5)


def test_a_guest_that_closes_is_told_that_it_is_done(bench: Bench) -> None:
    program = bench.connect()
    bench.send(SHUTDOWN, flags=Shutdown.BOTH)
    assert bench.ops() == [RST]
    assert program.closed
    assert not bench.device.connections


def test_halves_that_a_guest_shuts_down_stay_so(bench: Bench) -> None:
    program = bench.connect()
    bench.send(SHUTDOWN, flags=Shutdown.SEND)
    assert program.output_ended
    assert not program.input_ended
    bench.send(SHUTDOWN, flags=0)
    program.say(b"still")
    assert [data for _, data in bench.packets()] == [b"still"]
    bench.send(SHUTDOWN, flags=Shutdown.RECEIVE)
    assert bench.ops() == [RST]
    assert program.closed


def test_a_guest_that_receives_no_more_gets_nothing(bench: Bench) -> None:
    program = bench.connect()
    bench.send(SHUTDOWN, flags=Shutdown.RECEIVE)
    assert program.input_ended
    program.say(b"in vain")
    assert bench.ops() == []
    bench.send(RW, b"still")
    assert program.received == b"still"


def test_the_end_comes_after_what_waits_for_the_program(bench: Bench) -> None:
    bench.host.room = 2
    program = bench.connect()
    bench.send(RW, b"0123456789")
    bench.send(SHUTDOWN, flags=Shutdown.SEND)
    assert not program.output_ended
    program.take(100)
    assert (program.received, program.output_ended) == (b"0123456789", True)


def test_data_after_the_end_of_data_is_a_breach(bench: Bench) -> None:
    bench.connect()
    bench.send(SHUTDOWN, flags=Shutdown.SEND)
    bench.send(RW, b"more")
    assert bench.ops() == [RST]


def test_a_program_that_sends_no_more_shuts_down_a_half(bench: Bench) -> None:
    program = bench.connect()
    program.say(b"last words", end=True)
    [(_, data), (header, _)] = bench.packets()
    assert data == b"last words"
    assert (header.op, header.flags) == (SHUTDOWN, Shutdown.SEND)
    bench.send(RW, b"heard")
    assert program.received == b"heard"


def test_a_program_that_leaves_is_read_to_its_end_first(bench: Bench) -> None:
    program = bench.connect(buf_alloc=4)
    program.said = [b"last words"]
    program.hang_up()
    [(_, data), (ask, _)] = bench.packets()
    assert (data, ask.op) == (b"last", CREDIT_REQUEST)
    bench.send(CREDIT_UPDATE, buf_alloc=ROOM)
    [(_, data), (header, _)] = bench.packets()
    assert (data, header.op, header.flags) == (b" words", SHUTDOWN, Shutdown.BOTH)
    bench.send(RST)
    assert bench.ops() == []
    assert program.closed


def test_a_program_that_leaves_after_its_half_says_the_other(bench: Bench) -> None:
    program = bench.connect()
    program.say(end=True)
    program.hang_up()
    assert [header.flags for header, _ in bench.packets()] == [Shutdown.SEND, Shutdown.BOTH]


def test_what_is_sent_to_a_program_that_is_gone_is_counted_as_received(bench: Bench) -> None:
    program = bench.connect()
    program.gone = True
    bench.send(RW, b"in vain")
    [(header, _)] = bench.packets()
    assert (header.op, header.flags) == (SHUTDOWN, Shutdown.RECEIVE)
    assert header.fwd_cnt == len(b"in vain")


@pytest.mark.parametrize("op", [0, REQUEST, RESPONSE, 8, 0xFFFF])
def test_an_operation_that_has_no_place_ends_the_connection(bench: Bench, op: int) -> None:
    program = bench.connect()
    bench.send(op)
    assert bench.ops() == [RST]
    assert program.closed
    bench.connect()


def test_a_type_of_another_connection_ends_it(bench: Bench) -> None:
    program = bench.connect()
    bench.send(RW, b"x", kind=SEQPACKET)
    assert bench.ops() == [RST]
    assert program.closed


# Seqpacket (5.10.6.6)


def test_messages_stay_whole_both_ways(bench: Bench) -> None:
    program = bench.connect(SEQPACKET)
    bench.send(RW, b"one ", kind=SEQPACKET)
    assert program.sent == []
    bench.send(RW, b"message", kind=SEQPACKET, flags=Boundary.EOM | Boundary.EOR)
    bench.send(RW, b"two", kind=SEQPACKET, flags=Boundary.EOM)
    assert program.sent == [b"one message", b"two"]
    program.say(b"three", b"four")
    assert [(data, header.flags) for header, data in bench.packets()] == [
        (b"three", Boundary.EOM),
        (b"four", Boundary.EOM),
    ]


def test_a_message_larger_than_a_buffer_comes_in_fragments(bench: Bench) -> None:
    program = bench.connect(SEQPACKET, buf_alloc=BUFFER_SIZE)
    program.say(b"x" * 10_000)
    came = bench.packets()
    assert b"".join(data for _, data in came) == b"x" * 10_000
    assert [header.flags for header, _ in came] == [0, 0, Boundary.EOM]


def test_messages_wait_for_a_program(bench: Bench) -> None:
    bench.host.room = 3
    program = bench.connect(SEQPACKET)
    for message in (b"one", b"two!", b"", b"three"):
        bench.send(RW, message, kind=SEQPACKET, flags=Boundary.EOM)
    assert program.sent == [b"one"]
    program.take(5)
    assert program.sent == [b"one", b"two!", b""]
    program.take(9)
    assert program.sent == [b"one", b"two!", b"", b"three"]


def test_a_message_that_the_guest_can_never_take_ends_the_connection(bench: Bench) -> None:
    program = bench.connect(SEQPACKET, buf_alloc=100)
    program.say(b"x" * 101)
    assert bench.ops() == [RST]
    assert program.closed


def test_empty_messages_take_no_room_and_yet_have_an_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtiopy.devices.vsock.connection.BUFFER_SIZE", 10)
    bench.host.room = 0
    bench.connect(SEQPACKET)
    bench.send(RW, b"x", kind=SEQPACKET, flags=Boundary.EOM)
    for _ in range(9):
        bench.send(RW, kind=SEQPACKET, flags=Boundary.EOM)
    assert bench.ops() == []
    bench.send(RW, kind=SEQPACKET, flags=Boundary.EOM)
    assert bench.ops() == [RST]


# Packets that are none


@pytest.mark.parametrize("length", [0, 1, HEADER_SIZE - 1])
def test_a_packet_without_a_whole_header_is_dropped(bench: Bench, length: int) -> None:
    header = pack_header(Header(CID, HOST_CID, GUEST_PORT, HOST_PORT, 0, STREAM, REQUEST))
    assert bench.transmit(bench.piece(header[:length] if length else 16)) == 0
    assert bench.ops() == []
    assert bench.device.facts()["dropped"] == 1
    bench.connect()


def test_payload_that_is_not_there_ends_the_connection(bench: Bench) -> None:
    program = bench.connect()
    bench.send(RW, b"short", length=6)
    assert bench.ops() == [RST]
    assert program.received == b""


def test_what_follows_the_payload_is_not_sent(bench: Bench) -> None:
    program = bench.connect()
    bench.send(RW, b"payload and more", length=7)
    assert program.received == b"payload"


def test_a_header_may_be_cut_anywhere(bench: Bench) -> None:
    program = bench.connect()
    header = pack_header(Header(CID, HOST_CID, GUEST_PORT, HOST_PORT, 4, STREAM, RW, 0, ROOM, 0))
    packet = header + b"data"
    assert bench.transmit(*(bench.piece(packet[at : at + 3]) for at in range(0, 48, 3))) == 0
    assert program.received == b"data"


@pytest.mark.parametrize("room", [0, 1, HEADER_SIZE - 1])
def test_a_buffer_without_room_for_a_header_comes_back_empty(bench: Bench, room: int) -> None:
    bench.driver.start()
    bench.buffers.clear()
    bench.driver.queues[RX].add([bench.piece(room) if room else bench.piece(b"to read")])
    bench.supply()
    bench.send(REQUEST, dst_port=1)
    used = bench.driver.queues[RX].take_all_used()
    assert [one.length for one in used] == [0, HEADER_SIZE]


def test_a_buffer_for_a_header_alone_gets_no_data(bench: Bench) -> None:
    program = bench.connect()
    bench.driver.start()
    bench.buffers.clear()
    bench.supply(2, room=0)
    program = bench.connect()
    program.say(b"bytes")
    assert bench.ops() == [CREDIT_UPDATE]
    bench.supply()
    assert [data for _, data in bench.packets()] == [b"bytes"]


# Queues that are full (5.10.6.1)


def test_packets_are_taken_while_there_is_no_buffer_to_answer_in(bench: Bench) -> None:
    bench.driver.start()
    bench.buffers.clear()
    bench.send(REQUEST)
    bench.send(RW, b"data")
    assert bench.host.opened[-1].received == b"data"
    bench.supply()
    assert bench.ops() == [RESPONSE]


def test_a_driver_that_takes_no_answers_is_not_served_for_ever(bench: Bench) -> None:
    bench.driver.start()
    bench.buffers.clear()
    header = pack_header(Header(CID, HOST_CID, 1, 1, 0, STREAM, CREDIT_REQUEST))
    taken = 0
    for _ in range(RESETS_MAX + 50):
        bench.driver.queues[TX].add([bench.piece(header)])
        taken += len(bench.driver.collect(TX))
    assert taken == RESETS_MAX
    answers = 0
    while answers < RESETS_MAX + 50:
        bench.supply(min(32, RESETS_MAX + 50 - answers))
        came = len(bench.packets())
        assert came, "the device has stopped"
        answers += came
        taken += len(bench.driver.queues[TX].take_all_used())
    assert taken == answers


def test_connections_take_turns(bench: Bench) -> None:
    bench.driver.start()
    bench.buffers.clear()
    bench.supply(2)
    programs = [bench.connect(src_port=port) for port in (1, 2)]
    for program in programs:
        program.say(b"x" * 12288)
    bench.supply(6)
    ports = [header.dst_port for header, _ in bench.packets()]
    assert ports in ([1, 2] * 3, [2, 1] * 3)


def test_a_packet_has_no_more_than_it_may(bench: Bench) -> None:
    bench.driver.start()
    bench.buffers.clear()
    bench.supply(3, room=2 * PACKET_MAX)
    program = bench.connect(buf_alloc=1 << 20)
    program.say(b"x" * (PACKET_MAX + 1))
    assert [header.length for header, _ in bench.packets()] == [PACKET_MAX, 1]


def test_a_socket_that_had_nothing_after_all_costs_no_buffer(bench: Bench) -> None:
    program = bench.connect()
    free = len(bench.buffers)
    program.say()
    assert bench.ops() == []
    program.say(b"bytes")
    assert len(bench.packets()) == 1
    assert len(bench.buffers) == free - 1


# Events (5.10.6.7), and the device's life


def test_a_new_context_id_ends_connections_and_is_told(bench: Bench) -> None:
    program = bench.connect()
    event = bench.piece(4)
    bench.memory.write(event.address, b"\xee" * 4)
    bench.driver.queues[EVENT].add([event])
    bench.driver.kick(EVENT)
    assert bench.driver.queues[EVENT].take_all_used() == []
    bench.device.change_cid(77)
    [used] = bench.driver.queues[EVENT].take_all_used()
    assert (used.length, bench.memory.read(event.address, 4)) == (4, bytes(4))
    assert bench.driver.read_config(0, 8) == 77
    assert program.closed
    bench.send(RW, b"old", src_cid=77)
    assert bench.ops() == [RST]
    bench.connect(src_cid=77)


def test_an_event_waits_for_a_buffer_with_room(bench: Bench) -> None:
    bench.device.change_cid(77)
    bench.driver.queues[EVENT].add([bench.piece(3)])
    assert [used.length for used in bench.driver.collect(EVENT)] == [0]
    bench.driver.queues[EVENT].add([bench.piece(64)])
    assert [used.length for used in bench.driver.collect(EVENT)] == [4]
    bench.driver.queues[EVENT].add([bench.piece(4)])
    assert bench.driver.collect(EVENT) == []


def test_a_reserved_context_id_changes_nothing(bench: Bench) -> None:
    program = bench.connect()
    with pytest.raises(ValueError, match="reserved"):
        bench.device.change_cid(2)
    assert not program.closed
    assert bench.device.guest_cid == CID


def test_a_reset_ends_connections_and_the_device_works_again(bench: Bench) -> None:
    bench.host.room = 2
    program = bench.connect()
    bench.send(RW, b"0123")
    bench.driver.start()
    bench.buffers.clear()
    bench.supply(4)
    assert not bench.device.connections
    # What the guest had sent is received after all.
    program.take(100)
    assert (program.received, program.closed) == (b"0123", True)
    bench.connect()


def test_rings_that_are_broken_halt_the_device_until_a_reset(bench: Bench) -> None:
    program = bench.connect()
    bench.driver.queues[TX].available.idx = 1000
    bench.driver.kick(TX)
    assert bench.driver.status & DeviceStatus.DEVICE_NEEDS_RESET
    program.say(b"in vain")
    bench.driver.start()
    bench.buffers.clear()
    bench.supply(2)
    bench.connect()


def test_a_closed_device_leaves_nothing_open(bench: Bench) -> None:
    bench.host.room = 0
    programs = [bench.connect(src_port=port) for port in range(3)]
    bench.send(RW, b"kept", src_port=1)
    bench.device.close()
    assert all(program.closed for program in programs)
    assert bench.host.closed


def test_facts_tell_what_went_both_ways(bench: Bench) -> None:
    program = bench.connect()
    bench.send(RW, b"12345")
    program.say(b"123")
    expected = {"guest_cid": CID, "connections": 1, "opened": 1, "received": 5, "sent": 3}
    assert expected.items() <= bench.device.facts().items()
    bench.send(RST)
    expected["connections"] = 0
    assert expected.items() <= bench.device.facts().items()


def test_a_payload_in_many_pieces_is_sent_in_order(bench: Bench) -> None:
    program = bench.connect()
    data = bytes(range(100))
    header = pack_header(Header(CID, HOST_CID, GUEST_PORT, HOST_PORT, 100, STREAM, RW, 0, ROOM))
    pieces: list[Piece] = [
        bench.piece(header),
        *(bench.piece(data[at : at + 1]) for at in range(100)),
    ]
    assert bench.transmit(*pieces) == 0
    assert program.received == data
