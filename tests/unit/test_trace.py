"""The trace of a device: what is in it, what is left out of it, and its forms."""

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from virtiopy.cli.trace import TraceChoice, Tracing, parse_filter
from virtiopy.devices.rng import Rng
from virtiopy.errors import ConfigError
from virtiopy.memory import GuestMemory
from virtiopy.trace.events import Actor, Event, Filter, Kind, LiveTrace, Phase, Stamped
from virtiopy.trace.sinks import JsonSink, TextSink
from virtiopy.trace.watch import DeviceTrace
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Register
from virtiopy.vhost.user.messages import Message, Request, u64
from virtiopy.virtqueue.driver import Allocator, Piece

MEMORY_SIZE = 1 << 20


class Kept:
    """A sink that keeps the events."""

    def __init__(self) -> None:
        self.stamped: list[Stamped] = []

    def take(self, stamped: Stamped) -> None:
        self.stamped.append(stamped)

    def finish(self) -> None: ...

    @property
    def lines(self) -> list[str]:
        return [one.event.what for one in self.stamped if one.event.what]


@contextmanager
def traced(trace: LiveTrace) -> Iterator[MmioDriver]:
    """An entropy device that is traced, and its driver."""
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        transport = MmioTransport(Rng(), memory, LevelInterrupt(lambda level: None))
        seen = DeviceTrace(trace, "rng0").watch_registers(transport, sees_acknowledgements=True)
        yield MmioDriver(seen, memory, Allocator(0x1000, MEMORY_SIZE))


def ask(driver: MmioDriver) -> None:
    """Have 16 random bytes."""
    driver.start()
    address = driver.allocator.take(16)
    driver.queues[0].add([Piece(address, 16, writable=True)])
    assert len(driver.collect(0)) == 1
    driver.write(Register.InterruptACK, 1)


def lines_of(wanted: Filter | None = None) -> list[str]:
    kept = Kept()
    with traced(LiveTrace(kept, wanted)) as driver:
        ask(driver)
    return kept.lines


def in_order(lines: Sequence[str], *starts: str) -> bool:
    """Say whether there are lines with these starts, in this order."""
    left = iter(lines)
    return all(any(line.startswith(start) for line in left) for start in starts)


def test_a_request_is_followed_from_the_register_to_the_interrupt() -> None:
    lines = lines_of()
    assert in_order(
        lines,
        "read MagicValue = 0x74726976",
        "write Status = 0xf (ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK)",
        "the device is live",
        "write QueueNotify = 0x0",
        "kick 0",
        "queue 0: available: head 0, 0x",
        "queue 0: used: head 0, 16 bytes",
        "queue 0: the driver wants an interrupt",
        "interrupt: queue 0",
        "interrupt acknowledged: 0x1",
    ), "\n".join(lines)


def test_features_are_named() -> None:
    [line] = [line for line in lines_of() if line.startswith("features accepted")]
    assert "VIRTIO_F_VERSION_1" in line


@pytest.mark.parametrize(
    ("wanted", "there", "not_there"),
    [
        (Filter(kinds={Kind.KICK}), "kick 0", "write QueueNotify"),
        (Filter(kinds={Kind.REGISTER, Kind.LIFE}), "the device is live", "queue 0: used"),
        (Filter(queues={0}), "queue 0: used", "read MagicValue"),
        (Filter(devices={"rng0"}), "kick 0", "nothing of the kind"),
    ],
)
def test_only_what_is_wanted_is_there(wanted: Filter, there: str, not_there: str) -> None:
    lines = lines_of(wanted)
    assert any(line.startswith(there) for line in lines)
    assert not any(line.startswith(not_there) for line in lines)


@pytest.mark.parametrize("wanted", [Filter(devices={"blk0"}), Filter(queues={1})])
def test_nothing_is_there_of_other_devices_and_queues(wanted: Filter) -> None:
    assert lines_of(wanted) == []


def test_a_message_has_its_name_and_its_numbers() -> None:
    kept = Kept()
    trace = DeviceTrace(LiveTrace(kept), "blk")
    trace.message(Message(Request.SET_FEATURES, u64(0x1_0000_0000)), True)
    trace.message(Message(Request.GET_STATUS, u64(0xF)), False)
    assert kept.lines == ["-> SET_FEATURES 0x100000000", "<- GET_STATUS 0xf"]


def stamped(what: str, seconds: float = 0.0) -> Stamped:
    return Stamped(seconds, "blk0", Event(Kind.REGISTER, Actor.DRIVER, what))


def test_what_comes_again_and_again_is_written_once_and_counted() -> None:
    written = bytearray()
    sink = TextSink(written.extend)
    for what in ("read Status = 0x0", *["read Status = 0xf"] * 3, "kick 0", "kick 0"):
        sink.take(stamped(what, 0.0125))
    sink.finish()
    assert written.decode().splitlines() == [
        "   12.500 ms  blk0: read Status = 0x0",
        "   12.500 ms  blk0: read Status = 0xf",
        "              ... 2 times more",
        "   12.500 ms  blk0: kick 0",
        "              ... once more",
    ]


def test_json_has_an_object_a_line_with_what_a_program_looks_for() -> None:
    written = bytearray()
    with traced(LiveTrace(JsonSink(written.extend))) as driver:
        ask(driver)
    events = [json.loads(line) for line in written.splitlines()]
    [used] = [event for event in events if "written" in event and event["kind"] == "ring"]
    assert (used["device"], used["queue"], used["head"], used["written"]) == ("rng0", 0, 0, 16)
    assert used["seconds"] >= 0


