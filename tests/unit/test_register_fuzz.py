"""Any accesses to a device's registers, over any guest memory: it answers, and works after a reset.

`make nightly` makes many more of them. Which accesses fail is kept by hypothesis, and tried first.
"""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.guests import BUILDERS, MEMORY_SIZE, guest
from virtiopy.spec import DeviceStatus
from virtiopy.transport.registers import Register

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


@pytest.mark.parametrize("name", BUILDERS)
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
    with guest(name) as it:
        it.memory.write(0, Random(seed).randbytes(0x4000).translate(_SMALL))
        it.begin()
        for queue, size, place in starts:
            first, second, third = (((place >> shift) & 3) * 0x1000 for shift in (0, 4, 8))
            it.set_up(queue, size, (first, second, third))
        it.go()
        for queue, _, _ in starts:
            it.write(Register.QueueNotify, queue)
        for access in accesses:
            if len(access) == 2:
                it.write(*access)
            else:
                it.access(*access)
