"""Console devices with a fault."""

from tests.conformance.mutants import mutants
from virtiopy.conformance.targets.builders import build_console
from virtiopy.devices.console import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    Console,
    ControlEvent,
)
from virtiopy.virtqueue.buffers import gather, scatter
from virtiopy.virtqueue.queue import Chain, Virtqueue


class TakesEmergencyWritesOnlyWhenItRuns(Console):
    def write_config(self, offset: int, data: bytes) -> bool:
        return self.running and super().write_config(offset, data)


class PrintsTheUpperByte(Console):
    def write_config(self, offset: int, data: bytes) -> bool:
        return super().write_config(offset, data[1:] + data[:1])


class LosesEmergencyWrites(Console):
    def write_config(self, offset: int, data: bytes) -> bool:
        return True


class _Talking(Console):
    """Says more than it should on the control receiveq."""

    def say(self, number: int, event: ControlEvent) -> None:
        """Send one more control message (5.3.6.2), in a buffer of the driver's."""
        queue = self.queues[CONTROL_RECEIVEQ]
        chain = queue.pop()
        assert chain is not None
        message = number.to_bytes(4, "little") + event.to_bytes(2, "little") + bytes(2)
        queue.push(chain, scatter(chain.writable, message))
        self.notify(queue)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        written = super().serve(queue, chain)
        event = int.from_bytes(gather(chain.readable)[4:6], "little")
        if queue.index == CONTROL_TRANSMITQ and event == ControlEvent.DEVICE_READY:
            self.device_ready()
        return written

    def device_ready(self) -> None:
        """See that the driver says that it is ready."""


class AddsPortsAgain(_Talking):
    """Adds all ports whenever the driver says that it is ready."""

    ready = False

    def reset(self) -> None:
        super().reset()
        self.ready = False

    def device_ready(self) -> None:
        if self.ready:
            for number in self.ports:
                self.say(number, ControlEvent.DEVICE_ADD)
        self.ready = True


class AddsAPortTooMany(_Talking):
    def device_ready(self) -> None:
        self.say(self.max_nr_ports, ControlEvent.DEVICE_ADD)


class RemovesPortsThatItNeverAdded(_Talking):
    """Says that a port is gone, though the driver was not told that it was there."""

    def remove_port(self, number: int) -> None:
        super().remove_port(number)
        self.say(number, ControlEvent.DEVICE_REMOVE)


MUTANTS = [
    *mutants(
        build_console,
        [
            ("5.3.5.1:1", TakesEmergencyWritesOnlyWhenItRuns),
            ("5.3.5.1:2", PrintsTheUpperByte),
            ("5.3.5.1:2", LosesEmergencyWrites),
            ("5.3.6.2.1:1", AddsPortsAgain),
            ("5.3.6.2.1:1", AddsAPortTooMany),
            ("5.3.6.2.1:2", RemovesPortsThatItNeverAdded),
        ],
    )
]
