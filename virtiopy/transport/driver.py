"""The driver side of virtio over MMIO (4.2.3), for tests and tools.

It needs no VM: it reads and writes the registers of a device that is served in this process.
"""

from collections.abc import Iterable
from typing import Protocol

from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature, feature_mask, has_feature
from virtiopy.transport.registers import MAGIC_VALUE, VERSION, Interrupt, Register
from virtiopy.virtqueue.driver import Allocator, DriverQueue, Used


class Registers(Protocol):
    """A device's register page."""

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset`."""

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`."""


class NegotiationError(Exception):
    """The device did not accept what the driver asked for."""


class MmioDriver:
    """A driver of the device behind `registers`, with `allocator`'s part of `memory` to use."""

    def __init__(self, registers: Registers, memory: GuestMemory, allocator: Allocator) -> None:
        self.registers = registers
        self.memory = memory
        self.allocator = allocator
        self.features = 0
        self.queues: dict[int, DriverQueue] = {}

    # Registers: 32 bits wide and aligned (4.2.2.2)

    def read(self, register: int) -> int:
        """Read a control register."""
        return int.from_bytes(self.registers.read(register, 4), "little")

    def write(self, register: int, value: int) -> None:
        """Write a control register."""
        self.registers.write(register, value.to_bytes(4, "little"))

    def read_config(self, offset: int, size: int) -> int:
        """Read a field of the configuration space, 1, 2, 4 or 8 bytes (2.5.1)."""
        while True:
            generation = self.read(Register.ConfigGeneration)
            parts = [
                self.registers.read(Register.Config + offset + start, min(size, 4))
                for start in range(0, size, 4)
            ]
            if self.read(Register.ConfigGeneration) == generation:
                return int.from_bytes(b"".join(parts), "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write a field of the configuration space, 1, 2 or 4 bytes."""
        self.registers.write(Register.Config + offset, value.to_bytes(size, "little"))

    # Initialization (3.1.1)

    @property
    def status(self) -> int:
        """The device status field."""
        return self.read(Register.Status)

    def set_status(self, *bits: DeviceStatus) -> None:
        """Set bits of the device status field; the others stay."""
        self.write(Register.Status, self.status | sum(bits))

    def reset(self) -> None:
        """Reset the device (2.4); its queues are forgotten."""
        self.write(Register.Status, 0)
        self.features = 0
        self.queues = {}

    def offered_features(self) -> int:
        """Read the 64 feature bits that the device offers."""
        features = 0
        for word in range(2):
            self.write(Register.DeviceFeaturesSel, word)
            features |= self.read(Register.DeviceFeatures) << 32 * word
        return features

    def write_features(self, features: int) -> None:
        """Write the feature bits that the driver wants."""
        for word in range(2):
            self.write(Register.DriverFeaturesSel, word)
            self.write(Register.DriverFeatures, features >> 32 * word & 0xFFFF_FFFF)

    def negotiate(self, features: Iterable[int] | None = None) -> int:
        """Go through steps 1 to 6 of 3.1.1; returns the features negotiated.

        `features` are bit numbers, VERSION_1 is added to them; None takes all that is offered.
        Raises NegotiationError where the device is none, or does not keep FEATURES_OK.
        """
        if self.read(Register.MagicValue) != MAGIC_VALUE or self.read(Register.Version) != VERSION:
            raise NegotiationError("no virtio-mmio device of version 2")
        self.reset()
        self.set_status(DeviceStatus.ACKNOWLEDGE)
        self.set_status(DeviceStatus.DRIVER)
        offered = self.offered_features()
        wanted = offered
        if features is not None:
            wanted = feature_mask([Feature.VIRTIO_F_VERSION_1, *features])
        self.write_features(wanted)
        self.set_status(DeviceStatus.FEATURES_OK)
        if not self.status & DeviceStatus.FEATURES_OK:
            raise NegotiationError(f"features {wanted:#x} refused, of {offered:#x} offered")
        self.features = wanted
        return wanted

    def start(self, features: Iterable[int] | None = None, queue_size: int | None = None) -> None:
        """Go through all of 3.1.1, with every queue that the device has, at most `queue_size`."""
        self.negotiate(features)
        index = 0
        while (most := self.queue_size_max(index)) > 0:
            self.set_up_queue(index, min(most, queue_size or most))
            index += 1
        self.set_status(DeviceStatus.DRIVER_OK)

    def queue_size_max(self, index: int) -> int:
        """Read QueueSizeMax: 0 for a queue that is not there."""
        self.write(Register.QueueSel, index)
        return self.read(Register.QueueSizeMax)

    def set_up_queue(self, index: int, size: int) -> DriverQueue:
        """Make a virtqueue and tell the device about it (4.2.3.2)."""
        queue = DriverQueue(
            self.memory,
            size,
            self.allocator,
            event_idx=has_feature(self.features, Feature.VIRTIO_F_EVENT_IDX),
        )
        self.announce_queue(index, queue)
        return queue

    def announce_queue(self, index: int, queue: DriverQueue) -> None:
        """Tell the device about a virtqueue, and that it is ready."""
        self.write(Register.QueueSel, index)
        self.write(Register.QueueSize, queue.size)
        for register, address in (
            (Register.QueueDescLow, queue.areas.descriptor),
            (Register.QueueDriverLow, queue.areas.driver),
            (Register.QueueDeviceLow, queue.areas.device),
        ):
            self.write(register, address & 0xFFFF_FFFF)
            self.write(register + 4, address >> 32)
        self.write(Register.QueueReady, 1)
        self.queues[index] = queue

    # Operation

    def kick(self, index: int) -> None:
        """Send an available buffer notification (4.2.3.3), whether or not it was asked for."""
        self.write(Register.QueueNotify, index)

    def interrupts(self) -> Interrupt:
        """Read InterruptStatus and acknowledge what is in it (4.2.3.4.1)."""
        status = Interrupt(self.read(Register.InterruptStatus))
        self.write(Register.InterruptACK, status)
        return status

    def collect(self, index: int) -> list[Used]:
        """Kick queue `index` and take what the device used."""
        self.kick(index)
        return self.queues[index].take_all_used()
