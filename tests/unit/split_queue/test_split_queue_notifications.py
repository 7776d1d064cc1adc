"""Split virtqueues (2.7): notifications, both ways (2.7.7.2, 2.7.10)."""

import pytest

from tests.unit.split_queue.rig import STARTS, Rig, build
from virtiopy.memory import GuestMemory

# Used buffer notifications (2.7.7.2)


def _use(rig: Rig, count: int) -> None:
    for _ in range(count):
        rig.offer(rig.writable(1))
    for chain in rig.device.pop_many():
        rig.device.push(chain, 0)
    rig.driver.take_all_used()


@pytest.mark.parametrize("event_idx", [False, True])
def test_no_interrupt_is_due_when_nothing_was_used(memory: GuestMemory, event_idx: bool) -> None:
    rig = build(memory, event_idx=event_idx)
    assert not rig.device.should_interrupt()


@pytest.mark.parametrize("event_idx", [False, True])
def test_an_interrupt_is_due_once_for_a_batch(memory: GuestMemory, event_idx: bool) -> None:
    rig = build(memory, event_idx=event_idx)
    _use(rig, 3)
    assert rig.device.should_interrupt()
    assert not rig.device.should_interrupt()


def test_without_event_idx_flags_1_suppresses_interrupts_until_it_is_0(rig: Rig) -> None:
    rig.driver.available.flags = 1
    _use(rig, 1)
    assert not rig.device.should_interrupt()
    rig.driver.available.flags = 0
    _use(rig, 1)
    assert rig.device.should_interrupt()


@pytest.mark.parametrize("used_event", [0, 1, 7, 65535])
def test_without_event_idx_used_event_is_ignored(rig: Rig, used_event: int) -> None:
    rig.driver.used_event[0] = used_event
    _use(rig, 1)
    assert rig.device.should_interrupt()


def test_with_event_idx_the_flag_is_ignored(memory: GuestMemory) -> None:
    rig = build(memory, event_idx=True)
    rig.driver.available.flags = 1
    _use(rig, 1)
    assert rig.device.should_interrupt()


# "If the idx field in the used ring (which determined where that descriptor index was placed) was
# equal to used_event, the device MUST send a notification."
@pytest.mark.parametrize("count", range(5))
@pytest.mark.parametrize("start", STARTS)
def test_with_event_idx_an_interrupt_is_due_when_entry_used_event_was_written(
    memory: GuestMemory, start: int, count: int
) -> None:
    written = {(start + offset) % 65536 for offset in range(count)}
    for offset in range(-3, 8):
        rig = build(memory, event_idx=True, start=start)
        rig.driver.used_event[0] = used_event = (start + offset) % 65536
        _use(rig, count)
        assert rig.device.should_interrupt() == (used_event in written), used_event


# The example in 2.7.7.2: used_event 0 asks for the first entry, and again once idx has wrapped.
def test_with_used_event_0_only_the_entry_after_the_wrap_interrupts(memory: GuestMemory) -> None:
    rig = build(memory, 1, event_idx=True, start=65535)
    rig.driver.used_event[0] = 0
    due = []
    for _ in range(3):
        _use(rig, 1)
        due.append(rig.device.should_interrupt())
    assert due == [False, True, False]


def test_a_malformed_chain_given_back_asks_for_an_interrupt(rig: Rig) -> None:
    rig.driver.write_descriptor(0, 1 << 63, 1, 0, 0)
    rig.driver.make_available(0)
    assert rig.device.pop() is None
    assert rig.device.should_interrupt()


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_driver_that_enables_interrupts_gets_the_next(
    memory: GuestMemory, event_idx: bool
) -> None:
    rig = build(memory, event_idx=event_idx, start=65535)
    rig.driver.enable_interrupts()
    _use(rig, 1)
    assert rig.device.should_interrupt()
    rig.driver.disable_interrupts()
    _use(rig, 1)
    assert not rig.device.should_interrupt()
    rig.driver.enable_interrupts()
    _use(rig, 1)
    assert rig.device.should_interrupt()


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_driver_that_disables_interrupts_gets_not_even_the_first(
    memory: GuestMemory, event_idx: bool
) -> None:
    rig = build(memory, event_idx=event_idx)
    rig.driver.disable_interrupts()
    _use(rig, 1)
    assert not rig.device.should_interrupt()


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_driver_that_enables_interrupts_is_told_of_buffers_used_before(
    memory: GuestMemory, event_idx: bool
) -> None:
    rig = build(memory, event_idx=event_idx)
    assert not rig.driver.enable_interrupts()
    rig.offer()
    rig.device.push(rig.pop(), 0)
    assert rig.driver.enable_interrupts()


