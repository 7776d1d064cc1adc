"""What no driver may say to a console (5.3.6)."""

from virtiopy.conformance.drivers.console import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    ConsoleDriver,
    Event,
    control,
)
from virtiopy.conformance.hostile.acts import Act, Stage, chain, on_queues
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.suite.hostile.cases import each

MULTIPORT = ("VIRTIO_CONSOLE_F_MULTIPORT",)

#: Ports that are not there.
NO_PORTS = (50, 0x8000, 0xFFFF_FFFF)


def message(port: int, event: int, value: int) -> bytes:
    """Return a control message."""
    return control(port, event, value)


def of_all_events(port: int) -> Act:
    """Return the act of sending every event of a port, with values that mean nothing too."""

    def do(stage: Stage) -> None:
        for event in [*Event, 8, 0xFFFF]:
            for value in (0, 1, 0xFFFF):
                stage.submit(stage.queue.place([stage.session.place(message(port, event, value))]))

    # Ports are closed by some, and the device is not ready any more.
    return Act(f"every-event-of-port-{port:#x}", "5.3.6.2", do, MULTIPORT, ruinous=True)


MESSAGES = (
    Act("message-of-0-bytes", "5.3.6.2", chain(0), MULTIPORT),
    Act("message-of-3-bytes", "5.3.6.2", chain(message(0, 3, 1)[:3]), MULTIPORT),
    Act("message-of-7-bytes", "5.3.6.2", chain(message(0, 3, 1)[:7]), MULTIPORT),
    Act("message-and-4-kib", "5.3.6.2", chain(message(0, 3, 1) + bytes(4096)), MULTIPORT),
    Act("message-with-room", "5.3.6.2", chain(message(0, 3, 1), 64), MULTIPORT),
    Act("no-message-but-room", "5.3.6.2", chain(64), MULTIPORT),
    *(of_all_events(port) for port in (0, 1, *NO_PORTS)),
)

BUFFERS = (
    Act("control-buffer-of-4-bytes", "5.3.6.2", chain(4), MULTIPORT),
    Act("control-buffer-to-read", "5.3.6.2", chain(bytes(64)), MULTIPORT),
)

BYTES = (
    Act("nothing", "5.3.6", chain(0)),
    Act("to-read-and-to-write", "5.3.6", chain(b"bytes", 64)),
    Act("a-byte-forty-times", "5.3.6", chain(*[b"\n"] * 40)),
    Act("four-kib-of-nul", "5.3.6", chain(bytes(4096))),
)


@each("act", MESSAGES)
def test_a_control_message_that_no_driver_may_send(
    act: Act, session: Session, console: ConsoleDriver, judge: Judge
) -> None:
    on_queues(act, [CONTROL_TRANSMITQ], session, console, judge)


@each("act", BUFFERS)
def test_a_control_buffer_that_no_driver_may_supply(
    act: Act, session: Session, console: ConsoleDriver, judge: Judge
) -> None:
    on_queues(act, [CONTROL_RECEIVEQ], session, console, judge)


@each("act", BYTES)
def test_bytes_in_buffers_that_no_driver_may_use(
    act: Act, session: Session, console: ConsoleDriver, judge: Judge
) -> None:
    data = set(session.queues) - {CONTROL_RECEIVEQ, CONTROL_TRANSMITQ}
    on_queues(act, sorted(data), session, console, judge)
