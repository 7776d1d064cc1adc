"""Puts the judge's watchers beside a device: at its registers, in its life, at its rings."""

from collections.abc import Callable, Collection, Sequence

from virtiopy.check.catalogue import Area, load
from virtiopy.check.judge import DeviceJudge, Verdict
from virtiopy.check.lifecycle import LifecycleJudge
from virtiopy.check.registers import RegisterJudge
from virtiopy.check.requests import RequestJudge
from virtiopy.check.rings import RingJudge
from virtiopy.devices.entry import find_class
from virtiopy.devices.registry import entry_named, entry_of, names
from virtiopy.spec import DeviceId
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.transport.observer import LifecycleObserver
from virtiopy.transport.placement import Transport
from virtiopy.transport.registers import Register


class DriverCheck:
    """Judges the drivers of a VM's devices, or of one that is served over vhost-user."""

    def __init__(self) -> None:
        self._watched: list[_Watched] = []

    def watch_registers(
        self, name: str, transport: Transport, *, sees_reads: bool, sees_kicks: bool
    ) -> Transport:
        """Watch a device behind registers; returns what is to stand in its place on the bus.

        `sees_reads` says whether the guest's reads of registers are exits, `sees_kicks` whether
        its kicks are.
        """
        judge = DeviceJudge(name)
        registers = RegisterJudge(judge, transport.lifecycle, sees_reads=sees_reads)
        watched = self._watch(judge, transport.lifecycle, registers, sees_kicks=sees_kicks)
        return WatchedTransport(transport, registers, watched.config_written)

    def watch_frontend(self, name: str, lifecycle: Lifecycle) -> None:
        """Watch a device whose driver a vhost-user frontend speaks for."""
        self._watch(DeviceJudge(name), lifecycle, None, sees_kicks=False)

    def _watch(
        self,
        judge: DeviceJudge,
        lifecycle: Lifecycle,
        registers: RegisterJudge | None,
        *,
        sees_kicks: bool,
    ) -> "_Watched":
        device = lifecycle.device
        life = LifecycleJudge(
            judge,
            lifecycle,
            device.device_id,
            lifecycle.memory,
            sees_status=registers is not None,
        )
        rings = RingJudge(judge, lifecycle.memory, sees_kicks=sees_kicks, device=device.device_id)
        requests = [kind(judge, device) for kind in judges_of(device.device_id)]
        watched = _Watched(judge, device.device_id, rings, requests, registers)
        # The rings and requests of a life are judged before the judge's own account of it ends.
        lifecycle.observers += [watched, life]
        lifecycle.queue_observers += [rings, *requests]
        self._watched.append(watched)
        return watched

    def survived(self, variant: str, names: Collection[str]) -> None:
        """Book the statements that take this unusual device: the guest passed with it.

        `names` are those of the devices whose drivers came to what is unusual.
        """
        for watched in self._watched:
            if watched.judge.name not in names:
                continue
            for statement in load().values():
                if statement.variant == variant and watched.concerns(statement.area):
                    watched.judge.kept(statement.id)

    def finish(self) -> Verdict:
        """Judge what the drivers left undone, and return what all came to."""
        for watched in self._watched:
            watched.finish(by_driver=False)
            watched.conclude()
        return Verdict([watched.judge for watched in self._watched])


def judges_of(device_id: DeviceId) -> Sequence[type[RequestJudge]]:
    """Return what judges the requests of a device type's drivers; nothing for some types."""
    entry = entry_of(device_id)
    if entry is None or entry.judge is None:
        return ()
    return [find_class(entry.judge, RequestJudge)]


class _Watched(LifecycleObserver):
    """The watchers of one device, told together where a driver's life with it ends."""

    def __init__(
        self,
        judge: DeviceJudge,
        device: DeviceId,
        rings: RingJudge,
        requests: Sequence[RequestJudge],
        registers: RegisterJudge | None,
    ) -> None:
        self.judge = judge
        self._device = device
        self._rings = rings
        self._requests = requests
        self._registers = registers
        self._live = False

    def concerns(self, area: Area) -> bool:
        """Say whether an area's statements are to drivers of such a device."""
        if area is Area.MMIO:
            return self._registers is not None
        # The areas of devices are called as these are; the others are of all.
        return area.value not in names() or entry_named(area.value).device_id is self._device

    def activated(self) -> None:
        """Take note that there is something to judge when this life ends."""
        self._live = True

    def kicked(self, index: int) -> None:
        """Pass a kick on."""
        self._rings.kicked(index)

    def needs_reset(self, reason: str) -> None:
        """Pass on that the device needs a reset."""
        self._rings.needs_reset()

    def config_written(self, offset: int) -> None:
        """Pass a write of the configuration space on."""
        for request in self._requests:
            request.config_written(offset)

    def status_written(self, before: int, written: int) -> None:
        """Judge a life that the driver ends by a reset, while its rings are still there."""
        if written == 0:
            self.finish(by_driver=True)

    def was_reset(self) -> None:
        """Judge a life that ends without a word of the driver's, as over vhost-user."""
        self.finish(by_driver=False)

    def finish(self, *, by_driver: bool) -> None:
        """Judge what the driver left undone; `by_driver` is as RequestJudge.finish has it."""
        self._rings.finish()
        for request in self._requests if self._live else ():
            request.finish(by_driver=by_driver)
        self._live = False
        if self._registers is not None:
            self._registers.reset()

    def conclude(self) -> None:
        """Judge what the driver has never done."""
        for request in self._requests:
            request.conclude()


class WatchedTransport:
    """A transport whose accesses a judge sees before it does."""

    def __init__(
        self,
        transport: Transport,
        registers: RegisterJudge,
        config_written: Callable[[int], None],
    ) -> None:
        self.lifecycle = transport.lifecycle
        self._transport = transport
        self._registers = registers
        self._config_written = config_written

    def register_name(self, offset: int) -> str:
        """Name the register at `offset`."""
        return self._transport.register_name(offset)

    def read(self, offset: int, size: int) -> bytes:
        """Return what the driver reads."""
        data = self._transport.read(offset, size)
        self._registers.read(offset, size, int.from_bytes(data, "little"))
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Take what the driver writes."""
        self._registers.write(offset, data)
        self._transport.write(offset, data)
        if offset >= Register.Config:
            self._config_written(offset - Register.Config)
