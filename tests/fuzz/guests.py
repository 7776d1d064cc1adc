"""A device whose registers, and whose rings, hold what a fuzzer says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.fuzz.source import Source
from tests.unit.blk.bench import FakeDisk
from tests.unit.scsi_bench import CDROM, DISK
from tests.unit.test_ninep import HeldServer
from tests.unit.test_turns import DEVICES
from tests.unit.vsock_bench import CID, FakeSockets
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.ninep import NineP
from virtiopy.devices.scsi import Cdrom, Scsi, ScsiDisk
from virtiopy.devices.vsock import Vsock
from virtiopy.eventloop import EventLoop
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Register
from virtiopy.virtqueue.driver import Allocator

MEMORY_SIZE = 1 << 20

#: One entry a type: what a request is, is up to memory here.
BUILDERS: dict[str, Callable[[], VirtioDevice]] = {
    **{
        name: DEVICES[name][0]
        for name in ("rng", "blk", "console", "console control", "net", "balloon")
    },
    "scsi": lambda: Scsi(
        {DISK: ScsiDisk(FakeDisk(), serial="S1"), CDROM: Cdrom(FakeDisk(readonly=True))}
    ),
    "ninep": lambda: NineP(HeldServer(), "files"),
    "vsock": lambda: Vsock(CID, FakeSockets()),
}

_AREAS = (Register.QueueDescLow, Register.QueueDriverLow, Register.QueueDeviceLow)


@dataclass(slots=True)
class Guest:
    """A driver without manners."""

    transport: MmioTransport
    memory: GuestMemory

    def write(self, register: int, value: int) -> None:
        """Write a register of 4 bytes."""
        self.transport.write(register, (value & 0xFFFF_FFFF).to_bytes(4, "little"))

    def access(self, offset: int, size: int, data: bytes | None) -> None:
        """Read or write anything."""
        if data is None:
            assert len(self.transport.read(offset, size)) == size
        else:
            self.transport.write(offset, data[:size].ljust(size, b"\0"))

    def begin(self) -> None:
        """Negotiate VIRTIO_F_VERSION_1 alone."""
        for status in (0, 1, 3):
            self.write(Register.Status, status)
        self.write(Register.DriverFeaturesSel, 1)
        self.write(Register.DriverFeatures, 1)
        self.write(Register.Status, 11)

    def set_up(self, queue: int, size: int, areas: tuple[int, int, int]) -> None:
        """Tell the device of a queue."""
        self.write(Register.QueueSel, queue)
        self.write(Register.QueueSize, size)
        for address, register in zip(areas, _AREAS, strict=True):
            self.write(register, address)
        self.write(Register.QueueReady, 1)

    def go(self) -> None:
        """Set DRIVER_OK."""
        self.write(Register.Status, 15)


@contextmanager
def guest(name: str) -> Iterator[Guest]:
    """Give a device to a guest; in the end it has to work after a reset, as if it were new."""
    device = BUILDERS[name]()
    with GuestMemory.allocate(MEMORY_SIZE) as memory, EventLoop("devices") as loop:
        transport = MmioTransport(
            device, memory, LevelInterrupt(lambda level: None), loop=loop, may_block=True
        )
        yield Guest(transport, memory)
        # What waits for its turn has it.
        loop.call_soon(loop.stop, "stop")
        loop.run()
        driver = MmioDriver(transport, memory, Allocator(0x8000, MEMORY_SIZE))
        driver.reset()
        driver.start()
        assert transport.lifecycle.status == DeviceStatus(15)
        driver.reset()
        device.close()
        assert loop.failure is None


_NAMES = list(BUILDERS)
_REGISTERS = list(Register)
_SIZES = [1, 2, 4, 8]


def registers(data: bytes) -> None:
    """Any accesses, over memory of the fuzzer's."""
    source = Source(data)
    with guest(source.one_of(_NAMES)) as it:
        it.memory.write(0, source.bytes(64))
        it.begin()
        for _ in range(source.number(1) % 3):
            place = source.number(1)
            areas = ((place & 3) << 12, ((place >> 2) & 3) << 12, ((place >> 4) & 3) << 12)
            it.set_up(source.number(1) % 5, source.one_of([1, 2, 4, 8, 3, 0]), areas)
        it.go()
        while not source.is_empty:
            kind = source.number(1)
            if kind & 1:
                it.write(source.one_of(_REGISTERS), source.number(1 if kind & 2 else 4))
            else:
                size = source.one_of(_SIZES)
                it.access(source.number(2) % 0x200, size, source.bytes(size) if kind & 2 else None)


#: Of the rings that are below: entries, and where the parts of a queue are.
_ENTRIES = 8
_QUEUES = 4
#: Where the buffers are: few, so that requests meet one another, one of them beyond memory.
_BUFFERS = [0x8000, 0x8010, 0x9000, 0xA000, 0x1000, MEMORY_SIZE - 8, MEMORY_SIZE, 1 << 40]
_LENGTHS = [0, 1, 2, 8, 12, 16, 44, 51, 512, 4096, 0x10000, 0xFFFF_FFFF]


def _areas(queue: int) -> tuple[int, int, int]:
    base = 0x1000 * (queue + 1)
    return base, base + 0x400, base + 0x800


def _descriptor(source: Source) -> bytes:
    address, length = source.one_of(_BUFFERS), source.one_of(_LENGTHS)
    flags, following = source.number(1) % 8, source.number(1) % (_ENTRIES + 1)
    return (
        address.to_bytes(8, "little")
        + length.to_bytes(4, "little")
        + flags.to_bytes(2, "little")
        + following.to_bytes(2, "little")
    )


def rings(data: bytes) -> None:
    """Descriptors, chains and requests of the fuzzer's, in queues that are set up well."""
    source = Source(data)
    with guest(source.one_of(_NAMES)) as it:
        _begin(it)
        offered = [0] * _QUEUES
        while not source.is_empty:
            act, queue = source.number(1) % 7, source.number(1) % _QUEUES
            table, driver, _ = _areas(queue)
            if act < 2:
                entry = source.number(1) % _ENTRIES
                it.memory.write(table + 16 * entry, _descriptor(source))
            elif act == 2:
                head = source.number(1) % (_ENTRIES + 1)
                at = driver + 4 + 2 * (offered[queue] % _ENTRIES)
                it.memory.write(at, head.to_bytes(2, "little"))
                offered[queue] += 1
                it.memory.write(driver + 2, (offered[queue] % 65536).to_bytes(2, "little"))
                it.write(Register.QueueNotify, queue)
            elif act == 3:
                it.memory.write(source.one_of(_BUFFERS[:4]), source.bytes(source.number(1) % 64))
            elif act == 4:
                # A request of its device's, as small numbers: a type, a sector, a command.
                numbers = [source.number(1) for _ in range(4)]
                packed = b"".join(number.to_bytes(4, "little") for number in numbers)
                it.memory.write(source.one_of(_BUFFERS[:4]), packed)
            elif act == 5:
                it.memory.write(driver + source.number(1) % 24, source.bytes(2))
                it.write(Register.QueueNotify, queue)
            elif source.number(1) & 1:
                it.write(Register.QueueSel, queue)
                it.write(Register.QueueReset, 1)
            else:
                _begin(it)
                offered = [0] * _QUEUES


def _begin(it: Guest) -> None:
    it.begin()
    for queue in range(_QUEUES):
        for area in _areas(queue)[1:]:
            it.memory.write(area, bytes(0x40))
        it.set_up(queue, _ENTRIES, _areas(queue))
    it.go()
