"""Console devices with a fault."""

from collections.abc import Mapping
from itertools import count
from typing import ClassVar

from tests.conformance.faults import Proxy, faulty
from tests.conformance.mutants import mutants
from virtiopy.conformance.drivers.console import OUTPUT, TYPED
from virtiopy.conformance.targets.builders import build_console
from virtiopy.devices.console import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    Console,
    ControlEvent,
)
from virtiopy.devices.streams import Stream
from virtiopy.virtqueue.buffers import Buffers, gather, scatter
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


# Bytes that are lost, repeated, late or not the same (5.3.6)


class OnStreams(Console):
    """Has streams with a fault."""

    fault: ClassVar[type[Proxy]]

    def __init__(
        self,
        stream: Stream,
        channels: Mapping[str, Stream] | None = None,
        *,
        max_nr_ports: int | None = None,
    ) -> None:
        faults = {name: faulty(one, self.fault) for name, one in (channels or {}).items()}
        super().__init__(faulty(stream, self.fault), faults, max_nr_ports=max_nr_ports)


class _Stream(Proxy):
    def __init__(self, real: object) -> None:
        super().__init__(real)
        self.calls = count(1)

    def some(self) -> bool:
        """Say whether it is one of those to be wrong."""
        return next(self.calls) % 10 == 0

    def write(self, buffers: Buffers) -> int:
        data = gather(buffers)
        self.real.write([memoryview(self.out(data))])
        return len(data)

    def out(self, data: bytes) -> bytes:
        """Return what comes out for what is written."""
        return data

    def read(self, count: int) -> bytes:
        return self.come(self.real.read(count))

    def come(self, data: bytes) -> bytes:
        """Return what comes in of what is typed."""
        return data


class _LosesOutput(_Stream):
    def out(self, data: bytes) -> bytes:
        return data[:-1] if self.some() else data


class _RepeatsOutput(_Stream):
    def out(self, data: bytes) -> bytes:
        return data * 2 if self.some() else data


class _TranslatesNewlines(_Stream):
    def out(self, data: bytes) -> bytes:
        return data.replace(b"\n", b"\r\n")


class _TurnsOutputRound(_Stream):
    def out(self, data: bytes) -> bytes:
        return data[1:] + data[:1] if self.some() else data


class _LosesInput(_Stream):
    def come(self, data: bytes) -> bytes:
        return data[:-1] if data and self.some() else data


class _RepeatsInput(_Stream):
    """Reads the last byte again, in the place of the first that comes then."""

    last = b""

    def come(self, data: bytes) -> bytes:
        last, self.last = self.last, data[-1:] or self.last
        return last + data[1:] if data and self.some() else data


class _HasSevenBits(_Stream):
    def come(self, data: bytes) -> bytes:
        return bytes(byte & 0x7F for byte in data)


class LosesBytesThatAreWritten(OnStreams):
    fault = _LosesOutput


class RepeatsBytesThatAreWritten(OnStreams):
    fault = _RepeatsOutput


class TranslatesNewlines(OnStreams):
    fault = _TranslatesNewlines


class ReordersBytesThatAreWritten(OnStreams):
    fault = _TurnsOutputRound


class LosesBytesThatAreTyped(OnStreams):
    fault = _LosesInput


class RepeatsBytesThatAreTyped(OnStreams):
    fault = _RepeatsInput


class ReadsSevenBits(OnStreams):
    fault = _HasSevenBits


class MixesItsPortsUp(Console):
    """Has the streams of its ports the other way round."""

    def __init__(
        self,
        stream: Stream,
        channels: Mapping[str, Stream] | None = None,
        *,
        max_nr_ports: int | None = None,
    ) -> None:
        [(name, other)] = (channels or {}).items()
        super().__init__(other, {name: stream}, max_nr_ports=max_nr_ports)


MUTANTS = [
    *mutants(
        build_console,
        [
            (OUTPUT, LosesBytesThatAreWritten),
            (OUTPUT, RepeatsBytesThatAreWritten),
            (OUTPUT, TranslatesNewlines),
            (OUTPUT, ReordersBytesThatAreWritten),
            (OUTPUT, MixesItsPortsUp),
            (TYPED, LosesBytesThatAreTyped),
            (TYPED, RepeatsBytesThatAreTyped),
            (TYPED, ReadsSevenBits),
            ("5.3.5.1:1", TakesEmergencyWritesOnlyWhenItRuns),
            ("5.3.5.1:2", PrintsTheUpperByte),
            ("5.3.5.1:2", LosesEmergencyWrites),
            ("5.3.6.2.1:1", AddsPortsAgain),
            ("5.3.6.2.1:1", AddsAPortTooMany),
            ("5.3.6.2.1:2", RemovesPortsThatItNeverAdded),
        ],
    )
]
