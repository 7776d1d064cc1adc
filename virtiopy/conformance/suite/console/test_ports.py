"""Emergency writes, and ports that come and go (5.3.5, 5.3.6.2)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.console import ConsoleDriver, Event
from virtiopy.conformance.problems import NotApplicableError, about
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.targets.hosts import ConsoleHost

EMERG_WRITE = "VIRTIO_CONSOLE_F_EMERG_WRITE"
MULTIPORT = "VIRTIO_CONSOLE_F_MULTIPORT"

#: Fields of struct virtio_console_config: the offset of one, offset and size of the other.
EMERG_WR = 8
MAX_NR_PORTS = 4, 4

#: The statements about messages that add ports, and that remove them.
ADDED, REMOVED = "5.3.6.2.1:1", "5.3.6.2.1:2"


def emergency_write(session: Session, value: int) -> None:
    """Write to emerg_wr."""
    session.write_config(EMERG_WR, value.to_bytes(4, "little"))


def printed(session: Session, console: ConsoleDriver, value: bytes) -> bytes:
    """Return what comes out at the host's side, up to a byte."""
    return console.terminal().printed(value, seconds=session.patience)


# Emergency writes (5.3.5.1)


@pytest.mark.clause("5.3.5.1:1")
@pytest.mark.feature(EMERG_WRITE)
def test_emerg_wr_can_be_written_at_any_time(session: Session, console: ConsoleDriver) -> None:
    emergency_write(session, ord("1"))
    session.negotiate()
    emergency_write(session, ord("2"))
    console.start()
    emergency_write(session, ord("3"))
    console.good()
    session.reset()
    emergency_write(session, ord("4"))
    session.check_alive()
    console.start()
    console.good()


@pytest.mark.clause("5.3.5.1:1")
@pytest.mark.feature(EMERG_WRITE)
def test_emerg_wr_can_be_written_by_a_driver_without_the_feature(
    session: Session, console: ConsoleDriver
) -> None:
    console.start(without=[EMERG_WRITE])
    emergency_write(session, ord("1"))
    console.good()


@pytest.mark.clause("5.3.5.1:2")
@pytest.mark.feature(EMERG_WRITE)
def test_the_lower_byte_of_an_emergency_write_comes_out(
    session: Session, console: ConsoleDriver
) -> None:
    console.start()
    for value in (b"A", b"B", b"\n"):
        emergency_write(session, 0x123400 | value[0])
        same(printed(session, console, value), value, "what came out")


@pytest.mark.clause("5.3.5.1:1")
@pytest.mark.feature(EMERG_WRITE)
def test_an_emergency_write_before_the_device_is_set_up_comes_out_as_one_after_that(
    session: Session, console: ConsoleDriver
) -> None:
    emergency_write(session, ord("A"))
    before = printed(session, console, b"A")
    console.start()
    emergency_write(session, ord("B"))
    if printed(session, console, b"B") != b"B":
        # The host is not shown any, as a device is free to do (5.3.5.1).
        raise NotApplicableError("no emergency write comes out")
    same(before, b"A", "what came out before the device was set up")


# Ports (5.3.6.2.1)


def check_ports(session: Session, console: ConsoleDriver) -> None:
    """Go through all control messages: what was added did not exist, what was removed did."""
    console.take_messages()
    most = session.config(*MAX_NR_PORTS)
    ports: set[int] = set()
    for message in console.messages:
        if message.event == Event.DEVICE_ADD:
            with about(ADDED):
                assert message.port not in ports, f"port {message.port} was added, and exists"
                assert message.port < most, f"port {message.port} was added, of {most}"
            ports.add(message.port)
        elif message.event == Event.DEVICE_REMOVE:
            with about(REMOVED):
                assert message.port in ports, f"port {message.port} was removed, and does not exist"
            ports.remove(message.port)


def spare_port(session: Session, console: ConsoleDriver) -> tuple[ConsoleHost, int]:
    """Return the host's side, and a port that does not exist and could."""
    host = session.host
    if not isinstance(host, ConsoleHost) or host.ports is None:
        raise NotApplicableError("the suite cannot plug ports in, or unplug them")
    spare = set(range(1, session.config(*MAX_NR_PORTS))) - set(range(len(host.terminals)))
    if not spare:
        raise NotApplicableError("all ports of the device exist")
    return host, min(spare)


@pytest.mark.clause("5.3.6.2.1:1")
@pytest.mark.feature(MULTIPORT)
def test_each_port_is_added_once_and_is_below_max_nr_ports(
    session: Session, console: ConsoleDriver
) -> None:
    for _ in range(2):
        console.start()
        console.good()
        check_ports(session, console)


@pytest.mark.clause("5.3.6.2.1:1")
@pytest.mark.feature(MULTIPORT)
def test_no_port_is_added_again_for_a_driver_that_is_ready_twice(
    session: Session, console: ConsoleDriver
) -> None:
    console.start()
    console.good()
    console.take_messages()
    known = len(console.messages)
    console.send_control(0, Event.DEVICE_READY, 1)

    def added_again() -> bool:
        console.take_messages()
        return any(message.event == Event.DEVICE_ADD for message in console.messages[known:])

    session.never("ports were added that exist", added_again)


@pytest.mark.clause("5.3.6.2.1:1", "5.3.6.2.1:2")
@pytest.mark.feature(MULTIPORT)
def test_a_port_that_comes_and_goes_is_added_and_removed(
    session: Session, console: ConsoleDriver
) -> None:
    console.start()
    host, port = spare_port(session, console)
    for _ in range(3):
        host.plug(port)
        console.wait_message(port, Event.DEVICE_ADD)
        host.unplug(port)
        console.wait_message(port, Event.DEVICE_REMOVE)
    check_ports(session, console)


@pytest.mark.clause("5.3.6.2.1:1", "5.3.6.2.1:2")
@pytest.mark.feature(MULTIPORT)
def test_a_port_that_comes_and_goes_faster_than_its_driver_looks_is_told_of_in_order(
    session: Session, console: ConsoleDriver
) -> None:
    console.start()
    host, port = spare_port(session, console)
    for _ in range(5):
        host.plug(port)
        host.unplug(port)
    host.plug(port)
    session.wait("the port to exist", lambda: port in console.take_messages_and_ports())
    check_ports(session, console)


@pytest.mark.clause("5.3.6.2.1:2")
@pytest.mark.feature(MULTIPORT)
def test_a_port_that_left_before_the_driver_was_ready_is_not_removed(
    session: Session, console: ConsoleDriver
) -> None:
    console.start_queues()
    host, port = spare_port(session, console)
    host.plug(port)
    host.unplug(port)
    console.send_control(0, Event.DEVICE_READY, 1)
    session.wait("port 0 added", lambda: 0 in console.take_messages_and_ports())
    console.good()
    check_ports(session, console)
