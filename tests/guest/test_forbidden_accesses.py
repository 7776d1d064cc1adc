"""An access to registers that 4.2.2.2 forbids means one thing, whatever executes the guest."""

from pathlib import Path

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.guest.support import needs_kvm
from virtiopy.accel import select
from virtiopy.boot.elf import GuestImage, LoadSegment
from virtiopy.devices.rng import Rng
from virtiopy.memory import GuestMemory
from virtiopy.transport.registers import MAGIC_VALUE, VERSION, Register
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import MMIO_BASE, IoMode

CODE, COPIES, SCRATCH = 0x10_0000, 0x20_0000, 0x20_0800

#: mov al, 0; out 0xf4, al
END = b"\xb0\x00\xe6\xf4"

#: A load and a store by width, each without its address: mov of al, ax, eax, movq of mm0.
LOADS = {1: b"\xa0", 2: b"\x66\xa1", 4: b"\xa1", 8: b"\x0f\x6f\x05"}
STORES = {1: b"\xa2", 2: b"\x66\xa3", 4: b"\xa3", 8: b"\x0f\x7f\x05"}

READS = [(0, 8), (0, 2), (1, 4), (4, 1), (2, 4), (4, 8)]
VALUE = 0x11_2233_4455_6677
STORED = [
    (Register.QueueDescLow, 8),
    (Register.QueueDriverLow, 2),
    (Register.QueueDeviceLow, 1),
    (Register.QueueDriverLow + 1, 4),
    (Register.QueueDescHigh, 8),
]


def at(address: int) -> bytes:
    return address.to_bytes(4, "little")


def read(offset: int, width: int, destination: int) -> bytes:
    return LOADS[width] + at(MMIO_BASE + offset) + STORES[width] + at(destination)


def write(offset: int, width: int) -> bytes:
    return LOADS[width] + at(SCRATCH) + STORES[width] + at(MMIO_BASE + offset)


@pytest.mark.parametrize(
    ("name", "exit_free"),
    [
        pytest.param("tcg", False, marks=needs_unicorn, id="tcg"),
        pytest.param("kvm", False, marks=needs_kvm, id="kvm with exits"),
        pytest.param("kvm", True, marks=needs_kvm, id="kvm without exits"),
    ],
)
def test_reads_give_the_bytes_that_lie_there_and_wide_stores_are_two(
    name: str, exit_free: bool
) -> None:
    code = b"".join(read(*place, COPIES + 8 * n) for n, place in enumerate(READS))
    code += b"".join(write(*place) for place in STORED) + END
    image = GuestImage(Path(), CODE, CODE, (LoadSegment(CODE, code, len(code)),))
    with GuestMemory.allocate(4 << 20) as memory:
        accelerator = select(name, memory)
        with Machine(memory, accelerator, console=bytearray().extend, exit_free=exit_free) as vm:
            slot = vm.add_device(Rng(), "rng0", IoMode.TRAPPED)
            vm.boot(image)
            memory.write(SCRATCH, VALUE.to_bytes(8, "little"))
            assert vm.run(60).status == 0
            config = slot.transport.lifecycle.queue_config(0)
        copies = [memory.read(COPIES + 8 * n, width) for n, (_, width) in enumerate(READS)]
        accelerator.close()

    registers = MAGIC_VALUE.to_bytes(4, "little") + VERSION.to_bytes(4, "little")
    registers += slot.device.device_id.to_bytes(4, "little")
    assert copies == [registers[offset : offset + width] for offset, width in READS]
    assert config is not None
    # The store of 8 bytes at a multiple of 8 alone.
    assert config.areas.descriptor == VALUE
    assert (config.areas.driver, config.areas.device) == (0, 0)
