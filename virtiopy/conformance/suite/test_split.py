"""Split virtqueues (2.7): framing, descriptors, indirect tables, notifications both ways."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.base import INDIRECT, DeviceDriver, Framing, Request, bytewise
from virtiopy.conformance.problems import about
from virtiopy.conformance.report.verdict import Judge
from virtiopy.conformance.sessions.base import Session
from virtiopy.virtqueue.layout import (
    DESCRIPTOR_SIZE,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_WRITE,
)

EVENT_IDX = "VIRTIO_F_EVENT_IDX"
INDIRECT_DESC = "VIRTIO_F_INDIRECT_DESC"


def small(driver: DeviceDriver, most: int) -> list[Request]:
    """Return the requests that `most` descriptors of a byte each are enough for."""
    return [r for r in driver.requests() if len(r.readable) + r.room <= most]


# Message framing (2.7.4)


@pytest.mark.clause("2.7.4.1:1")
def test_a_request_is_the_same_in_any_framing(driver: DeviceDriver) -> None:
    driver.start()
    for cut in (1, 2, 3, 7, 8, 15, 16, 17):
        for request in driver.requests():
            ends = (len(request.readable) - cut, request.room - cut)
            driver.do(request, Framing((cut, ends[0]), (cut, ends[1])))


@pytest.mark.clause("2.7.4.1:1")
@pytest.mark.feature(INDIRECT_DESC)
def test_a_request_may_have_a_descriptor_for_each_byte(driver: DeviceDriver) -> None:
    driver.start(queue_size=64)
    for request in small(driver, 64):
        driver.do(request, bytewise(request, direct=0))


@pytest.mark.clause("2.7.4.1:2")
def test_a_chain_as_long_as_the_queue_is_served_or_refused(
    session: Session, driver: DeviceDriver, judge: Judge
) -> None:
    session.reset()
    driver.start(queue_size=16)
    request = driver.good_request()
    size = len(request.readable) + request.room
    cuts = range(1, size, max(1, -(-size // 16)))
    framing = Framing(cuts[:7], cuts[:7])
    judge.check(lambda: driver.offer(driver.place(request, framing)))


# Descriptors (2.7.5)


@pytest.mark.clause("2.7.5.1:1")
def test_device_readable_buffers_stay_as_they_are(session: Session, driver: DeviceDriver) -> None:
    driver.start()
    for request in [*driver.requests(), *driver.telling_requests()]:
        sent = driver.send(request)
        driver.finish(sent)
        readable = [piece for piece in sent.pieces if not piece.writable]
        same(session.content(*readable), request.readable, "a device-readable buffer changed")


@pytest.mark.clause("2.7.5.1:2")
def test_what_was_in_device_writable_buffers_makes_no_difference(
    session: Session, driver: DeviceDriver
) -> None:
    driver.start()
    for filling in (b"\x00", b"\x01", b"\xff"):
        for request in driver.requests():
            sent = driver.place(request)
            for piece in sent.pieces:
                if piece.writable:
                    session.memory.write(piece.address, filling * piece.length)
            driver.offer(sent)
            driver.finish(sent)


@pytest.mark.clause("2.7.5.1:4")
def test_the_descriptor_table_stays_as_it_is(session: Session, driver: DeviceDriver) -> None:
    driver.start()
    for request in driver.requests():
        queue = session.queues[request.queue]
        sent = driver.place(request)
        table = queue.areas.descriptor, DESCRIPTOR_SIZE * queue.size
        before = session.memory.read(*table)
        driver.offer(sent)
        driver.finish(sent)
        same(session.memory.read(*table), before, "the descriptor table changed")


@pytest.mark.clause("2.7.5.3.2:1")
@pytest.mark.feature(INDIRECT_DESC)
def test_the_write_flag_beside_the_indirect_flag_is_ignored(
    session: Session, driver: DeviceDriver
) -> None:
    driver.start()
    for request in driver.requests():
        sent = driver.place(request, INDIRECT)
        queue = session.queues[request.queue]
        table = queue.descriptors[sent.head]
        flags = VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_WRITE
        queue.write_descriptor(sent.head, table.addr, table.len, flags, 0)
        driver.offer(sent)
        driver.finish(sent)


@pytest.mark.clause("2.7.5.3.2:2")
@pytest.mark.feature(INDIRECT_DESC)
def test_direct_descriptors_may_come_before_an_indirect_table(driver: DeviceDriver) -> None:
    driver.start()
    for request in driver.requests():
        # Where a request has parts they stay whole: other framings are 2.7.4.1's.
        parts = request.parts if any(request.parts) else ((4, 9), (4, 9))
        driver.do(request, Framing(*parts, direct=1))


# Used buffer notifications (2.7.7)


@pytest.mark.clause("2.7.7.2:1", "2.7.7.2:3")
def test_without_event_idx_each_used_buffer_is_notified_whatever_used_event_says(
    session: Session, driver: DeviceDriver
) -> None:
    driver.start(without=[EVENT_IDX])
    queue = session.queues[driver.main_queue]
    for used_event in (0, 1, 0x7FFF, 0xFFFF, 2, 100):
        queue.used_event[0] = used_event
        driver.good()
        session.wait_notification(driver.main_queue)


@pytest.mark.clause("2.7.7.2:2")
def test_without_event_idx_no_interrupt_leaves_notifications_out(
    session: Session, driver: DeviceDriver
) -> None:
    driver.start(without=[EVENT_IDX])
    queue = session.queues[driver.main_queue]
    session.take_notifications(driver.main_queue)
    queue.available.flags = VIRTQ_AVAIL_F_NO_INTERRUPT
    for _ in range(8):
        driver.good()
    session.never(
        "a notification came although flags is 1",
        lambda: session.take_notifications(driver.main_queue),
    )
    queue.available.flags = 0
    driver.good()
    session.wait_notification(driver.main_queue)


@pytest.mark.clause("2.7.7.2:4")
@pytest.mark.feature(EVENT_IDX)
def test_with_event_idx_flags_of_the_available_ring_is_ignored(
    session: Session, driver: DeviceDriver
) -> None:
    driver.start()
    queue = session.queues[driver.main_queue]
    queue.available.flags = VIRTQ_AVAIL_F_NO_INTERRUPT
    for _ in range(4):
        queue.used_event[0] = queue.last_used
        driver.good()
        session.wait_notification(driver.main_queue)


@pytest.mark.clause("2.7.7.2:5", "2.7.7.2:6")
@pytest.mark.feature(EVENT_IDX)
def test_with_event_idx_only_the_entry_that_used_event_names_is_notified(
    session: Session, driver: DeviceDriver
) -> None:
    driver.start()
    queue = session.queues[driver.main_queue]
    # used_event is 0: the first entry is notified, soon after it is there.
    driver.good()
    session.wait_notification(driver.main_queue)
    queue.used_event[0] = queue.last_used + 3
    for _ in range(3):
        driver.good()
    with about("2.7.7.2:6"):
        session.never(
            "a notification came before the entry that used_event names",
            lambda: session.take_notifications(driver.main_queue),
        )
    driver.good()
    with about("2.7.7.2:5"):
        count = session.wait_notification(driver.main_queue)
        assert count == 1, f"{count} notifications came, for one entry"
    for _ in range(3):
        driver.good()
    with about("2.7.7.2:6"):
        session.never(
            "a notification came after the entry that used_event names",
            lambda: session.take_notifications(driver.main_queue),
        )


# The used ring (2.7.8)


@pytest.mark.clause("2.7.8.2:1", "2.7.8.2:2")
def test_length_and_content_are_there_before_the_index_counts_them(
    session: Session, driver: DeviceDriver
) -> None:
    driver.start()
    session.queues[driver.main_queue].corrupt_used_entries()
    for _ in range(100):
        driver.good()


# Available buffer notifications (2.7.10)


@pytest.mark.clause("2.7.10.2:1", "2.7.10.2:2")
def test_without_event_idx_flags_of_the_used_ring_is_0_or_1(
    session: Session, driver: DeviceDriver
) -> None:
    driver.start(without=[EVENT_IDX])
    queue = session.queues[driver.main_queue]
    for _ in range(50):
        sent = driver.send(driver.good_request())
        assert queue.used.flags in {0, 1}, f"flags of the used ring is {queue.used.flags}"
        driver.finish(sent)
        assert queue.used.flags in {0, 1}, f"flags of the used ring is {queue.used.flags}"


@pytest.mark.clause("2.7.10.2:3")
@pytest.mark.feature(EVENT_IDX)
def test_with_event_idx_flags_of_the_used_ring_is_0(session: Session, driver: DeviceDriver) -> None:
    driver.start()
    queue = session.queues[driver.main_queue]
    for _ in range(50):
        sent = driver.send(driver.good_request())
        same(queue.used.flags, 0, "flags of the used ring")
        driver.finish(sent)
        same(queue.used.flags, 0, "flags of the used ring")


@pytest.mark.clause("2.7.10.2:2", "2.7.10.2:4")
@pytest.mark.parametrize("without", [[], [EVENT_IDX]], ids=["event_idx", "flags"])
def test_buffers_are_served_when_only_kicks_that_are_asked_for_are_sent(
    driver: DeviceDriver, without: list[str]
) -> None:
    driver.start(without=without)
    for count in (1, 2, 5, 8, 3):
        sent = driver.place_some(driver.good_request() for _ in range(count))
        driver.offer(*sent)
        for one in sent:
            driver.finish(one)


@pytest.mark.clause("2.7.10.2:5")
def test_kicks_with_nothing_new_do_no_harm(session: Session, driver: DeviceDriver) -> None:
    driver.start()
    queue = session.queues[driver.main_queue]
    for _ in range(10):
        session.kick(driver.main_queue)
    driver.good()
    session.kick(driver.main_queue)
    session.never("a buffer was used twice", lambda: queue.used_idx != 1)
    driver.good()
