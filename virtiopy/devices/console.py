"""The console device (5.3): ports of bytes, of which port 0 is the console.

A port's host side is a `Stream`. Nothing that either side wrote is lost when the other is slow:
while the host's side takes no more, the guest's buffers stay unused; while the guest supplies no
buffers, or has not opened the port, the host's side is not read.
"""

import contextlib
import enum
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from virtiopy._native import ffi
from virtiopy.devices.base import DeviceHost, VirtioDevice
from virtiopy.devices.streams import Stream
from virtiopy.errors import DriverError
from virtiopy.eventloop import EventLoop
from virtiopy.spec import DeviceId, feature_mask, has_feature
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, split_at, total
from virtiopy.virtqueue.queue import BATCH, Chain, Completion, Virtqueue, batches_of_a_turn

log = logging.getLogger(__name__)

#: The control queues; ports have the others (5.3.2).
CONTROL_RECEIVEQ = 2
CONTROL_TRANSMITQ = 3

#: The most that is read from the host ahead of the guest's buffers, bytes a port.
INPUT_BYTES = 1 << 16

#: How much of what came through `emerg_wr` waits for the host's side; more is dropped.
EMERGENCY_BYTES = 1 << 12

_CONTROL_SIZE = ffi.sizeof("struct virtio_console_control")
_EMERG_WR_OFFSET = ffi.offsetof("struct virtio_console_config", "emerg_wr")


class ConsoleFeature(enum.IntEnum):
    """Feature bits (5.3.3)."""

    VIRTIO_CONSOLE_F_SIZE = 0
    VIRTIO_CONSOLE_F_MULTIPORT = 1
    VIRTIO_CONSOLE_F_EMERG_WRITE = 2


class ControlEvent(enum.IntEnum):
    """What a control message is about, VIRTIO_CONSOLE_* (5.3.6.2)."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


@dataclass(slots=True)
class _Output:
    """A buffer of a transmitq, and what of it the host's side has not taken yet."""

    chain: Chain
    rest: Buffers


def receiveq(port: int) -> int:
    """Return the index of a port's receiveq (5.3.2)."""
    return 0 if port == 0 else 2 * port + 2


def transmitq(port: int) -> int:
    """Return the index of a port's transmitq (5.3.2)."""
    return receiveq(port) + 1


class Port:
    """A port that exists: number, name, host's side, and what is on its way between the two.

    `is_console` is whether the driver is told to use it as one; `ready` and `guest_open` follow
    the driver's PORT_READY and PORT_OPEN.
    """

    def __init__(
        self, device: "Console", number: int, stream: Stream, name: str, *, is_console: bool
    ) -> None:
        self.lock = device.lock
        self.number = number
        self.stream = stream
        self.name = name
        self.is_console = is_console
        self.ready = False
        self.guest_open = False
        self._device = device
        self._input = memoryview(b"")
        self._output: deque[_Output] = deque()
        self._emergency = bytearray()

    # What the stream says (StreamUser)

    def input_ready(self) -> None:
        """Read, unless the guest has no use for it."""
        if self._may_read():
            self._input = memoryview(self.stream.read(INPUT_BYTES))
        with self._device.guarded():
            self.deliver()

    def room_ready(self) -> None:
        """Go on with what waited."""
        with self._device.guarded():
            self.transmit()

    def connection_changed(self) -> None:
        """Tell the driver, and go on with what waited for the reader that went."""
        with self._device.guarded():
            if self.ready:
                self._device.send_open(self)
            self.transmit()

    def size_changed(self) -> None:
        """Tell the driver."""
        with self._device.guarded():
            self._device.send_size(self)

    # From the host to the guest

    def _may_read(self) -> bool:
        device = self._device
        usable = device.running and self.guest_open and receiveq(self.number) in device.queues
        return usable and not self._input

    def deliver(self) -> None:
        """Give the guest what was read; read on only when it has taken everything."""
        queue = self._device.queues.get(receiveq(self.number))
        if queue is not None and self._device.running and self.guest_open:
            self._device.supply(queue, lambda: bool(self._input), self._fill)
        self.stream.watch_input(self._may_read())

    def _fill(self, chain: Chain) -> int:
        room = total(chain.writable)
        data, self._input = self._input[:room], self._input[room:]
        return scatter(chain.writable, bytes(data))

    # From the guest to the host

    def transmit(self) -> None:
        """Write what the guest sent, until it has no more or the host's side takes no more."""
        self._write_emergency()
        queue = self._device.queues.get(transmitq(self.number))
        if queue is not None and self._device.running:
            self._drain(queue)
        self.stream.watch_room(bool(self._output or self._emergency))

    def _drain(self, queue: Virtqueue) -> None:
        for _ in batches_of_a_turn():
            queue.disable_kicks()
            if not self._output:
                chains = queue.pop_many(BATCH)
                self._output.extend(_Output(chain, chain.readable) for chain in chains)
            done = [(chain, 0) for chain in self._write()] if self._output else []
            queue.push_many(done)
            self._device.notify(queue)
            if self._output:
                # The host's side takes no more for now.
                return
            if not done and not queue.enable_kicks():
                return
        self._device.handle_soon(queue)

    def _write(self) -> Iterator[Chain]:
        """Write once; yields the chains of which nothing is left."""
        taken = 0
        if not self._emergency:
            taken = self.stream.write([piece for output in self._output for piece in output.rest])
        while self._output:
            output = self._output[0]
            length = total(output.rest)
            if taken < length:
                output.rest = split_at(output.rest, taken)[1]
                return
            taken -= length
            self._output.popleft()
            yield output.chain

    def emergency_write(self, character: int) -> None:
        """Write a character ahead of what waits, whatever state the driver is in (5.3.5.1)."""
        if len(self._emergency) < EMERGENCY_BYTES:
            self._emergency.append(character)
        self._write_emergency()
        self.stream.watch_room(bool(self._output or self._emergency))

    def _write_emergency(self) -> None:
        if self._emergency:
            taken = self.stream.write([memoryview(bytes(self._emergency))])
            del self._emergency[:taken]

    # Life

    def forget_output(self) -> None:
        """Let go of the transmitq's buffers: it was reset."""
        self._output.clear()

    def return_output(self) -> None:
        """Give the driver its buffers back, written or not: the port goes away."""
        queue = self._device.queues.get(transmitq(self.number))
        if queue is not None and self._output:
            queue.push_many([(output.chain, 0) for output in self._output])
            self._device.notify(queue)
        self._output.clear()

    def stop(self) -> None:
        """Leave the host's side alone: there is no driver, or none that can go on."""
        self.stream.watch_input(False)
        self.stream.watch_room(bool(self._emergency))

    def reset(self) -> None:
        """Forget the driver; what was read from the host waits for the next one."""
        self.ready = self.guest_open = False
        self._output.clear()
        self.stop()


