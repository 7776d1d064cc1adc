"""What is in flight, where a frontend keeps it (Inflight I/O tracking), of split rings."""

import mmap
import os
from collections.abc import Sequence
from functools import partial

import pytest

from virtiopy._native import CData, ffi
from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.problems import BrokenError, NotApplicableError, blaming
from virtiopy.conformance.sessions.vhostuser import VhostUserSession
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.layout import INDEX_MODULUS


class Regions:
    """The regions of the queues, in the file that the backend has given."""

    def __init__(self, session: VhostUserSession) -> None:
        file = session.inflight
        area = file.area
        size = os.fstat(file.fd).st_size
        least = area.num_queues * (
            ffi.sizeof("struct vhost_user_queue_region")
            + area.queue_size * ffi.sizeof("struct vhost_user_desc_state")
        )
        if area.mmap_size < least or size < area.mmap_offset + area.mmap_size:
            raise BrokenError(
                f"the area has {area.mmap_size} bytes of a file of {size}: {least} are needed",
                "GET_INFLIGHT_FD:1",
            )
        self._stride = area.mmap_size // area.num_queues
        self._offset = area.mmap_offset
        self._map = mmap.mmap(file.fd, area.mmap_offset + area.mmap_size)

    def of(self, index: int) -> CData:
        """Return the region of a queue, a struct vhost_user_queue_region *."""
        # It is unmapped with the last of these.
        at = memoryview(self._map)[self._offset + index * self._stride :]
        return ffi.from_buffer("struct vhost_user_queue_region *", at)


@pytest.fixture
def regions(vhost_user: VhostUserSession, driver: DeviceDriver) -> Regions:
    """Start the device, and return the regions of its queues."""
    driver.start()
    return Regions(vhost_user)


@pytest.mark.clause("GET_INFLIGHT_FD:1", "communication:3", "inflight:1")
def test_there_is_a_region_for_each_queue(
    regions: Regions, vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    driver.good()
    region = regions.of(driver.main_queue)
    with blaming("inflight:1"):
        same(region.version, 1, "the region's version")
        same(region.desc_num, vhost_user.inflight.area.queue_size, "the region's desc_num")


def are_done(region: CData, heads: Sequence[int]) -> bool:
    """Say whether none of these heads is in flight."""
    return not any(region.desc[head].inflight for head in heads)


@pytest.mark.clause("inflight:2", "inflight:3")
def test_what_was_used_is_not_in_flight(
    regions: Regions, vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    queue = vhost_user.queues[driver.main_queue]
    region = regions.of(driver.main_queue)
    for _ in range(3):
        sent = driver.place_some(driver.good_request() for _ in range(4))
        driver.offer(*sent)
        for one in sent:
            driver.finish(one)
        with blaming("inflight:2"):
            # An entry may be written after the used ring.
            heads = [one.head for one in sent]
            vhost_user.wait(f"heads {heads} not in flight", partial(are_done, region, heads))
        with blaming("inflight:3"):
            vhost_user.wait(
                "used_idx as in the used ring", lambda: region.used_idx == queue.used_idx
            )


@pytest.mark.clause("inflight:4")
def test_counters_have_the_order_in_which_heads_were_made_available(
    regions: Regions, vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    region = regions.of(driver.main_queue)
    last = -1
    for _ in range(3):
        sent = driver.place_some(driver.good_request() for _ in range(4))
        driver.offer(*sent)
        for one in sent:
            driver.finish(one)
        counters = [int(region.desc[one.head].counter) for one in sent]
        assert all(a < b for a, b in zip([last, *counters], counters, strict=False)), (
            f"the counters are {counters}, after {last}"
        )
        last = counters[-1]


def stop_all(session: VhostUserSession) -> None:
    """Stop the rings, in no order that a frontend would not have."""
    for index in sorted(session.queues):
        session.stop_queue(index)


@pytest.mark.clause("inflight:5")
def test_what_was_in_flight_is_carried_out_once_by_the_next_backend(
    regions: Regions, vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    """As after a backend that was killed with two requests taken, and the second of them used."""
    if not driver.can_reconnect or vhost_user.device_id is DeviceId.NETWORK:
        raise NotApplicableError(
            "the device has a state that no new backend knows, or loses frames"
        )
    driver.good()
    stop_all(vhost_user)
    index = driver.main_queue
    queue = vhost_user.queues[index]
    first, second = (driver.place(driver.good_request()) for _ in range(2))
    queue.make_available(first.head, second.head)
    before = queue.used_idx
    queue.use(second.head)
    assert [one.head for one in queue.take_all_used()] == [second.head], "the suite's own doing"
    region = regions.of(index)
    region.desc[first.head].inflight = 1
    region.desc[first.head].counter = 1 << 20
    region.used_idx = queue.used_idx
    vhost_user.reconnect()
    first.request.stimulus()
    vhost_user.kick(index)
    with blaming("inflight:5"):
        driver.finish(first)
        driver.good()
        last = (before + 3) % INDEX_MODULUS
        same(queue.used_idx, last, "idx of the used ring, three requests later")


@pytest.mark.clause("inflight:5")
def test_a_batch_that_was_used_is_not_carried_out_again(
    regions: Regions, vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    """As after a backend that was killed between the used ring and the region."""
    if not driver.can_reconnect:
        raise NotApplicableError("the device has a state that no new backend knows")
    sent = driver.place(driver.good_request())
    driver.offer(sent)
    driver.finish(sent)
    stop_all(vhost_user)
    index = driver.main_queue
    queue = vhost_user.queues[index]
    before = queue.used_idx
    region = regions.of(index)
    region.desc[sent.head].inflight = 1
    region.last_batch_head = sent.head
    region.used_idx = (before - 1) % INDEX_MODULUS
    vhost_user.reconnect()
    vhost_user.kick(index)
    with blaming("inflight:5"):
        vhost_user.never("a request is used again", lambda: queue.used_idx != before)
        driver.good()
    same(queue.used_idx, (before + 1) % INDEX_MODULUS, "idx of the used ring, one request later")
