"""Virtio over MMIO, version 2 (4.2): a device behind a page of registers."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from virtiopy.devices.base import Notifiers, VirtioDevice
from virtiopy.errors import DriverError
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature, feature_mask, has_feature
from virtiopy.transport.registerpage import RegisterPage
from virtiopy.transport.registers import (
    MAGIC_VALUE,
    NO_SHARED_MEMORY,
    REGISTER_RANGE,
    VENDOR_ID,
    VERSION,
    Interrupt,
    Register,
)
from virtiopy.virtqueue.formats import OpenQueue, open_queue
from virtiopy.virtqueue.queue import RING_FEATURES, QueueAreas, Virtqueue

log = logging.getLogger(__name__)

#: The features that rings and transport have, whatever the device (6).
TRANSPORT_FEATURES = RING_FEATURES | feature_mask([Feature.VIRTIO_F_RING_RESET])

#: The status bits that a driver may set; SUSPEND is for those who negotiate VIRTIO_F_SUSPEND.
_DRIVERS_BITS = int(
    DeviceStatus.ACKNOWLEDGE
    | DeviceStatus.DRIVER
    | DeviceStatus.DRIVER_OK
    | DeviceStatus.FEATURES_OK
    | DeviceStatus.FAILED
)


@dataclass(slots=True)
class QueueRegisters:
    """The registers of one queue, selected by QueueSel."""

    size: int
    ready: int = 0
    descriptor_area: int = 0
    driver_area: int = 0
    device_area: int = 0


class MmioTransport:
    """The registers of one device, and the device status state machine behind them.

    `set_interrupt` is told the level of the device's interrupt line, which is high while any bit
    of InterruptStatus is set (4.2.3.4). The device is attached to the transport, with `loop` for
    what it does of itself; `may_block` says whether kicks may wait for what they cause.
    """

    #: What opens the device's side of a virtqueue.
    open_queue: ClassVar[OpenQueue] = staticmethod(open_queue)

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        set_interrupt: Callable[[bool], None],
        *,
        loop: EventLoop | None = None,
        may_block: bool = True,
    ) -> None:
        self.device = device
        # Interrupts are raised by whoever works the device and acknowledged by the CPU, at a time.
        self._interrupt_lock = threading.Lock()
        self.memory = memory
        self._set_interrupt = set_interrupt
        self.offered_features = device.features | TRANSPORT_FEATURES
        self.config_generation = 0
        self.interrupt_status = 0
        #: The eventfds of the queues, where kicks are not exits.
        self.queue_notifiers: Mapping[int, Notifiers] = {}
        # The queues whose used buffer notifications somebody else sends.
        self._lent: set[int] = set()
        self._page: RegisterPage | None = None
        self._sees_acks = True
        self._clear()
        device.attach(self, loop, may_block=may_block)

    def _clear(self) -> None:
        """Give every register the value that it has after a reset."""
        self.status = 0
        self.driver_features = 0
        self._device_features_sel = 0
        self._driver_features_sel = 0
        self._queue_sel = 0
        self._queues = [QueueRegisters(size) for size in self.device.queue_sizes]
        self._live: dict[int, Virtqueue] = {}
        #: DRIVER_OK is set and DEVICE_NEEDS_RESET is not: queues may be worked (2.1.2).
        self._running = False
        self._acknowledge(self.interrupt_status)

    # The bus's side

    def register_name(self, offset: int) -> str:
        """Name the register at `offset` (bytes from the start of the page)."""
        if offset >= Register.Config:
            return "Config"
        try:
            return Register(offset).name
        except ValueError:
            return f"undefined {offset:#05x}"

    def read(self, offset: int, size: int) -> bytes:
        """Return what the driver reads; zeroes for an access that 4.2.2.2 forbids."""
        if offset >= Register.Config:
            with self.device.lock:
                return self._read_config(offset - Register.Config, size)
        reader = _READERS.get(offset)
        if reader is None or size != 4:
            log.debug("%s: read of %d bytes at %#x", self.device.device_id.name, size, offset)
            return bytes(size)
        return reader(self).to_bytes(4, "little")

    def write(self, offset: int, data: bytes) -> None:
        """Take what the driver writes; an access that 4.2.2.2 forbids changes nothing."""
        if offset == Register.InterruptACK and len(data) == 4:
            # Not the device's business, so it does not wait for the device.
            self._acknowledge(int.from_bytes(data, "little"))
            return
        with self.device.lock:
            self._write_locked(offset, data)
            if offset != Register.QueueNotify:
                self._show()

    def _write_locked(self, offset: int, data: bytes) -> None:
        if offset >= Register.Config:
            self._write_config(offset - Register.Config, data)
            return
        writer = _WRITERS.get(offset)
        if writer is None or len(data) != 4:
            log.debug("%s: write of %d bytes at %#x", self.device.device_id.name, len(data), offset)
            return
        writer(self, int.from_bytes(data, "little"))

    def kick(self, index: int) -> None:
        """Take a kick of queue `index` that came as an eventfd; on the loop's thread."""
        with self.device.lock:
            self._write_queue_notify(index)

    # Registers without exits

    def show_on(self, page: RegisterPage, *, sees_acks: bool) -> None:
        """Show every register on a page, which the guest reads in place of `read`.

        Without `sees_acks` nobody says when the driver acknowledges used buffers: see
        `read_interrupt_status`.
        """
        with self.device.lock:
            self._page = page
            self._sees_acks = sees_acks
            self._show()

    def _show(self) -> None:
        if self._page is None:
            return
        registers = bytearray(REGISTER_RANGE)
        for offset, reader in _READERS.items():
            registers[offset : offset + 4] = reader(self).to_bytes(4, "little")
        config = self.device.config_space()[: REGISTER_RANGE - Register.Config]
        registers[Register.Config : Register.Config + len(config)] = config
        with self._interrupt_lock:
            status = self.read_interrupt_status().to_bytes(4, "little")
            registers[Register.InterruptStatus : Register.InterruptStatus + 4] = status
            self._page.show(bytes(registers))

    def _show_interrupt_status(self) -> None:
        """Show InterruptStatus; the caller holds the interrupt lock."""
        if self._page is not None:
            self._page.set(Register.InterruptStatus, self.read_interrupt_status())

    # The device's side (devices.base.DeviceHost)

    def used_buffer_notification(self, queue: Virtqueue) -> None:
        """Raise the interrupt for used buffers; never before DRIVER_OK (2.1.2)."""
        if self._running:
            self._interrupt(Interrupt.USED_BUFFER)

    def config_changed(self, *, notify: bool = True) -> None:
        """Change ConfigGeneration (4.2.2.1), and notify a driver that is up (3.2.1)."""
        self.config_generation = (self.config_generation + 1) & 0xFFFF_FFFF
        self._show()
        if notify and self.status & DeviceStatus.DRIVER_OK:
            self._interrupt(Interrupt.CONFIG_CHANGE)

    def notifiers(self, index: int) -> Notifiers | None:
        """Return the eventfds of a queue, if it has any."""
        return self.queue_notifiers.get(index)

    def needs_reset(self, reason: str) -> None:
        """Set DEVICE_NEEDS_RESET and say so to a driver that is up (2.1.2)."""
        log.warning("%s needs a reset: %s", self.device.device_id.name, reason)
        # First, as what it takes back may have notifications that the driver has not seen.
        self.device.halt()
        self._running = False
        self.status |= int(DeviceStatus.DEVICE_NEEDS_RESET)
        self._show()
        if self.status & DeviceStatus.DRIVER_OK:
            self._interrupt(Interrupt.CONFIG_CHANGE)

    # Interrupts, section 4.2.3.4

    def _interrupt(self, event: Interrupt) -> None:
        with self._interrupt_lock:
            self.interrupt_status |= int(event)
            self._show_interrupt_status()
            self._set_interrupt(True)

    def _acknowledge(self, events: int) -> None:
        with self._interrupt_lock:
            was = self.interrupt_status
            self.interrupt_status = was & ~events
            self._show_interrupt_status()
            if was & events:
                self._set_interrupt(False)
                if self.interrupt_status and not self.queue_notifiers:
                    # The driver read InterruptStatus before these were there. On a line that it
                    # takes by edges they have had none, as it was up; with eventfds they had one.
                    self._set_interrupt(True)

    def read_interrupt_status(self) -> int:
        """Return InterruptStatus.

        Who sends used buffer notifications in our place does not say so here; and where the
        kernel takes the driver's acknowledgements, nobody says when they come. Each interrupt may
        be one for used buffers then.
        """
        unseen = not self._sees_acks and self.status & DeviceStatus.DRIVER_OK
        return self.interrupt_status | (Interrupt.USED_BUFFER if self._lent or unseen else 0)

    def lend_interrupt(self, index: int) -> None:
        """Take note that somebody else sends the used buffer notifications of a queue."""
        self._lent.add(index)
        with self._interrupt_lock:
            self._show_interrupt_status()

    def take_interrupt_back(self, index: int) -> None:
        """Take note that nobody else does any more."""
        self._lent.discard(index)
        with self._interrupt_lock:
            self._show_interrupt_status()
        # The driver may not have read InterruptStatus since the other's last notification.
        if self._running:
            self._interrupt(Interrupt.USED_BUFFER)

    # Feature bits, section 2.2

    def _read_device_features(self) -> int:
        return self.offered_features >> 32 * self._device_features_sel & 0xFFFF_FFFF

    def _write_driver_features(self, value: int) -> None:
        if self.status & DeviceStatus.FEATURES_OK:
            log.debug("DriverFeatures written after FEATURES_OK (2.2.1)")
            return
        if self._driver_features_sel > 1:
            # No feature there is offered: one word stands for all, and keeps what was asked for.
            self.driver_features |= value << 64
            return
        shift = 32 * self._driver_features_sel
        self.driver_features &= ~(0xFFFF_FFFF << shift)
        self.driver_features |= value << shift

    def _features_make_sense(self) -> bool:
        if self.driver_features & ~self.offered_features:
            return False
        if not has_feature(self.driver_features, Feature.VIRTIO_F_VERSION_1):
            return False
        return self.device.accepts(self.driver_features)

    # The device status field, section 2.1

    def _write_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        # The driver does not clear bits (2.1.1), and DEVICE_NEEDS_RESET is not the driver's.
        new = value & ~self.status & _DRIVERS_BITS
        if new & DeviceStatus.FEATURES_OK and not self._features_make_sense():
            log.warning("features %#x refused (2.2.2)", self.driver_features)
            new &= ~DeviceStatus.FEATURES_OK
        negotiated = (self.status | new) & DeviceStatus.FEATURES_OK
        if new & DeviceStatus.DRIVER_OK and not negotiated:
            log.warning("DRIVER_OK without FEATURES_OK ignored (3.1.1)")
            new &= ~DeviceStatus.DRIVER_OK
        self.status |= int(new)
        if new & DeviceStatus.FEATURES_OK:
            self.device.negotiated(self.driver_features)
        if new & DeviceStatus.DRIVER_OK:
            self._activate()

    def _activate(self) -> None:
        self._running = not self.status & DeviceStatus.DEVICE_NEEDS_RESET
        for index, registers in enumerate(self._queues):
            if registers.ready:
                self._build(index)
        self.device.activate(self._live if self._running else {})

    def reset(self) -> None:
        """Do what Status = 0 asks for: forget the driver (2.4.1, 4.2.2.1)."""
        self._running = False
        self.device.reset()
        self._clear()

    # Queues, sections 4.2.3.2 and 2.6.1

    def _selected(self) -> QueueRegisters | None:
        return self._queues[self._queue_sel] if self._queue_sel < len(self._queues) else None

    def _read_queue_size_max(self) -> int:
        if self._queue_sel >= len(self._queues):
            return 0
        return self.device.queue_sizes[self._queue_sel]

    def _read_queue_ready(self) -> int:
        registers = self._selected()
        return registers.ready if registers else 0

    def _write_queue_size(self, value: int) -> None:
        registers = self._selected()
        if registers and not registers.ready:
            registers.size = value

    def _write_queue_ready(self, value: int) -> None:
        registers = self._selected()
        if registers is None or registers.ready == value & 1:
            return
        registers.ready = value & 1
        if not registers.ready:
            self._stop(self._queue_sel)
        elif self.status & DeviceStatus.DRIVER_OK:
            self._build(self._queue_sel)
            queue = self._live.get(self._queue_sel)
            if queue is not None and self._running:
                self.device.start_queue(self._queue_sel, queue)

    def _write_queue_reset(self, value: int) -> None:
        negotiated = self.status & DeviceStatus.FEATURES_OK and has_feature(
            self.driver_features, Feature.VIRTIO_F_RING_RESET
        )
        if value != 1 or not negotiated or self._queue_sel >= len(self._queues):
            return
        # The reset completes here and now, so QueueReset never reads as 1.
        if self._live.pop(self._queue_sel, None) is not None:
            self.device.reset_queue(self._queue_sel)
        self._queues[self._queue_sel] = QueueRegisters(self.device.queue_sizes[self._queue_sel])

    def _build(self, index: int) -> None:
        """Make the queue that the registers describe; what cannot be one needs a reset."""
        registers = self._queues[index]
        if registers.size > self.device.queue_sizes[index]:
            self.needs_reset(f"QueueSize {registers.size} above QueueSizeMax (4.2.2.2)")
            return
        try:
            self._live[index] = self.open_queue(
                self.memory,
                registers.size,
                QueueAreas(registers.descriptor_area, registers.driver_area, registers.device_area),
                features=self.driver_features,
                index=index,
            )
        except DriverError as error:
            self.needs_reset(f"queue {index}: {error}")

    def _stop(self, index: int) -> None:
        if self._live.pop(index, None) is not None:
            self.device.stop_queue(index)

    def _write_queue_notify(self, value: int) -> None:
        """Let the device work the queue, while it is running and sound (2.1.2)."""
        queue = self._live.get(value)
        if queue is None or not self._running:
            log.debug("kick of queue %d ignored", value)
            return
        try:
            self.device.handle(queue)
        except DriverError as error:
            self.needs_reset(str(error))

    # Configuration space (2.5)

    def _read_config(self, offset: int, size: int) -> bytes:
        if size not in (1, 2, 4):
            return bytes(size)
        config = self.device.config_space()
        return config[offset : offset + size].ljust(size, b"\0")

    def _write_config(self, offset: int, data: bytes) -> None:
        if len(data) in (1, 2, 4) and offset + len(data) <= len(self.device.config_space()):
            self.device.write_config(offset, data)


