"""What a socket device does about guests that do not answer: time runs on an event loop."""

from collections.abc import Iterator

import pytest

from tests.unit.vsock_bench import Bench, open_bench
from virtiopy.devices.vsock.device import PORT_MIN
from virtiopy.devices.vsock.features import Operation, Shutdown
from virtiopy.eventloop import EventLoop


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[EventLoop]:
    monkeypatch.setattr("virtiopy.devices.vsock.device.TICK", 0.001)
    with EventLoop() as loop:
        yield loop


@pytest.fixture
def bench(loop: EventLoop) -> Iterator[Bench]:
    with open_bench(loop) as bench:
        yield bench


def let_time_pass(loop: EventLoop) -> None:
    """Have the loop go through what is due, on this thread."""
    loop._stopping = False
    loop.call_later(0.02, loop.stop, "the end")
    loop.run()
    assert loop.failure is None


def test_a_guest_that_does_not_answer_a_request_is_given_up(
    bench: Bench, loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtiopy.devices.vsock.connection.CONNECT_TIME", 0.0)
    program = bench.call()
    assert bench.ops() == [Operation.REQUEST]
    let_time_pass(loop)
    assert bench.ops() == [Operation.RST]
    assert program.closed
    bench.send(Operation.RESPONSE, dst_port=PORT_MIN)
    assert bench.ops() == [Operation.RST]


def test_a_guest_that_does_not_say_rst_in_the_end_is_given_up(
    bench: Bench, loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtiopy.devices.vsock.connection.CLOSE_TIME", 0.0)
    program = bench.connect()
    program.hang_up()
    [(header, _)] = bench.packets()
    assert (header.op, header.flags) == (Operation.SHUTDOWN, Shutdown.BOTH)
    let_time_pass(loop)
    assert bench.ops() == [Operation.RST]
    assert not bench.device.connections


def test_a_guest_that_has_answered_has_all_the_time(
    bench: Bench, loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtiopy.devices.vsock.connection.CONNECT_TIME", 0.0)
    program = bench.call()
    bench.send(Operation.RESPONSE, dst_port=PORT_MIN)
    let_time_pass(loop)
    assert bench.ops() == [Operation.REQUEST]
    assert not program.closed
