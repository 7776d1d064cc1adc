"""The driver of the console device (5.3)."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.conformance.clauses.definitions import WRITTEN
from virtiopy.conformance.drivers.base import DeviceDriver, Request, Sent
from virtiopy.conformance.problems import (
    BrokenError,
    NoAnswerError,
    NotApplicableError,
    StepError,
)
from virtiopy.conformance.sessions.base import FeatureLike, Session
from virtiopy.conformance.targets.hosts import ConsoleHost, Terminal
from virtiopy.spec import DeviceId

#: What bytes that are written to a port come to, and what is typed at it.
OUTPUT, TYPED = "5.3.6:1", "5.3.6:2"

#: The control queues (5.3.2).
CONTROL_RECEIVEQ = 2
CONTROL_TRANSMITQ = 3

CONTROL_SIZE = ffi.sizeof("struct virtio_console_control")

#: Bytes of a buffer for control messages, and how many there are.
CONTROL_ROOM = 128
CONTROL_BUFFERS = 32


class Event(enum.IntEnum):
    """VIRTIO_CONSOLE_* (5.3.6.2)."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


@dataclass(slots=True, frozen=True)
class Message:
    """A control message of the device's (5.3.6.2)."""

    port: int
    event: int
    value: int
    payload: bytes = b""


@dataclass(slots=True)
class PortState:
    """What the device has said of a port."""

    name: str = ""
    is_console: bool = False
    host_open: bool = False
    size: tuple[int, int] | None = None
    messages: list[Message] = field(default_factory=list)


def receiveq(port: int) -> int:
    """Return the index of a port's receiveq (5.3.2)."""
    return 0 if port == 0 else 2 * port + 2


def transmitq(port: int) -> int:
    """Return the index of a port's transmitq (5.3.2)."""
    return receiveq(port) + 1


def control(port: int, event: int, value: int) -> bytes:
    """Return a struct virtio_console_control (5.3.6.2)."""
    return bytes(ffi.buffer(ffi.new("struct virtio_console_control *", (port, event, value))))


