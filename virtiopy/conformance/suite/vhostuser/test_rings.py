"""The life of rings behind a backend (Ring states, Suspended device state, SET_VRING_*)."""

import os
import select
from collections.abc import Callable, Mapping
from functools import partial

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.drivers.blk import SECTOR, BlkDriver, Type, pattern
from virtiopy.conformance.problems import BrokenError, NotApplicableError, blaming
from virtiopy.conformance.sessions.memory import changed
from virtiopy.conformance.sessions.queue import SessionQueue
from virtiopy.conformance.sessions.vhostuser import VhostUserSession
from virtiopy.vhost.user.messages import BackendRequest, ProtocolFeature
from virtiopy.virtqueue.layout import INDEX_MODULUS

#: What a backend may ask for only where something was negotiated that is not here.
ASKED: Mapping[int, str] = {
    BackendRequest.CONFIG_CHANGE_MSG: "BACKEND_CONFIG_CHANGE_MSG:1",
    BackendRequest.IOTLB_MSG: "BACKEND_IOTLB_MSG:1",
    BackendRequest.VRING_HOST_NOTIFIER_MSG: "BACKEND_VRING_HOST_NOTIFIER_MSG:1",
    BackendRequest.VRING_CALL: "BACKEND_VRING_CALL:1",
    BackendRequest.VRING_ERR: "BACKEND_VRING_CALL:1",
}

#: Requests of which some are in flight when a ring is stopped.
SEVERAL = 16


def prepare(session: VhostUserSession, driver: DeviceDriver, base: int = 0) -> int:
    """Start all rings but the main one, which goes on at `base`; returns its index."""
    session.negotiate()
    for index in driver.choose_queues(session.queue_count):
        session.set_up_queue(index)
    session.queues[driver.main_queue].go_on_at(base)
    session.driver_ok(but=[driver.main_queue])
    return driver.main_queue


def comes(session: VhostUserSession, condition: Callable[[], object]) -> bool:
    """Say whether something that need not come does, now or within a little time."""
    try:
        session.never("", condition)
    except AssertionError:
        return True
    return False


# Started and stopped


@pytest.mark.clause("ring-states:3", "ring-states:7")
def test_a_kick_starts_a_ring(vhost_user: VhostUserSession, driver: DeviceDriver) -> None:
    index = prepare(vhost_user, driver)
    vhost_user.start_queue(index)
    sent = driver.place(driver.good_request())
    vhost_user.queues[index].make_available(sent.head)
    vhost_user.kick(index)
    sent.request.stimulus()
    driver.finish(sent)


