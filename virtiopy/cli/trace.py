"""The option --trace: what passes between drivers and devices, while they run."""

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from virtiopy.cli.options import note
from virtiopy.cli.output import PATIENCE, OutputError, PatientOutput
from virtiopy.errors import ConfigError

if TYPE_CHECKING:
    from virtiopy.devices.base import VirtioDevice
    from virtiopy.trace.events import Filter, LiveTrace, Sink
    from virtiopy.trace.watch import DeviceTrace
    from virtiopy.transport.placement import Transport
    from virtiopy.vhost.user.backend import Backend
    from virtiopy.vm.slots import WatchTransport

#: What `--trace` without a file says.
_NO_FILE = "-"

#: What the file of a trace ends with, for the forms that are no text.
_JSON_LINES = (".jsonl", ".ndjson")
_PERFETTO = (".pftrace", ".perfetto-trace")

_KEYS = ("device", "queue", "kind")

_Command = TypeVar("_Command", bound=Callable[..., int])


def trace_options(function: _Command) -> _Command:
    """Give a subcommand the options --trace and --trace-only."""
    function = click.option(
        "--trace-only",
        multiple=True,
        metavar="KEY=VALUE,...",
        help="Trace no more than this: device=NAME (as blk0), queue=NUMBER, kind=register, life, "
        "ring, kick, interrupt or message; several of a key are all wanted.",
    )(function)
    return click.option(
        "--trace",
        is_flag=False,
        flag_value=_NO_FILE,
        metavar="[FILE]",
        help="Show what passes between driver and device, as it does: registers, rings, "
        "notifications, messages; on standard error, or in FILE: as text, as JSON lines where its "
        "name ends with .jsonl, for ui.perfetto.dev with .pftrace.",
    )(function)


@dataclass(slots=True, frozen=True)
class TraceChoice:
    """What the options say: where the trace goes, None for none, and what is wanted of it."""

    target: str | None = None
    only: Sequence[str] = ()


class Tracing:
    """The trace of a run, if one is asked for."""

    def __init__(self, trace: "LiveTrace | None", output: PatientOutput | None, name: str) -> None:
        self.path: Path | None = None
        self._trace = trace
        self._output = output
        self._name = name

    @classmethod
    def open(cls, choice: TraceChoice, stack: contextlib.ExitStack) -> "Tracing":
        """Take the options' values; `stack` ends the trace. Raises ConfigError, before the run."""
        if choice.target is None:
            if choice.only:
                raise ConfigError("--trace-only is about a trace: give --trace with it.")
            return cls(None, None, "")
        from virtiopy.files import open_output
        from virtiopy.trace.events import LiveTrace

        wanted = parse_filter(choice.only)
        path = None if choice.target == _NO_FILE else Path(choice.target)
        if path is None:
            stream = sys.stderr
            make, name = _sink(""), "The trace"
        else:
            make, name = _sink(path.suffix), f"The trace {path}"
            stream = stack.enter_context(io.TextIOWrapper(open_output(path, "The trace")))
        output = PatientOutput(stream)

        def write(data: bytes) -> None:
            try:
                output.write_bytes(data)
            except OutputError as error:
                raise error.error from error

        tracing = cls(LiveTrace(make(write), wanted), output, name)
        assert tracing._trace is not None
        tracing._trace.on_failure = tracing._failed
        tracing.path = path
        stack.callback(tracing.finish)
        return tracing

    @property
    def watches(self) -> bool:
        """Whether there is a trace."""
        return self._trace is not None

    def hurry(self) -> None:
        """Let no device wait for the trace's reader from now on: what finds no room is left out."""
        if self._output is not None:
            self._output.hurry()

    def prepare(
        self, device: "VirtioDevice", *, sees_acknowledgements: bool
    ) -> "WatchTransport | None":
        """Return what `Machine.add_device` puts before a device's registers."""
        live = self._trace
        if live is None:
            return None
        from virtiopy.trace.watch import DeviceTrace
        from virtiopy.vhost.user.device import VhostUserDevice

        def watch(name: str, transport: "Transport", trapped: bool) -> "Transport":
            trace = DeviceTrace(live, name)
            if isinstance(device, VhostUserDevice):
                device.watch_messages(trace.message)
            return trace.watch_registers(transport, sees_acknowledgements=sees_acknowledgements)

        return watch

    def watch_backend(self, name: str, backend: "Backend") -> None:
        """Trace a device that is served to a frontend."""
        if self._trace is None:
            return
        from virtiopy.trace.watch import DeviceTrace

        self.check_devices([name])
        trace = DeviceTrace(self._trace, name)
        trace.watch(backend.lifecycle, sees_acknowledgements=False)
        backend.on_message = lambda message, sent: trace.message(message, not sent)

    def device(self, name: str) -> "DeviceTrace | None":
        """Return the trace of what passes a proxy, if there is one."""
        if self._trace is None:
            return None
        from virtiopy.trace.watch import DeviceTrace

        self.check_devices([name])
        return DeviceTrace(self._trace, name)

    def check_devices(self, names: Sequence[str]) -> None:
        """Raise ConfigError where --trace-only names a device that there is not."""
        if self._trace is None:
            return
        for name in self._trace.filter.devices:
            if name not in names:
                there = f"use one of {', '.join(names)}" if names else "attach one"
                raise ConfigError(f"--trace-only device={name}: there is no such device: {there}.")

    def finish(self) -> None:
        """End the trace, and say where it could not be written."""
        if self._trace is None or self._output is None:
            return
        failed = self._trace.failure is not None
        self._trace.finish()
        if self._trace.failure is None:
            try:
                self._output.finish(PATIENCE)
            except OutputError as error:
                self._failed(error.error)
            except BrokenPipeError as error:
                self._failed(error)
        elif not failed:
            self._failed(self._trace.failure)
        if self._output.dropped:
            note(f"{self._name} leaves out {self._output.dropped} events: its reader was too slow.")

    def _failed(self, error: OSError) -> None:
        with contextlib.suppress(OSError):
            note(f"{self._name} ends here ({error.strerror}); the run goes on.")


def _sink(suffix: str) -> "Callable[[Callable[[bytes], None]], Sink]":
    """Return what makes a sink of the form that a file's name asks for."""
    from virtiopy.trace.sinks import JsonSink, TextSink

    if suffix in _JSON_LINES:
        return JsonSink
    if suffix in _PERFETTO:
        from virtiopy.trace.perfetto import PerfettoSink

        return PerfettoSink
    return TextSink


def parse_filter(texts: Sequence[str]) -> "Filter":
    """Return what --trace-only says; raises ConfigError."""
    from virtiopy.trace.events import Filter, Kind

    values: dict[str, list[str]] = {key: [] for key in _KEYS}
    for part in ",".join(texts).split(",") if texts else ():
        key, _, value = part.partition("=")
        if key not in values or not value:
            raise ConfigError(
                f"--trace-only does not know {part!r}: use {', '.join(f'{k}=...' for k in _KEYS)}."
            )
        values[key].append(value)
    for queue in values["queue"]:
        if not queue.isdecimal() or len(queue) > 5:
            raise ConfigError(f"--trace-only queue={queue}: use a queue's number, as 0.")
    for kind in values["kind"]:
        if kind not in list(Kind):
            raise ConfigError(f"--trace-only kind={kind}: use one of {', '.join(Kind)}.")
    return Filter(
        frozenset(values["device"]),
        frozenset(int(queue) for queue in values["queue"]),
        frozenset(Kind(kind) for kind in values["kind"]),
    )
