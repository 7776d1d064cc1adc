"""The console device (5.3): control messages (5.3.6.2), and the size."""

import struct

import pytest

from tests.unit.console.bench import (
    COLS,
    DEVICE_ADD,
    DEVICE_READY,
    DEVICE_REMOVE,
    F_MULTIPORT,
    F_SIZE,
    PORT1_RX,
    PORT1_TX,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    ROWS,
    Bench,
    FakeStream,
    bench_of,
)
from virtiopy.devices.console import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    ControlEvent,
    receiveq,
    transmitq,
)
from virtiopy.devices.streams import Size
from virtiopy.transport.registers import Interrupt, Register

CONSOLE_PORT, RESIZE = ControlEvent.CONSOLE_PORT, ControlEvent.RESIZE


# Control messages (5.3.6.2)


def test_a_driver_that_is_ready_is_told_of_every_port(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 8, queue=CONTROL_RECEIVEQ)
    assert multiport.messages() == []
    multiport.control(0, DEVICE_READY)
    assert multiport.messages() == [(number, DEVICE_ADD, 0, b"") for number in range(3)]


def test_a_driver_that_is_ready_twice_is_told_once(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.control(0, DEVICE_READY)
    assert multiport.messages() == []


def test_a_driver_that_failed_is_told_of_no_port(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(64, queue=CONTROL_RECEIVEQ)
    multiport.control(0, DEVICE_READY, 0)
    multiport.control(0, DEVICE_READY, 2)
    assert multiport.messages() == []


def test_a_port_that_is_ready_is_told_what_it_is(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 16, queue=CONTROL_RECEIVEQ)
    multiport.control(0, DEVICE_READY)
    multiport.messages()

    multiport.control(0, PORT_READY)
    assert multiport.messages() == [
        (0, CONSOLE_PORT, 1, b""),
        (0, RESIZE, 0, struct.pack("<HH", 80, 25)),
        (0, PORT_OPEN, 1, b""),
    ]
    multiport.control(1, PORT_READY)
    assert multiport.messages() == [
        (1, PORT_NAME, 1, b"org.example.one"),
        (1, PORT_OPEN, 1, b""),
    ]
    multiport.control(2, PORT_READY)
    assert multiport.messages() == [(2, PORT_NAME, 1, "größe.2".encode())]


def test_a_port_that_failed_or_is_ready_already_is_told_nothing(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.control(0, PORT_READY)
    multiport.control(1, PORT_READY, 0)
    assert multiport.messages() == []


def test_the_driver_is_told_when_somebody_comes_and_goes(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.streams[2].connect(connected=True)
    assert multiport.messages() == [(2, PORT_OPEN, 1, b"")]
    multiport.streams[2].connect(connected=False)
    assert multiport.messages() == [(2, PORT_OPEN, 0, b"")]


def test_nothing_is_said_of_a_port_that_is_not_ready(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 8, queue=CONTROL_RECEIVEQ)
    multiport.control(0, DEVICE_READY)
    multiport.messages()
    multiport.streams[2].connect(connected=True)
    multiport.stream.resize(100, 30)
    assert multiport.messages() == []


def test_the_named_ports_are_channels_of_their_own(multiport: Bench) -> None:
    multiport.start_multiport()
    for number, stream in enumerate(multiport.streams[:2]):
        multiport.control(number, PORT_OPEN)
        multiport.supply(64, queue=receiveq(number))
        multiport.transmit(b"out %d" % number, transmitq(number))
        stream.send(b"in %d" % number)
        assert multiport.received(receiveq(number)) == [b"in %d" % number]
        assert stream.outgoing == b"out %d" % number


def test_the_host_is_not_read_until_the_guest_opens_the_port(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.supply(64, queue=PORT1_RX)
    multiport.streams[1].send(b"kept")
    assert multiport.streams[1].incoming == b"kept"
    multiport.control(1, PORT_OPEN)
    multiport.streams[1].run()
    assert multiport.received(PORT1_RX) == [b"kept"]
    multiport.control(1, PORT_OPEN, 0)
    multiport.streams[1].send(b"kept too")
    assert multiport.received(PORT1_RX) == []
    assert multiport.streams[1].incoming == b"kept too"


def test_what_waits_for_a_host_that_goes_is_given_up(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.streams[1].room = 0
    head = multiport.transmit(b"too late", PORT1_TX)
    assert multiport.transmitted(PORT1_TX) == []
    multiport.streams[1].connect(connected=False)
    assert multiport.transmitted(PORT1_TX) == [(head, 0)]


def test_one_port_that_is_stuck_holds_up_no_other(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.streams[1].room = 0
    multiport.transmit(b"stuck", PORT1_TX)
    assert multiport.works()


def test_messages_wait_for_buffers_and_only_the_last_of_a_kind_is_kept(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.control(0, DEVICE_READY)
    multiport.control(2, PORT_READY)
    for _ in range(1000):
        multiport.streams[2].connect(connected=True)
        multiport.streams[2].connect(connected=False)
    multiport.supply(*[64] * 16, queue=CONTROL_RECEIVEQ)
    assert multiport.messages() == [
        *((number, DEVICE_ADD, 0, b"") for number in range(3)),
        (2, PORT_NAME, 1, "größe.2".encode()),
        (2, PORT_OPEN, 0, b""),
    ]


def test_a_control_buffer_that_is_too_small_goes_back_empty_and_the_message_waits(
    multiport: Bench,
) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(7, 0, [3, 5], 64, 64, queue=CONTROL_RECEIVEQ)
    multiport.control(0, DEVICE_READY)
    received = multiport.received(CONTROL_RECEIVEQ)
    assert [len(data) for data in received] == [0, 0, 8, 8, 8]


def test_a_control_message_is_cut_to_a_buffer_that_has_room_for_its_header_alone(
    multiport: Bench,
) -> None:
    # As SerenityOS's driver gives them: what follows a long message does not wait for ever.
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[8] * 16, queue=CONTROL_RECEIVEQ)
    multiport.control(0, DEVICE_READY)
    for number in range(3):
        multiport.control(number, PORT_READY)
    assert multiport.messages() == [
        *((number, DEVICE_ADD, 0, b"") for number in range(3)),
        (0, CONSOLE_PORT, 1, b""),
        (0, RESIZE, 0, b""),
        (0, PORT_OPEN, 1, b""),
        (1, PORT_NAME, 1, b""),
        (1, PORT_OPEN, 1, b""),
        (2, PORT_NAME, 1, b""),
    ]


def test_a_control_message_may_come_in_one_byte_pieces(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 3, queue=CONTROL_RECEIVEQ)
    message = struct.pack("<IHH", 0, DEVICE_READY, 1)
    multiport.transmit([message[i : i + 1] for i in range(8)], CONTROL_TRANSMITQ)
    assert len(multiport.messages()) == 3


@pytest.mark.parametrize("number", [3, 4, 31, 0xFFFF_FFFF])
@pytest.mark.parametrize("event", [PORT_READY, PORT_OPEN])
def test_messages_about_ports_that_do_not_exist_are_ignored(
    multiport: Bench, number: int, event: int
) -> None:
    multiport.start_multiport()
    multiport.control(number, event)
    assert multiport.messages() == []
    assert multiport.works()


@pytest.mark.parametrize("event", [DEVICE_ADD, DEVICE_REMOVE, CONSOLE_PORT, RESIZE, PORT_NAME])
def test_messages_that_are_the_devices_to_send_are_ignored(multiport: Bench, event: int) -> None:
    multiport.start_multiport()
    multiport.control(0, event)
    assert multiport.messages() == []
    assert sorted(multiport.device.ports) == [0, 1, 2]
    assert multiport.works()


@pytest.mark.parametrize("event", [8, 0xEEEE, 0xFFFF])
def test_unknown_messages_are_ignored(multiport: Bench, event: int) -> None:
    multiport.start_multiport()
    multiport.control(0, event)
    assert multiport.messages() == []
    assert multiport.works()


@pytest.mark.parametrize("length", range(8))
def test_truncated_messages_are_ignored(multiport: Bench, length: int) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 3, queue=CONTROL_RECEIVEQ)
    multiport.transmit(struct.pack("<IHH", 0, DEVICE_READY, 1)[:length], CONTROL_TRANSMITQ)
    assert [used for _, used in multiport.transmitted(CONTROL_TRANSMITQ)] == [0]
    assert multiport.messages() == []
    assert multiport.works()


def test_what_follows_a_message_is_ignored(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 3, queue=CONTROL_RECEIVEQ)
    multiport.control(0, DEVICE_READY, 1, bytes(1000))
    assert len(multiport.messages()) == 3


@pytest.mark.parametrize("value", [2, 0xFFFF])
def test_a_port_open_that_is_neither_open_nor_closed_is_ignored(
    multiport: Bench, value: int
) -> None:
    multiport.start_multiport()
    multiport.control(1, PORT_OPEN, value)
    assert not multiport.device.ports[1].guest_open


def test_ports_do_not_exist_before_the_driver_is_ready(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(64, queue=CONTROL_RECEIVEQ)
    multiport.control(1, PORT_READY)
    multiport.control(1, PORT_OPEN)
    assert multiport.messages() == []
    assert not multiport.device.ports[1].guest_open


def test_without_multiport_only_port_0_is_served(multiport: Bench) -> None:
    multiport.driver.start([])
    multiport.supply(64, queue=CONTROL_RECEIVEQ)
    for queue in (CONTROL_TRANSMITQ, PORT1_TX):
        multiport.transmit(struct.pack("<IHH", 0, DEVICE_READY, 1), queue)
        assert multiport.transmitted(queue) == []
    assert multiport.received(CONTROL_RECEIVEQ) == []
    assert not multiport.streams[1].outgoing
    assert multiport.works()


def test_a_reset_makes_the_ports_new_to_the_driver(multiport: Bench) -> None:
    multiport.start_multiport()
    multiport.control(1, PORT_OPEN)
    multiport.driver.reset()
    assert not multiport.streams[1].wants_input
    multiport.driver.start([F_MULTIPORT])
    multiport.supply(*[64] * 8, queue=CONTROL_RECEIVEQ)
    multiport.streams[2].connect(connected=True)
    assert multiport.messages() == []
    multiport.control(0, DEVICE_READY)
    assert [event for _, event, _, _ in multiport.messages()] == [DEVICE_ADD] * 3


# The size (5.3.6)


def test_a_resize_changes_the_configuration_and_says_so() -> None:
    with bench_of(FakeStream(size=Size(80, 25))) as bench:
        bench.driver.start([F_SIZE])
        bench.driver.interrupts()
        generation = bench.driver.read(Register.ConfigGeneration)
        bench.stream.resize(132, 43)
        assert bench.driver.interrupts() == Interrupt.CONFIG_CHANGE
        assert bench.driver.read(Register.ConfigGeneration) != generation
        assert (bench.config(COLS), bench.config(ROWS)) == (132, 43)


def test_a_resize_before_there_is_a_driver_only_changes_the_configuration() -> None:
    with bench_of(FakeStream(size=Size(80, 25))) as bench:
        bench.stream.resize(132, 43)
        assert not bench.driver.interrupts()
        assert bench.config(COLS) == 132


def test_a_resize_of_a_multiport_console_is_a_control_message_too(multiport: Bench) -> None:
    multiport.start_multiport(F_SIZE)
    multiport.driver.interrupts()
    multiport.stream.resize(132, 43)
    assert multiport.messages() == [(0, RESIZE, 0, struct.pack("<HH", 132, 43))]
    assert multiport.driver.interrupts() == Interrupt.CONFIG_CHANGE | Interrupt.USED_BUFFER


def test_only_the_last_of_several_sizes_is_sent(multiport: Bench) -> None:
    multiport.driver.start([F_MULTIPORT])
    multiport.control(0, DEVICE_READY)
    multiport.control(0, PORT_READY)
    for cols in range(81, 200):
        multiport.stream.resize(cols, 25)
    multiport.supply(*[64] * 16, queue=CONTROL_RECEIVEQ)
    resizes = [extra for _, event, _, extra in multiport.messages() if event == RESIZE]
    assert resizes == [struct.pack("<HH", 199, 25)]
