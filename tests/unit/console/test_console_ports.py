"""The console device (5.3): ports that come and go, and broken rings."""

from collections.abc import Iterator

import pytest

from tests.unit.console.bench import (
    DEVICE_ADD,
    DEVICE_READY,
    DEVICE_REMOVE,
    F_MULTIPORT,
    MEMORY_SIZE,
    PORT1_RX,
    PORT1_TX,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    RX,
    TX,
    Bench,
    FakeStream,
    bench_of,
)
from virtiopy.devices.console import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
)
from virtiopy.virtqueue.driver import Piece

# Ports that come and go


@pytest.fixture
def pluggable() -> Iterator[Bench]:
    """A console of one port that can have two more; started."""
    with bench_of(FakeStream(), max_nr_ports=3) as bench:
        bench.start_multiport()
        yield bench


def test_a_port_that_is_plugged_in_is_announced_and_works(pluggable: Bench) -> None:
    stream = FakeStream()
    pluggable.device.add_port(1, stream, "late")
    assert pluggable.messages() == [(1, DEVICE_ADD, 0, b"")]
    pluggable.control(1, PORT_READY)
    assert pluggable.messages() == [(1, PORT_NAME, 1, b"late"), (1, PORT_OPEN, 1, b"")]
    pluggable.control(1, PORT_OPEN)
    pluggable.supply(64, queue=PORT1_RX)
    stream.send(b"in")
    assert pluggable.received(PORT1_RX) == [b"in"]


@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_port_that_exists_or_is_above_the_maximum_cannot_be_plugged_in(
    pluggable: Bench, number: int
) -> None:
    with pytest.raises(ValueError, match=f"port {number}"):
        pluggable.device.add_port(number, FakeStream(), "wrong")
    assert pluggable.messages() == []


def test_a_port_that_is_unplugged_gives_its_buffers_back_and_says_so(pluggable: Bench) -> None:
    stream = FakeStream()
    pluggable.device.add_port(1, stream, "late")
    pluggable.messages()
    stream.room = 0
    head = pluggable.transmit(b"stuck", PORT1_TX)
    pluggable.device.remove_port(1)
    assert pluggable.transmitted(PORT1_TX) == [(head, 0)]
    assert pluggable.messages() == [(1, DEVICE_REMOVE, 0, b"")]
    assert stream.closed


@pytest.mark.parametrize("number", [0, 1, 7])
def test_port_0_and_ports_that_do_not_exist_cannot_be_unplugged(
    pluggable: Bench, number: int
) -> None:
    with pytest.raises(KeyError):
        pluggable.device.remove_port(number)
    assert pluggable.messages() == []
    assert pluggable.works()


def test_what_is_sent_to_a_port_that_does_not_exist_is_used_and_dropped(pluggable: Bench) -> None:
    head = pluggable.transmit(b"nobody", PORT1_TX)
    assert pluggable.transmitted(PORT1_TX) == [(head, 0)]
    pluggable.supply(64, queue=PORT1_RX)
    assert pluggable.received(PORT1_RX) == []


def test_a_port_that_came_and_went_unseen_is_not_mentioned(pluggable: Bench) -> None:
    pluggable.driver.start([F_MULTIPORT])
    pluggable.control(0, DEVICE_READY)
    pluggable.device.add_port(1, FakeStream(), "short-lived")
    pluggable.device.remove_port(1)
    pluggable.supply(*[64] * 8, queue=CONTROL_RECEIVEQ)
    assert pluggable.messages() == [(0, DEVICE_ADD, 0, b"")]


def test_a_port_is_removed_before_its_successor_is_added(pluggable: Bench) -> None:
    pluggable.device.add_port(1, FakeStream(), "first")
    pluggable.messages()
    pluggable.driver.queues[CONTROL_RECEIVEQ].take_all_used()
    with_no_buffers = pluggable.driver.queues[CONTROL_RECEIVEQ]
    while pluggable.device.queues[CONTROL_RECEIVEQ].pop() is not None:
        pass
    pluggable.device.remove_port(1)
    pluggable.device.add_port(1, FakeStream(), "second")
    pluggable.supply(*[64] * min(4, with_no_buffers.free), queue=CONTROL_RECEIVEQ)
    assert [event for _, event, _, _ in pluggable.messages()] == [DEVICE_REMOVE, DEVICE_ADD]


# Broken rings (2.1.2)


@pytest.mark.parametrize("queue", [RX, TX, CONTROL_RECEIVEQ, CONTROL_TRANSMITQ, PORT1_TX])
def test_a_ring_that_cannot_be_right_needs_a_reset_and_works_after_it(
    multiport: Bench, queue: int
) -> None:
    multiport.start_multiport()
    multiport.control(0, PORT_OPEN)
    multiport.driver.queues[queue].available.idx += 1000
    multiport.driver.kick(queue)
    multiport.stream.send(b"input")
    # More messages than there were buffers: the ring is read again.
    for cols in range(40):
        multiport.stream.resize(cols, 1)
    assert multiport.needs_reset
    multiport.start_multiport()
    assert not multiport.needs_reset
    assert multiport.works()


def test_a_ring_that_breaks_when_the_host_writes_stops_the_device_without_spinning(
    bench: Bench,
) -> None:
    bench.driver.queues[RX].available.idx += 1000
    bench.stream.send(b"input")
    assert bench.needs_reset
    assert not bench.stream.wants_input
    bench.stream.send(b" and more")
    bench.driver.start([])
    bench.supply(64, 64)
    bench.stream.run()
    assert b"".join(bench.received()) == b"input and more"


def test_a_ring_that_breaks_while_the_host_is_full_stops_the_device_without_spinning(
    bench: Bench,
) -> None:
    bench.stream.room = 0
    bench.transmit(b"stuck")
    bench.driver.queues[TX].available.idx += 1000
    bench.stream.take(100)
    assert bench.needs_reset
    assert not bench.stream.wants_room
    bench.driver.start([])
    assert bench.works()


def test_a_malformed_chain_goes_back_and_the_next_is_served(bench: Bench) -> None:
    bench.driver.queues[TX].add([Piece(MEMORY_SIZE + 0x1000, 10)])
    bench.transmit(b"good")
    assert [length for _, length in bench.transmitted()] == [0, 0]
    assert bench.stream.outgoing == b"good"


def test_closing_the_device_closes_every_stream(multiport: Bench) -> None:
    multiport.device.close()
    assert all(stream.closed for stream in multiport.streams)
