"""Virtio over MMIO, version 2 (4.2): a device's life said by a page of registers."""

from collections.abc import Callable
from typing import ClassVar

from virtiopy.devices.base import VirtioDevice
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature, feature_mask
from virtiopy.transport.interrupts import StatusInterrupt
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.transport.observer import Act, LifecycleObserver
from virtiopy.transport.registerpage import RegisterPage
from virtiopy.transport.registers import (
    LEGACY_REGISTERS,
    MAGIC_VALUE,
    NO_SHARED_MEMORY,
    REGISTER_RANGE,
    VENDOR_ID,
    VERSION,
    Register,
)
from virtiopy.virtqueue.formats import OpenQueue, open_queue
from virtiopy.virtqueue.queue import RING_FEATURES

#: What this transport offers besides the device.
TRANSPORT_FEATURES = RING_FEATURES | feature_mask([Feature.VIRTIO_F_RING_RESET])


#: Bytes of a register, and of fields of the configuration space (4.2.2.2).
_WORD = 4
_CONFIG_WIDTHS = (1, 2, 4)

_AS_BYTES = "it reads the bytes that lie there"


class MmioTransport(LifecycleObserver):
    """The registers of one device, by which its driver leads its `lifecycle`.

    `interrupt` is the device's, with InterruptStatus in it; messages call the device `name`. The
    device is attached, with `loop` for what it does of itself; `may_block` says whether kicks may
    wait for what they cause.
    """

    #: What opens the device's side of a virtqueue.
    open_queue: ClassVar[OpenQueue] = staticmethod(open_queue)

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        interrupt: StatusInterrupt,
        *,
        name: str | None = None,
        loop: EventLoop | None = None,
        may_block: bool = True,
    ) -> None:
        self.device = device
        self.interrupt = interrupt
        self._page: RegisterPage | None = None
        self._forget_selectors()
        self.lifecycle = Lifecycle(
            device,
            memory,
            interrupt,
            open_queue=self.open_queue,
            name=name,
            features=TRANSPORT_FEATURES,
            loop=loop,
            may_block=may_block,
        )
        self.lifecycle.observers.append(self)
        interrupt.on_change = self._show_interrupt_status

    def _forget_selectors(self) -> None:
        self._device_features_sel = 0
        self._driver_features_sel = 0
        self._queue_sel = 0
        self._shm_sel = 0

    # The bus's side

    def register_name(self, offset: int) -> str:
        """Name the register at `offset` (bytes from the start of the page)."""
        if offset >= Register.Config:
            return "Config"
        try:
            return Register(offset).name
        except ValueError:
            return f"undefined {offset:#05x}"

    # An access that 4.2.2.2 forbids means one thing on every accelerator, whether registers are
    # read by exits or not: a read gives the bytes that lie there, as on the page; a store of 8
    # bytes at a multiple of 8 is two of 4 bytes, the lower first; any other store has no effect.
    # Some accelerators make the two stores themselves, and a page tells of no read: there is no
    # warning then.

    def read(self, offset: int, size: int) -> bytes:
        """Return what the driver reads."""
        if offset == Register.InterruptStatus and size == _WORD:
            return self.interrupt.read().to_bytes(_WORD, "little")
        if offset >= Register.Config:
            with self.device.lock:
                if size not in _CONFIG_WIDTHS:
                    self._refuse_access("reads", offset, size, _AS_BYTES)
                return self.lifecycle.read_config(offset - Register.Config, size)
        if size == _WORD and (reader := _READERS.get(offset)) is not None:
            return reader(self).to_bytes(_WORD, "little")
        with self.device.lock:
            self._refuse_access("reads", offset, size, _AS_BYTES)
            if (
                offset < Register.InterruptStatus + _WORD
                and Register.InterruptStatus < offset + size
            ):
                self.interrupt.read()
            return bytes(self._registers()[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Take what the driver writes."""
        if len(data) == 2 * _WORD and offset % (2 * _WORD) == 0:
            with self.device.lock:
                self._refuse_access("writes", offset, len(data), "two writes of 4 bytes are made")
            self.write(offset, data[:_WORD])
            self.write(offset + _WORD, data[_WORD:])
            return
        if offset == Register.InterruptACK and len(data) == _WORD:
            # Not the device's business, so it does not wait for the device.
            events = int.from_bytes(data, "little")
            self.interrupt.acknowledge(events)
            self.lifecycle.acknowledged(events)
            return
        with self.device.lock:
            self._write_locked(offset, data)
            if offset != Register.QueueNotify:
                self._show()

    def _write_locked(self, offset: int, data: bytes) -> None:
        if offset >= Register.Config and len(data) in _CONFIG_WIDTHS:
            self.lifecycle.write_config(offset - Register.Config, data)
        elif len(data) == _WORD and (writer := _WRITERS.get(offset)) is not None:
            writer(self, int.from_bytes(data, "little"))
        else:
            self._refuse_access("writes", offset, len(data), "nothing is written")

    def _refuse_access(self, does: str, offset: int, size: int, answer: str) -> None:
        """Say that an access is none that 4.2.2.2 allows; the device's lock is held."""
        what = f"{size} byte{'s' if size > 1 else ''} at {offset:#x}"
        fact, section = f"the driver {does} {what} ({self.register_name(offset)})", "4.2.2.2"
        if offset in LEGACY_REGISTERS:
            name = LEGACY_REGISTERS[offset]
            fact, section = f"the driver {does} {what}: {name} of a legacy device", "4.2.4"
        self.lifecycle.refuse(Act.ACCESS, fact, section, answer)

    # Registers without exits

    def show_on(self, page: RegisterPage) -> None:
        """Show every register on a page, which the guest may read in place of `read`."""
        with self.device.lock:
            self._page = page
            self._show()

    def _registers(self) -> bytearray:
        """Return all registers as they read, side by side."""
        registers = bytearray(REGISTER_RANGE)
        for offset, reader in _READERS.items():
            registers[offset : offset + _WORD] = reader(self).to_bytes(_WORD, "little")
        config = self.device.config_space()[: REGISTER_RANGE - Register.Config]
        registers[Register.Config : Register.Config + len(config)] = config
        return registers

    def _show(self) -> None:
        if self._page is None:
            return
        registers = self._registers()
        with self.interrupt.lock:
            status = self.interrupt.read_status().to_bytes(_WORD, "little")
            registers[Register.InterruptStatus : Register.InterruptStatus + _WORD] = status
            self._page.show(bytes(registers))

    def _show_interrupt_status(self) -> None:
        """Show InterruptStatus; the caller holds the interrupt's lock."""
        if self._page is not None:
            self._page.set(Register.InterruptStatus, self.interrupt.read_status())

    def config_changed(self, *, notify: bool) -> None:
        """Show the configuration space as it is now, before the driver is told."""
        self._show()

    def needs_reset(self, reason: str) -> None:
        """Show the status, before the driver is told."""
        self._show()

    def was_reset(self) -> None:
        """Give every register the value that it has after a reset."""
        self._forget_selectors()

    # Feature bits, section 2.2

    def _read_device_features(self) -> int:
        return self.lifecycle.offered >> 32 * self._device_features_sel & 0xFFFF_FFFF

    def _write_driver_features(self, value: int) -> None:
        life = self.lifecycle
        if life.status & DeviceStatus.FEATURES_OK:
            fact = "the driver writes DriverFeatures after FEATURES_OK"
            life.refuse(Act.FEATURES, fact, "2.2.1", "the features stay as they are")
            return
        if self._driver_features_sel > 1:
            # No feature there is offered: one word stands for all, and keeps what was asked for.
            life.driver_features |= value << 64
            return
        shift = 32 * self._driver_features_sel
        kept = life.driver_features & ~(0xFFFF_FFFF << shift)
        life.driver_features = kept | value << shift

    # Queues, sections 4.2.3.2 and 2.6.1

    def _read_queue_ready(self) -> int:
        config = self.lifecycle.queue_config(self._queue_sel)
        return int(config is not None and config.ready)

    def _write_queue_size(self, value: int) -> None:
        config = self.lifecycle.configurable(self._queue_sel, "QueueSize")
        if config is not None:
            config.size = value

    def _write_queue_ready(self, value: int) -> None:
        self.lifecycle.set_queue_ready(self._queue_sel, ready=bool(value & 1))

    def _write_queue_reset(self, value: int) -> None:
        # The reset completes here and now, so QueueReset never reads as 1.
        if value == 1:
            self.lifecycle.reset_queue(self._queue_sel)

    # Shared memory regions (2.10)

    def _read_shared_memory(self, field: str, *, high: bool) -> int:
        region = self.device.shared_memory.get(self._shm_sel)
        value = NO_SHARED_MEMORY if region is None else getattr(region, field)
        return value >> (32 if high else 0) & 0xFFFF_FFFF


Reader = Callable[[MmioTransport], int]
Writer = Callable[[MmioTransport, int], None]


def _address_writer(area: str, register: str, *, high: bool) -> Writer:
    """Return what writes one half of a queue's 64-bit address."""
    shift = 32 if high else 0

    def write(transport: MmioTransport, value: int) -> None:
        config = transport.lifecycle.configurable(transport._queue_sel, register)
        if config is not None:
            kept = getattr(config, area) & 0xFFFF_FFFF << 32 - shift
            setattr(config, area, kept | value << shift)

    return write


def _shared_memory_reader(field: str, *, high: bool) -> Reader:
    return lambda transport: transport._read_shared_memory(field, high=high)


def _selector_writer(name: str) -> Writer:
    def write(transport: MmioTransport, value: int) -> None:
        setattr(transport, name, value)

    return write


_READERS: dict[int, Reader] = {
    Register.MagicValue: lambda transport: MAGIC_VALUE,
    Register.Version: lambda transport: VERSION,
    Register.DeviceID: lambda transport: transport.device.device_id,
    Register.VendorID: lambda transport: VENDOR_ID,
    Register.DeviceFeatures: MmioTransport._read_device_features,
    Register.QueueSizeMax: lambda transport: transport.lifecycle.queue_size_max(
        transport._queue_sel
    ),
    Register.QueueReady: MmioTransport._read_queue_ready,
    Register.InterruptStatus: lambda transport: transport.interrupt.read_status(),
    Register.Status: lambda transport: transport.lifecycle.status,
    Register.SHMLenLow: _shared_memory_reader("length", high=False),
    Register.SHMLenHigh: _shared_memory_reader("length", high=True),
    Register.SHMBaseLow: _shared_memory_reader("address", high=False),
    Register.SHMBaseHigh: _shared_memory_reader("address", high=True),
    Register.QueueReset: lambda transport: 0,
    Register.ConfigGeneration: lambda transport: transport.lifecycle.config_generation,
}

_WRITERS: dict[int, Writer] = {
    Register.DeviceFeaturesSel: _selector_writer("_device_features_sel"),
    Register.DriverFeatures: MmioTransport._write_driver_features,
    Register.DriverFeaturesSel: _selector_writer("_driver_features_sel"),
    Register.QueueSel: _selector_writer("_queue_sel"),
    Register.QueueSize: MmioTransport._write_queue_size,
    Register.QueueReady: MmioTransport._write_queue_ready,
    Register.QueueNotify: lambda transport, value: transport.lifecycle.kick(value),
    Register.Status: lambda transport, value: transport.lifecycle.write_status(value),
    Register.QueueDescLow: _address_writer("descriptor_area", "QueueDescLow", high=False),
    Register.QueueDescHigh: _address_writer("descriptor_area", "QueueDescHigh", high=True),
    Register.QueueDriverLow: _address_writer("driver_area", "QueueDriverLow", high=False),
    Register.QueueDriverHigh: _address_writer("driver_area", "QueueDriverHigh", high=True),
    Register.QueueDeviceLow: _address_writer("device_area", "QueueDeviceLow", high=False),
    Register.QueueDeviceHigh: _address_writer("device_area", "QueueDeviceHigh", high=True),
    Register.SHMSel: _selector_writer("_shm_sel"),
    Register.QueueReset: MmioTransport._write_queue_reset,
}
