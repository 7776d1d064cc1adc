"""The console device (5.3): what it offers, and emergency writes (5.3.5.1)."""

import pytest

from tests.unit.console.bench import (
    COLS,
    EMERG_WR,
    F_MULTIPORT,
    F_SIZE,
    MAX_NR_PORTS,
    ROWS,
    Bench,
    FakeStream,
    bench_of,
)
from virtiopy.devices.console import (
    EMERGENCY_BYTES,
    Console,
    ConsoleFeature,
    receiveq,
    transmitq,
)
from virtiopy.spec import has_feature

F_EMERG_WRITE = ConsoleFeature.VIRTIO_CONSOLE_F_EMERG_WRITE


# What is offered, and the configuration space (5.3.3, 5.3.4)


def test_a_console_of_one_port_offers_emergency_writes_only() -> None:
    with bench_of(FakeStream()) as bench:
        offered = bench.driver.offered_features()
        assert [bit for bit in ConsoleFeature if has_feature(offered, bit)] == [F_EMERG_WRITE]


def test_a_terminal_offers_its_size(multiport: Bench) -> None:
    assert has_feature(multiport.driver.offered_features(), F_SIZE)
    assert (multiport.config(COLS), multiport.config(ROWS)) == (80, 25)


def test_max_nr_ports_counts_the_ports(multiport: Bench) -> None:
    assert has_feature(multiport.driver.offered_features(), F_MULTIPORT)
    assert multiport.config(MAX_NR_PORTS) == 3


def test_there_is_a_pair_of_queues_a_port_and_one_for_control(multiport: Bench) -> None:
    sizes = [multiport.driver.queue_size_max(index) for index in range(9)]
    assert sizes == [128] * 8 + [0]


@pytest.mark.parametrize(("port", "pair"), [(0, (0, 1)), (1, (4, 5)), (2, (6, 7))])
def test_the_control_queues_lie_between_the_first_ports_and_the_others(
    port: int, pair: tuple[int, int]
) -> None:
    assert (receiveq(port), transmitq(port)) == pair


def test_more_channels_than_ports_are_refused() -> None:
    with pytest.raises(ValueError, match="max_nr_ports"):
        Console(FakeStream(), {"one": FakeStream()}, max_nr_ports=1)


def test_the_fields_that_a_driver_may_not_write_stay(multiport: Bench) -> None:
    before = multiport.device.config_space()
    multiport.driver.write_config(*COLS, 7)
    multiport.driver.write_config(*MAX_NR_PORTS, 7)
    assert multiport.device.config_space() == before
    assert not multiport.stream.outgoing


# Emergency writes (5.3.5.1)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_lower_byte_of_an_emergency_write_is_printed_before_any_setup(size: int) -> None:
    with bench_of(FakeStream()) as bench:
        bench.driver.write_config(EMERG_WR[0], size, 0x41 | (0x4243_4400 & (1 << 8 * size) - 1))
        assert bench.stream.outgoing == b"A"


def test_an_emergency_write_goes_ahead_of_what_waits(bench: Bench) -> None:
    bench.stream.room = 2
    bench.transmit(b"ordinary")
    bench.driver.write_config(*EMERG_WR, ord("!"))
    bench.stream.take(100)
    assert bench.stream.outgoing == b"or!dinary"


def test_emergency_writes_wait_for_the_host_and_are_bounded(bench: Bench) -> None:
    bench.stream.room = 0
    for _ in range(EMERGENCY_BYTES + 100):
        bench.driver.write_config(*EMERG_WR, ord("!"))
    bench.stream.take(1 << 20)
    assert bench.stream.outgoing == b"!" * EMERGENCY_BYTES
    assert not bench.stream.wants_room


def test_an_emergency_write_that_waits_survives_a_reset(bench: Bench) -> None:
    bench.stream.room = 0
    bench.driver.write_config(*EMERG_WR, ord("!"))
    bench.driver.reset()
    bench.stream.take(1)
    assert bench.stream.outgoing == b"!"
