"""The devices of a VM: where a driver finds each, and how kicks and interrupts travel."""

import contextlib
import enum
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from virtiopy.accel.base import Accelerator
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.delegation import Backing, OpenWorker, QueueWorker, RingWorker
from virtiopy.errors import ConfigError, HostError
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.transport.mmioplace import MmioPlacement
from virtiopy.transport.placement import Placement, Site, Transport
from virtiopy.transport.registers import REGISTER_RANGE
from virtiopy.vhost.kernel.workers import open_vhost
from virtiopy.vm.bus import Bus, Place
from virtiopy.vm.codewatch import CodeWatch
from virtiopy.vm.lines import Lines
from virtiopy.vm.standing import DriverWatch
from virtiopy.worker.native import open_native

log = logging.getLogger(__name__)

#: Guest physical address of the first device's registers; the next ones follow it.
MMIO_BASE = 0xD000_0000

#: The most devices.
SLOT_COUNT = 32


class IoMode(enum.StrEnum):
    """Who works a device's rings, and how kicks and interrupts travel."""

    #: A kick is an exit, and the CPU's thread works the ring; interrupts by KVM_IRQ_LINE.
    TRAPPED = "trapped"
    #: A kick is an eventfd, and the event loop works the ring; interrupts by an irqfd.
    IOEVENTFD = "ioeventfd"
    #: The same eventfd and irqfd, and a thread in C of this process works the ring.
    NATIVE = "native"
    #: The same eventfd and irqfd, given to the kernel's vhost with the rings.
    VHOST = "vhost"
    #: The same, given to another process over a socket.
    VHOST_USER = "vhost-user"


#: Puts a watcher before the accesses of a device's driver: is given the device's name, its
#: transport, and whether its kicks are exits; returns what stands on the bus.
WatchTransport: TypeAlias = Callable[[str, Transport, bool], Transport]

#: The modes that a device has from its start to its end, or not at all.
_LIFELONG = {IoMode.TRAPPED, IoMode.VHOST_USER}


@dataclass(slots=True)
class Slot:
    """A device in the VM: where its driver finds it, and what to let go of at the end."""

    name: str
    device: VirtioDevice
    transport: Transport
    placement: Placement
    release: contextlib.ExitStack
    driver: DriverWatch
    _mode: IoMode
    _workers: Mapping[IoMode, OpenWorker]

    @property
    def mode(self) -> IoMode:
        """Who works the device's rings, or will when its driver has set them up."""
        with self.device.lock:
            return self._mode if self.device.refusal is None else IoMode.IOEVENTFD

    @property
    def status(self) -> int:
        """The bits of the device status field (2.1)."""
        return self.transport.lifecycle.status

    def change_mode(self, mode: IoMode | str) -> None:
        """Have the device's rings worked in another mode from now on, while frames flow or not.

        Where the driver has not set them up the mode is remembered until it does. From any
        thread. Raises ConfigError or HostError, with the reason, where it cannot be done: the
        mode stays what it was.
        """
        try:
            mode = IoMode(mode)
        except ValueError as error:
            raise ConfigError(
                f"There is no mode {mode!r}: use one of {', '.join(IoMode)}."
            ) from error
        with self.device.lock:
            if mode is self._mode and self.device.refusal is None:
                return
            if {mode, self._mode} & _LIFELONG:
                lifelong = mode if mode in _LIFELONG else self._mode
                raise ConfigError(
                    f"{self.name} is in {self._mode} mode, and {lifelong} mode is for a device's "
                    f"whole life: start it in {mode} mode."
                )
            try:
                if mode in self._workers:
                    self.device.delegate(self._workers[mode])
                else:
                    self.device.reclaim()
            except (ConfigError, HostError) as error:
                raise type(error)(f"{self.name} stays in {self.mode} mode: {error}") from error
            self._mode = mode


class Slots:
    """Puts devices into the slots of a VM, and holds them until `close`."""

    def __init__(
        self,
        memory: GuestMemory,
        accelerator: Accelerator,
        loop: EventLoop,
        mmio: Bus,
        *,
        exit_free: bool,
        always: bool = False,
    ) -> None:
        self.all: list[Slot] = []
        self._lines = Lines(accelerator)
        self._site = Site(memory, loop, self._lines)
        self._mmio = mmio
        self._exit_free = exit_free
        self._exits_never = always
        self._code_watch = (
            CodeWatch(memory, accelerator.code_written) if accelerator.translates else None
        )
        self._workers: Mapping[IoMode, OpenWorker] = {
            IoMode.NATIVE: self._open_native,
            IoMode.VHOST: partial(open_vhost, memory),
        }

    def close(self) -> None:
        """Let go of every device; the loop does not run."""
        for slot in self.all:
            slot.release.close()
        self._lines.close()

    def add(
        self,
        device: VirtioDevice,
        name: str,
        mode: IoMode = IoMode.IOEVENTFD,
        *,
        refused: Callable[[str], None] | None = None,
        watch: WatchTransport | None = None,
    ) -> Slot:
        """Put a device into the next slot.

        With `refused`, a device whose queues no other worker can work is in ioeventfd mode, and
        `refused` is told why.

        Raises ConfigError when all slots are taken; ConfigError or HostError for a mode that
        cannot be had. From here on the device is theirs to close.
        """
        with contextlib.ExitStack() as release:
            release.callback(device.close)
            index = len(self.all)
            if index == SLOT_COUNT:
                raise ConfigError(f"There are more than {SLOT_COUNT} devices: leave some out.")
            trapped = mode is IoMode.TRAPPED
            gsi = self._lines.take(release, trapped=trapped)
            placement = MmioPlacement(MMIO_BASE + index * REGISTER_RANGE, gsi)
            transport = placement.plug(device, name, self._site, release, trapped=trapped)
            if self._code_watch is not None:
                transport.lifecycle.queue_observers.append(self._code_watch)
            if mode in self._workers:
                try:
                    device.delegate(self._workers[mode])
                except (ConfigError, HostError) as error:
                    if refused is None:
                        raise
                    mode = IoMode.IOEVENTFD
                    refused(f"{name} is in {mode} mode: {error}")
            if self._exit_free:
                placement.leave_out_exits(transport, self._site, release, always=self._exits_never)
            seen = transport if watch is None else watch(name, transport, trapped)
            at = f"{placement.address:#x} (GSI {placement.gsi})"
            self._mmio.add(Place(placement.address, placement.size, name, seen, at))
            release.callback(_reset, device)
            driver = DriverWatch()
            transport.lifecycle.observers.append(driver)
            slot = Slot(
                name, device, transport, placement, release.pop_all(), driver, mode, self._workers
            )
        self.all.append(slot)
        log.info(
            "%s: registers at %#x, interrupt line (GSI) %d, %s mode",
            *(name, placement.address, placement.gsi, mode),
        )
        return slot

    def _open_native(self, backing: Backing) -> QueueWorker | RingWorker:
        """Open a worker without the interpreter: an OpenWorker."""
        if self._code_watch is not None:
            raise HostError("The software CPU has to see what devices write: use mode=ioeventfd.")
        return open_native(backing)


def _reset(device: VirtioDevice) -> None:
    with device.lock:
        device.reset()
