"""Any accesses to a device's registers, over any guest memory: it answers, and works after a reset.

`make nightly` makes many more of them. Which accesses fail is kept by hypothesis, and tried first.
"""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_turns import DEVICES
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
NAMES = ["rng", "blk", "console", "console control", "net", "balloon"]

_ADDRESSES = [0, 0x1000, 0x2000, 0x3000, MEMORY_SIZE - 16, MEMORY_SIZE]
_VALUES = st.one_of(
    st.integers(0, 8),
    st.sampled_from(_ADDRESSES),
    st.sampled_from([int(DeviceStatus.ACKNOWLEDGE), 3, 11, 15, 64, 0x7FFF_FFFF, 0xFFFF_FFFF]),
    st.integers(0, 0xFFFF_FFFF),
)
_WRITES = st.tuples(st.sampled_from(list(Register)), _VALUES)
_ODD = st.tuples(
    st.integers(0, 0x1FF),
    st.sampled_from([1, 2, 4, 8]),
    st.one_of(st.none(), st.binary(min_size=8)),
)
#: Enough to have a queue worked, in the order of 3.1.1, so that not all ends at the first check.
_START = st.tuples(st.integers(0, 4), st.sampled_from([1, 2, 4, 8, 3, 0]), st.integers(0, 2**32))


#: Makes of any bytes what a driver's rings could hold: small numbers more often than not.
_SMALL = bytes(value if value >= 0xC0 else value % 3 for value in range(256))


@pytest.mark.parametrize("name", NAMES)
@given(
    seed=st.integers(0, 2**32),
    starts=st.lists(_START, max_size=3),
    accesses=st.lists(st.one_of(_WRITES, _ODD), max_size=30),
)
def test_any_accesses_are_answered_and_a_reset_mends_all(
    name: str,
    seed: int,
    starts: list[tuple[int, int, int]],
    accesses: list[tuple[int, int] | tuple[int, int, bytes | None]],
) -> None:
    device = DEVICES[name][0]()
    with GuestMemory.allocate(MEMORY_SIZE) as memory, EventLoop("devices") as loop:
        transport = MmioTransport(
            device, memory, LevelInterrupt(lambda level: None), loop=loop, may_block=True
        )
        memory.write(0, Random(seed).randbytes(0x4000).translate(_SMALL))

        def write(register: int, value: int) -> None:
            transport.write(register, value.to_bytes(4, "little"))

        for status in (0, 1, 3):
            write(Register.Status, status)
        write(Register.DriverFeaturesSel, 1)
        write(Register.DriverFeatures, 1)
        write(Register.Status, 11)
        for queue, size, place in starts:
            write(Register.QueueSel, queue)
            write(Register.QueueSize, size)
            areas = (Register.QueueDescLow, Register.QueueDriverLow, Register.QueueDeviceLow)
            for area, register in enumerate(areas):
                write(register, ((place >> (4 * area)) & 3) * 0x1000)
            write(Register.QueueReady, 1)
        write(Register.Status, 15)
        for queue, _, _ in starts:
            write(Register.QueueNotify, queue)
        for access in accesses:
            if len(access) == 2:
                write(*access)
            else:
                offset, size, data = access
                if data is not None:
                    transport.write(offset, data[:size])
                else:
                    assert len(transport.read(offset, size)) == size
        driver = MmioDriver(transport, memory, Allocator(0x8000, MEMORY_SIZE))
        driver.reset()
        driver.start()
        assert transport.lifecycle.status == 15
        driver.reset()
        device.close()
        assert loop.failure is None