Reader = Callable[[MmioTransport], int]
Writer = Callable[[MmioTransport, int], None]


def _address_writer(area: str, high: bool) -> Writer:
    """Return what writes one half of a queue's 64-bit address."""
    shift = 32 if high else 0

    def write(transport: MmioTransport, value: int) -> None:
        registers = transport._selected()
        if registers and not registers.ready:
            kept = getattr(registers, area) & 0xFFFF_FFFF << 32 - shift
            setattr(registers, area, kept | value << shift)

    return write


def _selector_writer(name: str) -> Writer:
    def write(transport: MmioTransport, value: int) -> None:
        setattr(transport, name, value)

    return write


def _ignore(transport: MmioTransport, value: int) -> None:
    """Take a write that has no consequence."""


_READERS: dict[int, Reader] = {
    Register.MagicValue: lambda transport: MAGIC_VALUE,
    Register.Version: lambda transport: VERSION,
    Register.DeviceID: lambda transport: transport.device.device_id,
    Register.VendorID: lambda transport: VENDOR_ID,
    Register.DeviceFeatures: MmioTransport._read_device_features,
    Register.QueueSizeMax: MmioTransport._read_queue_size_max,
    Register.QueueReady: MmioTransport._read_queue_ready,
    Register.InterruptStatus: MmioTransport.read_interrupt_status,
    Register.Status: lambda transport: transport.status,
    Register.SHMLenLow: lambda transport: NO_SHARED_MEMORY,
    Register.SHMLenHigh: lambda transport: NO_SHARED_MEMORY,
    Register.SHMBaseLow: lambda transport: NO_SHARED_MEMORY,
    Register.SHMBaseHigh: lambda transport: NO_SHARED_MEMORY,
    Register.QueueReset: lambda transport: 0,
    Register.ConfigGeneration: lambda transport: transport.config_generation,
}

_WRITERS: dict[int, Writer] = {
    Register.DeviceFeaturesSel: _selector_writer("_device_features_sel"),
    Register.DriverFeatures: MmioTransport._write_driver_features,
    Register.DriverFeaturesSel: _selector_writer("_driver_features_sel"),
    Register.QueueSel: _selector_writer("_queue_sel"),
    Register.QueueSize: MmioTransport._write_queue_size,
    Register.QueueReady: MmioTransport._write_queue_ready,
    Register.QueueNotify: MmioTransport._write_queue_notify,
    Register.Status: MmioTransport._write_status,
    Register.QueueDescLow: _address_writer("descriptor_area", high=False),
    Register.QueueDescHigh: _address_writer("descriptor_area", high=True),
    Register.QueueDriverLow: _address_writer("driver_area", high=False),
    Register.QueueDriverHigh: _address_writer("driver_area", high=True),
    Register.QueueDeviceLow: _address_writer("device_area", high=False),
    Register.QueueDeviceHigh: _address_writer("device_area", high=True),
    Register.SHMSel: _ignore,
    Register.QueueReset: MmioTransport._write_queue_reset,
}
