"""Puts a trace beside a device: at its registers, in its life, at its rings, in its messages."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

from virtiopy.trace.events import Actor, Detail, Event, Kind, LiveTrace, Phase
from virtiopy.trace.words import pieces, register_name, register_value, status_words
from virtiopy.transport.interrupts import CONFIG, InterruptSource
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.transport.observer import LifecycleObserver, Refusal
from virtiopy.transport.placement import Transport
from virtiopy.transport.queueconfig import QueueConfig
from virtiopy.transport.registers import Register
from virtiopy.vhost.user.messages import Message
from virtiopy.virtqueue.queue import (
    Chain,
    ChainError,
    Completion,
    QueueError,
    QueueObserver,
    Virtqueue,
)

#: The span of an interrupt that the driver has not acknowledged.
_PENDING = "interrupt"


class DeviceTrace:
    """The trace of one device, which messages call `name`.

    `flows` has for each queue the number of the kick that is being answered.
    """

    def __init__(self, trace: LiveTrace, name: str) -> None:
        self.name = name
        self.flows: dict[int, int] = {}
        self._trace = trace

    def watch(self, lifecycle: Lifecycle, *, sees_acknowledgements: bool) -> None:
        """Trace a device's life and rings.

        `sees_acknowledgements` says whether the driver's acknowledgements of interrupts are told.
        """
        lifecycle.observers.append(_LifeTrace(self, lifecycle, lasting=sees_acknowledgements))
        lifecycle.queue_observers.append(_RingTrace(self))

    def watch_registers(self, transport: Transport, *, sees_acknowledgements: bool) -> Transport:
        """Trace a device behind registers; returns what is to stand in its place on the bus."""
        self.watch(transport.lifecycle, sees_acknowledgements=sees_acknowledgements)
        return TracedTransport(transport, self)

    def message(self, message: Message, from_frontend: bool) -> None:
        """Trace a message of vhost-user."""
        if not self.wants(Kind.MESSAGE):
            return
        arrow, actor = ("->", Actor.DRIVER) if from_frontend else ("<-", Actor.DEVICE)
        details: dict[str, Detail] = {"message": message.name, "payload": message.payload.hex()}
        self.add(Event(Kind.MESSAGE, actor, f"{arrow} {message.describe()}", details=details))

    def wants(self, kind: Kind, queue: int | None = None) -> bool:
        """Say whether such an event is wanted: it need not be worded else."""
        return self._trace.filter.wants(self.name, kind, queue)

    def add(self, event: Event) -> None:
        """Add an event."""
        self._trace.add(self.name, event)

    @property
    def observers(self) -> Sequence[QueueObserver]:
        """What traces a ring."""
        return [_RingTrace(self)]

    def called(self, index: int) -> None:
        """Trace a used buffer notification that a driver does not acknowledge."""
        flow = self.flows.get(index)
        self.add(Event(Kind.INTERRUPT, Actor.DEVICE, f"interrupt: queue {index}", index, flow=flow))

    def kicked(self, index: int) -> None:
        """Begin with a kick what it brings about."""
        self.flows[index] = flow = self._trace.next_flow()
        self.add(Event(Kind.KICK, Actor.DRIVER, f"kick {index}", index, flow=flow))


class _LifeTrace(LifecycleObserver):
    def __init__(self, trace: DeviceTrace, lifecycle: Lifecycle, *, lasting: bool) -> None:
        self._trace = trace
        self._lifecycle = lifecycle
        self._lasting = lasting

    def _life(
        self,
        actor: Actor,
        what: str,
        queue: int | None = None,
        details: Mapping[str, Detail] | None = None,
    ) -> None:
        self._trace.add(Event(Kind.LIFE, actor, what, queue, details or {}))

    def status_written(self, before: int, written: int) -> None:
        if written:
            what = f"status {status_words(before)}, the driver writes {status_words(written)}"
            self._life(Actor.DRIVER, what, details={"before": before, "written": written})
        else:
            self._life(Actor.DRIVER, "the driver resets the device")

    def features_accepted(self, offered: int, accepted: int) -> None:
        names = self._lifecycle.feature_names(accepted) or "none"
        details: dict[str, Detail] = {"offered": offered, "accepted": accepted}
        self._life(Actor.DRIVER, f"features accepted: {names}", details=details)

    def refused(self, refusal: Refusal) -> None:
        details: dict[str, Detail] = {"section": refusal.section}
        self._life(Actor.DEVICE, f"refused: {refusal}", details=details)

    def queue_configured(self, index: int, config: QueueConfig) -> None:
        areas = config.areas
        self._life(
            Actor.DRIVER,
            f"queue {index}: {config.size} entries: descriptors at {areas.descriptor:#x}, "
            f"available ring at {areas.driver:#x}, used ring at {areas.device:#x}",
            index,
            {"size": config.size},
        )

    def queue_disabled(self, index: int) -> None:
        self._life(Actor.DRIVER, f"queue {index}: is not ready any more", index)

    def queue_was_reset(self, index: int) -> None:
        self._life(Actor.DRIVER, f"queue {index}: is reset", index)

    def kicked(self, index: int) -> None:
        self._trace.kicked(index)

    def activated(self) -> None:
        self._life(Actor.DEVICE, "the device is live")

    def config_changed(self, *, notify: bool) -> None:
        self._life(Actor.DEVICE, "the configuration changes")

    def interrupt_raised(self, source: InterruptSource) -> None:
        if source is CONFIG:
            queue, what, flow = None, "interrupt: configuration change", None
        else:
            queue = source
            what, flow = f"interrupt: queue {source}", self._trace.flows.get(source)
        phase = Phase.BEGIN if self._lasting else Phase.INSTANT
        self._trace.add(Event(Kind.INTERRUPT, Actor.DEVICE, what, queue, {}, phase, _PENDING, flow))

    def interrupt_acknowledged(self, events: int) -> None:
        self._trace.add(
            Event(
                Kind.INTERRUPT,
                Actor.DRIVER,
                f"interrupt acknowledged: {events:#x}",
                details={"events": events},
                phase=Phase.END,
                span=_PENDING,
            )
        )

    def needs_reset(self, reason: str) -> None:
        self._life(Actor.DEVICE, f"DEVICE_NEEDS_RESET is set: {reason}")

    def was_reset(self) -> None:
        self._trace.flows.clear()
        self._life(Actor.DEVICE, "the device is reset")


class _RingTrace(QueueObserver):
    wants_descriptors: ClassVar[bool] = True

    def __init__(self, trace: DeviceTrace) -> None:
        self._trace = trace

    def _ring(
        self, actor: Actor, queue: Virtqueue, what: str, details: Mapping[str, Detail]
    ) -> None:
        what = f"queue {queue.index}: {what}"
        self._trace.add(Event(Kind.RING, actor, what, queue.index, details))

    def taken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        index = queue.index
        if not self._trace.wants(Kind.RING, index):
            return
        for chain in chains:
            readable = sum(len(view) for view in chain.readable)
            writable = sum(len(view) for view in chain.writable)
            self._trace.add(
                Event(
                    Kind.RING,
                    Actor.DRIVER,
                    f"queue {index}: available: head {chain.token}, {pieces(chain)}",
                    index,
                    {"head": chain.token, "readable": readable, "writable": writable},
                    Phase.BEGIN,
                    f"head {chain.token}",
                    self._trace.flows.get(index),
                )
            )

    def untaken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        for chain in chains:
            self._end(queue, chain, "available again", {})

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        if not self._trace.wants(Kind.RING, queue.index):
            return
        for chain, written in completions:
            self._end(
                queue, chain, f"used: head {chain.token}, {written} bytes", {"written": written}
            )

    def _end(
        self, queue: Virtqueue, chain: Chain, what: str, details: Mapping[str, Detail]
    ) -> None:
        self._trace.add(
            Event(
                Kind.RING,
                Actor.DEVICE,
                f"queue {queue.index}: {what}",
                queue.index,
                {"head": chain.token, **details},
                Phase.END,
                f"head {chain.token}",
            )
        )

    def rejected(self, queue: Virtqueue, chain: Chain, error: ChainError) -> None:
        details: dict[str, Detail] = {"head": chain.token, "section": error.section}
        self._ring(Actor.DEVICE, queue, f"malformed: head {chain.token}: {error}", details)

    def broken(self, queue: Virtqueue, error: QueueError) -> None:
        self._ring(Actor.DEVICE, queue, f"broken: {error}", {})

    def kicks_wanted(self, queue: Virtqueue, wanted: bool) -> None:
        what = "a kick is asked for" if wanted else "no kick is needed"
        self._ring(Actor.DEVICE, queue, what, {"wanted": int(wanted)})

    def interrupt_decided(self, queue: Virtqueue, wanted: bool) -> None:
        what = "the driver wants an interrupt" if wanted else "the driver wants no interrupt"
        self._ring(Actor.DRIVER, queue, what, {"wanted": int(wanted)})


class TracedTransport:
    """A transport whose every access is in a trace: a write before it has its effect."""

    def __init__(self, transport: Transport, trace: DeviceTrace) -> None:
        self.lifecycle = transport.lifecycle
        self._transport = transport
        self._trace = trace

    def register_name(self, offset: int) -> str:
        """Name the register at `offset`."""
        return self._transport.register_name(offset)

    def read(self, offset: int, size: int) -> bytes:
        """Return what the driver reads."""
        start = time.monotonic()
        data = self._transport.read(offset, size)
        name = register_name(offset, size)
        self._trace.add(
            Event(
                Kind.REGISTER,
                Actor.DRIVER,
                f"read {name} = {register_value(offset, data)}",
                details=_access(name, data),
                took=time.monotonic() - start,
            )
        )
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Take what the driver writes."""
        name = register_name(offset, len(data))
        queue = int.from_bytes(data, "little") if offset == Register.QueueNotify else None
        what = f"write {name} = {register_value(offset, data)}"
        # Each CPU is in one access at a time.
        span = f"access of thread {threading.get_ident()}"
        event = Event(
            Kind.REGISTER, Actor.DRIVER, what, queue, _access(name, data), Phase.BEGIN, span
        )
        self._trace.add(event)
        self._transport.write(offset, data)
        self._trace.add(Event(Kind.REGISTER, Actor.DRIVER, "", queue, {}, Phase.END, span))


def _access(name: str, data: bytes) -> Mapping[str, Detail]:
    return {"register": name, "value": int.from_bytes(data, "little"), "size": len(data)}