class ConsoleDriver(DeviceDriver):
    """A driver that opens every port that the device adds."""

    device_id: ClassVar[DeviceId] = DeviceId.CONSOLE
    name: ClassVar[str] = "console"
    config_size = 12
    queues = 2  # 5.3.2
    more_queues = "VIRTIO_CONSOLE_F_MULTIPORT"

    understood = (
        "VIRTIO_CONSOLE_F_SIZE",
        "VIRTIO_CONSOLE_F_MULTIPORT",
        "VIRTIO_CONSOLE_F_EMERG_WRITE",
    )

    main_queue: ClassVar[int] = 1

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._lines = count()
        self._control: dict[int, Sent] = {}
        #: The ports that the device has added, by number; with MULTIPORT only.
        self.ports: dict[int, PortState] = {}
        #: All control messages since DRIVER_OK.
        self.messages: list[Message] = []

    @property
    def multiport(self) -> bool:
        """Whether VIRTIO_CONSOLE_F_MULTIPORT was negotiated."""
        return self.session.has("VIRTIO_CONSOLE_F_MULTIPORT")

    @property
    def can_reconnect(self) -> bool:
        """Not with ports: the protocol does not tell another backend which of them are open."""
        return not self.multiport

    def start(
        self,
        features: Iterable[FeatureLike] | None = None,
        *,
        without: Iterable[FeatureLike] = (),
        queue_size: int | None = None,
    ) -> None:
        """Bring the device up; with MULTIPORT, and port 0 added, open all ports (5.3.5)."""
        self.start_queues(features, without=without, queue_size=queue_size)
        if self.multiport:
            self.send_control(0, Event.DEVICE_READY, 1)
            self.session.wait("port 0 added", lambda: 0 in self.take_messages_and_ports())
            for port in list(self.ports):
                self.send_control(port, Event.PORT_READY, 1)
                self.send_control(port, Event.PORT_OPEN, 1)

    def start_queues(
        self,
        features: Iterable[FeatureLike] | None = None,
        *,
        without: Iterable[FeatureLike] = (),
        queue_size: int | None = None,
    ) -> None:
        """Bring the device up, with buffers for control messages, but send it none."""
        super().start(features, without=without, queue_size=queue_size)
        self._control.clear()
        self.ports.clear()
        self.messages.clear()
        if self.multiport:
            # They are looked at without notifications, which over MMIO would pass for those of
            # another queue: all share one interrupt.
            for index in (CONTROL_RECEIVEQ, CONTROL_TRANSMITQ):
                self.session.queues[index].disable_interrupts()
            self.supply_control_buffers()

    # Control messages

    def supply_control_buffers(self) -> None:
        """Fill the control receiveq."""
        queue = self.session.queues[CONTROL_RECEIVEQ]
        self._supply_control_buffers(min(CONTROL_BUFFERS, queue.free))

    def _supply_control_buffers(self, count: int) -> None:
        request = Request(CONTROL_RECEIVEQ, b"", CONTROL_ROOM, lambda content, length: None)
        sent = [self.place(request) for _ in range(count)]
        self._control.update((one.head, one) for one in sent)
        self.offer(*sent)

    def send_control(self, port: int, event: int, value: int) -> None:
        """Send a control message, and wait until it was used."""
        self.do(self.control_request(port, event, value))

    def control_request(self, port: int, event: int, value: int) -> Request:
        """Return a control message to the device."""
        return self._transmission(CONTROL_TRANSMITQ, control(port, event, value))

    def take_messages(self) -> list[Message]:
        """Return the control messages that have come since the last call."""
        queue = self.session.queues[CONTROL_RECEIVEQ]
        messages = []
        # All of them before any is supplied again: heads are used again too.
        done = [(self._control.pop(used.head), used) for used in queue.take_all_used()]
        for sent, used in done:
            content = self.check(sent, used)[: used.length]
            assert len(content) >= CONTROL_SIZE, f"a control message of {len(content)} bytes"
            it = ffi.from_buffer("struct virtio_console_control *", content[:CONTROL_SIZE])
            messages.append(Message(it.id, it.event, it.value, content[CONTROL_SIZE:]))
            self._supply_control_buffers(1)
        for message in messages:
            self._learn(message)
        self.messages += messages
        return messages

    def take_messages_and_ports(self) -> dict[int, PortState]:
        """Take the control messages that have come; returns the ports that there are."""
        self.take_messages()
        return self.ports

    def wait_message(self, port: int, event: int) -> Message:
        """Return the next control message of this kind; those before it are learned from."""

        def look() -> Message | None:
            found = [m for m in self.take_messages() if (m.port, m.event) == (port, event)]
            return found[0] if found else None

        return self.session.wait(f"control message {Event(event).name} of port {port}", look)

    def _learn(self, message: Message) -> None:
        if message.event == Event.DEVICE_ADD:
            self.ports[message.port] = PortState()
        if (port := self.ports.get(message.port)) is None:
            return
        port.messages.append(message)
        if message.event == Event.DEVICE_REMOVE:
            del self.ports[message.port]
        elif message.event == Event.CONSOLE_PORT:
            port.is_console = True
        elif message.event == Event.PORT_OPEN:
            port.host_open = bool(message.value)
        elif message.event == Event.PORT_NAME:
            port.name = message.payload.rstrip(b"\0").decode("utf-8", "replace")
        elif message.event == Event.RESIZE and len(message.payload) == 4:
            it = ffi.from_buffer("struct virtio_console_resize *", message.payload)
            port.size = it.cols, it.rows

    # Bytes

    def terminal(self, port: int = 0) -> Terminal:
        """Return the host's side of a port; not applicable where the suite has no hand in it."""
        if not isinstance(self.session.host, ConsoleHost):
            raise NotApplicableError("the suite is not at the other end of this backend's ports")
        return self.session.host.terminals[port]

    @property
    def has_terminals(self) -> bool:
        """Whether the suite sees what is written, and can type."""
        return isinstance(self.session.host, ConsoleHost)

    def is_at(self, port: int) -> bool:
        """Say whether a port is one of the host's; not applicable where the suite has no hand."""
        _ = self.terminal()
        host = self.session.host
        return isinstance(host, ConsoleHost) and port < len(host.terminals)

    def _transmission(
        self, queue: int, data: bytes, port: int | None = None, *, next_out: bool = True
    ) -> Request:
        def check(content: bytes, length: int) -> None:
            self.check_sent(content, length)
            if port is None or not self.has_terminals:
                return
            printed = self.terminal(port).printed(data, seconds=self.session.patience)
            if not printed.endswith(data):
                raise NoAnswerError(f"{printed!r} came out, and not {data!r}", OUTPUT)
            if next_out and printed != data:
                raise StepError(f"{printed!r} came out, not just {data!r}", OUTPUT)

        return Request(queue, data, 0, check)

    @staticmethod
    def check_sent(content: bytes, length: int) -> None:
        """Check the answer to bytes that were written: there is none but that they were used."""
        if length:
            raise BrokenError(f"{length} bytes written to a transmit buffer", WRITTEN)

    def output(self, data: bytes, port: int = 0, *, next_out: bool = True) -> Request:
        """Return a request to write bytes to a port, which have to come out.

        They have to be the next to come out, unless told otherwise.
        """
        return self._transmission(transmitq(port), data, port, next_out=next_out)

    def input(self, data: bytes, port: int = 0, room: int = 256) -> Request:
        """Return a request to read what is typed once the buffer is there."""

        def check(content: bytes, length: int) -> None:
            if content[:length] != data:
                raise StepError(f"{content[:length]!r} was read, and not {data!r}", TYPED)

        return Request(receiveq(port), b"", room, check, lambda: self.terminal(port).type(data))

    def good_request(self) -> Request:
        """Return a request to write a line to port 0, whatever else is written before it."""
        return self.output(f"line {next(self._lines)}\n".encode(), next_out=False)

    def requests(self) -> list[Request]:
        """Return requests to write, to read where the suite can type, and a control message."""
        requests = [self.good_request()]
        if self.has_terminals:
            requests.append(self.input(f"typed {next(self._lines)}\n".encode()))
        if self.multiport:
            requests.append(self.control_request(0, Event.PORT_READY, 1))
        return requests