class Full:
    """A sink on a full disk."""

    def __init__(self) -> None:
        self.calls = 0

    def take(self, stamped: Stamped) -> None:
        self.calls += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def finish(self) -> None: ...


def test_a_sink_that_fails_ends_the_trace_and_not_the_device() -> None:
    sink, failures = Full(), list[OSError]()
    trace = LiveTrace(sink)
    trace.on_failure = failures.append
    with traced(trace) as driver:
        ask(driver)
    assert sink.calls == 1
    assert [failure.errno for failure in failures] == [errno.ENOSPC]


# For ui.perfetto.dev


def perfetto(events: Sequence[Stamped]) -> list[tuple[int, str, str]]:
    """Write events; return the lane, the row and the kind of each, as Perfetto reads them."""
    protos = pytest.importorskip(
        "perfetto.protos.perfetto.trace.perfetto_trace_pb2",
        reason="the extra `trace` is not installed",
    )
    from virtiopy.trace.perfetto import PerfettoSink

    written = bytearray()
    sink = PerfettoSink(written.extend)
    for event in events:
        sink.take(event)
    sink.finish()
    trace = protos.Trace.FromString(bytes(written))
    rows = dict[int, str]()
    shown = []
    for packet in trace.packet:
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            parent = rows.get(track.parent_uuid, "")
            rows[track.uuid] = f"{parent}/{track.name}"
        else:
            event = packet.track_event
            kind = protos.TrackEvent.Type.Name(event.type).removeprefix("TYPE_")
            shown.append((event.track_uuid, rows[event.track_uuid], kind))
    return shown


def test_a_perfetto_trace_has_rows_for_driver_device_interrupts_and_requests() -> None:
    kept = Kept()
    with traced(LiveTrace(kept)) as driver:
        ask(driver)
    shown = perfetto(kept.stamped)
    assert {row for _, row, _ in shown} == {
        "/rng0/driver",
        "/rng0/device",
        "/rng0/interrupts",
        "/rng0/requests of queue 0",
    }
    requests = [kind for _, row, kind in shown if row.endswith("requests of queue 0")]
    assert requests == ["SLICE_BEGIN", "SLICE_END"]
    interrupts = [kind for _, row, kind in shown if row.endswith("interrupts")]
    assert interrupts == ["SLICE_BEGIN", "SLICE_END"]


def test_requests_at_the_same_time_lie_in_lanes_of_their_own() -> None:
    def request(head: int, phase: Phase) -> Stamped:
        event = Event(Kind.RING, Actor.DRIVER, f"head {head}", 0, phase=phase, span=f"head {head}")
        return Stamped(head / 1000, "blk0", event)

    begin, end = Phase.BEGIN, Phase.END
    order = [(0, begin), (1, begin), (0, end), (2, begin), (1, end), (2, end)]
    lanes = [lane for lane, _, _ in perfetto([request(*one) for one in order])]
    assert lanes[0] == lanes[2] == lanes[3] == lanes[5]
    assert lanes[1] == lanes[4] != lanes[0]


# Options


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour=red", "device=..., queue=..., kind=..."),
        ("device", "device=..."),
        ("queue=x", "a queue's number"),
        ("kind=kicks", "register, life, ring, kick, interrupt, message"),
        ("", "device=..."),
    ],
)
def test_a_filter_that_is_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        parse_filter([text])


def test_a_filter_takes_several_of_a_key() -> None:
    wanted = parse_filter(["device=blk0,kind=ring", "kind=kick,queue=1"])
    assert wanted == Filter(frozenset({"blk0"}), frozenset({1}), frozenset({Kind.RING, Kind.KICK}))


@pytest.mark.parametrize("name", ["trace.txt", "trace.jsonl"])
def test_a_trace_is_written_to_its_file(tmp_path: Path, name: str) -> None:
    write_one(TraceChoice(str(tmp_path / name)))
    assert "kick 0" in (tmp_path / name).read_text()


def write_one(choice: TraceChoice, act: Callable[[Tracing], None] = lambda it: None) -> None:
    with ExitStack() as stack, GuestMemory.allocate(MEMORY_SIZE) as memory:
        tracing = Tracing.open(choice, stack)
        device = Rng()
        watch = tracing.prepare(device, sees_acknowledgements=True)
        assert watch is not None
        transport = MmioTransport(device, memory, LevelInterrupt(lambda level: None))
        ask(MmioDriver(watch("rng0", transport, True), memory, Allocator(0x1000, MEMORY_SIZE)))
        act(tracing)


def test_a_trace_on_a_full_disk_says_so_and_the_device_works(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_one(TraceChoice("/dev/full"))
    assert capsys.readouterr().err == (
        "virtiopy: The trace /dev/full ends here (No space left on device); the run goes on.\n"
    )


def test_a_trace_does_not_replace_a_file_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Sir or Madam")
    with ExitStack() as stack, pytest.raises(ConfigError, match="did not make"):
        Tracing.open(TraceChoice(str(path)), stack)
    assert path.read_text() == "Dear Sir or Madam"


def test_a_filter_of_a_device_that_is_not_there_is_refused() -> None:
    choice = TraceChoice("/dev/null", ["device=blk7"])
    with pytest.raises(ConfigError, match=r"blk7.*use one of rng0"):
        write_one(choice, lambda tracing: tracing.check_devices(["rng0"]))


def test_a_filter_without_a_trace_is_refused() -> None:
    with ExitStack() as stack, pytest.raises(ConfigError, match="give --trace"):
        Tracing.open(TraceChoice(None, ["queue=0"]), stack)
