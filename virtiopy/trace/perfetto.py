"""A trace for https://ui.perfetto.dev: rows for driver, device, interrupts and requests.

It is written with the project's own package, `perfetto`, an extra (`virtiopy[trace]`): nothing else
has the 600 kinds of messages of the format, and the JSON that the page reads too is called legacy.
"""

from collections.abc import Callable
from typing import Any

from virtiopy.errors import ConfigError
from virtiopy.trace.events import Actor, Kind, Phase, Stamped

try:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TracePacket, TrackEvent
except ImportError as error:
    raise ConfigError(
        f"A Perfetto trace needs the package perfetto, which is not here ({error}): install it "
        "with pip install 'virtiopy[trace]', or name a .txt or .jsonl file."
    ) from error

#: Identifies us as the one writer of the packets.
_SEQUENCE = 1

_NANOSECONDS = 1e9

#: A row, by its device, name and lane: what lasts at the same time lies in lanes of one name.
_Row = tuple[str, str, int]


class PerfettoSink:
    """One packet an event; what lasts is a slice, in a lane of its row."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._rows: dict[_Row, int] = {}
        #: The lane of each span that has begun and not ended, by row without its lane.
        self._open: dict[tuple[str, str], dict[str, int]] = {}

    def take(self, stamped: Stamped) -> None:
        """Write an event."""
        event = stamped.event
        row = (stamped.device, _row_of(stamped))
        begun = self._open.setdefault(row, {})
        match event.phase:
            case Phase.BEGIN if event.span not in begun:
                lane = next(lane for lane in range(len(begun) + 1) if lane not in begun.values())
                begun[event.span] = lane
                self._event(stamped, lane, TrackEvent.TYPE_SLICE_BEGIN)
            case Phase.END:
                if (lane_ := begun.pop(event.span, None)) is not None:
                    self._event(stamped, lane_, TrackEvent.TYPE_SLICE_END)
            case _ if event.took is not None:
                lane = next(lane for lane in range(len(begun) + 1) if lane not in begun.values())
                self._event(stamped, lane, TrackEvent.TYPE_SLICE_BEGIN)
                self._event(stamped, lane, TrackEvent.TYPE_SLICE_END, later=event.took)
            case _:
                self._event(stamped, 0, TrackEvent.TYPE_INSTANT)

    def finish(self) -> None:
        """Keep nothing back: what has not ended is shown so."""

    def _event(self, stamped: Stamped, lane: int, kind: int, later: float = 0.0) -> None:
        event = stamped.event
        track = self._track(stamped.device, _row_of(stamped), lane)
        packet = _packet()
        packet.timestamp = 1 + round((stamped.seconds + later) * _NANOSECONDS)
        packet.track_event.track_uuid = track
        packet.track_event.type = kind
        if kind != TrackEvent.TYPE_SLICE_END:
            packet.track_event.name = event.what
            packet.track_event.categories.append(event.kind.value)
            if event.flow is not None:
                packet.track_event.flow_ids.append(event.flow)
        for name, value in event.details.items():
            annotation = packet.track_event.debug_annotations.add()
            annotation.name = name
            if isinstance(value, int):
                annotation.uint_value = value
            else:
                annotation.string_value = value
        self._packet(packet)

    def _track(self, device: str, name: str, lane: int) -> int:
        """Return the number of a row, which is described when it is first used."""
        row = (device, name, lane)
        if row not in self._rows:
            parent = self._track(device, "", 0) if name else 0
            self._rows[row] = uuid = len(self._rows) + 1
            packet = _packet()
            packet.track_descriptor.uuid = uuid
            packet.track_descriptor.name = name or device
            if parent:
                packet.track_descriptor.parent_uuid = parent
            self._packet(packet)
        return self._rows[row]

    def _packet(self, packet: Any) -> None:  # noqa: ANN401 - messages have no types of their own
        # A trace is a message that repeats its one field: pieces of it can be written one by one.
        self._write(Trace(packet=[packet]).SerializeToString())


def _packet() -> Any:  # noqa: ANN401 - messages have no types of their own
    packet = TracePacket()
    packet.trusted_packet_sequence_id = _SEQUENCE
    return packet


def _row_of(stamped: Stamped) -> str:
    event = stamped.event
    if event.kind is Kind.INTERRUPT:
        return "interrupts"
    if event.kind is Kind.RING and event.phase is not Phase.INSTANT:
        return f"requests of queue {event.queue}"
    return "driver" if event.actor is Actor.DRIVER else "device"