# Available buffer notifications (2.7.10)


def test_without_event_idx_disabling_notifications_sets_flags_to_1(rig: Rig) -> None:
    rig.device.disable_kicks()
    assert rig.field16(rig.driver.areas.device) == 1
    rig.device.enable_kicks()
    assert rig.field16(rig.driver.areas.device) == 0


# 2.7.10.2: with VIRTIO_F_EVENT_IDX the device MUST set flags to 0.
def test_with_event_idx_flags_stay_0(memory: GuestMemory) -> None:
    rig = build(memory, event_idx=True)
    rig.device.disable_kicks()
    assert rig.field16(rig.driver.areas.device) == 0
    rig.device.enable_kicks()
    assert rig.field16(rig.driver.areas.device) == 0


def test_without_event_idx_avail_event_is_left_alone(rig: Rig) -> None:
    rig.driver.avail_event[0] = 0x5A5A
    rig.offer()
    rig.pop()
    rig.device.disable_kicks()
    rig.device.enable_kicks()
    assert rig.driver.avail_event[0] == 0x5A5A


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("event_idx", [False, True])
def test_enabled_notifications_ask_for_the_next_kick(
    memory: GuestMemory, event_idx: bool, start: int
) -> None:
    rig = build(memory, event_idx=event_idx, start=start)
    for _ in range(3):
        rig.device.disable_kicks()
        rig.device.enable_kicks()
        rig.offer()
        assert rig.driver.should_kick()
        rig.device.pop()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("event_idx", [False, True])
def test_disabled_notifications_ask_for_no_kick_for_what_follows(
    memory: GuestMemory, event_idx: bool, start: int
) -> None:
    rig = build(memory, event_idx=event_idx, start=start)
    rig.device.enable_kicks()
    rig.offer()
    assert rig.driver.should_kick()
    rig.device.disable_kicks()
    rig.offer()
    assert not rig.driver.should_kick()


@pytest.mark.parametrize("event_idx", [False, True])
def test_enabling_notifications_says_whether_buffers_came_meanwhile(
    memory: GuestMemory, event_idx: bool
) -> None:
    rig = build(memory, event_idx=event_idx)
    assert not rig.device.enable_kicks()
    rig.offer()
    assert rig.device.enable_kicks()
    rig.pop()
    assert not rig.device.enable_kicks()


@pytest.mark.parametrize("event_idx", [False, True])
def test_enabling_notifications_counts_buffers_that_were_seen_but_not_popped(
    memory: GuestMemory, event_idx: bool
) -> None:
    rig = build(memory, event_idx=event_idx)
    rig.offer()
    rig.offer()
    rig.pop()
    assert rig.device.enable_kicks()


# "If the idx field in the available ring (which determined where that descriptor index was placed)
# was equal to avail_event, the driver MUST send a notification." (2.7.10.1)
@pytest.mark.parametrize("count", range(5))
@pytest.mark.parametrize("start", STARTS)
def test_with_event_idx_a_kick_is_due_when_entry_avail_event_was_written(
    memory: GuestMemory, start: int, count: int
) -> None:
    written = {(start + offset) % 65536 for offset in range(count)}
    for offset in range(-3, 8):
        rig = build(memory, event_idx=True, start=start)
        rig.driver.avail_event[0] = avail_event = (start + offset) % 65536
        for _ in range(count):
            rig.offer()
        assert rig.driver.should_kick() == (avail_event in written), avail_event
