"""The devices of a VM: where a driver finds each, and how kicks and interrupts travel."""

import contextlib
import enum
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from virtiopy.accel.base import Accelerator
from virtiopy.devices.base import OpenWorker, VirtioDevice
from virtiopy.errors import ConfigError, HostError
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.notifiers import EventfdNotifiers
from virtiopy.transport.registerpage import RegisterPage
from virtiopy.transport.registers import REGISTER_RANGE, Interrupt, Register
from virtiopy.vhost.handoff import VhostPair
from virtiopy.vm.bus import Bus, Place

#: Guest physical address of the first device's registers; the next ones follow it.
MMIO_BASE = 0xD000_0000

#: Interrupt lines of the devices: pins that only the IOAPIC has, so that the 8259 is no matter.
FIRST_GSI = 16
GSI_COUNT = 8


class IoMode(enum.StrEnum):
    """Who works a device's rings, and how kicks and interrupts travel."""

    #: A kick is an exit, and the CPU's thread works the ring; interrupts by KVM_IRQ_LINE.
    TRAPPED = "trapped"
    #: A kick is an eventfd, and the event loop works the ring; interrupts by an irqfd.
    IOEVENTFD = "ioeventfd"
    #: The same eventfd and irqfd, given to the kernel's vhost with the rings.
    VHOST = "vhost"
    #: The same, given to another process over a socket.
    VHOST_USER = "vhost-user"


#: The modes that a device has from its start to its end, or not at all.
_LIFELONG = {IoMode.TRAPPED, IoMode.VHOST_USER}


@dataclass(slots=True)
class Slot:
    """A device in the VM: where its driver finds it, and what to let go of at the end."""

    name: str
    device: VirtioDevice
    transport: MmioTransport
    address: int
    gsi: int
    release: contextlib.ExitStack
    _mode: IoMode
    _workers: Mapping[IoMode, OpenWorker]

    @property
    def mode(self) -> IoMode:
        """Who works the device's rings, or will when its driver has set them up."""
        with self.device.lock:
            return self._mode if self.device.refusal is None else IoMode.IOEVENTFD

    def handoff(self, mode: IoMode | str) -> None:
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
                self.device.hand_over(self._workers.get(mode))
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
    ) -> None:
        self.all: list[Slot] = []
        self._memory = memory
        self._accelerator = accelerator
        self._loop = loop
        self._mmio = mmio
        self._exit_free = exit_free
        self._workers: Mapping[IoMode, OpenWorker] = {IoMode.VHOST: partial(VhostPair, memory)}

    def close(self) -> None:
        """Let go of every device; the loop does not run."""
        for slot in self.all:
            slot.release.close()

    def add(
        self,
        device: VirtioDevice,
        name: str,
        mode: IoMode = IoMode.IOEVENTFD,
        *,
        refused: Callable[[str], None] | None = None,
    ) -> Slot:
        """Put a device into the next slot.

        With `refused`, a device whose queues nobody else can work is in ioeventfd mode, and
        `refused` is told why.

        Raises ConfigError when all slots are taken; ConfigError or HostError for a mode that
        cannot be had. From here on the device is theirs to close.
        """
        with contextlib.ExitStack() as release:
            release.callback(device.close)
            index = len(self.all)
            if index == GSI_COUNT:
                raise ConfigError(f"There are more than {GSI_COUNT} devices: leave some out.")
            gsi = FIRST_GSI + index
            address = MMIO_BASE + index * REGISTER_RANGE
            if mode is IoMode.TRAPPED:
                transport = self._trapped(device, gsi)
            else:
                transport = self._by_eventfds(device, name, address, gsi, release)
            if mode in self._workers:
                try:
                    device.hand_over(self._workers[mode])
                except (ConfigError, HostError) as error:
                    if refused is None:
                        raise
                    mode = IoMode.IOEVENTFD
                    refused(f"{name} is in {mode} mode: {error}")
            transport.offered_features = device.offered(transport.offered_features)
            if self._exit_free:
                by_irqfd = mode is not IoMode.TRAPPED
                self._show_registers(transport, address, release, by_irqfd=by_irqfd)
            self._mmio.add(Place(address, REGISTER_RANGE, name, transport))
            release.callback(_reset, device)
            slot = Slot(
                name, device, transport, address, gsi, release.pop_all(), mode, self._workers
            )
        self.all.append(slot)
        return slot

    def _trapped(self, device: VirtioDevice, gsi: int) -> MmioTransport:
        def set_interrupt(level: bool) -> None:
            self._accelerator.set_irq_line(gsi, level)

        return MmioTransport(device, self._memory, set_interrupt, loop=self._loop)

    def _by_eventfds(
        self,
        device: VirtioDevice,
        name: str,
        address: int,
        gsi: int,
        release: contextlib.ExitStack,
    ) -> MmioTransport:
        interrupt = _eventfd(release)
        self._accelerator.add_irqfd(gsi, interrupt)

        def set_interrupt(level: bool) -> None:
            # An irqfd is a pulse: each event is one, and none is taken back.
            if level:
                os.eventfd_write(interrupt, 1)

        transport = MmioTransport(
            device, self._memory, set_interrupt, loop=self._loop, may_block=False
        )
        transport.queue_notifiers = notifiers = {}
        for index in range(len(device.queue_sizes)):
            kick = _eventfd(release)
            release.callback(
                self._accelerator.add_ioeventfd(address + Register.QueueNotify, index, kick)
            )
            notifiers[index] = release.enter_context(
                EventfdNotifiers(
                    transport,
                    self._loop,
                    index,
                    kick=kick,
                    call=interrupt,
                    name=f"{name} queue {index}",
                )
            )
        return transport

    def _show_registers(
        self,
        transport: MmioTransport,
        address: int,
        release: contextlib.ExitStack,
        *,
        by_irqfd: bool,
    ) -> None:
        """Let the guest read registers from memory, and the kernel take what needs no answer.

        An irqfd is a pulse, so the acknowledgement of one for used buffers changes nothing: it is
        a write to an eventfd that nobody reads. What else is written to InterruptACK comes here.
        """
        page = release.enter_context(RegisterPage())
        if by_irqfd:
            release.callback(
                self._accelerator.add_ioeventfd(
                    address + Register.InterruptACK, Interrupt.USED_BUFFER, _eventfd(release)
                )
            )
        release.callback(
            self._accelerator.add_read_only_memory(address, REGISTER_RANGE, page.host_address)
        )
        transport.show_on(page, sees_acks=not by_irqfd)


def _eventfd(release: contextlib.ExitStack) -> int:
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    release.callback(os.close, eventfd)
    return eventfd


def _reset(device: VirtioDevice) -> None:
    with device.lock:
        device.reset()
