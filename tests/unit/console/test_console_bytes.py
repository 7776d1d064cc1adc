"""The console device (5.3): bytes, to the host and from it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.console.bench import RX, TX, Bench, FakeStream, bench_of
from virtiopy.devices.console import (
    INPUT_BYTES,
)
from virtiopy.spec import DeviceStatus, Feature
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.driver import Piece

F_EVENT_IDX = Feature.VIRTIO_F_EVENT_IDX
F_RING_RESET = Feature.VIRTIO_F_RING_RESET


# From the guest to the host


def test_output_is_written_and_its_buffer_used_with_length_0(bench: Bench) -> None:
    head = bench.transmit(b"hello")
    assert bench.stream.outgoing == b"hello"
    assert bench.transmitted() == [(head, 0)]
    assert bench.driver.interrupts() & Interrupt.USED_BUFFER


def test_output_may_come_in_any_pieces(bench: Bench) -> None:
    bench.transmit([b"h", b"el", b"", b"lo"])
    assert bench.stream.outgoing == b"hello"


def test_output_made_available_before_driver_ok_is_written_after_it() -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.negotiate([])
        for index in (RX, TX):
            bench.driver.set_up_queue(index, 8)
        bench.transmit(b"early")
        assert not bench.stream.outgoing
        bench.driver.set_status(DeviceStatus.DRIVER_OK)
        assert bench.stream.outgoing == b"early"


def test_an_empty_buffer_is_used_at_once(bench: Bench) -> None:
    head = bench.transmit([b""])
    assert bench.transmitted() == [(head, 0)]


def test_writable_bytes_in_a_transmit_buffer_are_left_alone(bench: Bench) -> None:
    room = bench.place(b"\xee" * 4)
    pieces = [bench.place(b"out"), Piece(room.address, 4, writable=True)]
    bench.driver.queues[TX].add(pieces)
    bench.driver.kick(TX)
    assert [length for _, length in bench.transmitted()] == [0]
    assert bench.stream.outgoing == b"out"
    assert bench.memory.read(room.address, 4) == b"\xee" * 4


def test_a_buffer_stays_unused_until_the_host_took_its_last_byte(bench: Bench) -> None:
    bench.stream.room = 3
    head = bench.transmit([b"ab", b"cdef"])
    assert bench.transmitted() == []
    bench.stream.take(2)
    assert bench.transmitted() == []
    assert bench.stream.wants_room
    bench.stream.take(1)
    assert bench.transmitted() == [(head, 0)]
    assert bench.stream.outgoing == b"abcdef"
    assert not bench.stream.wants_room


def test_a_slow_host_gets_buffers_that_came_meanwhile_in_their_order(bench: Bench) -> None:
    bench.stream.room = 0
    heads = [bench.transmit(b"%d;" % number) for number in range(100)]
    assert bench.transmitted() == []
    bench.stream.take(1 << 20)
    assert bench.stream.outgoing == b"".join(b"%d;" % number for number in range(100))
    assert [head for head, _ in bench.transmitted()] == heads


def test_a_driver_is_told_not_to_kick_while_the_host_is_full(bench: Bench) -> None:
    bench.stream.room = 0
    bench.transmit(b"x")
    bench.transmit(b"y", kick=False)
    assert not bench.driver.queues[TX].should_kick()
    bench.stream.take(2)
    bench.transmit(b"z", kick=False)
    assert bench.driver.queues[TX].should_kick()


def test_a_reset_forgets_the_buffers_that_waited(bench: Bench) -> None:
    bench.stream.room = 0
    bench.transmit(b"lost")
    bench.driver.reset()
    assert not bench.stream.wants_room
    bench.driver.start([])
    bench.stream.take(1 << 20)
    assert bench.works()
    assert bench.stream.outgoing == b"works"


def test_a_queue_reset_forgets_the_buffers_that_waited() -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.start([F_RING_RESET])
        bench.stream.room = 0
        bench.transmit(b"lost")
        bench.driver.write(Register.QueueSel, TX)
        bench.driver.write(Register.QueueReset, 1)
        bench.driver.set_up_queue(TX, 8)
        bench.stream.take(1 << 20)
        assert bench.works()
        assert bench.stream.outgoing == b"works"


# From the host to the guest


def test_input_fills_a_buffer_with_what_there_is(bench: Bench) -> None:
    bench.supply(64, 64)
    bench.stream.send(b"hello")
    assert bench.received() == [b"hello"]
    bench.stream.send(b"again")
    assert bench.received() == [b"again"]
    assert bench.driver.interrupts() & Interrupt.USED_BUFFER


def test_input_is_cut_to_the_size_of_the_buffers(bench: Bench) -> None:
    bench.supply(2, [1, 1, 1], 64)
    bench.stream.send(b"abcdefgh")
    assert bench.received() == [b"ab", b"cde", b"fgh"]


def test_the_host_is_not_read_without_a_driver() -> None:
    with bench_of(FakeStream()) as bench:
        bench.stream.send(b"early")
        assert bench.stream.incoming == b"early"
        bench.driver.start([])
        bench.supply(64)
        bench.stream.run()
        assert bench.received() == [b"early"]


def test_without_receive_buffers_no_more_is_read_than_a_bounded_amount(bench: Bench) -> None:
    bench.stream.send(bytes(3 * INPUT_BYTES))
    assert len(bench.stream.incoming) == 2 * INPUT_BYTES
    assert not bench.stream.wants_input


def test_the_host_is_read_on_once_the_guest_took_everything(bench: Bench) -> None:
    data = bytes(range(256)) * 1024
    bench.stream.send(data)
    seen = b""
    while len(seen) < len(data):
        bench.supply(*[4096] * 8)
        bench.stream.run()
        seen += b"".join(bench.received())
    assert seen == data
    assert bench.stream.wants_input


def test_kicks_for_receive_buffers_are_asked_for_only_while_input_waits() -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.start([])
        bench.supply(64, kick=False)
        assert not bench.driver.queues[RX].should_kick()
        bench.stream.send(bytes(100))
        bench.supply(64, kick=False)
        assert bench.driver.queues[RX].should_kick()


@pytest.mark.parametrize("sizes", [[0], [[0, 0]]])
def test_a_receive_buffer_without_room_goes_back_empty(
    bench: Bench, sizes: list[int | Sequence[int]]
) -> None:
    bench.supply(*sizes, 64)
    bench.stream.send(b"hello")
    assert bench.received() == [b"", b"hello"]


def test_a_receive_buffer_that_is_only_readable_goes_back_empty(bench: Bench) -> None:
    bench.driver.queues[RX].add([bench.place(b"wrong")])
    bench.supply(64)
    bench.stream.send(b"hello")
    assert [used.length for used in bench.driver.queues[RX].take_all_used()] == [0, 5]


def test_input_that_was_read_for_a_driver_that_reset_goes_to_the_next(bench: Bench) -> None:
    bench.stream.send(b"typed ahead")
    bench.driver.reset()
    assert not bench.stream.wants_input
    bench.driver.start([])
    bench.supply(64)
    assert bench.received() == [b"typed ahead"]


def test_a_receive_queue_that_is_reset_stops_the_reading() -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.start([F_RING_RESET])
        bench.supply(64)
        bench.driver.write(Register.QueueSel, RX)
        bench.driver.write(Register.QueueReset, 1)
        bench.stream.send(b"kept")
        assert bench.stream.incoming == b"kept"
        bench.driver.set_up_queue(RX, 8)
        bench.supply(64)
        bench.stream.run()
        assert bench.received() == [b"kept"]


# Both ways, byte for byte


chunks = st.lists(st.binary(max_size=300), max_size=30)
counts = st.lists(st.integers(0, 200), max_size=60)


@given(chunks=chunks, room=counts, event_idx=st.booleans())
def test_whatever_the_host_takes_at_a_time_it_gets_every_byte(
    chunks: list[bytes], room: list[int], event_idx: bool
) -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.start([F_EVENT_IDX] if event_idx else [], queue_size=4)
        bench.stream.room = 0
        sent, waiting, step = b"", list(chunks), iter(room)
        while waiting:
            while waiting and bench.driver.queues[TX].free:
                sent += waiting[0]
                bench.transmit(waiting.pop(0), kick=False)
            if bench.driver.queues[TX].should_kick():
                bench.driver.kick(TX)
            # Out of steps, the host takes all that there is.
            bench.stream.take(next(step, 1 << 20))
            bench.transmitted()
        bench.stream.take(1 << 20)
        assert bench.stream.outgoing == sent
        assert len(bench.transmitted()) <= 4
        assert bench.driver.queues[TX].free == 4


@given(
    chunks=chunks,
    sizes=st.lists(st.lists(st.integers(0, 70), min_size=1, max_size=3), max_size=40),
    event_idx=st.booleans(),
)
def test_whatever_buffers_the_guest_supplies_it_gets_every_byte(
    chunks: list[bytes], sizes: list[list[int]], event_idx: bool
) -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.start([F_EVENT_IDX] if event_idx else [], queue_size=4)
        queue, seen = bench.driver.queues[RX], b""
        waiting = list(chunks)
        expected, supplies = b"".join(chunks), iter(sizes)
        while waiting or len(seen) < len(expected):
            if waiting:
                bench.stream.send(waiting.pop(0))
            if queue.free >= 3:
                bench.supply(next(supplies, [100]), kick=False)
            if queue.should_kick():
                bench.driver.kick(RX)
            bench.stream.run()
            seen += b"".join(bench.received())
        assert seen == expected