@pytest.mark.clause("ring-states:4", "ring-states:1")
def test_a_ring_that_was_stopped_is_not_processed(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    driver.start()
    driver.good()
    index = driver.main_queue
    base = vhost_user.stop_queue(index)
    queue = vhost_user.queues[index]
    before = queue.used_part()
    sent = driver.place(driver.good_request())
    queue.make_available(sent.head)
    vhost_user.kick(index)
    sent.request.stimulus()
    vhost_user.never(
        "a ring that GET_VRING_BASE has stopped was processed",
        lambda: queue.used_part() != before,
    )
    vhost_user.start_queue(index, base)
    vhost_user.kick(index)
    driver.finish(sent)


@pytest.mark.clause("suspended:1", "suspended:2", "suspended:3", "suspended:4")
def test_a_device_whose_rings_are_all_stopped_is_silent_and_answers(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    driver.start()
    driver.good()
    for index in sorted(vhost_user.queues):
        vhost_user.stop_queue(index)
        vhost_user.take_notifications(index)
    memory = vhost_user.memory.snapshot()
    for index in vhost_user.queues:
        vhost_user.kick(index)
    with blaming("suspended:2"):
        vhost_user.never(
            "the driver is notified, and all rings are stopped",
            lambda: any(vhost_user.take_notifications(index) for index in vhost_user.queues),
        )
    with blaming("suspended:3"):
        streams = [vhost_user.frontend.connection.socket]
        if (channel := vhost_user.frontend.channel) is not None:
            streams.append(channel.socket)
        spoken = select.select(streams, [], [], 0)[0]
        assert not spoken, "the backend speaks, and all rings are stopped"
    with blaming("suspended:4"):
        vhost_user.check_alive()
    wrong = changed(memory, vhost_user.memory.snapshot(), driver.given_away)
    if wrong is not None:
        words = f"the backend wrote to {wrong:#x}, and all rings are stopped"
        raise BrokenError(words, "suspended:1")


# Enabled and disabled


def has_moved(queue: SessionQueue, used: int) -> bool:
    """Say whether more was used of a queue than up to this index."""
    return queue.used_idx != used


def need_states(session: VhostUserSession) -> None:
    """Make the test not applicable where rings are not enabled by messages."""
    if not session.frontend.has_states:
        raise NotApplicableError("the backend has no protocol features, and so no SET_VRING_ENABLE")


def disabled(session: VhostUserSession, driver: DeviceDriver) -> int:
    """Start the main queue as a frontend that has not enabled it; returns its index."""
    need_states(session)
    index = prepare(session, driver)
    session.start_queue(index, enable=False)
    return index


@pytest.mark.clause("ring-states:8", "SET_VRING_ENABLE:1")
def test_a_request_to_a_ring_that_is_disabled_is_carried_out_when_that_is_enabled(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    """Unless it was used before: what is then discarded depends on the device."""
    index = disabled(vhost_user, driver)
    queue = vhost_user.queues[index]
    sent = driver.place(driver.good_request())
    queue.make_available(sent.head)
    vhost_user.kick(index)
    sent.request.stimulus()
    early = comes(vhost_user, lambda: queue.used_idx)
    vhost_user.frontend.enable_ring(index)
    if early:
        vhost_user.wait_for(index, sent.head)
    else:
        driver.finish(sent)
    driver.good()


@pytest.mark.clause("ring-states:5")
def test_no_write_to_a_disk_is_carried_out_while_its_ring_is_disabled(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    if not isinstance(driver, BlkDriver):
        raise NotApplicableError("what a request does to the host's side is seen of disks alone")
    blk = driver
    if vhost_user.offers("VIRTIO_BLK_F_RO"):
        raise NotApplicableError("the disk is read-only")
    blk.start()
    before = blk.read(3)
    vhost_user.reset()
    index = disabled(vhost_user, blk)
    queue = vhost_user.queues[index]
    # The disk may be that of a test before.
    data = next(some for some in (pattern(1, seed=77), pattern(1, seed=78)) if some != before)
    sent = blk.place(blk.request(Type.OUT, 3, data))
    queue.make_available(sent.head)
    vhost_user.kick(index)
    if comes(vhost_user, lambda: queue.used_idx):
        # It was processed: without side effects, as is looked at.
        vhost_user.wait_for(index, sent.head)
        vhost_user.frontend.enable_ring(index)
        same(blk.read(3), before, "the sector of a write to a disabled ring")
        return
    vhost_user.frontend.enable_ring(index)
    blk.finish(sent)
    same(blk.read(3), data[:SECTOR], "the sector, when the ring was enabled")


@pytest.mark.clause("ring-states:10")
def test_a_ring_that_was_enabled_while_it_was_stopped_is_enabled(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    need_states(vhost_user)
    index = prepare(vhost_user, driver)
    vhost_user.frontend.enable_ring(index)
    vhost_user.start_queue(index, enable=False)
    with blaming("ring-states:10"):
        driver.good()


@pytest.mark.clause("SET_VRING_ENABLE:1")
def test_a_ring_is_disabled_and_enabled_again_and_again(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    need_states(vhost_user)
    driver.start()
    index = driver.main_queue
    for _ in range(5):
        vhost_user.frontend.enable_ring(index, enable=False)
        vhost_user.frontend.enable_ring(index)
        driver.good()


@pytest.mark.clause("ring-states:9", "communication:6")
def test_all_rings_are_enabled_for_a_frontend_that_knows_no_protocol_features(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    vhost_user.forget_protocol_features()
    driver.start([])
    with blaming("ring-states:9"):
        driver.good()


# What is set of a ring


@pytest.mark.clause("SET_VRING_CALL:1", "ring-states:11")
def test_the_call_eventfd_is_changed_while_the_ring_is_processed(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    driver.start()
    driver.good()
    index = driver.main_queue
    with blaming("SET_VRING_CALL:1"):
        vhost_user.wait_notification(index)
    other = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        vhost_user.frontend.set_call(index, other)
        vhost_user.take_notifications(index)
        vhost_user.queues[index].enable_interrupts()
        driver.good()
        with blaming("ring-states:11"):
            ready = select.select([other], [], [], vhost_user.patience)[0]
            assert ready, "the new call eventfd is not written"
            late = vhost_user.take_notifications(index)
            assert not late, "the call eventfd of before is written"
        vhost_user.set_call(index)
    finally:
        os.close(other)


@pytest.mark.clause("SET_VRING_CALL:2")
def test_a_ring_whose_driver_polls_is_worked(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    driver.start()
    driver.good()
    index = driver.main_queue
    vhost_user.frontend.set_call(index, None)
    vhost_user.take_notifications(index)
    for _ in range(3):
        vhost_user.queues[index].enable_interrupts()
        driver.good()
    assert not vhost_user.take_notifications(index), "a call eventfd that was taken away is written"


@pytest.mark.clause("SET_VRING_NUM:1", "SET_VRING_ADDR:1")
@pytest.mark.parametrize("size", [4, 16, 256])
def test_a_ring_is_as_large_as_it_was_said_to_be(
    vhost_user: VhostUserSession, driver: DeviceDriver, size: int
) -> None:
    driver.start(queue_size=size)
    for _ in range(2 * min(size, 32) + 1):
        driver.good()


# Where a ring goes on


@pytest.mark.clause("GET_VRING_BASE:1")
def test_the_base_is_what_is_to_be_processed_next(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    driver.start()
    index = driver.main_queue
    done = vhost_user.queues[index].used_idx
    for count in (3, 2):
        for _ in range(count):
            driver.good()
        done += count
        base = vhost_user.stop_queue(index)
        same(base, vhost_user.queues[index].used_idx, "the base of a ring with nothing in flight")
        vhost_user.start_queue(index, base)
        with blaming("ring-states:7"):
            driver.good()
        done += 1


@pytest.mark.clause("SET_VRING_BASE:1")
@pytest.mark.parametrize("start", [1, 0x7FFF, INDEX_MODULUS - 3])
def test_a_ring_goes_on_at_the_base_that_was_set(
    vhost_user: VhostUserSession, driver: DeviceDriver, start: int
) -> None:
    """As of a driver whose ring was worked by another backend before, with as many requests."""
    index = prepare(vhost_user, driver, start)
    vhost_user.start_queue(index, start)
    for count in range(1, 6):
        driver.good()
        expected = (start + count) % INDEX_MODULUS
        same(vhost_user.queues[index].used_idx, expected, "idx of the used ring")
    same(vhost_user.stop_queue(index), expected, "the base")


@pytest.mark.clause("GET_VRING_BASE:2")
def test_what_is_in_flight_is_completed_before_a_ring_stops(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    driver.start()
    index = driver.main_queue
    queue = vhost_user.queues[index]
    for _ in range(3):
        sent = driver.place_some(driver.long_request() for _ in range(SEVERAL))
        driver.offer(*sent)
        base = vhost_user.stop_queue(index)
        used = queue.used_idx
        assert base == used, (
            f"the backend has taken requests up to {base}, and used them up to {used}, and stops"
        )
        later = comes(vhost_user, partial(has_moved, queue, used))
        assert not later, "a request is used after the reply to GET_VRING_BASE"
        vhost_user.start_queue(index, base)
        vhost_user.kick(index)
        for one in sent:
            driver.finish(one)


@pytest.mark.clause("communication:5")
def test_a_frontend_that_keeps_to_the_protocol_is_not_left(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    """It stops a guest and has it go on, and resets it."""
    with blaming("communication:5"):
        driver.start()
        driver.good()
        bases = {index: vhost_user.stop_queue(index) for index in sorted(vhost_user.queues)}
        for index, base in bases.items():
            vhost_user.start_queue(index, base)
        driver.good()
        vhost_user.check_alive()
        vhost_user.reset()
        driver.start()
        driver.good()
        vhost_user.check_alive()


# Reset


@pytest.mark.clause("RESET_DEVICE:2", "RESET_DEVICE:1")
def test_a_device_that_was_reset_is_set_up_anew_in_the_same_session(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    vhost_user.require_protocol(ProtocolFeature.RESET_DEVICE)
    driver.start()
    driver.good()
    index = driver.main_queue
    queue = vhost_user.queues[index]
    vhost_user.frontend.reset_device()
    used = queue.used_idx
    sent = driver.place(driver.good_request())
    queue.make_available(sent.head)
    vhost_user.kick(index)
    with blaming("RESET_DEVICE:1"):
        vhost_user.never(
            "a ring of a device that was reset is processed",
            lambda: queue.used_idx != used,
        )
    vhost_user.forget()
    driver.start()
    driver.good()


@pytest.mark.clause("SET_STATUS:1")
def test_the_status_is_what_was_set(vhost_user: VhostUserSession, driver: DeviceDriver) -> None:
    vhost_user.require_protocol(ProtocolFeature.STATUS)
    driver.start()
    driver.good()
    same(vhost_user.status & 0xF, 0xF, "the device status")
    vhost_user.reset()
    same(vhost_user.status, 0, "the device status after a reset")


@pytest.mark.clause(
    "backend-communication:1",
    "BACKEND_CONFIG_CHANGE_MSG:1",
    "BACKEND_IOTLB_MSG:1",
    "BACKEND_VRING_HOST_NOTIFIER_MSG:1",
    "BACKEND_VRING_CALL:1",
)
def test_the_backend_asks_for_nothing_that_was_not_negotiated(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    vhost_user.require_protocol(ProtocolFeature.BACKEND_REQ)
    driver.start()
    driver.good()
    vhost_user.check_alive()
    for message in vhost_user.spoken():
        words = f"the backend sends request {message.request}, for which nothing was negotiated"
        raise BrokenError(words, ASKED.get(message.request, "backend-communication:1"))
