"""What the tests of virtio over MMIO share."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from hypothesis import strategies as st

from virtiopy.devices.base import VirtioDevice
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId, DeviceStatus, Feature, feature_mask
from virtiopy.transport.driver import MmioDriver, Registers
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.buffers import gather, scatter, total
from virtiopy.virtqueue.driver import Allocator, Piece
from virtiopy.virtqueue.queue import Chain, Virtqueue

MEMORY_SIZE = 1 << 20
FAKE_FEATURE = 3
QUEUE_SIZES = [8, 4]
CONFIG = bytes(range(0xC0, 0xCC))
ACKNOWLEDGE = DeviceStatus.ACKNOWLEDGE
DRIVER = DeviceStatus.DRIVER
FEATURES_OK = DeviceStatus.FEATURES_OK
DRIVER_OK = DeviceStatus.DRIVER_OK
NEEDS_RESET = DeviceStatus.DEVICE_NEEDS_RESET
FAILED = DeviceStatus.FAILED
ALL_STEPS = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
VERSION_1 = Feature.VIRTIO_F_VERSION_1
RING_RESET = Feature.VIRTIO_F_RING_RESET
OFFERED = feature_mask(
    [
        FAKE_FEATURE,
        Feature.VIRTIO_F_INDIRECT_DESC,
        Feature.VIRTIO_F_EVENT_IDX,
        VERSION_1,
        RING_RESET,
    ]
)
WRITE_ONLY = [0x014, 0x020, 0x024, 0x030, 0x038, 0x050, 0x064]
WRITE_ONLY += [0x080, 0x084, 0x090, 0x094, 0x0A0, 0x0A4, 0x0AC]


class FakeDevice(VirtioDevice):
    """Fills each buffer with 0x5A, and records what the transport asks of it."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY

    def __init__(self) -> None:
        super().__init__()
        self.features = 1 << FAKE_FEATURE
        self.queue_sizes = QUEUE_SIZES
        self.config = bytearray(CONFIG)
        self.calls: list[tuple[object, ...]] = []
        self.willing = True

    def accepts(self, driver_features: int) -> bool:
        return self.willing

    def negotiated(self, driver_features: int) -> None:
        super().negotiated(driver_features)
        self.calls.append(("negotiated", driver_features))

    def config_space(self) -> bytes:
        return bytes(self.config)

    def write_config(self, offset: int, data: bytes) -> bool:
        self.calls.append(("write_config", offset, data))
        return True

    def activate(self, queues: Mapping[int, Virtqueue]) -> None:
        super().activate(queues)
        self.calls.append(("activate", *queues))

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        super().start_queue(index, queue)
        self.calls.append(("start_queue", index))

    def stop_queue(self, index: int) -> None:
        super().stop_queue(index)
        self.calls.append(("stop_queue", index))

    def reset(self) -> None:
        super().reset()
        self.calls.append(("reset",))

    def handle(self, queue: Virtqueue) -> None:
        self.calls.append(("handle", queue.index))
        super().handle(queue)

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        self.calls.append(("serve", queue.index, gather(chain.readable)))
        return scatter(chain.writable, b"\x5a" * total(chain.writable))


@dataclass
class Bench:
    """A device behind its registers, and what its interrupt line did."""

    memory: GuestMemory
    device: FakeDevice
    transport: MmioTransport
    driver: MmioDriver
    levels: list[bool]

    @property
    def line(self) -> bool:
        return bool(self.levels) and self.levels[-1]

    def read(self, offset: int) -> int:
        return self.driver.read(offset)

    def write(self, offset: int, value: int) -> None:
        self.driver.write(offset, value)

    def take_calls(self) -> list[tuple[object, ...]]:
        calls = list(self.device.calls)
        self.device.calls.clear()
        return calls

    def offer(self, index: int = 0, length: int = 4) -> int:
        """Make a device-writable buffer available; returns where it is."""
        address = self.driver.allocator.take(length)
        self.memory.write(address, bytes(length))
        self.driver.queues[index].add([Piece(address, length, writable=True)])
        return address

    def serves(self, index: int = 0) -> bool:
        """Say whether queue `index` gets a buffer filled."""
        address = self.offer(index)
        used = self.driver.collect(index)
        return [u.length for u in used] == [4] and self.memory.read(address, 4) == b"\x5a" * 4

    def set_up(
        self, index: int, *, size: int | None = None, descriptors: int | None = None
    ) -> None:
        """Write the registers of a queue as 4.2.3.2 says, but for what is given."""
        self.write(Register.QueueSel, index)
        allocate = self.driver.allocator.take
        parts = [allocate(0x100, 16), allocate(0x100, 2), allocate(0x100, 4)]
        if descriptors is not None:
            parts[0] = descriptors
        self.write(Register.QueueSize, QUEUE_SIZES[index] if size is None else size)
        for low, address in zip((0x080, 0x090, 0x0A0), parts, strict=True):
            self.write(low, address & 0xFFFF_FFFF)
            self.write(low + 4, address >> 32)
        self.write(Register.QueueReady, 1)


@contextmanager
def bench_of(
    wrap: Callable[[MmioTransport], Registers] = lambda transport: transport,
) -> Iterator[Bench]:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        device, levels = FakeDevice(), list[bool]()
        transport = MmioTransport(device, memory, LevelInterrupt(levels.append))
        driver = MmioDriver(wrap(transport), memory, Allocator(0x1000, MEMORY_SIZE))
        yield Bench(memory, device, transport, driver, levels)
        # A broken device would keep views of the memory.
        transport.lifecycle.reset()


registers = st.sampled_from(sorted(Register))
#: Values that mean something somewhere are likelier than chance would have them.
words = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 8, 11, 15, 0x1000, 0x2000, 0x3000, MEMORY_SIZE - 64]),
    st.integers(0, 0xFFFF_FFFF),
)