class Console(VirtioDevice):
    """A console device. Port 0 is the console, on `stream`; `channels` are generic ports by name.

    MULTIPORT is offered when `max_nr_ports` (default: as many as there are) is more than 1, and
    SIZE when `stream` has a size. Each queue has `queue_size` entries.
    """

    device_id: ClassVar[DeviceId] = DeviceId.CONSOLE
    serves_legacy_drivers = True
    feature_bits = ConsoleFeature

    def __init__(
        self,
        stream: Stream,
        channels: Mapping[str, Stream] | None = None,
        *,
        max_nr_ports: int | None = None,
        queue_size: int = 128,
    ) -> None:
        super().__init__()
        channels = channels or {}
        self.max_nr_ports = max_nr_ports or 1 + len(channels)
        if self.max_nr_ports <= len(channels):
            raise ValueError(f"{1 + len(channels)} ports, and max_nr_ports {max_nr_ports}")
        features = [ConsoleFeature.VIRTIO_CONSOLE_F_EMERG_WRITE]
        if stream.size is not None:
            features.append(ConsoleFeature.VIRTIO_CONSOLE_F_SIZE)
        if self.max_nr_ports > 1:
            features.append(ConsoleFeature.VIRTIO_CONSOLE_F_MULTIPORT)
        self.features = feature_mask(features)
        queues = 2 if self.max_nr_ports == 1 else 2 * self.max_nr_ports + 2
        self.queue_sizes: Sequence[int] = [queue_size] * queues
        #: The ports that exist, by number.
        self.ports = {0: Port(self, 0, stream, "", is_console=True)}
        for number, (name, channel) in enumerate(channels.items(), 1):
            self.ports[number] = Port(self, number, channel, name, is_console=False)
        #: DRIVER_OK is set and the rings are sound: queues may be worked.
        self.running = False
        self._driver_ready = False
        #: Control messages that wait for a buffer, the oldest first, by port and event: the
        #: last of each kind is all that the driver needs, so they cannot grow without bound.
        self._messages: dict[tuple[int, ControlEvent], bytes] = {}

    def attach(
        self, host: DeviceHost, loop: EventLoop | None = None, *, may_block: bool = True
    ) -> None:
        """Open the host's sides; without a loop nothing is noticed of what happens there."""
        super().attach(host, loop, may_block=may_block)
        with self.lock:
            for port in self.ports.values():
                self._open(port)

    def _open(self, port: Port) -> None:
        if self.loop is not None:
            port.stream.open(self.loop, port)

    # Configuration space (5.3.4)

    def config_space(self) -> bytes:
        """Return struct virtio_console_config."""
        config = ffi.new("struct virtio_console_config *")
        size = self.ports[0].stream.size
        if size is not None and has_feature(self.features, ConsoleFeature.VIRTIO_CONSOLE_F_SIZE):
            config.cols, config.rows = size.cols, size.rows
        config.max_nr_ports = self.max_nr_ports
        return bytes(ffi.buffer(config))

    def write_config(self, offset: int, data: bytes) -> bool:
        """Print the lower byte written to `emerg_wr`, also on an unconfigured device (5.3.5.1)."""
        if offset != _EMERG_WR_OFFSET:
            return False
        self.ports[0].emergency_write(data[0])
        return True

    # Life

    @property
    def multiport(self) -> bool:
        """Whether VIRTIO_CONSOLE_F_MULTIPORT was negotiated."""
        return has_feature(self.driver_features, ConsoleFeature.VIRTIO_CONSOLE_F_MULTIPORT)

    def activate(self, queues: Mapping[int, Virtqueue]) -> None:
        """Start; without MULTIPORT, port 0 is open for good."""
        super().activate(queues)
        self.running = True
        self.ports[0].guest_open = not self.multiport
        for index in queues:
            self._work(index)

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Take a queue, and what may wait for it."""
        super().start_queue(index, queue)
        self._work(index)

    def stop_queue(self, index: int) -> None:
        """Forget a queue and its buffers."""
        super().stop_queue(index)
        port = self._port_of(index)
        if port is not None and index == transmitq(port.number):
            port.forget_output()
        if port is not None:
            self._work(index)

    def reset(self) -> None:
        """Forget the driver; the host's sides stay open."""
        super().reset()
        self.running = False
        self._driver_ready = False
        self._messages.clear()
        for port in self.ports.values():
            port.reset()

    def close(self) -> None:
        """Close the host's sides."""
        for port in self.ports.values():
            port.stream.close()

    # Queues (5.3.2)

    def handle(self, queue: Virtqueue) -> None:
        """Work a queue that was kicked."""
        self._work(queue.index)

    def _work(self, index: int) -> None:
        queue = self.queues.get(index)
        port = self._port_of(index)
        with self.guarded():
            if port is not None and index == receiveq(port.number):
                port.deliver()
            elif port is not None:
                port.transmit()
            elif queue is None or not self.multiport or not self.running:
                return
            elif index == CONTROL_RECEIVEQ:
                self._send_waiting()
            elif index % 2:
                super().handle(queue)

    def _port_of(self, index: int) -> Port | None:
        """Return the port that a queue belongs to, where it exists."""
        if index in (CONTROL_RECEIVEQ, CONTROL_TRANSMITQ):
            return None
        number = 0 if index < CONTROL_RECEIVEQ else index // 2 - 1
        return self.ports.get(number) if number == 0 or self.multiport else None

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn broken rings into DEVICE_NEEDS_RESET, and stop until it comes (2.1.2)."""
        try:
            yield
        except DriverError as error:
            self.running = False
            for port in self.ports.values():
                port.stop()
            self.host.needs_reset(str(error))

    def supply(
        self, queue: Virtqueue, pending: Callable[[], bool], fill: Callable[[Chain], int]
    ) -> None:
        """Fill the driver's buffers while anything is pending; a kick is wanted only after that."""
        for _ in batches_of_a_turn():
            done: list[Completion] = []
            while pending() and len(done) < BATCH and (chain := queue.pop()) is not None:
                done.append((chain, fill(chain)))
            queue.push_many(done)
            self.notify(queue)
            if not pending():
                queue.disable_kicks()
                return
            if not queue.enable_kicks():
                return
        self.handle_soon(queue)

    # Control messages (5.3.6.2)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        """Obey a control message; what is transmitted to a port that does not exist is dropped."""
        if queue.index == CONTROL_TRANSMITQ:
            data = gather(split_at(chain.readable, _CONTROL_SIZE)[0])
            if len(data) == _CONTROL_SIZE:
                message = ffi.from_buffer("struct virtio_console_control *", data)
                self._obey(message.id, message.event, message.value)
            else:
                log.info("a control message of %d bytes ignored (5.3.6.2)", len(data))
        return 0

    def _obey(self, number: int, event: int, value: int) -> None:
        port = self.ports.get(number)
        if event == ControlEvent.DEVICE_READY:
            self._device_ready(value)
        elif event not in (ControlEvent.PORT_READY, ControlEvent.PORT_OPEN) or value > 1:
            log.info("control event %d, value %d, of port %d ignored", event, value, number)
        elif port is None or not self._driver_ready:
            log.info("control event %d for port %d, which does not exist", event, number)
        elif event == ControlEvent.PORT_READY:
            self._port_ready(port, value)
        else:
            port.guest_open = bool(value)
            port.deliver()

    def _device_ready(self, value: int) -> None:
        if value != 1:
            log.warning("the driver could not set up the console device")
        elif not self._driver_ready:
            self._driver_ready = True
            for number in self.ports:
                self._send(number, ControlEvent.DEVICE_ADD)

    def _port_ready(self, port: Port, value: int) -> None:
        """Tell a driver that has a port what the port is, and whether the host is there."""
        if value != 1:
            log.warning("the driver could not set up port %d", port.number)
        if port.ready or value != 1:
            port.ready = bool(value)
            return
        port.ready = True
        if port.is_console:
            self._send(port.number, ControlEvent.CONSOLE_PORT, 1)
        if port.name:
            self._send(port.number, ControlEvent.PORT_NAME, 1, port.name.encode())
        if port.is_console:
            self._send_resize(port)
        if port.stream.connected:
            self.send_open(port)

    def send_open(self, port: Port) -> None:
        """Say whether a reader is at the host's side."""
        self._send(port.number, ControlEvent.PORT_OPEN, int(port.stream.connected))

    def send_size(self, port: Port) -> None:
        """Say that the terminal changed its size, in both the ways that there are (5.3.6)."""
        if port.number == 0 and has_feature(self.features, ConsoleFeature.VIRTIO_CONSOLE_F_SIZE):
            self.host.config_changed()
        if port.ready and port.is_console:
            self._send_resize(port)

    def _send_resize(self, port: Port) -> None:
        size = port.stream.size
        if size is not None:
            resize = ffi.new("struct virtio_console_resize *", (size.cols, size.rows))
            self._send(port.number, ControlEvent.RESIZE, 0, bytes(ffi.buffer(resize)))

    def _send(self, number: int, event: ControlEvent, value: int = 0, payload: bytes = b"") -> None:
        """Send a control message, in place of one of its kind that has not left yet."""
        header = ffi.new("struct virtio_console_control *", (number, event, value))
        self._messages.pop((number, event), None)
        self._messages[number, event] = bytes(ffi.buffer(header)) + payload
        self._send_waiting()

    def _send_waiting(self) -> None:
        queue = self.queues.get(CONTROL_RECEIVEQ)
        if queue is not None and self.running:
            self.supply(queue, lambda: bool(self._messages), self._fill)

    def _fill(self, chain: Chain) -> int:
        """Put the next message into a buffer, and cut it where the buffer is too small.

        A message that waited for a larger buffer would have all that follow it wait as well. One
        waits only for a buffer that has room for its header, which says what it is about.
        """
        key, message = next(iter(self._messages.items()))
        room = total(chain.writable)
        if room < len(message):
            log.warning(
                "a console's driver has a control buffer of %d bytes for a message of %d (5.3.6.2)",
                room,
                len(message),
            )
        if room < _CONTROL_SIZE:
            return 0
        del self._messages[key]
        return scatter(chain.writable, message[:room])

    # Ports that come and go

    def add_port(self, number: int, stream: Stream, name: str, *, is_console: bool = False) -> Port:
        """Plug a port in; from any thread. Raises ValueError for a number that it cannot have."""
        with self.lock, self.guarded():
            if number in self.ports or not 0 < number < self.max_nr_ports:
                raise ValueError(f"port {number} exists, or is none of {self.max_nr_ports}")
            port = self.ports[number] = Port(self, number, stream, name, is_console=is_console)
            self._open(port)
            if self._driver_ready:
                self._send(number, ControlEvent.DEVICE_ADD)
        return self.ports[number]

    def remove_port(self, number: int) -> None:
        """Unplug a port other than 0, and close its stream; from any thread.

        Raises KeyError where there is none.
        """
        with self.lock, self.guarded():
            if number == 0:
                raise KeyError(number)
            port = self.ports.pop(number)
            port.return_output()
            port.stop()
            port.stream.close()
            announced = (number, ControlEvent.DEVICE_ADD) not in self._messages
            # A removal that has not left yet is that of the port's predecessor.
            for event in set(ControlEvent) - {ControlEvent.DEVICE_REMOVE}:
                self._messages.pop((number, event), None)
            if self._driver_ready and announced:
                self._send(number, ControlEvent.DEVICE_REMOVE)
