"""A device behind registers of virtio-mmio in a VM: its wires (4.2)."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from virtiopy.devices.base import VirtioDevice
from virtiopy.transport.exitfree import ExitFree
from virtiopy.transport.interrupts import LevelInterrupt, PulseInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.notifiers import EventfdNotifiers
from virtiopy.transport.placement import Site, Transport
from virtiopy.transport.registerpage import RegisterPage
from virtiopy.transport.registers import REGISTER_RANGE, Interrupt, Register


@dataclass(slots=True, frozen=True)
class MmioPlacement:
    """A page of registers at guest physical `address`, and interrupt line `gsi`.

    `kind` is what answers there.
    """

    address: int
    gsi: int
    kind: type[MmioTransport] = MmioTransport
    size: ClassVar[int] = REGISTER_RANGE
    hid: ClassVar[str | None] = "LNRO0005"

    @property
    def command_line(self) -> str:
        """What Linux's virtio_mmio takes on its command line."""
        return f"virtio_mmio.device=4K@{self.address:#x}:{self.gsi}"

    def plug(
        self, device: VirtioDevice, name: str, site: Site, release: ExitStack, *, trapped: bool
    ) -> MmioTransport:
        """Put a device here; see Placement."""
        return (
            self._by_exits(device, name, site)
            if trapped
            else self._by_eventfds(device, name, site, release)
        )

    def _by_exits(self, device: VirtioDevice, name: str, site: Site) -> MmioTransport:
        return MmioTransport(
            device,
            site.memory,
            LevelInterrupt(site.wires.level(self.gsi)),
            name=name,
            loop=site.loop,
        )

    def _by_eventfds(
        self, device: VirtioDevice, name: str, site: Site, release: ExitStack
    ) -> MmioTransport:
        irqfd = site.wires.irqfd(self.gsi)
        transport = self.kind(
            device,
            site.memory,
            PulseInterrupt(irqfd),
            name=name,
            loop=site.loop,
            may_block=False,
        )
        for index in range(len(device.queue_sizes)):
            kick = _eventfd(release)
            release.callback(
                site.wires.add_ioeventfd(self.address + Register.QueueNotify, index, kick)
            )
            notifiers = EventfdNotifiers(
                transport.lifecycle,
                site.loop,
                index,
                kick=kick,
                call=irqfd.fd,
                name=f"{name} queue {index}",
            )
            transport.lifecycle.notify_by({index: release.enter_context(notifiers)})
        return transport

    def leave_out_exits(
        self, transport: Transport, site: Site, release: ExitStack, *, always: bool
    ) -> None:
        """Let the guest read registers from memory; see Placement.

        An irqfd is a pulse, so that the acknowledgement of one need not reach us: see ExitFree. A
        level is lowered by its acknowledgement, which is an exit, and the page is right with it.
        """
        assert isinstance(transport, MmioTransport)
        page = release.enter_context(RegisterPage())

        def map_page() -> Callable[[], None]:
            return site.wires.add_read_only_memory(self.address, self.size, page.host_address)

        def take_acks(eventfd: int) -> Callable[[], None]:
            register = self.address + Register.InterruptACK
            return site.wires.add_ioeventfd(register, Interrupt.USED_BUFFER, eventfd)

        transport.show_on(page)
        if isinstance(transport.interrupt, PulseInterrupt):
            exit_free = ExitFree(
                transport.interrupt,
                site.loop,
                transport.lifecycle.name,
                map_page=map_page,
                take_acks=take_acks,
                always=always,
            )
            transport.lifecycle.observers.append(release.enter_context(exit_free))
        else:
            release.callback(map_page())


def _eventfd(release: ExitStack) -> int:
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    release.callback(os.close, eventfd)
    return eventfd
