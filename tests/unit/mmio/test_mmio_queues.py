"""Virtio over MMIO (4.2): queues are set up (4.2.3.2)."""

from collections.abc import Callable

import pytest

from tests.unit.mmio.bench import ALL_STEPS, DRIVER_OK, MEMORY_SIZE, NEEDS_RESET, Bench
from virtiopy.spec import Feature
from virtiopy.transport.registers import Interrupt, Register
from virtiopy.virtqueue.driver import Piece, Used


@pytest.mark.parametrize(("index", "size"), [(0, 8), (1, 4), (2, 0), (0xFFFF, 0), (1 << 31, 0)])
def test_queue_size_max_is_zero_for_a_queue_that_is_absent(
    bench: Bench, index: int, size: int
) -> None:
    assert bench.driver.queue_size_max(index) == size


def test_writes_to_the_registers_of_an_absent_queue_are_ignored(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.write(Register.QueueSel, 2)
    for register in (Register.QueueSize, Register.QueueDescHigh, Register.QueueReady):
        bench.write(register, 1)
    bench.write(Register.QueueReset, 1)
    assert bench.read(Register.QueueReady) == 0
    bench.driver.start()
    assert bench.serves(0)


def test_queue_ready_reads_back_for_the_selected_queue(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(1, 4)
    seen = []
    for index in range(3):
        bench.write(Register.QueueSel, index)
        seen.append(bench.read(Register.QueueReady))
    assert seen == [0, 1, 0]


def test_the_addresses_of_a_queue_have_64_bits(bench: Bench) -> None:
    bench.driver.negotiate()
    for low in (Register.QueueDescLow, Register.QueueDriverLow, Register.QueueDeviceLow):
        bench.write(low, low)
        bench.write(low + 4, 1)
    bench.write(Register.QueueReady, 1)
    queue = bench.transport.lifecycle.queue_config(0)
    assert queue is not None
    areas = (queue.descriptor_area, queue.driver_area, queue.device_area)
    assert areas == (0x1_0000_0080, 0x1_0000_0090, 0x1_0000_00A0)


def test_the_halves_of_an_address_can_be_written_in_either_order(bench: Bench) -> None:
    bench.write(Register.QueueDescHigh, 0xFFFF_FFFF)
    bench.write(Register.QueueDescLow, 0x1000)
    bench.write(Register.QueueDescHigh, 0)
    queue = bench.transport.lifecycle.queue_config(0)
    assert queue is not None
    assert queue.descriptor_area == 0x1000


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_queue_may_have_any_power_of_2_up_to_queue_size_max(bench: Bench, size: int) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, size)
    bench.driver.set_status(DRIVER_OK)
    assert [bench.serves() for _ in range(10)] == [True] * 10


def test_the_driver_may_leave_a_queue_out(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(1, 4)
    bench.driver.set_status(DRIVER_OK)
    assert bench.take_calls()[-1] == ("activate", 1)
    assert bench.serves(1)


def _offer_indirect(bench: Bench) -> list[Used]:
    table, buffer = bench.driver.allocator.take(16, 16), bench.driver.allocator.take(4)
    queue = bench.driver.queues[0]
    queue.add([Piece(buffer, 4, writable=True)], direct=0, table=table)
    return bench.driver.collect(0)


def test_indirect_descriptors_work_where_they_were_negotiated(bench: Bench) -> None:
    bench.driver.start([Feature.VIRTIO_F_INDIRECT_DESC])
    assert [used.length for used in _offer_indirect(bench)] == [4]


def test_indirect_descriptors_are_refused_where_they_were_not_negotiated(bench: Bench) -> None:
    bench.driver.start([])
    assert [used.length for used in _offer_indirect(bench)] == [0]
    assert ("serve", 0, b"") not in bench.take_calls()


def test_used_event_holds_the_interrupt_back_where_it_was_negotiated(bench: Bench) -> None:
    bench.driver.start([Feature.VIRTIO_F_EVENT_IDX])
    bench.driver.queues[0].used_event[0] = 1
    lines = [(bench.serves(), bench.line) for _ in range(2)]
    assert lines == [(True, False), (True, True)]


def test_used_event_means_nothing_where_it_was_not_negotiated(bench: Bench) -> None:
    bench.driver.start([])
    bench.driver.queues[0].used_event[0] = 1
    assert bench.serves()
    assert bench.line


BAD_QUEUES: dict[str, Callable[[Bench], None]] = {
    "size above the maximum": lambda bench: bench.set_up(0, size=16),
    "huge size": lambda bench: bench.set_up(0, size=0xFFFF_FFFF),
    "size 0": lambda bench: bench.set_up(0, size=0),
    "size no power of 2": lambda bench: bench.set_up(0, size=6),
    "descriptors outside memory": lambda bench: bench.set_up(0, descriptors=MEMORY_SIZE),
    "descriptors partly outside memory": lambda bench: bench.set_up(
        0, descriptors=MEMORY_SIZE - 16
    ),
    "descriptors at the top of the address space": lambda bench: bench.set_up(
        0, descriptors=0xFFFF_FFFF_FFFF_FFF0
    ),
    "misaligned descriptors": lambda bench: bench.set_up(0, descriptors=0x1008),
}
bad_queues = pytest.mark.parametrize("set_up", BAD_QUEUES.values(), ids=BAD_QUEUES)


@bad_queues
def test_a_queue_that_cannot_be_makes_the_device_need_a_reset_at_driver_ok(
    bench: Bench, set_up: Callable[[Bench], None]
) -> None:
    bench.driver.negotiate()
    set_up(bench)
    assert not bench.driver.status & NEEDS_RESET
    bench.driver.set_status(DRIVER_OK)
    assert bench.driver.status == ALL_STEPS | NEEDS_RESET
    assert bench.read(Register.InterruptStatus) == Interrupt.CONFIG_CHANGE
    assert bench.line


@bad_queues
def test_a_queue_that_cannot_be_makes_a_running_device_need_a_reset(
    bench: Bench, set_up: Callable[[Bench], None]
) -> None:
    bench.driver.negotiate()
    bench.driver.set_status(DRIVER_OK)
    set_up(bench)
    assert bench.driver.status == ALL_STEPS | NEEDS_RESET
    assert bench.driver.interrupts() == Interrupt.CONFIG_CHANGE
    assert bench.take_calls()[-1] == ("activate",)


@bad_queues
def test_beside_a_queue_that_cannot_be_no_other_is_served(
    bench: Bench, set_up: Callable[[Bench], None]
) -> None:
    bench.driver.negotiate()
    set_up(bench)
    bench.driver.set_up_queue(1, 4)
    bench.driver.set_status(DRIVER_OK)
    assert not bench.serves(1)


@bad_queues
def test_the_device_works_after_the_reset_that_a_bad_queue_needs(
    bench: Bench, set_up: Callable[[Bench], None]
) -> None:
    bench.driver.negotiate()
    set_up(bench)
    bench.driver.set_status(DRIVER_OK)
    bench.driver.start()
    assert bench.driver.status == ALL_STEPS
    assert bench.serves()


LOCKED = [Register.QueueSize, Register.QueueDescLow, Register.QueueDescHigh]
LOCKED += [Register.QueueDriverLow, Register.QueueDriverHigh]
LOCKED += [Register.QueueDeviceLow, Register.QueueDeviceHigh]


@pytest.mark.parametrize("register", LOCKED)
def test_the_registers_of_a_ready_queue_are_locked(bench: Bench, register: Register) -> None:
    bench.driver.negotiate()
    bench.driver.set_up_queue(0, 4)
    bench.write(register, 1)
    bench.driver.set_status(DRIVER_OK)
    assert [bench.serves() for _ in range(3)] == [True] * 3


def test_a_queue_may_be_made_ready_after_driver_ok(bench: Bench) -> None:
    bench.driver.negotiate()
    bench.driver.set_status(DRIVER_OK)
    bench.driver.set_up_queue(0, 4)
    assert bench.take_calls()[-1] == ("start_queue", 0)
    assert bench.serves()
